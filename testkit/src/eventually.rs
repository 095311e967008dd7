//! Waiting for a condition by asking again, so that no test sleeps for a guessed time.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Time between two questions: short against anything a test waits for, long against a loopback request.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks `probe` again and again until it answers `Ok`, and gives that answer back.
///
/// An `Err` says what is still missing. When `timeout` has passed, the last one becomes the failure's text,
/// after `what` was waited for. A probe that hangs is cut off at the timeout as well.
pub async fn eventually<T, E, F>(timeout: Duration, what: &str, probe: F) -> Result<T>
where
    F: AsyncFnMut() -> Result<T, E>,
    E: Display,
{
    eventually_every(PAUSE, timeout, what, probe).await
}

/// As [`eventually`], with another time between two questions: where asking is dear.
pub async fn eventually_every<T, E, F>(
    pause: Duration,
    timeout: Duration,
    what: &str,
    mut probe: F,
) -> Result<T>
where
    F: AsyncFnMut() -> Result<T, E>,
    E: Display,
{
    let start = Instant::now();
    let mut last = String::from("no answer yet");
    let mut asked = 0_u32;
    loop {
        let left = timeout.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(anyhow!("waited {timeout:?} for {what} (asked {asked} times); last: {last}"));
        }
        match tokio::time::timeout(left, probe()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => last = format!("{error:#}"),
            Err(_) => last = format!("{last}; then one question hung"),
        }
        asked += 1;
        tokio::time::sleep(pause.min(timeout.saturating_sub(start.elapsed()))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn gives_back_the_first_good_answer() {
        let mut asked = 0;
        let answer = eventually(Duration::from_secs(5), "three questions", async || {
            asked += 1;
            if asked < 3 { Err(format!("only {asked}")) } else { Ok(asked) }
        })
        .await
        .unwrap();
        assert_eq!(answer, 3);
    }

    #[tokio::test]
    async fn says_what_was_missing_when_time_is_up() {
        let failure = eventually(Duration::from_millis(50), "the moon", async || Err::<(), _>("still dark"))
            .await
            .unwrap_err()
            .to_string();
        assert!(failure.contains("the moon") && failure.contains("still dark"), "{failure}");
    }

    #[tokio::test]
    async fn cuts_off_a_question_that_hangs() {
        let failure = eventually(Duration::from_millis(50), "an answer", async || {
            std::future::pending::<Result<(), String>>().await
        })
        .await
        .unwrap_err();
        assert!(failure.to_string().contains("hung"), "{failure}");
    }
}
