//! An agent asks only its upstreams: whatever an upstream answers, no other server hears of it, unless the agent was told
//! that it may; and what an upstream answers is handed on only if it is what git or LFS would answer.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use tarn_testkit::agent::{PATIENCE, manifest, repo_id};
use tarn_testkit::eventually::eventually;
use tarn_testkit::hostile::PAINT;
use tarn_testkit::trap::{SECRET, Trap};
use tarn_testkit::upstream::{Auth, Fault, Operation, Upstream, lfs};
use tarn_testkit::wire::Answer;

use super::access::{PUSHES, READS, Route, ask};
use crate::p4_never_stuck::files;
use crate::scene::{Scene, agent, message};

const TOKEN: &str = "kanarienvogel-of-lfs-77aa";
const LFS: &str = "application/vnd.git-lfs+json";
const LOCK: Route = ("POST", "/info/lfs/locks", LFS, b"{\"path\":\"a\"}");
const UPLOAD: Route = (
    "POST",
    "/info/lfs/objects/batch",
    LFS,
    b"{\"operation\":\"upload\",\"objects\":[{\"oid\":\"4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\",\"size\":1}]}",
);
const DOWNLOAD: Route = (
    "POST",
    "/info/lfs/objects/batch",
    LFS,
    b"{\"operation\":\"download\",\"objects\":[{\"oid\":\"4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\",\"size\":1}]}",
);

/// Every route by which an upstream is asked for something, or its answer handed on.
fn routes() -> Vec<Route> {
    READS.into_iter().chain(PUSHES).chain([LOCK, UPLOAD, DOWNLOAD]).collect()
}

/// What metadata servers want to see.
const METADATA: [(&str, &str); 4] = [
    ("Metadata-Flavor", "Google"),
    ("Metadata", "true"),
    ("X-aws-ec2-metadata-token", "t"),
    ("Proxy-Authorization", "Basic YWRhOnB3"),
];

