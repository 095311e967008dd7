//! Git LFS through Tarn, with the real git-lfs: downloads cost the upstream one each, uploads and locks go through,
//! nothing is kept that is not what its name says, and nobody sees a credential.

mod access;
mod downloads;
mod guarded;
mod snapshot;
mod tls;
mod uploads;

use anyhow::{Result, ensure};
pub(crate) use guarded::expect_clones;
use serde_json::{Value, json};
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::upstream::{Operation, lfs};
use tarn_testkit::wire::Answer;

use crate::scene::Scene;

/// What every transfer at the upstream must carry, and nobody but Tarn may see.
const TOKEN: &str = "kanarienvogel-lfs-91c4";

pub(crate) const ATTRIBUTES: &str = "*.bin filter=lfs diff=lfs merge=lfs -text\n";

/// A scene whose upstream has LFS, and `big.bin` with `content` in its worktree.
async fn scene(content: &[u8]) -> Result<Scene> {
    scene_with(&[], content).await
}

async fn scene_with(spec: &[&str], content: &[u8]) -> Result<Scene> {
    let scene = Scene::prepared(spec, async |upstream, origin| {
        upstream.lfs().enable(TOKEN);
        let pointer = upstream.lfs().put("a.git", content);
        origin.commit("main", &[(".gitattributes", ATTRIBUTES), ("big.bin", &pointer)]).await.map(drop)
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    Ok(scene)
}

/// A client with git-lfs installed.
pub(crate) fn client() -> Result<Git> {
    Ok(Git::new()?
        .with_config("filter.lfs.process", "git-lfs filter-process")
        .with_config("filter.lfs.clean", "git-lfs clean -- %f")
        .with_config("filter.lfs.smudge", "git-lfs smudge -- %f")
        .with_config("filter.lfs.required", "true"))
}

/// Clones through Tarn, with git-lfs.
async fn cloned(scene: &Scene, name: &str) -> Result<Repo> {
    client()?.clone_repo(&scene.url()?, &scene.place(name), &[]).await
}

async fn expect_content(clone: &Repo, content: &[u8]) -> Result<()> {
    let found = std::fs::read(clone.path().join("big.bin"))?;
    ensure!(found == content, "another content: {} bytes", found.len());
    let status = clone.git(&["status", "--porcelain"]).await?;
    ensure!(status.is_empty(), "not clean: {status}");
    Ok(())
}

/// Bytes that differ from place to place.
fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]).collect()
}

/// How often the upstream was asked for an object itself.
fn transfers(scene: &Scene) -> usize {
    scene.upstream.count("a.git", Operation::LfsObject)
}

/// The path of an object through Tarn.
fn object(scene: &Scene, content: &[u8]) -> String {
    format!("{}/info/lfs/objects/{}?size={}", scene.path(), lfs::oid(content), content.len())
}

/// A request for downloads.
fn wanted(objects: &[(&str, usize)]) -> Value {
    let objects: Vec<_> = objects.iter().map(|(oid, size)| json!({"oid": oid, "size": size})).collect();
    json!({"operation": "download", "transfers": ["basic"], "objects": objects})
}

/// Asks the LFS API of the repository at `path`.
async fn post(scene: &Scene, path: &str, headers: &[(&str, &str)], body: &Value) -> Result<Answer> {
    let kind = [("Content-Type", "application/vnd.git-lfs+json")];
    let headers = [&kind[..], headers].concat();
    let target =
        format!("{path}/info/lfs/{}", if body.get("path").is_some() { "locks" } else { "objects/batch" });
    scene.connect().await?.ask("POST", &target, &headers, body.to_string().as_bytes()).await
}

/// The JSON of an answer of the LFS API.
fn json_of(answer: &Answer) -> Result<Value> {
    ensure!(answer.header("content-type") == Some("application/vnd.git-lfs+json"), "{:?}", answer.headers);
    Ok(serde_json::from_slice(&answer.body)?)
}
