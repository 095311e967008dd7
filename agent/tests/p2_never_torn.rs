//! P2: a reader sees one state of the upstream, never a mixture of two.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tarn_testkit::git::Refs;
use tokio_util::sync::CancellationToken;

use crate::scene::Scene;

const BRANCHES: usize = 300;

/// Between two moves: a busy upstream, and time for a few looks in each state.
const PACE: Duration = Duration::from_millis(50);

/// An upstream whose 300 branches stand at the first of many commits.
struct Moving {
    scene: Scene,
    /// The first commit, then those the branches move to.
    commits: Vec<String>,
    packed_refs: String,
}

impl Moving {
    async fn ready() -> Result<Self> {
        let mut commits = Vec::new();
        let scene = Scene::prepared(&[], async |_, origin| {
            origin.grow("source", 500, 100, 1).await?;
            let listed = origin.git(&["rev-list", "--reverse", "source"]).await?;
            commits = listed.lines().map(str::to_owned).collect();
            let first = commits.first().context("no commits")?;
            let moves: Vec<_> =
                (0..BRANCHES).map(|number| (format!("refs/heads/moving/{number}"), first.clone())).collect();
            // The source is gone: a clone gets the commits of its state and no more. HEAD's own branch stays
            // where it is: see [`Repo::move_refs_atomically`].
            origin.delete_ref("refs/heads/source").await?;
            origin.move_refs_atomically(&moves).await
        })
        .await?;
        scene.agent.wait_phase(&scene.repo(), "Ready").await?;
        let packed_refs = std::fs::read_to_string(scene.origin.git_dir().join("packed-refs"))?;
        Ok(Self { scene, commits, packed_refs })
    }

