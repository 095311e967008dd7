//! Packs ahead of demand: after a push the first client finds its pack, as all others do.

use std::time::Duration;

use anyhow::{Result, ensure};
use tarn_testkit::agent::{Agent, PATIENCE};
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::Repo;

use crate::scene::{Scene, agent};

/// The mirror is brought up to date when the test says so.
const SPEC: &[&str] = &["interval: 1h"];

/// How often the cache had an answer, and how often it had to be made for whoever asked.
async fn lookups(agent: &Agent) -> Result<(u64, u64)> {
    let of =
        async |result: &str| agent.metric(&format!("tarn_packs_lookups_total{{result=\"{result}\"}}")).await;
    Ok((of("hit").await? + of("joined").await?, of("miss").await?))
}

async fn ahead(agent: &Agent, outcome: &str) -> Result<u64> {
    agent.metric(&format!("tarn_packs_ahead_total{{outcome=\"{outcome}\"}}")).await
}

/// The mirror is ready, and clones with these options are put together; else what upkeep does meanwhile would make packs
/// that were made ahead useless. Its base is so large that putting packs in order does not touch it.
async fn settled(grow: (u32, usize), shapes: &[(&str, &[&str])]) -> Result<Scene> {
    let (commits, size) = grow;
    let scene = Scene::prepared(SPEC, async |_, origin| {
        let first = origin.rev_parse("main").await?;
        origin.annotated_tag("v1", &first).await?;
        for number in 0..60 {
            origin.commit("main", &[("count.txt", &number.to_string())]).await?;
        }
        origin.grow("main", commits, size, 1).await?;
        origin.set_ref("refs/heads/dev", &first).await
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    let mut tries = 0;
    for (base, options) in shapes {
        let sample = format!("tarn_packs_composed_total{{base=\"{base}\"}}");
        eventually(PATIENCE, "a clone to be put together", async || {
            tries += 1;
            scene.origin.commit("main", &[("try.txt", &tries.to_string())]).await?;
            scene.agent.fetch_now(&scene.repo()).await?;
            scene.clone(&format!("try-{tries}"), options).await?;
            ensure!(scene.agent.metric::<u64>(&sample).await? > 0, "{tries} clones");
            Ok(())
        })
        .await?;
    }
    scene.agent.wait_calm(Duration::from_secs(1)).await?;
    Ok(scene)
}

/// Commits upstream, has the mirror follow, and waits until so many packs were made ahead in all.
async fn push(scene: &Scene, text: &str, made: u64) -> Result<String> {
    let mut head = String::new();
    for part in ["one", "two"] {
        head = scene.origin.commit("main", &[(&format!("{part}.txt"), text)]).await?;
    }
    scene.agent.fetch_now(&scene.repo()).await?;
    eventually(Duration::from_secs(20), "packs to be made ahead", async || {
        let so_far = ahead(&scene.agent, "made").await?;
        ensure!(so_far >= made, "{so_far} of {made}");
        Ok(())
    })
    .await?;
    Ok(head)
}

#[tokio::test]
async fn the_first_client_of_every_usual_shape_finds_its_pack_after_a_push() -> Result<()> {
    let scene = settled((1, 1), &[("history", &[]), ("tree", &["--depth=1"])]).await?;
    let (url, git, dir) = (scene.url()?, &scene.git, scene.dir.path());
    let clone = async |name: &str, options: &[&str]| git.clone_repo(&url, &dir.join(name), options).await;
    let shapes: [(&str, &[&str]); 4] = [
        ("full", &[]),
        ("depth-1", &["--depth=1"]),
        ("one-branch", &["--single-branch", "--no-tags"]),
        ("blobless", &["--filter=blob:none", "--no-checkout"]),
    ];
    for (name, options) in shapes {
        clone(name, options).await?;
    }
    // As from one image.
    let mut shallow = Vec::new();
    for number in 0..3 {
        shallow.push(clone(&format!("shallow-{number}"), &["--depth=1"]).await?);
    }

    // One layer serves clones of all branches and of one. The clients of the fetches begin with the same state.
    let before = ahead(&scene.agent, "made").await?;
    push(&scene, "first", before + 3).await?;
    for image in &shallow[..2] {
        image.git(&["fetch", "--depth=1"]).await?;
    }
    let fetches: [(&Repo, &[&str]); 1] = [(&shallow[2], &["fetch", "--depth=1"])];
    let head = push(&scene, "second", before + 7).await?;
    let (had, made) = lookups(&scene.agent).await?;
    for (name, options) in shapes {
        let clone = clone(&format!("{name}-again"), options).await?;
        ensure!(clone.rev_parse("origin/HEAD").await? == head, "{name}: an old state");
    }
    for (repo, fetch) in fetches {
        repo.git(fetch).await?;
        ensure!(repo.rev_parse("origin/main").await? == head, "{fetch:?}: an old state");
        repo.fsck().await?;
    }
    let (hits, misses) = lookups(&scene.agent).await?;
    ensure!(misses == made, "{} packs were made for who asked\n{}", misses - made, scene.agent.logs()?);
    ensure!(hits == had + 5, "{} of 5 packs were there", hits - had);
    ensure!(ahead(&scene.agent, "used").await? >= 4, "not all were used");
    Ok(())
}

#[tokio::test]
async fn what_nobody_asks_for_any_more_is_not_made() -> Result<()> {
    let scene = settled((1, 1), &[("history", &[])]).await?;
    let (made, unused) = (ahead(&scene.agent, "made").await?, ahead(&scene.agent, "unused").await?);
    scene.clone("once", &[]).await?;
    // After as many moves as `MOVES` in the agent, nobody has come back.
    for number in 1..=4 {
        push(&scene, &number.to_string(), made + number).await?;
    }
    ensure!(ahead(&scene.agent, "unused").await? <= unused + 3, "the last one has no successor yet");
    push(&scene, "last", made + 4).await?;
    eventually(Duration::from_secs(20), "the packs of all moves to go unused", async || {
        let unused = ahead(&scene.agent, "unused").await? - unused;
        ensure!(unused == 4, "{unused}");
        Ok(())
    })
    .await?;
    // The last one went because it was to have no successor.
    ensure!(ahead(&scene.agent, "made").await? == made + 4, "one more was made");
    // Whoever comes back is served, and what they ask for is made ahead again.
    scene.clone("again", &[]).await?;
    push(&scene, "and one more", made + 5).await.map(drop)
}

/// The mirror is ready; the agent has flags of its own.
async fn with_flags(flags: &[&str]) -> Result<Scene> {
    let builder = flags.iter().fold(agent(), |builder, flag| builder.arg(flag));
    let scene = Scene::of(builder, SPEC, async |_, _| Ok(())).await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    Ok(scene)
}

#[tokio::test]
async fn with_no_time_for_it_nothing_is_made_ahead() -> Result<()> {
    let scene = with_flags(&["--pack-ahead=0"]).await?;
    scene.clone("one", &[]).await?;
    scene.origin.commit("main", &[("a.txt", "a")]).await?;
    scene.agent.fetch_now(&scene.repo()).await?;
    scene.agent.wait_idle().await?;
    scene.clone("two", &[]).await?;
    ensure!(ahead(&scene.agent, "made").await? == 0, "a pack was made");
    ensure!(lookups(&scene.agent).await?.1 == 2, "each clone's pack is made for it");
    Ok(())
}

#[tokio::test]
async fn while_the_disk_is_nearly_full_nothing_is_made_ahead() -> Result<()> {
    let scene = with_flags(&["--disk-budget=1Ki", "--log=info,tarn_agent::serve=debug"]).await?;
    // Each clone keeps the mirror here for ten seconds, and asks for the pack of the next push.
    scene.clone("first", &[]).await?;
    eventually(Duration::from_secs(20), "the budget to be exceeded", async || {
        let used: u64 = scene.agent.metric("tarn_disk_used_bytes").await?;
        ensure!(used > 1024, "{used} bytes");
        Ok(())
    })
    .await?;
    let mut pushes = 0;
    eventually(PATIENCE, "a pack not to be made", async || {
        pushes += 1;
        scene.clone(&pushes.to_string(), &[]).await?;
        scene.origin.commit("main", &[("a.txt", &pushes.to_string())]).await?;
        scene.agent.fetch_now(&scene.repo()).await?;
        ensure!(scene.agent.logs()?.contains("no packs ahead: the disk is nearly full"), "push {pushes}");
        Ok(())
    })
    .await?;
    ensure!(ahead(&scene.agent, "made").await? == 0, "a pack was made");
    let head = scene.origin.rev_parse("main").await?;
    scene.clone("last", &[]).await?.rev_parse(&head).await.map(drop)
}

#[tokio::test]
async fn a_push_upon_a_push_gives_the_first_ones_pack_up() -> Result<()> {
    // Each pack takes some tenths of a second: an answer with a filter is not put together.
    let options: &[&str] = &["--filter=blob:limit=100m"];
    let scene = settled((6, 2_000_000), &[("history", &[])]).await?;
    scene.clone("one", options).await?;
    for number in 0..3 {
        scene.origin.commit("main", &[("n.txt", &number.to_string())]).await?;
        scene.agent.fetch_now(&scene.repo()).await?;
    }
    let before = ahead(&scene.agent, "made").await?;
    let head = push(&scene, "last", before + 1).await?;
    scene.agent.wait_calm(Duration::from_secs(2)).await?;
    let before = lookups(&scene.agent).await?;
    ensure!(scene.clone("two", options).await?.rev_parse("origin/HEAD").await? == head, "an old state");
    ensure!(lookups(&scene.agent).await? == (before.0 + 1, before.1), "the last one's pack is there");
    scene.agent.wait_idle().await
}
