//! Nobody in who should not be, and no credential out.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tarn_testkit::agent::{manifest, repo_id};
use tarn_testkit::upstream::{Auth, Operation, Upstream, lfs};
use tarn_testkit::wire::Connection;

use super::{TOKEN, json_of, noise, object, post, scene, wanted};
use crate::scene::agent;

const PASSWORD: &str = "kanarienvogel-pw-77ab";

#[tokio::test(flavor = "multi_thread")]
async fn foreign_names_and_paths_of_lfs_objects_are_refused() -> Result<()> {
    let content = noise(1000);
    let scene = scene(&content).await?;
    scene.agent.get(&object(&scene, &content)).await?;
    let path = scene.path();
    for oid in ["../../../../etc/passwd", "", "4d7a", &lfs::oid(b"x").to_uppercase()] {
        let answer = post(&scene, &path, &[], &wanted(&[(oid, 1)])).await?;
        ensure!(answer.status == 422, "{oid}: {}", answer.status);
        let get = format!("{path}/info/lfs/objects/{}", oid.replace('/', "%2F"));
        ensure!(scene.agent.get(&get).await?.status == 404, "{oid}");
    }
    let unknown = lfs::oid(b"unknown");
    let answer = json_of(&post(&scene, &path, &[], &wanted(&[(&unknown, 7)])).await?)?;
    let error = &answer["objects"][0]["error"];
    ensure!(error["code"] == 404 && error["message"] == "the upstream has no such object", "{answer}");
    let get = format!("{path}/info/lfs/objects/{unknown}?size=7");
    ensure!(scene.agent.get(&get).await?.status == 404, "an unknown object");
    let host = [("Host", "ada:pw@example.com")];
    let answer = scene.connect().await?;
    drop(answer);
    let body = wanted(&[(&lfs::oid(&content), 1000)]).to_string();
    let request = format!(
        "POST {path}/info/lfs/objects/batch HTTP/1.1\r\n{}: {}\r\nContent-Type: application/vnd.git-lfs+json\r\nContent-Length: {}\r\n\r\n{body}",
        host[0].0,
        host[0].1,
        body.len()
    );
    let mut connection = scene.connect().await?;
    connection.send(request.as_bytes()).await?;
    ensure!(connection.answer().await?.status == 400, "a host with credentials was taken");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_one_repository_are_not_given_out_in_another() -> Result<()> {
    let content = noise(1000);
    let scene = scene(&content).await?;
    scene.agent.get(&object(&scene, &content)).await?;
    let undeclared = format!("{}-other", scene.path());
    let answer = post(&scene, &undeclared, &[], &wanted(&[(&lfs::oid(&content), 1000)])).await?;
    let message = json_of(&answer)?["message"].to_string();
    ensure!(answer.status == 404 && message.contains("RepositoryUndeclared"), "{} {message}", answer.status);
    scene.upstream.seed("b.git").await?;
    let url = scene.upstream.url("b.git");
    scene.agent.write_manifest("b.yaml", &manifest("b", &url, &[]))?;
    scene.agent.wait_phase(&repo_id(&url), "Ready").await?;
    let path = format!("/git/{}", repo_id(&url));
    let answer = json_of(&post(&scene, &path, &[], &wanted(&[(&lfs::oid(&content), 1000)])).await?)?;
    ensure!(answer["objects"][0]["error"]["code"] == 404, "{answer}");
    let kept = scene.agent.get(&format!("{path}/info/lfs/objects/{}", lfs::oid(&content))).await?;
    ensure!(kept.status == 404, "{}", kept.status);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn lfs_credentials_go_to_the_upstream_alone_and_are_seen_nowhere() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (upstream, storage) = (Upstream::start(dir.path())?, Upstream::start(dir.path())?);
    let origin = upstream.seed("a.git").await?;
    let content = noise(100_000);
    for server in [&upstream, &storage] {
        server.lfs().enable(TOKEN);
        server.lfs().put("a.git", &content);
    }
    let near = noise(50_000);
    upstream.lfs().put("a.git", &near);
    origin.commit("main", &[("f", "1")]).await?;
    upstream.require(Auth::Basic { user: "ada".into(), password: PASSWORD.into() });
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: creds\n  labels: {{tarn.dev/credentials: 'true'}}\n  \
         annotations: {{tarn.dev/hosts: 'http://{}'}}\nstringData:\n  username: ada\n  password: {PASSWORD}\n",
        upstream.address()
    );
    let spec = ["secretRef: {name: creds}", "access: Anonymous"];
    let yaml = [manifest("a", &upstream.url("a.git"), &spec), secret].join("---\n");
    let agent = agent().arg("--allow-upstream").arg("127.0.0.1").env("TARN_AGENT_LOG", "trace");
    let agent = agent.start_with(&[("a.yaml", &yaml)]).await?;
    let repo = repo_id(&upstream.url("a.git"));
    agent.wait_phase(&repo, "Ready").await?;
    let mut seen = Vec::new();
    for (wanted_content, base) in [(&near, None), (&content, Some(format!("http://{}", storage.address())))] {
        if let Some(base) = &base {
            upstream.lfs().hrefs_at(base);
        }
        let body = wanted(&[(&lfs::oid(wanted_content), wanted_content.len())]).to_string();
        let kind = [("Content-Type", "application/vnd.git-lfs+json")];
        let target = format!("/git/{repo}/info/lfs/objects/batch");
        let mut connection = Connection::open(agent.git_address()?).await?;
        let answer = connection.ask("POST", &target, &kind, body.as_bytes()).await?;
        let text = answer.text();
        let href = json_of(&answer)?["objects"][0]["actions"]["download"]["href"].clone();
        let href = href.as_str().with_context(|| text.clone())?;
        let target = href.strip_prefix("http://test").with_context(|| format!("not to Tarn: {href}"))?;
        let object = agent.get(target).await?;
        ensure!(object.body == *wanted_content, "{} {}", object.status, object.text());
        seen.extend([text, format!("{:?}", object.headers)]);
    }
    let batches: Vec<_> =
        upstream.log().into_iter().filter(|seen| seen.operation == Operation::LfsBatch).collect();
    ensure!(!batches.is_empty() && batches.iter().all(|seen| seen.authorized), "{batches:?}");
    let elsewhere = storage.log();
    ensure!(!elsewhere.is_empty() && elsewhere.iter().all(|seen| !seen.authorized), "{elsewhere:?}");
    // An upload needs the caller's own.
    let body = json!({"operation": "upload", "objects": [{"oid": lfs::oid(b"x"), "size": 1}]}).to_string();
    let kind = [("Content-Type", "application/vnd.git-lfs+json")];
    let target = format!("/git/{repo}/info/lfs/objects/batch");
    let refused =
        Connection::open(agent.git_address()?).await?.ask("POST", &target, &kind, body.as_bytes()).await?;
    ensure!(refused.status == 401, "{} {}", refused.status, refused.text());
    seen.extend([agent.status().await?.to_string(), agent.metrics().await?, agent.logs()?]);
    for text in seen {
        ensure!(!text.contains(PASSWORD) && !text.contains(TOKEN), "a credential is seen: {text}");
    }
    Ok(())
}
