//! Repositories nobody declared, mirrors that are not for everybody, and upstreams that are not allowed.

use anyhow::{Result, ensure};
use tarn_testkit::agent::{manifest, repo_id};
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::upstream::Upstream;

use crate::scene::{Scene, agent};

#[tokio::test]
async fn an_undeclared_repository_is_not_found_by_name_and_git_shows_the_reason() -> Result<()> {
    let scene = Scene::ready().await?;
    scene.upstream.seed("other.git").await?;
    scene.upstream.clear_log();
    let other = repo_id(&scene.upstream.url("other.git"));
    let answer = scene.agent.get(&format!("/git/{other}/info/refs?service=git-upload-pack")).await?;
    assert_eq!(answer.status, 404);
    assert!(answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")), "{answer:?}");
    assert!(answer.text().contains(&other), "{}", answer.text());
    for version in ["0", "2"] {
        let git = scene.git.clone().with_config("protocol.version", version);
        let output = git.attempt(["clone", &scene.agent.git_url(&other)?, "x"]).await?;
        assert!(!output.status.success());
        assert!(output.stderr.contains(&other) && output.stderr.contains("remote: "), "{}", output.stderr);
    }
    assert_eq!(scene.upstream.log().len(), 0, "nobody asks the upstream for it");
    let on_disk = crate::p4_never_stuck::files(scene.agent.data())?;
    assert!(!on_disk.iter().any(|path| path.to_string_lossy().contains("other")), "{on_disk:?}");
    Ok(())
}

#[tokio::test]
async fn access_that_only_a_cluster_can_check_is_refused_at_load() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    upstream.seed("a.git").await?;
    // Declared so, or by default because of the Secret.
    let declared = manifest("declared", &upstream.url("a.git"), &["access: RBAC"]);
    let default = manifest("default", &upstream.url("a.git"), &["secretRef: {name: creds}"]);
    for yaml in [declared, default] {
        let agent = agent().start_with(&[("a.yaml", &yaml)]).await?;
        let status = agent.status().await?;
        let rejected = &status["rejected"][0];
        ensure!(rejected["file"] == "a.yaml", "{status}");
        ensure!(rejected["field"].as_str().is_some_and(|field| field.starts_with("spec.access")), "{status}");
        ensure!(rejected["reason"].as_str().is_some_and(|reason| reason.contains("RBAC")), "{status}");
        let repo = repo_id(&upstream.url("a.git"));
        ensure!(agent.get(&format!("/git/{repo}/info/refs?service=git-upload-pack")).await?.status == 503);
    }
    assert_eq!(upstream.log().len(), 0);
    Ok(())
}

#[tokio::test]
async fn file_upstreams_need_their_flag() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let origin = Repo::seeded(dir.path().join("a.git")).await?;
    let yaml = manifest("a", &origin.file_url(), &[]);
    let agent = agent().start_with(&[("a.yaml", &yaml)]).await?;
    let status = agent.status().await?;
    assert_eq!(status["rejected"][0]["field"], "spec.url", "{status}");
    assert!(status["rejected"][0]["reason"].to_string().contains("--allow-file-upstreams"), "{status}");
    assert!(Git::new()?.ls_remote(&agent.git_url(&repo_id(&origin.file_url()))?).await.is_err());
    let allowed = crate::scene::agent().file_upstreams().start_with(&[("a.yaml", &yaml)]).await?;
    allowed.wait_phase(&repo_id(&origin.file_url()), "Ready").await?;
    Ok(())
}

#[tokio::test]
async fn other_protocols_and_urls_that_look_like_options_are_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let canary = dir.path().join("canary");
    let touch = format!("touch%20{}", canary.display());
    let urls = [
        format!("'ext::sh -c touch% {}'", canary.display()),
        format!("ext::{touch}"),
        "git://example.com/a.git".into(),
        "ftp://example.com/a.git".into(),
        "/etc".into(),
        "'-oProxyCommand=touch'".into(),
        "ssh://-oProxyCommand=touch/a".into(),
        "'git@example.com:a.git'".into(),
        "https:///a.git".into(),
        "'https://exa mple.com/a'".into(),
        "https://example.com/../a".into(),
        "https://example.com/a?b=c".into(),
    ];
    let agent = agent().file_upstreams().start().await?;
    for (number, url) in urls.iter().enumerate() {
        agent.write_manifest(&format!("{number}.yaml"), &manifest("a", url, &[]))?;
    }
    tarn_testkit::eventually::eventually(
        std::time::Duration::from_secs(10),
        "all to be rejected",
        async || {
            let status = agent.status().await?;
            let files: std::collections::BTreeSet<_> = status["rejected"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|rejected| rejected["field"] == "spec.url")
                .map(|rejected| rejected["file"].to_string())
                .collect();
            ensure!(files.len() == urls.len(), "{status}");
            ensure!(status["mirrors"].as_array().is_some_and(Vec::is_empty), "{status}");
            Ok(())
        },
    )
    .await?;
    assert!(!canary.exists());
    Ok(())
}