/// A mirror whose worktree needs an LFS object.
async fn scene(flags: &[&str], spec: &[&str]) -> Result<(Scene, Vec<u8>)> {
    let content: Vec<u8> = (0..300_000_u32).map(|at| at.wrapping_mul(0x9e37_79b9).to_be_bytes()[0]).collect();
    let mut builder = agent().env("TARN_AGENT_LOG", "debug");
    for flag in flags {
        builder = builder.arg(*flag);
    }
    let scene = Scene::of(builder, spec, async |upstream, origin| {
        upstream.lfs().enable(TOKEN);
        origin.commit("main", &[("f", "1")]).await.map(drop)
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    Ok((scene, content))
}

fn object(scene: &Scene, content: &[u8], size: usize) -> String {
    format!("{}/info/lfs/objects/{}?size={size}", scene.path(), lfs::oid(content))
}

/// An answer as a client sees it; one that is cut off is one that gives nothing.
async fn seen(scene: &Scene, target: &str) -> Result<Option<Answer>> {
    match scene.agent.get(target).await {
        Ok(answer) => Ok(Some(answer)),
        Err(_) => Ok(None),
    }
}

fn expect_nothing(trap: &Trap, what: &str) -> Result<()> {
    ensure!(trap.heard().is_empty(), "{what}: another server was asked: {:?}", trap.heard());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_lfs_answer_leads_to_no_other_server_whatever_its_spelling() -> Result<()> {
    let (scene, content) = scene(&[], &[]).await?;
    let (metadata, open) = (Trap::start(Some(("Metadata-Flavor", "Google")))?, Trap::start(None)?);
    for trap in [&metadata, &open] {
        let port = trap.address().port();
        for host in
            ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "[::ffff:127.0.0.1]"]
        {
            let href = format!("http://{host}:{port}/computeMetadata/v1/token");
            scene.upstream.lfs().lead_to(&href, &METADATA);
            for size in [1, SECRET.len(), 100_000] {
                let answer = seen(&scene, &object(&scene, &content, size)).await?.context("an answer")?;
                let text = answer.text();
                ensure!(
                    answer.status == 502 && text.contains("--allow-upstream"),
                    "{href}: {} {text}",
                    answer.status
                );
                ensure!(!text.contains(SECRET), "{href}: {text}");
            }
        }
        expect_nothing(trap, "an LFS action")?;
    }
    // What no address has to be known for.
    for href in ["file:///etc/passwd", "http://ada:pw@127.0.0.1/", "ftp://127.0.0.1/", "nonsense"] {
        scene.upstream.lfs().lead_to(href, &[]);
        let answer = seen(&scene, &object(&scene, &content, 9)).await?.context("an answer")?;
        ensure!(answer.status == 502, "{href}: {} {}", answer.status, answer.text());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_of_anything_leads_to_no_other_server() -> Result<()> {
    let (scene, content) = scene(&[], &["freshness: {maxStaleness: 0s}"]).await?;
    scene.upstream.lfs().put("a.git", &content);
    let trap = Trap::start(None)?;
    let hosts = ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"];
    for host in hosts {
        for status in [301, 302, 303, 307, 308] {
            let url = format!("http://{host}:{}/latest/meta-data", trap.address().port());
            scene.upstream.fault(Fault::Lead(status, url));
            let mut answers = Vec::new();
            for route in routes() {
                answers.push((route, ask(&scene.agent, &scene.path(), route, &[]).await?));
            }
            let whole = seen(&scene, &object(&scene, &content, content.len())).await?;
            ensure!(
                whole.is_none_or(|answer| answer.status >= 500),
                "a download that led elsewhere was served"
            );
            for (route, answer) in answers {
                ensure!(!answer.text().contains(SECRET), "{route:?}: {}", answer.text());
            }
        }
    }
    expect_nothing(&trap, "a redirect")?;
    // Nor does a download that a good answer begins.
    scene.upstream.mend();
    scene.upstream.fault_on(Operation::LfsObject, Fault::Lead(302, trap.url("/token")));
    let answer = seen(&scene, &object(&scene, &content, content.len())).await?.context("an answer")?;
    ensure!(answer.status == 502, "{} {}", answer.status, answer.text());
    expect_nothing(&trap, "a redirected download")?;
    scene.upstream.mend();
    let answer = scene.agent.get(&object(&scene, &content, content.len())).await?;
    ensure!(answer.status == 200 && answer.body == content, "{}", answer.status);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_the_list_names_is_asked_without_foreign_headers_and_shows_nothing_that_is_not_the_object()
-> Result<()> {
    let (scene, content) = scene(&["--allow-upstream", "127.0.0.0/8"], &[]).await?;
    let trap = Trap::start(None)?;
    scene
        .upstream
        .lfs()
        .lead_to(&trap.url("/token"), &[&METADATA[..], &[("Authorization", "Basic eA==")]].concat());
    for size in [1, SECRET.len(), SECRET.len() + 1, 100_000] {
        let answer = seen(&scene, &object(&scene, &content, size)).await?.context("an answer")?;
        ensure!(
            answer.status == 502 && !answer.text().contains(SECRET),
            "{size}: {} {}",
            answer.status,
            answer.text()
        );
    }
    let heard = trap.heard();
    ensure!(!heard.is_empty() && heard.iter().all(|line| line.contains("authorization")), "{heard:?}");
    for (name, _) in METADATA {
        let name = name.to_lowercase();
        ensure!(
            heard.iter().all(|line| !line.contains(&format!("\"{name}\""))),
            "{name} was sent: {heard:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_from_elsewhere_is_given_out_once_it_is_known_and_brought_though_its_reader_leaves()
-> Result<()> {
    let (scene, content) = scene(&["--allow-upstream", "127.0.0.1"], &[]).await?;
    let dir = tempfile::tempdir()?;
    let storage = Upstream::start(dir.path())?;
    storage.lfs().enable(TOKEN);
    storage.lfs().put("a.git", &content);
    scene.upstream.lfs().put("a.git", &content);
    scene.upstream.lfs().hrefs_at(&format!("http://{}", storage.address()));
    let mut wrong = content.clone();
    if let Some(last) = wrong.last_mut() {
        *last ^= 1;
    }
    storage.lfs().corrupt("a.git", &lfs::oid(&content), &wrong);
    let target = object(&scene, &content, content.len());
    let answer = seen(&scene, &target).await?.context("not one byte, so the status is the truth")?;
    ensure!(answer.status == 502, "{}", answer.status);
    // A reader that leaves before the first byte leaves the download to itself: the next one finds the object.
    storage.lfs().put("a.git", &content);
    storage.fault_on(Operation::LfsObject, Fault::Throttle(100_000));
    storage.clear_log();
    let leaving = tokio::spawn({
        let (address, target) = (scene.agent.git_address()?, target.clone());
        async move { tarn_testkit::wire::get(address, &target).await }
    });
    eventually(PATIENCE, "the download has begun", async || {
        let status = storage
            .log()
            .iter()
            .find(|seen| seen.operation == Operation::LfsObject)
            .context("not asked")?
            .status;
        status.context("not answered yet").map(drop)
    })
    .await?;
    eventually(PATIENCE, "a part of it is here", async || {
        let files = files(&scene.agent.data().join("incoming"))?;
        let came: u64 = files.iter().filter_map(|file| Some(file.metadata().ok()?.len())).sum();
        ensure!(came > 100_000, "{came} bytes");
        Ok(())
    })
    .await?;
    ensure!(!leaving.is_finished(), "a byte was given out before the last had come");
    leaving.abort();
    let kept = format!("{}/info/lfs/objects/{}", scene.path(), lfs::oid(&content));
    eventually(PATIENCE, "the object is kept", async || {
        let answer = scene.agent.get(&kept).await?;
        ensure!(answer.status == 200 && answer.body == content, "{}", answer.status);
        Ok(())
    })
    .await?;
    ensure!(storage.count("a.git", Operation::LfsObject) == 1, "downloaded again");
    Ok(())
}

#[tokio::test]
async fn a_mirror_of_a_host_that_the_list_does_not_name_is_stalled_and_nobody_is_asked() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    upstream.seed("a.git").await?;
    let (url, port) = (upstream.url("a.git"), upstream.address().port());
    for (list, fine) in [
        ("github.com,*.corp.example", false),
        ("127.0.0.1:1", false),
        ("10.0.0.0/8", false),
        ("github.com,127.0.0.0/8", true),
        ("*", true),
    ] {
        upstream.clear_log();
        let agent = agent().arg("--allow-upstream").arg(list);
        let agent = agent.start_with(&[("a.yaml", &manifest("a", &url, &[]))]).await?;
        let repo = repo_id(&url);
        if fine {
            agent.wait_phase(&repo, "Ready").await?;
            continue;
        }
        let answer = agent.get(&format!("/git/{repo}/info/refs?service=git-upload-pack")).await?;
        ensure!(
            answer.status == 503 && answer.text().contains("UpstreamNotAllowed"),
            "{list}: {}",
            answer.text()
        );
        let status = agent.status().await?.to_string();
        ensure!(
            status.contains("UpstreamNotAllowed") && status.contains("--allow-upstream"),
            "{list}: {status}"
        );
        ensure!(upstream.log().is_empty(), "{list}: {:?}", upstream.log());
    }
    // A name is judged by where it leads, and git asks no other address than the look did.
    let named = format!("http://localhost:{port}/a.git");
    for (list, fine) in [("10.0.0.0/8", false), ("127.0.0.0/8", true)] {
        let agent = agent().arg("--allow-upstream").arg(list);
        let agent = agent.start_with(&[("a.yaml", &manifest("a", &named, &[]))]).await?;
        if fine {
            agent.wait_phase(&repo_id(&named), "Ready").await?;
            continue;
        }
        upstream.clear_log();
        let status = agent.wait_phase(&repo_id(&named), "Backoff").await?;
        ensure!(message(&status).contains("--allow-upstream"), "{status}");
        ensure!(upstream.log().is_empty(), "{list}: {:?}", upstream.log());
    }
    Ok(())
}

#[tokio::test]
async fn pushes_locks_and_uploads_hand_on_what_git_and_lfs_answer_and_nothing_else() -> Result<()> {
    let (scene, _) = scene(&[], &[]).await?;
    // The user says for which upstream the password is.
    let user = format!("ada@http+{}:pw", scene.upstream.address().to_string().replace(':', "._"));
    let caller = format!("Basic {}", BASE64_STANDARD.encode(user));
    let inner = "db_password=hunter2 \u{1b}]0;owned\u{7}";
    let page = |status, kind| Fault::Page { status, kind, text: inner.into() };
    for (fault, pushed, locked) in [
        (page(200, "text/html"), 502, 502),
        (page(200, "text/plain"), 502, 502),
        (page(200, "application/octet-stream"), 502, 502),
        (page(200, LFS), 502, 502),
        (page(403, "text/plain"), 403, 403),
        (page(404, "text/html"), 404, 404),
        (page(500, "text/plain"), 502, 500),
        (Fault::Html, 502, 502),
        (Fault::Type("text/html"), 502, 502),
    ] {
        scene.upstream.fault(fault.clone());
        for (routes, status) in [(PUSHES.to_vec(), pushed), (vec![LOCK, UPLOAD], locked)] {
            for route in routes {
                // So many refused credentials of one address would be a guess: these come without any.
                let credential = [("Authorization", caller.as_str())];
                let headers = if matches!(status, 403 | 404) { &[][..] } else { &credential[..] };
                let answer = ask(&scene.agent, &scene.path(), route, headers).await?;
                let text = answer.text();
                ensure!(answer.status == status, "{fault:?} {route:?}: {} {text}", answer.status);
                for leak in ["hunter2", "log in", "\u{1b}"] {
                    ensure!(!text.contains(leak), "{fault:?} {route:?}: {text}");
                }
            }
        }
    }
    // What is the API's, and is for people, is text.
    let text = r#"{"message":"\u001b]0;owned\u0007 no","locks":[]}"#.to_owned();
    for status in [200, 403] {
        scene.upstream.fault(Fault::Page { status, kind: LFS, text: text.clone() });
        let answer = ask(&scene.agent, &scene.path(), LOCK, &[]).await?;
        ensure!(
            answer.status == status && answer.text().contains(" no"),
            "{} {}",
            answer.status,
            answer.text()
        );
        ensure!(!answer.text().contains("u001b"), "{}", answer.text());
    }
    // A challenge is handed on, so that the caller can answer it.
    scene.upstream.mend();
    scene.upstream.require(Auth::BasicToPost { user: "ada".into(), password: "pw".into() });
    for route in [PUSHES[1], LOCK] {
        let answer = ask(&scene.agent, &scene.path(), route, &[]).await?;
        ensure!(
            answer.status == 401 && answer.header("www-authenticate").is_some(),
            "{route:?}: {}",
            answer.status
        );
        let known = ask(&scene.agent, &scene.path(), route, &[("Authorization", caller.as_str())]).await?;
        ensure!(known.status < 400, "{route:?}: {} {}", known.status, known.text());
    }
    Ok(())
}

#[tokio::test]
async fn an_upstreams_lfs_error_is_one_short_plain_line() -> Result<()> {
    for format in ["text", "json"] {
        let (scene, content) = scene(&["--log-format", format], &[]).await?;
        scene.upstream.lfs().refuse(&format!("{PAINT}{}", "y".repeat(1_000_000)));
        let answer = seen(&scene, &object(&scene, &content, 9)).await?.context("an answer")?;
        let size = answer.body.len();
        ensure!(answer.status == 404 && size < 1000, "{} {size}", answer.status);
        ensure!(!answer.text().contains("u001b") && !answer.text().contains('\u{1b}'), "{}", answer.text());
        let answer = ask(&scene.agent, &scene.path(), DOWNLOAD, &[]).await?;
        ensure!(answer.body.len() < 1000 && !answer.text().contains("u001b"), "{}", answer.text());
        // It is told, and is one line.
        let logs = eventually(PATIENCE, "the line of the log", async || {
            let logs = scene.agent.logs()?;
            ensure!(logs.contains("an LFS object cannot be had") && logs.contains("owned"), "not yet");
            Ok(logs)
        })
        .await?;
        ensure!(!logs.lines().any(|line| line.starts_with("2026-01-01")), "a line of the log is forged");
        let control = |c: char| c.is_control() && c != '\n';
        ensure!(!logs.contains(control), "{format}: {:?}", logs.lines().find(|line| line.contains(control)));
        ensure!(logs.len() < 1_000_000, "{} bytes of log", logs.len());
        let told: Vec<_> = logs.lines().filter(|line| line.contains("an LFS object cannot be had")).collect();
        ensure!(told.iter().all(|line| line.contains("caller=forged")), "it is cut into lines: {told:?}");
        for line in logs.lines().filter(|_| format == "json") {
            serde_json::from_str::<serde_json::Value>(line).with_context(|| line.to_owned())?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_paints_on_terminals_is_text_for_those_who_get_it_from_the_cache() -> Result<()> {
    let scene = Scene::prepared(&[], async |upstream, _| {
        upstream.fault_on(Operation::Fetch, Fault::Say("\u{1b}]0;owned\u{7}\u{9b}2J hello\n".into()));
        Ok(())
    })
    .await?;
    // Whether the mirror is here already or not: nobody is shown it.
    for _ in 0..3 {
        let head = scene.origin.rev_parse("main").await?;
        let packets = [&b"command=fetch"[..], b"ofs-delta\n", b"done\n"];
        let [command, deltas, done] =
            packets.map(|text| tarn_testkit::wire::pkt(&String::from_utf8_lossy(text)));
        let want = tarn_testkit::wire::pkt(&format!("want {head}\n"));
        let body = [command, b"0001".to_vec(), deltas, want, done, b"0000".to_vec()].concat();
        let kind = ("Content-Type", "application/x-git-upload-pack-request");
        let mut connection = scene.connect().await?;
        let target = format!("{}/git-upload-pack", scene.path());
        let answer = connection.ask("POST", &target, &[kind, ("Git-Protocol", "version=2")], &body).await?;
        ensure!(answer.body.windows(4).any(|part| part == b"PACK"), "{}", answer.text());
        let owned = answer.body.windows(9).any(|part| part == b"\x1b]0;owned");
        ensure!(!owned && !answer.body.windows(2).any(|part| part == "\u{9b}".as_bytes()), "it paints");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_end_and_lists_of_many_refs_leave_the_agent_alive_and_small() -> Result<()> {
    let (scene, content) = scene(&[], &[]).await?;
    scene.upstream.lfs().put("a.git", &content);
    for operation in
        [Operation::Advertise, Operation::LsRefs, Operation::Push, Operation::LfsBatch, Operation::LfsLocks]
    {
        scene.upstream.fault(Fault::None);
        scene.upstream.fault_on(operation, Fault::Endless);
        for route in [LOCK, UPLOAD, DOWNLOAD] {
            let path = scene.path();
            let asked = ask(&scene.agent, &path, route, &[]);
            // A push may last as long as its upstream sends; the rest ends by itself.
            let answer = tokio::time::timeout(Duration::from_secs(60), asked).await??;
            ensure!(answer.body.len() < 20 << 20, "{operation:?} {route:?}: {}", answer.body.len());
        }
    }
    scene.upstream.mend();
    scene.upstream.fault_on(Operation::LsRefs, Fault::Refs(20_000));
    eventually(PATIENCE, "all refs", async || {
        let seen = scene.git.ls_remote(&scene.url()?).await?;
        ensure!(seen.len() > 20_000, "{}", seen.len());
        Ok(())
    })
    .await?;
    scene.upstream.mend();
    let healthy = scene.agent.admin("/healthz").await?;
    ensure!(healthy.status == 200, "{}", healthy.status);
    let peak = tarn_testkit::measure::peak_rss(scene.agent.pid()?)? >> 20;
    ensure!(peak < 900, "the agent took {peak} MB");
    Ok(())
}
