//! A pusher and eight readers: no reader ever sees a state older than one whose push was over before its
//! request began.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tarn_testkit::upstream::{Fault, Operation};

use crate::scene::Scene;

/// What the readers saw.
#[derive(Debug, Default)]
struct Seen {
    verified: u64,
    stale: u64,
    errors: u64,
}

/// The history of one branch: which push made which commit, and which pushes are over.
#[derive(Default)]
struct History {
    pushes: Mutex<HashMap<String, u64>>,
    /// Number of the newest push that is over.
    over: AtomicU64,
    end: AtomicBool,
}

impl History {
    async fn push(&self, scene: &Scene) -> Result<()> {
        let mut number = 0;
        while !self.end.load(Ordering::SeqCst) {
            number += 1;
            // The commit becomes known here before the branch names it.
            let commit = scene.origin.commit("staged", &[("number", &number.to_string())]).await?;
            self.pushes.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.insert(commit.clone(), number);
            scene.origin.git(&["update-ref", "refs/heads/main", &commit]).await?;
            self.over.store(number, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Reads until the end; an answer that is not marked stale must be as new as the pushes that were over.
    async fn read(&self, scene: &Scene) -> Result<Seen> {
        let target = format!("{}/info/refs?service=git-upload-pack", scene.path());
        let mut seen = Seen::default();
        while !self.end.load(Ordering::SeqCst) {
            let floor = self.over.load(Ordering::SeqCst);
            let answer = scene.agent.get(&target).await?;
            if answer.status != 200 {
                ensure!(answer.status == 503, "{}: {}", answer.status, answer.text());
                seen.errors += 1;
                continue;
            }
            if answer.header("tarn-freshness").is_some_and(|freshness| freshness.starts_with("stale")) {
                seen.stale += 1;
                continue;
            }
            let text = answer.text();
            let line = text.lines().find(|line| line.ends_with(" refs/heads/main")).context("no main")?;
            let commit = line.get(4..44).context("a short line")?;
            let pushes = self.pushes.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
            let number = pushes.get(commit).copied().unwrap_or(0);
            ensure!(number >= floor, "push {floor} was over, and {number} was shown");
            seen.verified += 1;
        }
        Ok(seen)
    }
}

async fn run(scene: &Scene, time: Duration) -> Result<Seen> {
    let history = History::default();
    let stop = async {
        tokio::time::sleep(time).await;
        history.end.store(true, Ordering::SeqCst);
        anyhow::Ok(())
    };
    let readers = futures_util::future::try_join_all((0..8).map(|_| history.read(scene)));
    let ((), (), seen) = tokio::try_join!(stop, history.push(scene), readers)?;
    let pushes = history.over.load(Ordering::SeqCst);
    let sum = seen.iter().fold(Seen::default(), |sum, seen| Seen {
        verified: sum.verified + seen.verified,
        stale: sum.stale + seen.stale,
        errors: sum.errors + seen.errors,
    });
    ensure!(pushes >= 10 && sum.verified >= 100, "too little to tell: {pushes} pushes, {sum:?}");
    Ok(sum)
}

#[tokio::test]
async fn no_reader_sees_a_state_older_than_a_push_that_was_over() -> Result<()> {
    let scene = Scene::ready().await?;
    let seen = run(&scene, Duration::from_secs(60)).await?;
    ensure!(seen.errors == 0 && seen.stale == 0, "{seen:?}");
    Ok(())
}

/// One look in twenty fails; each is tried once more, so one answer in 400 rests on none.
fn unreliable(scene: &Scene) {
    scene.upstream.fault_on(Operation::LsRefs, Fault::FailRatio { ratio: 0.05, seed: 7 });
}

#[tokio::test]
async fn with_failing_looks_and_fail_there_are_errors_but_no_old_answers() -> Result<()> {
    let scene = Scene::with(&["freshness: {onUpstreamFailure: Fail}"]).await?;
    unreliable(&scene);
    let seen = run(&scene, Duration::from_secs(20)).await?;
    ensure!(seen.stale == 0, "{seen:?}");
    Ok(())
}

#[tokio::test]
async fn with_failing_looks_and_serve_stale_every_old_answer_says_so_and_few_are() -> Result<()> {
    let scene = Scene::ready().await?;
    unreliable(&scene);
    let seen = run(&scene, Duration::from_secs(20)).await?;
    ensure!(seen.errors == 0, "{seen:?}");
    ensure!(seen.stale * 100 < seen.verified + seen.stale, "{seen:?}");
    Ok(())
}
