//! The bytes themselves: headers, bodies in every coding, connections kept alive, and refs listed exactly as
//! `git http-backend` lists them.

use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use tarn_testkit::wire::{Answer, Connection, pkt, pkts};

use super::fetch_request;
use crate::scene::Scene;

const REQUEST: (&str, &str) = ("Content-Type", "application/x-git-upload-pack-request");
const V2: (&str, &str) = ("Git-Protocol", "version=2");

/// Whether an answer to `fetch` brings a pack.
fn has_pack(answer: &Answer) -> bool {
    answer.status == 200 && answer.body.windows(4).any(|window| window == b"PACK")
}

fn ls_refs(arguments: &[&str]) -> Vec<u8> {
    let mut body = pkt("command=ls-refs\n");
    body.extend_from_slice(b"0001");
    for argument in arguments {
        body.extend(pkt(&format!("{argument}\n")));
    }
    body.extend_from_slice(b"0000");
    body
}

#[tokio::test]
async fn answers_have_gits_types_and_may_not_be_kept() -> Result<()> {
    let scene = Scene::ready().await?;
    let target = format!("{}/info/refs?service=git-upload-pack", scene.path());
    let answer = scene.agent.get(&target).await?;
    assert_eq!(answer.header("content-type"), Some("application/x-git-upload-pack-advertisement"));
    assert!(answer.header("cache-control").is_some_and(|control| control.contains("no-cache")), "{answer:?}");
    assert!(answer.body.starts_with(b"001e# service=git-upload-pack\n0000"), "{}", answer.text());
    let target = format!("{}/git-upload-pack", scene.path());
    let answer = scene.connect().await?.ask("POST", &target, &[REQUEST, V2], &ls_refs(&[])).await?;
    assert_eq!(answer.header("content-type"), Some("application/x-git-upload-pack-result"));
    assert!(answer.header("cache-control").is_some_and(|control| control.contains("no-cache")), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn requests_may_be_plain_compressed_or_chunked() -> Result<()> {
    let scene = Scene::ready().await?;
    let head = scene.origin.rev_parse("main").await?;
    let body = fetch_request(&[&head], &["no-progress", "ofs-delta", "done"]);
    let target = format!("{}/git-upload-pack", scene.path());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&body)?;
    let gzip = gzip.finish()?;
    let coding = ("Content-Encoding", "gzip");
    // One connection for all: each answer leaves it usable.
    let mut connection = scene.connect().await?;
    assert!(has_pack(&connection.ask("POST", &target, &[REQUEST, V2], &body).await?));
    assert!(has_pack(&connection.ask("POST", &target, &[REQUEST, V2, coding], &gzip).await?));
    let chunks: Vec<_> = body.chunks(7).collect();
    assert!(has_pack(&connection.ask_chunked("POST", &target, &[REQUEST, V2], &chunks).await?));
    let chunks: Vec<_> = gzip.chunks(5).collect();
    assert!(has_pack(&connection.ask_chunked("POST", &target, &[REQUEST, V2, coding], &chunks).await?));
    let expecting = ("Expect", "100-continue");
    assert!(has_pack(&connection.ask("POST", &target, &[REQUEST, V2, expecting], &body).await?));
    Ok(())
}

#[tokio::test]
async fn a_flush_alone_is_answered_with_nothing_as_git_probes_for_credentials_with_it() -> Result<()> {
    let scene = Scene::ready().await?;
    let target = format!("{}/git-upload-pack", scene.path());
    for headers in [[REQUEST, V2].as_slice(), &[REQUEST]] {
        let answer = scene.connect().await?.ask("POST", &target, headers, b"0000").await?;
        assert_eq!((answer.status, answer.text().as_str()), (200, ""), "{headers:?}");
    }
    Ok(())
}

#[tokio::test]
async fn many_requests_go_over_one_connection() -> Result<()> {
    let scene = Scene::ready().await?;
    let head = scene.origin.rev_parse("main").await?;
    let mut connection = scene.connect().await?;
    let (info, pack) = (
        format!("{}/info/refs?service=git-upload-pack", scene.path()),
        format!("{}/git-upload-pack", scene.path()),
    );
    for _ in 0..20 {
        assert_eq!(connection.ask("GET", &info, &[V2], b"").await?.status, 200);
        let answer = connection.ask("POST", &pack, &[REQUEST, V2], &ls_refs(&["peel", "symrefs"])).await?;
        assert!(answer.text().contains("refs/heads/main"), "{}", answer.text());
        let answer =
            connection.ask("POST", &pack, &[REQUEST, V2], &fetch_request(&[&head], &["done"])).await?;
        assert!(has_pack(&answer));
    }
    Ok(())
}

#[tokio::test]
async fn ls_refs_answers_as_git_does_whatever_is_asked() -> Result<()> {
    let scene = Scene::prepared(&["refs: {include: ['refs/*'], exclude: []}"], async |_, origin| {
        let main = origin.rev_parse("main").await?;
        origin.annotated_tag("v1", &main).await?;
        for name in ["refs/heads/a", "refs/heads/ab", "refs/heads/a-b", "refs/heads/topic/x", "refs/notes/n"]
        {
            origin.set_ref(name, &main).await?;
        }
        Ok(())
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    let questions: [&[&str]; 12] = [
        &[],
        &["peel"],
        &["symrefs"],
        &["peel", "symrefs", "unborn"],
        &["ref-prefix refs/heads/"],
        &["ref-prefix refs/heads/a"],
        &["ref-prefix HEAD", "symrefs"],
        &["ref-prefix refs/tags/", "peel"],
        &["ref-prefix refs/heads/a", "ref-prefix refs/heads/ab", "ref-prefix refs/tags/v1"],
        &["ref-prefix refs/none/"],
        &["ref-prefix "],
        &["ref-prefix HEAD", "ref-prefix refs/heads/", "ref-prefix refs/tags/", "peel", "symrefs", "unborn"],
    ];
    let mut through = scene.connect().await?;
    let mut direct = Connection::open(scene.upstream.address()).await?;
    let check = async |through: &mut Connection, direct: &mut Connection| {
        for question in questions {
            let body = ls_refs(question);
            let target = format!("{}/git-upload-pack", scene.path());
            let answer = through.ask("POST", &target, &[REQUEST, V2], &body).await?;
            let wanted = direct.ask("POST", "/a.git/git-upload-pack", &[REQUEST, V2], &body).await?;
            ensure!(
                pkts(&answer.body)? == pkts(&wanted.body)?,
                "{question:?}: {} is not {}",
                answer.text(),
                wanted.text()
            );
        }
        anyhow::Ok(())
    };
    check(&mut through, &mut direct).await?;
    scene.origin.set_head("refs/heads/unborn").await?;
    check(&mut through, &mut direct).await
}

#[tokio::test]
async fn capabilities_are_those_of_git_without_what_is_not_served() -> Result<()> {
    let scene = Scene::ready().await?;
    let ask = async |mut connection: Connection, target: String| {
        let answer = connection.ask("GET", &target, &[V2], b"").await?;
        let lines = pkts(&answer.body)?.into_iter().flatten();
        anyhow::Ok(lines.map(|line| String::from_utf8_lossy(&line).trim_end().to_owned()).collect::<Vec<_>>())
    };
    let query = "info/refs?service=git-upload-pack";
    let through = ask(scene.connect().await?, format!("{}/{query}", scene.path())).await?;
    let direct = ask(Connection::open(scene.upstream.address()).await?, format!("/a.git/{query}")).await?;
    let find = |lines: &[String], name: &str| lines.iter().find(|line| line.starts_with(name)).cloned();
    assert!(find(&through, "version 2").is_some(), "{through:?}");
    assert!(find(&through, "object-info").is_none(), "{through:?}");
    let fetch = find(&through, "fetch=").context("no fetch")?;
    for feature in ["shallow", "filter"] {
        assert!(fetch.contains(feature), "{fetch}");
    }
    assert_eq!(find(&through, "object-format"), find(&direct, "object-format"));
    assert_eq!(find(&through, "ls-refs"), find(&direct, "ls-refs"));
    Ok(())
}

#[tokio::test]
async fn an_unknown_protocol_version_is_answered_in_the_oldest() -> Result<()> {
    let scene = Scene::ready().await?;
    let target = format!("{}/info/refs?service=git-upload-pack", scene.path());
    let head = scene.origin.rev_parse("main").await?;
    for protocol in ["version=9", "", "verse=2", "version=", "version=two"] {
        let answer = scene.connect().await?.ask("GET", &target, &[("Git-Protocol", protocol)], b"").await?;
        assert_eq!(answer.status, 200, "{protocol:?}");
        assert!(answer.text().contains(&head), "{protocol:?}: refs are in the first answer of v0");
    }
    // Unknown keys beside a known version are none of the server's business.
    let answer =
        scene.connect().await?.ask("GET", &target, &[("Git-Protocol", "x=y:version=2")], b"").await?;
    assert!(answer.text().contains("version 2"));
    Ok(())
}

#[tokio::test]
async fn requests_that_need_no_new_objects_cost_the_upstream_no_fetch() -> Result<()> {
    let scene = Scene::ready().await?;
    scene.agent.wait_idle().await?;
    scene.upstream.clear_log();
    for number in 0..5 {
        scene.clone(&format!("clone-{number}"), &[]).await?;
    }
    assert_eq!(scene.upstream.count("a.git", tarn_testkit::upstream::Operation::Fetch), 0);
    Ok(())
}
