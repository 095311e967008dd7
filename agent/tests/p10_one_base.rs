//! P10: clients that have nothing share one base, whatever commit they ask for.

use std::io::Read as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tarn_testkit::agent::PATIENCE;
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::Repo;
use tarn_testkit::wire::{Connection, pkts};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::p4_never_stuck::{SmallDisk, mirror_dir};
use crate::scene::{Scene, agent};
use crate::serving::{fetch_request, post};

/// The mirror is brought up to date when the test says so.
const SPEC: &[&str] = &["interval: 1h"];

/// What a clone of all branches asks for besides what it wants.
const ALL: &[&str] = &["ofs-delta", "no-progress", "done"];

/// So many commits lie in the base, with files that change a little each time.
const COMMITS: usize = 60;

fn text(version: usize) -> String {
    (0..400).map(|line| format!("{line} {}\n", if line % 60 == version % 60 { version } else { 0 })).collect()
}

async fn commit(origin: &Repo, version: usize) -> Result<String> {
    let (text, name) = (text(version), format!("file-{}.txt", version % 7));
    origin.commit("main", &[(&name, &text)]).await
}

async fn scene() -> Result<Scene> {
    let scene = Scene::of(agent().arg("--pack-ahead=0"), SPEC, async |_, origin| {
        for version in 0..COMMITS {
            commit(origin, version).await?;
        }
        Ok(())
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    scene.agent.wait_settled(&scene.repo()).await?;
    Ok(scene)
}

/// So many pushes later; gives the new commits.
async fn push(scene: &Scene, from: usize, commits: usize) -> Result<Vec<String>> {
    let mut pushed = Vec::new();
    for version in from..from + commits {
        pushed.push(commit(&scene.origin, version).await?);
    }
    scene.agent.fetch_now(&scene.repo()).await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    Ok(pushed)
}

/// How often an answer was put together, and how often something had to be made for whoever asked.
async fn counts(scene: &Scene) -> Result<(u64, u64)> {
    let of = async |metric: &str| scene.agent.metric(metric).await;
    let composed = of("tarn_packs_composed_total{base=\"history\"}").await?
        + of("tarn_packs_composed_total{base=\"tree\"}").await?;
    Ok((composed, of("tarn_packs_lookups_total{result=\"miss\"}").await?))
}

/// An empty repository that checks all that comes, and fetches `oid`.
async fn fetch(scene: &Scene, name: &str, oid: &str, options: &[&str]) -> Result<Repo> {
    let dir = scene.place(name);
    let format = format!("--object-format={}", if oid.len() == 64 { "sha256" } else { "sha1" });
    scene.git.run(["init", "-q", &format, &dir.to_string_lossy()]).await?;
    let repo = Repo::open(scene.git.clone(), dir);
    let url = scene.url()?;
    let check = ["-c", "fetch.fsckObjects=true", "fetch", "-q"];
    repo.git(&[&check, options, &[url.as_str(), oid]].concat()).await?;
    Ok(repo)
}

/// The client has all that `oid` reaches, and nothing that is broken.
async fn whole(scene: &Scene, repo: &Repo, oid: &str) -> Result<()> {
    let list = ["rev-list", "--objects", "--no-object-names", oid];
    let sorted =
        |text: String| text.split_whitespace().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    let (sent, asked) = (repo.git(&list).await?, scene.origin.git(&list).await?);
    ensure!(sorted(sent) == sorted(asked), "not what {oid} reaches");
    repo.git(&["fsck", "--strict", "--no-dangling"]).await.map(drop)
}

#[tokio::test]
async fn fetches_at_distinct_commits_share_one_base_and_what_is_new() -> Result<()> {
    let scene = scene().await?;
    let pushed = push(&scene, COMMITS, 10).await?;
    let (composed, made) = counts(&scene).await?;
    for (at, oid) in pushed.iter().enumerate() {
        let repo = fetch(&scene, &format!("client-{at}"), oid, &[]).await?;
        whole(&scene, &repo, oid).await?;
    }
    let (composed, made) = (counts(&scene).await?.0 - composed, counts(&scene).await?.1 - made);
    ensure!((composed, made) == (10, 1), "{composed} answers were put together, {made} things made");
    // A branch that is named, and all of them.
    let clone = scene.clone("clone", &[]).await?;
    whole(&scene, &clone, pushed.last().context("no push")?).await?;
    scene.clone("single", &["--single-branch"]).await?.fsck().await?;
    ensure!(counts(&scene).await?.0 == 12, "clones are put together, too");
    Ok(())
}

#[tokio::test]
async fn commits_without_history_come_of_one_seed() -> Result<()> {
    let scene = scene().await?;
    // The first one asks for the seed.
    scene.clone("first", &["--depth=1"]).await?;
    eventually(PATIENCE, "the seed", async || {
        ensure!(scene.agent.metric::<u64>("tarn_mirror_upkeeps_total{work=\"seed\"}").await? > 0, "none");
        Ok(())
    })
    .await?;
    let pushed = push(&scene, COMMITS, 5).await?;
    let before = counts(&scene).await?.0;
    for (at, oid) in pushed.iter().enumerate() {
        let repo = fetch(&scene, &format!("client-{at}"), oid, &["--depth=1"]).await?;
        repo.git(&["fsck", "--strict", "--no-dangling"]).await?;
        ensure!(repo.git(&["rev-list", "--count", oid]).await?.trim() == "1", "one commit");
        let tree = ["ls-tree", "-r", oid];
        ensure!(repo.git(&tree).await? == scene.origin.git(&tree).await?, "the tree of {oid}");
    }
    ensure!(counts(&scene).await?.0 - before == 5, "{:?}", counts(&scene).await?);
    // What goes on from there is git's again.
    let clone = fetch(&scene, "deeper", &pushed[4], &["--depth=1"]).await?;
    let url = scene.url()?;
    clone.git(&["fetch", "-q", "--unshallow", &url, &pushed[4]]).await?;
    whole(&scene, &clone, &pushed[4]).await
}

#[tokio::test]
async fn who_asks_for_a_small_part_gets_no_more() -> Result<()> {
    let scene = scene().await?;
    let orphan = scene.origin.git(&["commit-tree", "-m", "orphan", "main^{tree}"]).await?.trim().to_owned();
    scene.origin.set_ref("refs/heads/orphan", &orphan).await?;
    push(&scene, COMMITS, 1).await?;
    let first = scene.origin.git(&["rev-list", "--max-parents=0", "main"]).await?.trim().to_owned();
    for (name, oid) in [("orphan", &orphan), ("first", &first)] {
        let repo = fetch(&scene, name, oid, &[]).await?;
        whole(&scene, &repo, oid).await?;
        let count = ["rev-list", "--objects", "--no-object-names", oid];
        let asked = scene.origin.git(&count).await?.lines().count();
        let held = repo.git(&["count-objects", "-v"]).await?;
        ensure!(
            held.contains(&format!("in-pack: {asked}\n")) || held.contains(&format!("count: {asked}\n")),
            "{held}"
        );
    }
    ensure!(counts(&scene).await?.0 == 0, "git made both");
    Ok(())
}

#[tokio::test]
async fn what_refs_no_longer_reach_is_not_sent_and_another_base_is_made() -> Result<()> {
    let scene = Scene::of(agent().arg("--pack-ahead=0"), SPEC, async |_, origin| {
        for version in 0..COMMITS {
            commit(origin, version).await?;
        }
        let kept = origin.rev_parse("main").await?;
        origin.set_ref("refs/heads/leak", &kept).await?;
        origin.commit("leak", &[("password.txt", "hunter2")]).await.map(drop)
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    scene.agent.wait_settled(&scene.repo()).await?;
    let leak = scene.origin.rev_parse("leak").await?;
    fetch(&scene, "before", &leak, &[]).await?;
    ensure!(counts(&scene).await?.0 == 1, "the base holds it");
    scene.origin.delete_ref("refs/heads/leak").await?;
    let mut head = push(&scene, COMMITS, 1).await?.pop().context("no push")?;
    let mut attempt = 0;
    eventually(PATIENCE, "an answer on another base", async || {
        attempt += 1;
        let repo = fetch(&scene, &format!("client-{attempt}"), &head, &[]).await?;
        whole(&scene, &repo, &head).await?;
        let there = repo.attempt(&["cat-file", "-e", &leak]).await?;
        if there.status.success() {
            return Ok(Err(anyhow::anyhow!("what the upstream has deleted came with the pack")));
        }
        if counts(&scene).await?.0 == 1 {
            // What does not fit is looked at again once the refs have moved.
            head = push(&scene, COMMITS + attempt, 1).await?.pop().context("no push")?;
            anyhow::bail!("not yet");
        }
        Ok(Ok(()))
    })
    .await?
}

#[tokio::test]
async fn tags_trees_blobs_and_ten_thousand_wants_are_answered_rightly() -> Result<()> {
    let scene = scene().await?;
    let main = scene.origin.rev_parse("main").await?;
    scene.origin.annotated_tag("v1", &main).await?;
    push(&scene, COMMITS, 2).await?;
    let rev = async |name: &str| scene.origin.rev_parse(name).await;
    for (name, of) in
        [("tag", "v1"), ("tree", "main^{tree}"), ("blob", "main:file-1.txt"), ("old", "main~40")]
    {
        let oid = rev(of).await?;
        let repo = fetch(&scene, name, &oid, &[]).await?;
        repo.git(&["cat-file", "-e", &oid]).await?;
        repo.git(&["fsck", "--strict", "--no-dangling"]).await?;
    }
    let objects = scene.origin.git(&["rev-list", "--objects", "--no-object-names", "--all"]).await?;
    let wants: Vec<&str> = objects.lines().cycle().take(10_000).collect();
    let mut client = scene.connect().await?;
    client.send(&post(&scene.path(), "git-upload-pack", &fetch_request(&wants, ALL))).await?;
    let answer = client.answer().await?;
    ensure!(answer.status == 200 && answer.body.starts_with(b"000dpackfile\n"), "{}", answer.text());
    ensure!(answer.body.ends_with(b"0000"), "all of it");
    Ok(())
}

#[tokio::test]
async fn what_a_revert_brings_back_stands_in_the_pack_once() -> Result<()> {
    let scene = scene().await?;
    // The same blobs and trees as twenty commits ago.
    let old = scene.origin.git(&["commit-tree", "-m", "back", "-p", "main", "main~20^{tree}"]).await?;
    scene.origin.set_ref("refs/heads/main", old.trim()).await?;
    push(&scene, COMMITS, 3).await?;
    let head = scene.origin.rev_parse("main").await?;
    let repo = fetch(&scene, "client", &head, &[]).await?;
    whole(&scene, &repo, &head).await?;
    ensure!(counts(&scene).await?.0 == 1, "put together");
    Ok(())
}

/// The files of the mirror's packs that have this ending.
fn packs(scene: &Scene, ending: &str) -> Result<Vec<std::path::PathBuf>> {
    let dir = mirror_dir(&scene.agent)?.join("objects/pack");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
    Ok(found)
}

#[tokio::test]
async fn a_base_that_goes_while_it_is_read_is_read_to_its_end() -> Result<()> {
    let scene = Scene::of(agent().arg("--pack-ahead=0"), SPEC, async |_, origin| {
        // More than the sockets between hold.
        origin.grow("main", 8, 4_000_000, 1).await.map(drop)
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    scene.agent.wait_settled(&scene.repo()).await?;
    let head = scene.origin.rev_parse("main").await?;
    let mut slow = Connection::open(scene.agent.git_address()?).await?;
    slow.send(&post(&scene.path(), "git-upload-pack", &fetch_request(&[&head], ALL))).await?;
    eventually(PATIENCE, "an answer that is put together", async || {
        ensure!(counts(&scene).await?.0 == 1, "not yet");
        Ok(())
    })
    .await?;
    let [base] = packs(&scene, "pack")?.try_into().map_err(|found| anyhow::anyhow!("{found:?}"))?;
    // What a repack does: another pack with the same objects takes its place.
    let mirror = base.ancestors().nth(3).context("no mirror")?.to_owned();
    let mirror = Repo::open(scene.git.clone(), mirror);
    mirror.git(&["repack", "-a", "-d", "-q", "-F", "--window=2"]).await?;
    ensure!(!base.exists(), "the same pack again");
    let next = fetch(&scene, "next", &head, &[]).await?;
    whole(&scene, &next, &head).await?;
    let answer = slow.answer().await?;
    ensure!(
        answer.status == 200 && answer.body.ends_with(b"0000"),
        "{} of {} bytes",
        answer.status,
        answer.body.len()
    );
    Ok(())
}

#[tokio::test]
async fn a_reader_who_is_slow_gets_all_though_base_and_layer_have_long_gone() -> Result<()> {
    // Who takes nothing for this long is let go.
    const SILENCE: Duration = Duration::from_secs(5);
    let agent = agent().arg("--pack-ahead=0").arg("--client-timeout=5");
    let scene = Scene::of(agent, SPEC, async |_, origin| {
        // More than the sockets between hold.
        origin.grow("main", 8, 4_000_000, 1).await.map(drop)
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    scene.agent.wait_settled(&scene.repo()).await?;
    let head = push(&scene, 0, 3).await?.pop().context("no push")?;
    let mut slow = TcpStream::connect(scene.agent.git_address()?).await?;
    slow.write_all(&post(&scene.path(), "git-upload-pack", &fetch_request(&[&head], ALL))).await?;
    let moved = AtomicBool::new(false);
    let reading = async {
        let (mut answer, mut piece) = (Vec::new(), vec![0; 64 << 10]);
        let began = Instant::now();
        while began.elapsed() < 3 * SILENCE || !moved.load(Ordering::Relaxed) {
            let count = slow.read(&mut piece).await?;
            ensure!(count > 0, "cut after {} bytes", answer.len());
            answer.extend_from_slice(&piece[..count]);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Ok(answer)
    };
    let moving = async {
        // Each push has a layer of its own, and the packs are put in order meanwhile.
        for number in 3..9 {
            push(&scene, number, 1).await?;
            let mirror = Repo::open(scene.git.clone(), mirror_dir(&scene.agent)?);
            mirror.git(&["repack", "-a", "-d", "-q"]).await?;
            fetch(&scene, &format!("beside-{number}"), &head, &[]).await?;
        }
        moved.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let (mut answer, ()) = tokio::try_join!(reading, moving)?;
    let at = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("no head")?;
    let said = String::from_utf8_lossy(&answer[..at]).to_lowercase();
    let length = said.lines().find_map(|line| line.strip_prefix("content-length: ")).context("no length")?;
    let mut body = answer.split_off(at + 4);
    let left = length.parse::<usize>()? - body.len();
    ensure!(left > 16 << 20, "only {left} bytes are left to be sent");
    body.resize(body.len() + left, 0);
    let from = body.len() - left;
    slow.read_exact(&mut body[from..]).await?;
    let data: Vec<u8> = pkts(&body)?
        .into_iter()
        .flatten()
        .filter(|packet| packet.first() == Some(&1))
        .flat_map(|packet| packet[1..].to_vec())
        .collect();
    let repo = scene.git.run(["init", "-q", "--bare", &scene.place("slow").to_string_lossy()]).await;
    repo?;
    let repo = Repo::open(scene.git.clone(), scene.place("slow"));
    repo.git_with(&["index-pack", "--strict", "--stdin"], &data).await?;
    repo.set_ref("refs/heads/main", &head).await?;
    repo.fsck().await
}

#[tokio::test]
async fn a_disk_that_fills_while_a_layer_is_made_tears_nothing_and_room_is_enough() -> Result<()> {
    let Some(disk) = SmallDisk::mount("64m").await? else { return Ok(()) };
    let builder = agent()
        .arg("--pack-ahead=0")
        .arg("--log=info,tarn_agent::serve=debug")
        .data(disk.path().join("data"));
    let scene =
        Scene::of(builder, SPEC, async |_, origin| origin.grow("main", 4, 3_000_000, 1).await.map(drop))
            .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    scene.agent.wait_settled(&scene.repo()).await?;
    let head = scene.origin.grow("main", 1, 2_500_000, 2).await?;
    scene.agent.fetch_now(&scene.repo()).await?;
    scene.agent.wait_calm(Duration::from_secs(7)).await?;
    // Somebody else takes the room, but for less than the layer needs.
    let filler = disk.path().join("filler");
    let written = std::fs::write(&filler, vec![0; 64 << 20]);
    ensure!(written.is_err(), "the disk is not full");
    std::fs::File::options()
        .write(true)
        .open(&filler)?
        .set_len(std::fs::metadata(&filler)?.len() - (1 << 20))?;
    let composed = counts(&scene).await?.0;
    for attempt in 0..3 {
        match fetch(&scene, &format!("full-{attempt}"), &head, &[]).await {
            Ok(repo) => {
                whole(&scene, &repo, &head).await?;
                // Git's answer needs more room still.
                ensure!(counts(&scene).await?.0 > composed, "whence came the room?");
            }
            Err(error) => {
                let said = format!("{error:#}").to_lowercase();
                let clear = ["space", "disk", "room"].into_iter().any(|word| said.contains(word));
                ensure!(clear, "{said}\n{}", scene.agent.logs()?);
            }
        }
    }
    let before = counts(&scene).await?.0;
    std::fs::remove_file(&filler)?;
    let mut attempt = 0;
    eventually(PATIENCE, "an answer as soon as there is room", async || {
        attempt += 1;
        let repo = fetch(&scene, &format!("room-{attempt}"), &head, &[]).await?;
        whole(&scene, &repo, &head).await
    })
    .await?;
    ensure!(counts(&scene).await?.0 == before + 1, "git made it");
    Ok(())
}

#[tokio::test]
async fn a_base_that_is_damaged_under_a_recipe_gives_no_wrong_answer_and_the_mirror_heals() -> Result<()> {
    let scene = scene().await?;
    let head = push(&scene, COMMITS, 2).await?.pop().context("no push")?;
    fetch(&scene, "before", &head, &[]).await?;
    ensure!(counts(&scene).await?.0 == 1, "put together");
    let mut largest = packs(&scene, "pack")?;
    largest.sort_by_key(|path| std::fs::metadata(path).map_or(0, |meta| meta.len()));
    let base = largest.pop().context("no pack")?;
    let mut bytes = Vec::new();
    std::fs::File::open(&base)?.read_to_end(&mut bytes)?;
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].fill(0);
    // As a disk does it: in place, whatever the file's mode says.
    std::fs::set_permissions(&base, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    std::os::unix::fs::FileExt::write_all_at(&std::fs::File::options().write(true).open(&base)?, &bytes, 0)?;
    let mut attempt = 0;
    eventually(Duration::from_secs(60), "a clone of the mended mirror", async || {
        attempt += 1;
        let repo = fetch(&scene, &format!("after-{attempt}"), &head, &[]).await?;
        whole(&scene, &repo, &head).await
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await.map(drop)
}
