//! A disk that changes what was written to it: no client ever gets a wrong object, and the mirror comes back whole.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::{join_all, try_join_all};
use serde_json::Value;
use tarn_testkit::agent::{Agent, Builder, manifest, repo_id};
use tarn_testkit::damage::{Spoiler, flip, zeros, zeros_in_the_largest};
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::upstream::{Fault, Upstream};

use super::{files, mirror_dir};
use crate::scene::{Scene, agent, condition, message};

/// Longer than an agent needs to notice damage, to confirm it and to bring a small mirror anew.
const HEALED: Duration = Duration::from_secs(60);

const MIRRORS: &str = r#"tarn_integrity_damages_total{what="mirror"}"#;

/// Something to clone whose packs are larger than what is zeroed in them.
async fn scene(builder: Builder, spec: &[&str]) -> Result<Scene> {
    let scene =
        Scene::of(builder, spec, async |_, origin| origin.grow("main", 20, 20_000, 5).await.map(drop))
            .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    scene.agent.wait_settled(&scene.repo()).await?;
    Ok(scene)
}

/// Those of a mirror's files whose names end so.
fn ending(agent: &Agent, end: &str) -> Result<Vec<PathBuf>> {
    let all = files(&mirror_dir(agent)?)?;
    Ok(all.into_iter().filter(|path| path.to_string_lossy().ends_with(end)).collect())
}

/// A clone that succeeds is whole and has the upstream's branch; the retries end with one that does.
async fn clone_until_it_succeeds(scene: &Scene, name: &str) -> Result<()> {
    let main = scene.origin.refs().await?.get("refs/heads/main").cloned();
    let mut attempt = 0;
    eventually(HEALED, "a clone succeeds", async || {
        attempt += 1;
        let clone = scene.clone(&format!("{name}{attempt}"), &[]).await?;
        clone.fsck().await?;
        ensure!(Some(clone.rev_parse("HEAD").await?) == main, "another state");
        Ok(())
    })
    .await
}

/// Waits until so many damages were met and the mirror is whole again.
async fn wait_healed(agent: &Agent, repo: &str, damages: u64) -> Result<Value> {
    eventually(HEALED, "the mirror is damaged, and whole again", async || {
        let met: u64 = agent.metric(MIRRORS).await?;
        ensure!(met >= damages, "{met} damages");
        let status = agent.mirror_status(repo).await?;
        ensure!(status["phase"] == "Ready", "{status}");
        whole(agent, repo).await?;
        Ok(status)
    })
    .await
}