    /// Moves all branches in one instant, to one commit after another, until `work` is done; then gives back
    /// how often. `work` may ask meanwhile. On a thread of its own: starting many children holds this one up.
    async fn while_moving<T>(&self, work: impl AsyncFnOnce(&AtomicUsize) -> Result<T>) -> Result<(T, usize)> {
        let (moved, over) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let _ended = over.clone().drop_guard();
        let (origin, packed_refs, commits) =
            (self.scene.origin.clone(), self.packed_refs.clone(), self.commits.clone());
        let counted = moved.clone();
        let mover = tokio::task::spawn_blocking(move || {
            let first = commits.first().context("no commits")?;
            // There and back: there is always a next state.
            for commit in commits.iter().skip(1).chain(commits.iter().rev()).cycle() {
                #[expect(clippy::disallowed_methods, reason = "the thread is this one's own")]
                std::thread::sleep(PACE);
                if over.is_cancelled() {
                    break;
                }
                origin.replace_packed_refs(&packed_refs.replace(first, commit))?;
                counted.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
        let done = tokio::select! {
            stopped = mover => anyhow::bail!("the mover stopped: {stopped:?}"),
            done = work(&moved) => done?,
        };
        Ok((done, moved.load(Ordering::Relaxed)))
    }
}

/// The one commit all moving branches stand at.
fn state(refs: &Refs) -> Result<String> {
    let moving = refs.iter().filter(|(name, _)| name.starts_with("refs/heads/moving/"));
    let (count, states) = moving.fold((0, BTreeSet::new()), |(count, mut states), (_, oid)| {
        states.insert(oid.clone());
        (count + 1, states)
    });
    ensure!(count == BRANCHES, "{count} of {BRANCHES} branches");
    ensure!(states.len() == 1, "a mixture of {} states", states.len());
    Ok(states.into_iter().next().unwrap_or_default())
}

#[tokio::test]
async fn refs_read_in_a_loop_while_300_branches_move_are_never_a_mixture() -> Result<()> {
    let moving = Moving::ready().await?;
    let scene = &moving.scene;
    let reader = async |version: &str| {
        let git = scene.git.clone().with_config("protocol.version", version);
        let (start, mut reads, mut states) = (Instant::now(), 0, BTreeSet::new());
        while start.elapsed() < Duration::from_secs(10) {
            states.insert(state(&git.ls_remote(&scene.url()?).await?)?);
            reads += 1;
        }
        anyhow::Ok((reads, states.len()))
    };
    let readers = async |_: &_| tokio::try_join!(reader("2"), reader("2"), reader("0"), reader("1"));
    let ((a, b, c, d), moved) = Box::pin(moving.while_moving(readers)).await?;
    let reads = a.0 + b.0 + c.0 + d.0;
    let states = a.1.max(b.1).max(c.1).max(d.1);
    // A reader that saw one state only would prove nothing.
    assert!(moved >= 5 && states >= 3 && reads >= 20, "{moved} moves, {reads} reads, {states} states");
    Ok(())
}

#[tokio::test]
async fn the_mirror_on_disk_is_never_a_mixture_for_whoever_reads_it() -> Result<()> {
    let moving = Moving::ready().await?;
    let scene = &moving.scene;
    let mirror = crate::p4_never_stuck::mirror_dir(&scene.agent)?;
    let url = tarn_testkit::git::file_url(&mirror);
    let reader = async |_: &_| {
        let (start, mut states) = (Instant::now(), BTreeSet::new());
        while start.elapsed() < Duration::from_secs(6) {
            states.insert(state(&scene.git.ls_remote(&url).await?)?);
            // Drives fetches.
            scene.refs().await?;
        }
        anyhow::Ok(states.len())
    };
    let (states, moved) = moving.while_moving(reader).await?;
    assert!(moved >= 3 && states >= 2, "{moved} moves, {states} states");
    Ok(())
}

#[tokio::test]
async fn thirty_two_clones_at_once_while_the_upstream_moves_each_hold_one_state() -> Result<()> {
    let moving = Moving::ready().await?;
    let scene = &moving.scene;
    let one = async |number: usize| {
        let version = ["0", "1", "2", "2"][number % 4];
        let git = scene.git.clone().with_config("protocol.version", version);
        let place = scene.place(&format!("clone-{number}"));
        let clone = git.clone_repo(&scene.url()?, &place, &["--mirror"]).await?;
        clone.fsck().await?;
        state(&clone.refs().await?)
    };
    // A fast machine is done with a round before the upstream has moved twice.
    let rounds = async |moved: &AtomicUsize| {
        let mut states = 0;
        for round in 0.. {
            let clones = (0..32).map(|number| one(32 * round + number));
            states += futures_util::future::try_join_all(clones).await?.len();
            if moved.load(Ordering::Relaxed) >= 2 {
                break;
            }
        }
        anyhow::Ok(states)
    };
    let (states, moved) = moving.while_moving(rounds).await?;
    assert!(states >= 32 && moved >= 2, "{states} clones, {moved} moves");
    Ok(())
}

#[tokio::test]
async fn what_an_answer_names_can_be_fetched_although_the_upstream_moved_on() -> Result<()> {
    let scene = Scene::ready().await?;
    for version in ["0", "2"] {
        let doomed = scene.origin.commit("main", &[("doomed", version)]).await?;
        let git = scene.git.clone().with_config("protocol.version", version);
        assert_eq!(git.ls_remote(&scene.url()?).await?["HEAD"], doomed);
        let root = scene.origin.rev_parse("main~1").await?;
        scene.origin.set_ref("refs/heads/main", &root).await?;
        assert_eq!(git.ls_remote(&scene.url()?).await?["HEAD"], root);
        // A slow client comes with what it was told before the force-push.
        let clone = git.clone_repo(&scene.url()?, &scene.place(&format!("v{version}")), &[]).await?;
        clone
            .git(&["-c", &format!("protocol.version={version}"), "fetch", "--quiet", "origin", &doomed])
            .await?;
        assert_eq!(clone.rev_parse("FETCH_HEAD").await?, doomed);
        clone.fsck().await?;
    }
    Ok(())
}
