//! The route: preconditions, ranges, waiting.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tarn_testkit::upstream::{Fault, Operation};

use super::{ask, current, download, path, stage};
use crate::checkpoints::Kind;

#[tokio::test(flavor = "multi_thread")]
async fn parts_make_the_whole_and_headers_name_it() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    stage.origin.grow("main", 5, 200_000, 3).await?;
    let agent = stage.ready().await?;
    let status = current(&stage, &agent).await?;
    let whole = download(&stage, &agent).await?;
    let (length, target) = (whole.body.len(), path(&stage));
    let header = |answer: &tarn_testkit::wire::Answer, name: &str| {
        answer.header(name).map(str::to_owned).with_context(|| format!("no {name}"))
    };
    let etag = header(&whole, "etag")?;
    ensure!(etag == format!("\"{}\"", status["snapshot"]["digest"].as_str().context("a digest")?), "{etag}");
    ensure!(header(&whole, "content-length")? == length.to_string(), "the length");
    let commit = stage.origin.rev_parse("HEAD").await?;
    ensure!(header(&whole, "x-cachew-snapshot-commit")? == commit, "the commit");
    let bundle = format!("/git/{}/snapshot.bundle?base={commit}", stage.repo());
    ensure!(header(&whole, "x-cachew-bundle-url")? == bundle, "the bundle");
    ensure!(header(&whole, "tarn-snapshot-age")?.parse::<u64>()? < 60, "the age");

    let mut parts = Vec::new();
    for (from, to) in [(0, length / 3), (length / 3, length / 2), (length / 2, length)] {
        let range = format!("bytes={from}-{}", to - 1);
        let part = ask(&agent, "GET", &target, &[("Range", &range), ("If-Match", &etag)]).await?;
        ensure!(part.status == 206, "{}", part.status);
        ensure!(header(&part, "content-range")? == format!("bytes {from}-{}/{length}", to - 1), "the range");
        ensure!(header(&part, "x-cachew-snapshot-commit")? == commit, "the commit of a part");
        parts.extend(part.body);
    }
    ensure!(parts == whole.body, "the parts are not the whole");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_make_a_multipart_answer() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    let agent = stage.ready().await?;
    current(&stage, &agent).await?;
    let whole = download(&stage, &agent).await?.body;
    let answer = ask(&agent, "GET", &path(&stage), &[("Range", "bytes=0-3,10-19,-5")]).await?;
    ensure!(answer.status == 206, "{}", answer.status);
    let kind = answer.header("content-type").context("a type")?.to_owned();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").context("multipart")?;
    let mut expected = Vec::new();
    for (from, to) in [(0, 4), (10, 20), (whole.len() - 5, whole.len())] {
        let head = format!(
            "\r\n--{boundary}\r\nContent-Type: application/zstd\r\nContent-Range: bytes {from}-{}/{}\r\n\r\n",
            to - 1,
            whole.len()
        );
        expected.extend(head.into_bytes());
        expected.extend(&whole[from..to]);
    }
    expected.extend(format!("\r\n--{boundary}--\r\n").into_bytes());
    ensure!(answer.body == expected, "{}", answer.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn preconditions_and_ranges_out_of_bounds_are_answered_as_http_says() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    let agent = stage.ready().await?;
    current(&stage, &agent).await?;
    let whole = download(&stage, &agent).await?;
    let (target, etag) = (path(&stage), whole.header("etag").context("a tag")?.to_owned());
    let old = format!("\"{}\"", "0".repeat(64));
    let modified = whole.header("last-modified").context("a time")?.to_owned();
    for (headers, status) in [
        (vec![("If-Match", old.as_str())], 412),
        (vec![("If-Match", etag.as_str())], 200),
        (vec![("If-None-Match", etag.as_str())], 304),
        (vec![("If-None-Match", old.as_str())], 200),
        (vec![("If-Modified-Since", modified.as_str())], 304),
        (vec![("If-Range", old.as_str()), ("Range", "bytes=0-1")], 200),
        (vec![("If-Range", etag.as_str()), ("Range", "bytes=0-1")], 206),
        (vec![("Range", "bytes=99999999999-")], 416),
        (vec![("Range", "bytes=5-1")], 200),
        (vec![("Range", "hours=1-2")], 200),
    ] {
        let answer = ask(&agent, "GET", &target, &headers).await?;
        ensure!(answer.status == status, "{headers:?}: {}", answer.status);
        ensure!(answer.header("etag") == Some(&etag), "{headers:?}: no tag");
        ensure!(answer.header("x-cachew-bundle-url").is_some(), "{headers:?}: no bundle");
        ensure!(status != 200 || answer.body == whole.body, "{headers:?}: not the whole");
    }
    let head = ask(&agent, "HEAD", &target, &[("Range", "bytes=0-1")]).await?;
    ensure!(head.status == 200, "{}", head.status);
    ensure!(head.header("content-length") == Some(&whole.body.len().to_string()), "{:?}", head.headers);
    ensure!(ask(&agent, "POST", &target, &[]).await?.status == 405, "a POST");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_snapshot_the_answer_is_try_again_and_waiting_gets_it() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    stage.upstream.fault_on(Operation::Fetch, Fault::Status(500));
    let agent = stage.agent().await?;
    let target = path(&stage);
    for method in ["GET", "HEAD"] {
        let answer = ask(&agent, method, &target, &[]).await?;
        ensure!(answer.status == 503 && answer.header("retry-after").is_some(), "{}", answer.status);
    }
    let began = Instant::now();
    let answer = agent.get(&format!("{target}?wait=1s")).await?;
    ensure!(answer.status == 503 && began.elapsed() >= Duration::from_secs(1), "{}", answer.text());
    ensure!(agent.get(&format!("{target}?wait=soon")).await?.status == 400, "nonsense");
    let patient = format!("{target}?wait=60s");
    let mend = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        stage.upstream.mend();
        agent.fetch_now(&stage.repo()).await
    };
    let (answer, _) = tokio::try_join!(agent.get(&patient), mend)?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undeclared_repository_has_no_snapshot() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    let agent = stage.ready().await?;
    for name in ["snapshot.tar.zst", "snapshot.bundle?base=1"] {
        let answer = agent.get(&format!("/git/example.com/other/{name}")).await?;
        ensure!([400, 404].contains(&answer.status), "{name}: {}", answer.status);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_snapshot_is_served_at_once_and_the_next_one_is_made_meanwhile() -> Result<()> {
    let mut stage = stage(Kind::Directory).await?;
    // Nobody looks by himself.
    stage.spec = vec!["interval: 1h", "snapshot: {interval: 10s, maxAge: 1h}"];
    let agent = stage.ready().await?;
    let first = current(&stage, &agent).await?;
    stage.origin.commit("main", &[("next.txt", "next")]).await?;
    tokio::time::sleep(Duration::from_secs(11)).await;
    let began = Instant::now();
    let old = download(&stage, &agent).await?;
    ensure!(began.elapsed() < Duration::from_secs(1), "it took {:?}", began.elapsed());
    ensure!(old.header("x-cachew-snapshot-commit") == first["snapshot"]["commit"].as_str(), "another commit");
    ensure!(old.header("tarn-snapshot-age").context("an age")?.parse::<u64>()? >= 10, "the age");
    let head = stage.origin.rev_parse("HEAD").await?;
    super::of_commit(&stage, &agent, &head).await?;
    Ok(())
}
