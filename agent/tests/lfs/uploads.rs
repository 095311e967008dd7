//! Uploads and locks: the upstream's own, with the caller's credentials.

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::json;
use tarn_testkit::upstream::{Auth, Operation, lfs};

use super::{cloned, noise, post, scene};

#[tokio::test(flavor = "multi_thread")]
async fn an_lfs_push_through_tarn_reaches_the_upstream() -> Result<()> {
    let scene = scene(&noise(1000)).await?;
    let clone = cloned(&scene, "clone").await?;
    let content = noise(50_000);
    std::fs::write(clone.path().join("new.bin"), &content)?;
    clone.git(&["add", "new.bin"]).await?;
    clone.git(&["commit", "--quiet", "--message", "new"]).await?;
    clone.git(&["lfs", "push", "origin", "main"]).await?;
    clone.push("origin", &["main"]).await?;
    let there = scene.upstream.lfs().get("a.git", &lfs::oid(&content)).context("it is not upstream")?;
    ensure!(there == content, "another content");
    let second = cloned(&scene, "second").await?;
    ensure!(std::fs::read(second.path().join("new.bin"))? == content, "another content");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_are_the_upstreams_and_the_callers() -> Result<()> {
    let scene = scene(&noise(1000)).await?;
    let clone = cloned(&scene, "clone").await?;
    clone.git(&["lfs", "lock", "big.bin"]).await?;
    ensure!(scene.upstream.lfs().locks() == [("big.bin".into(), "nobody".into())]);
    ensure!(clone.git(&["lfs", "locks"]).await?.contains("big.bin"), "it is not listed");
    clone.git(&["lfs", "unlock", "big.bin"]).await?;
    ensure!(scene.upstream.lfs().locks().is_empty(), "it is still locked");
    let user = format!("ada@http+{}:pw", scene.upstream.address().to_string().replace(':', "._"));
    let basic = format!("Basic {}", BASE64_STANDARD.encode(user));
    let caller = [("Authorization", basic.as_str())];
    scene.upstream.require(Auth::Basic { user: "ada".into(), password: "pw".into() });
    let refused = post(&scene, &scene.path(), &[], &json!({"path": "x.bin"})).await?;
    ensure!(refused.status == 401 && refused.header("www-authenticate").is_some(), "{}", refused.status);
    let locked = post(&scene, &scene.path(), &caller, &json!({"path": "x.bin"})).await?;
    ensure!(locked.status == 201, "{}", locked.status);
    ensure!(scene.upstream.lfs().locks() == [("x.bin".into(), "somebody".into())]);
    ensure!(scene.upstream.count("a.git", Operation::LfsLocks) >= 5, "the upstream was not asked");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn lfs_locks_and_uploads_of_a_suspended_mirror_reach_no_upstream() -> Result<()> {
    let scene = scene(&noise(1000)).await?;
    scene.suspend("/info/lfs/locks").await?;
    let upload = json!({"operation": "upload", "objects": [{"oid": lfs::oid(b"x"), "size": 1}]});
    scene.upstream.clear_log();
    for body in [&upload, &json!({"path": "x.bin"})] {
        let answer = post(&scene, &scene.path(), &[("Authorization", "Basic YWRhOnB3")], body).await?;
        ensure!(answer.status == 503, "{} {}", answer.status, answer.text());
    }
    ensure!(scene.upstream.log().is_empty(), "{:?}", scene.upstream.log());
    Ok(())
}