/// The mirror on the disk as git sees it.
async fn whole(agent: &Agent, repo: &str) -> Result<()> {
    let dir = agent.data().join("mirrors").join(tarn_crds::repo::RepoId::from_route(repo)?.dir());
    let refs = Repo::open(Git::new()?, dir).git(&["fsck", "--full", "--strict"]).await;
    refs.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pack_is_noticed_by_a_clone_and_the_mirror_is_cloned_anew() -> Result<()> {
    let scene = scene(agent(), &[]).await?;
    zeros_in_the_largest(&ending(&scene.agent, ".pack")?)?;
    clone_until_it_succeeds(&scene, "clone").await?;
    wait_healed(&scene.agent, &scene.repo(), 1).await?;
    // What was made of the damaged pack is not given out any more.
    clone_until_it_succeeds(&scene, "again").await?;
    ensure!(scene.clone("at-once", &[]).await?.fsck().await.is_ok(), "an answer of before the damage");
    let kept = files(&scene.agent.data().join("damaged"))?;
    ensure!(kept.iter().any(|path| path.ends_with("packed-refs")), "nothing is kept to look at: {kept:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_mirror_is_restored_from_the_store() -> Result<()> {
    let store = tempfile::tempdir()?;
    let builder = agent().arg("--store").arg(store.path());
    let scene = scene(builder, &["checkpoint: {interval: 5s}"]).await?;
    scene.agent.wait_status(&scene.repo(), "a checkpoint", |status| !status["checkpoint"].is_null()).await?;
    // Where the restore comes from shows without the upstream.
    scene.upstream.fault(Fault::Status(503));
    zeros_in_the_largest(&ending(&scene.agent, ".pack")?)?;
    eventually(HEALED, "the mirror is restored", async || {
        let _ = scene.git.attempt(["clone", "--quiet", &scene.url()?, "nowhere"]).await;
        let _ = std::fs::remove_dir_all(scene.place("nowhere"));
        let restores: u64 = scene.agent.metric(r#"tarn_checkpoint_restores_total{outcome="ok"}"#).await?;
        ensure!(restores >= 1, "no restore");
        whole(&scene.agent, &scene.repo()).await
    })
    .await?;
    scene.upstream.mend();
    clone_until_it_succeeds(&scene, "clone").await?;
    wait_healed(&scene.agent, &scene.repo(), 1).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_any_kind_of_file_is_found_without_a_request_and_told_while_it_lasts() -> Result<()> {
    let kinds =
        [".pack", ".idx", ".bitmap", "multi-pack-index", "commit-graph", "packed-refs", "HEAD", "config"];
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    let mut manifests = Vec::new();
    for number in 0..kinds.len() {
        let name = format!("r{number}");
        let origin = upstream.seed(&format!("{name}.git")).await?;
        origin.grow("main", 5, 5_000, 5).await?;
        manifests.push((format!("{name}.yaml"), manifest(&name, &upstream.url(&format!("{name}.git")), &[])));
    }
    let manifests: Vec<_> = manifests.iter().map(|(name, yaml)| (name.as_str(), yaml.as_str())).collect();
    let agent = agent().arg("--scrub-interval").arg("2").start_with(&manifests).await?;
    let repos: Vec<String> =
        (0..kinds.len()).map(|number| repo_id(&upstream.url(&format!("r{number}.git")))).collect();
    for repo in &repos {
        agent.wait_settled(repo).await?;
    }
    upstream.fault(Fault::Status(503));
    for (repo, kind) in repos.iter().zip(kinds) {
        let mirror = agent.data().join("mirrors").join(tarn_crds::repo::RepoId::from_route(repo)?.dir());
        let all = files(&mirror)?;
        let file = all.iter().find(|path| path.to_string_lossy().ends_with(kind));
        let file = file.with_context(|| format!("no {kind} in {all:?}"))?;
        // The name of the branch in HEAD; a flag of the configuration; elsewhere anything.
        flip(file, std::fs::metadata(file)?.len() / 2)?;
    }
    for (repo, kind) in repos.iter().zip(kinds) {
        agent
            .wait_status(repo, &format!("damage of {kind} is told"), |status| {
                condition(status, "Damaged") && !condition(status, "Ready")
            })
            .await?;
    }
    upstream.mend();
    for repo in &repos {
        let status = wait_healed(&agent, repo, kinds.len() as u64).await?;
        ensure!(!condition(&status, "Damaged"), "{status}");
    }
    let met: u64 = agent.metric(MIRRORS).await?;
    ensure!(met == kinds.len() as u64, "{met} damages");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_a_start_finds_is_told_and_healed_like_any_other() -> Result<()> {
    for end in [".idx", "multi-pack-index", "packed-refs", "HEAD"] {
        let mut scene = scene(agent(), &[]).await?;
        scene.agent.stop().await?;
        let found = ending(&scene.agent, end)?;
        for file in &found {
            zeros(file, 0, 4096)?;
        }
        if end == ".idx" {
            // Otherwise the index over all packs stands in for it.
            ending(&scene.agent, "multi-pack-index")?.iter().try_for_each(std::fs::remove_file)?;
        }
        scene.upstream.fault(Fault::Status(503));
        scene.agent.restart().await?;
        let repo = scene.repo();
        scene.agent.wait_status(&repo, "damage is told", |status| condition(status, "Damaged")).await?;
        scene.upstream.mend();
        wait_healed(&scene.agent, &repo, 1).await?;
        clone_until_it_succeeds(&scene, "clone").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_damage_within_the_hour_is_told_as_a_failing_disk_and_serving_goes_on() -> Result<()> {
    let scene = scene(agent().arg("--scrub-interval").arg("1"), &[]).await?;
    let repo = scene.repo();
    zeros_in_the_largest(&ending(&scene.agent, ".pack")?)?;
    let status = wait_healed(&scene.agent, &repo, 1).await?;
    ensure!(!condition(&status, "Damaged"), "{status}");
    zeros_in_the_largest(&ending(&scene.agent, ".pack")?)?;
    let status = scene
        .agent
        .wait_status(&repo, "a failing disk", |status| {
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|condition| condition["reason"] == "DiskFailing")
        })
        .await?;
    ensure!(status["phase"] != "Ready", "{status}");
    // Nothing is written to that disk for a minute, and nobody has to wait for it.
    clone_until_it_succeeds(&scene, "meanwhile").await?;
    let status = scene.status().await?;
    ensure!(status["phase"] == "Backoff" && status["bytes"] == 0, "{status}");
    // That it fails is remembered by a new process.
    let mut scene = scene;
    scene.agent.restart().await?;
    clone_until_it_succeeds(&scene, "after").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_child_condemns_nothing() -> Result<()> {
    let bin = tempfile::tempdir()?;
    let killing = bin.path().join("killing");
    let script = format!(
        "#!/bin/sh\nif [ -e {} ]; then case \" $* \" in *' upload-pack --stateless-rpc '*) kill -9 $$;; esac; fi\n\
         PATH=${{PATH#*:}}; export PATH; exec git \"$@\"\n",
        killing.display()
    );
    let git = bin.path().join("git");
    std::fs::write(&git, script)?;
    std::fs::set_permissions(&git, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let path = std::env::var("PATH")?;
    let scene = scene(agent().env("PATH", format!("{}:{path}", bin.path().display())), &[]).await?;
    std::fs::write(&killing, "")?;
    for number in 0..3 {
        let _ = scene.clone(&format!("killed{number}"), &["--depth=1"]).await;
    }
    std::fs::remove_file(&killing)?;
    clone_until_it_succeeds(&scene, "clone").await?;
    eventually(HEALED, "the mirror was examined", async || {
        let whole: u64 = scene.agent.metric(r#"tarn_integrity_examinations_total{outcome="whole"}"#).await?;
        ensure!(whole > 0, "not examined");
        Ok(())
    })
    .await?;
    let met: u64 = scene.agent.metric(MIRRORS).await?;
    ensure!(met == 0, "{met} damages");
    let status = scene.status().await?;
    ensure!(status["phase"] == "Ready" && !condition(&status, "Damaged"), "{status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_snapshot_is_built_of_a_damaged_pack() -> Result<()> {
    let scene = scene(agent(), &["snapshot: {interval: 10s}"]).await?;
    let before = scene.status().await?;
    zeros_in_the_largest(&ending(&scene.agent, ".pack")?)?;
    scene.origin.commit("main", &[("next", "1")]).await?;
    scene.agent.fetch_now(&scene.repo()).await?;
    let told = |status: &Value| status["snapshot"]["commit"] != before["snapshot"]["commit"];
    let status = eventually(HEALED, "the next snapshot", async || {
        let status = scene.status().await?;
        ensure!(told(&status), "{status} {}", message(&status));
        Ok(status)
    })
    .await?;
    let met: u64 = scene.agent.metric(MIRRORS).await?;
    ensure!(met == 1, "{met} damages, {status}");
    let archive = scene.agent.get(&format!("{}/snapshot.tar.zst", scene.path())).await?;
    ensure!(archive.status == 200, "{}", archive.status);
    let to = scene.place("extracted");
    crate::snapshots::extract(&archive.body, &to)?;
    Repo::open(Git::new()?, &to).fsck().await
}

/// Twenty mirrors, each damaged once somewhere while clients clone them.
#[tokio::test(flavor = "multi_thread")]
async fn twenty_damages_at_random_give_nobody_a_wrong_object_and_all_heal() -> Result<()> {
    const MIRRORED: usize = 20;
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    let (mut manifests, mut tips) = (Vec::new(), Vec::new());
    for number in 0..MIRRORED {
        let name = format!("r{number}");
        let origin = upstream.seed(&format!("{name}.git")).await?;
        tips.push(origin.grow("main", 4, 6_000, number as u64).await?.trim().to_owned());
        manifests.push((format!("{name}.yaml"), manifest(&name, &upstream.url(&format!("{name}.git")), &[])));
    }
    let manifests: Vec<_> = manifests.iter().map(|(name, yaml)| (name.as_str(), yaml.as_str())).collect();
    let store = tempfile::tempdir()?;
    let agent = agent().arg("--scrub-interval").arg("5").arg("--store").arg(store.path());
    let agent = agent.start_with(&manifests).await?;
    let repos: Vec<String> =
        (0..MIRRORED).map(|number| repo_id(&upstream.url(&format!("r{number}.git")))).collect();
    for repo in &repos {
        agent.wait_settled(repo).await?;
    }
    let mut spoiler = Spoiler::new(16);
    let mut done = Vec::new();
    for repo in &repos {
        let mirror = agent.data().join("mirrors").join(tarn_crds::repo::RepoId::from_route(repo)?.dir());
        done.push(spoiler.spoil(&files(&mirror)?)?);
    }
    let (git, clones) = (Git::new()?, tempfile::tempdir()?);
    let check = async |at: usize, round: usize| -> Result<bool> {
        let to = clones.path().join(format!("{at}-{round}"));
        let url = agent.git_url(&repos[at])?;
        let output =
            git.attempt(["clone", "--quiet", "--mirror", &url, to.to_str().context("a path")?]).await?;
        if !output.status.success() {
            return Ok(false);
        }
        let clone = Repo::open(git.clone(), &to);
        clone.fsck().await.with_context(|| format!("a clone after {} is not whole", done[at]))?;
        let found = clone.rev_parse("refs/heads/main").await?;
        ensure!(found == tips[at], "after {}: {found} instead of {}", done[at], tips[at]);
        std::fs::remove_dir_all(&to)?;
        Ok(true)
    };
    for round in 0..3 {
        for some in (0..MIRRORED).collect::<Vec<_>>().chunks(4) {
            let checks = join_all(some.iter().map(|at| check(*at, round))).await;
            checks.into_iter().collect::<Result<Vec<bool>>>()?;
        }
    }
    let healed = (0..MIRRORED).map(async |at| {
        eventually(2 * HEALED, &format!("a whole mirror after {}", done[at]), async || {
            let status = agent.mirror_status(&repos[at]).await?;
            ensure!(status["phase"] == "Ready" && !condition(&status, "Damaged"), "{status}");
            whole(&agent, &repos[at]).await?;
            ensure!(check(at, 9).await?, "a clone fails");
            Ok(())
        })
        .await
    });
    try_join_all(healed).await?;
    Ok(())
}
