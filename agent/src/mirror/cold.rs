//! Answers that are streamed from the store while the disk is still empty. What could wait keeps the link free for
//! them, but not for ever.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};

/// How long restores wait for such answers to end.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Counts them.
#[derive(Debug)]
pub struct Cold {
    streams: watch::Sender<usize>,
}

/// One of them, while it lives.
#[derive(Debug)]
pub struct Stream {
    streams: watch::Sender<usize>,
}

impl Default for Cold {
    fn default() -> Self {
        Self { streams: watch::Sender::new(0) }
    }
}

impl Cold {
    /// Another one begins.
    pub fn begin(&self) -> Arc<Stream> {
        self.streams.send_modify(|count| *count += 1);
        Arc::new(Stream { streams: self.streams.clone() })
    }

    /// Waits until one is under way.
    pub async fn begun(&self) {
        let mut streams = self.streams.subscribe();
        // The sender lives as long as this.
        let _ = streams.wait_for(|count| *count > 0).await;
    }

    /// Waits until none is under way, but no longer than a minute.
    pub async fn over(&self) {
        let mut streams = self.streams.subscribe();
        let _ = timeout(MAX_WAIT, streams.wait_for(|count| *count == 0)).await;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.streams.send_modify(|count| *count = count.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_wait_ends_with_the_last_stream() {
        let cold = Arc::new(Cold::default());
        cold.over().await;
        let (one, two) = (cold.begin(), cold.begin());
        let waiting = cold.clone();
        let over = tokio::spawn(async move { waiting.over().await });
        drop(one);
        tokio::task::yield_now().await;
        assert!(!over.is_finished());
        drop(two);
        over.await.unwrap();
    }
}
