//! Plays a test: the release is there, the namespace is its own, and what it leaves is removed, or shown if it failed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::RwLock;

use crate::scene::Scene;
use crate::{dump, release, settings};

/// Far longer than any test takes: one that hangs should be seen to.
const LIMIT: Duration = Duration::from_secs(600);

/// Held for writing by tests that take something away from all others.
static STAGE: RwLock<()> = RwLock::const_new(());

/// Plays a test beside others.
pub async fn play(name: &str, test: impl AsyncFnOnce(&Scene) -> Result<()>) -> Result<()> {
    let _stage = STAGE.read().await;
    perform(name, test).await
}

/// Plays a test while no other is played.
pub async fn play_alone(name: &str, test: impl AsyncFnOnce(&Scene) -> Result<()>) -> Result<()> {
    let _stage = STAGE.write().await;
    perform(name, test).await
}

async fn perform(name: &str, test: impl AsyncFnOnce(&Scene) -> Result<()>) -> Result<()> {
    let began = Instant::now();
    release::ensure_installed().await?;
    let scene = Scene::create(name).await?;
    let done = tokio::time::timeout(LIMIT, test(&scene)).await;
    let done = done.with_context(|| format!("{name} did not end within {LIMIT:?}")).flatten();
    if let Err(error) = &done {
        // Said before the dump too: where output is cut short, its beginning is what stays.
        note(&format!("{name} failed: {error:#}"));
        dump::dump(&scene).await;
    }
    note(&format!("{name}: {:.0} s", began.elapsed().as_secs_f64()));
    if !settings::keep() {
        scene.remove().await?;
    }
    done
}

/// What a test measured, for those who read the output of a run; shown with `--nocapture`, or when the test fails.
#[expect(clippy::print_stderr, reason = "this way the test runner keeps it to its test")]
pub fn note(text: &str) {
    eprintln!("{text}");
}
