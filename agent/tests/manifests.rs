//! Manifests in a directory: each document is judged alone, and changes take effect.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use tarn_testkit::agent::{Agent, manifest, repo_id};
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::Git;
use tarn_testkit::upstream::Upstream;

use crate::scene::{agent, condition, message};

/// An upstream with repositories of these names.
async fn upstream(names: &[&str]) -> Result<(tempfile::TempDir, Upstream)> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    for name in names {
        upstream.seed(&format!("{name}.git")).await?;
    }
    Ok((dir, upstream))
}

fn url(upstream: &Upstream, name: &str) -> String {
    upstream.url(&format!("{name}.git"))
}

fn id(upstream: &Upstream, name: &str) -> String {
    repo_id(&url(upstream, name))
}

async fn wait_rejected(agent: &Agent, what: &str, fits: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
    eventually(Duration::from_secs(10), what, async || {
        let status = agent.status().await?;
        let rejected = status["rejected"].as_array().cloned().unwrap_or_default();
        ensure!(fits(&rejected), "{status}");
        Ok(rejected)
    })
    .await
}

async fn wait_gone(agent: &Agent, repo: &str) -> Result<()> {
    eventually(Duration::from_secs(10), &format!("{repo} to be gone"), async || {
        let answer = agent.get(&format!("/git/{repo}/info/refs?service=git-upload-pack")).await?;
        ensure!(answer.status == 404, "{}", answer.status);
        ensure!(agent.mirror_status(repo).await.is_err(), "still in /status");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn files_added_changed_and_removed_take_effect() -> Result<()> {
    let (_dir, upstream) = upstream(&["a", "b", "c"]).await?;
    let agent = agent().start_with(&[("a.yaml", &manifest("a", &url(&upstream, "a"), &[]))]).await?;
    agent.wait_phase(&id(&upstream, "a"), "Ready").await?;
    agent.write_manifest("b.yml", &manifest("b", &url(&upstream, "b"), &[]))?;
    agent.wait_phase(&id(&upstream, "b"), "Ready").await?;
    // The same file, another repository.
    agent.write_manifest("b.yml", &manifest("b", &url(&upstream, "c"), &[]))?;
    agent.wait_phase(&id(&upstream, "c"), "Ready").await?;
    wait_gone(&agent, &id(&upstream, "b")).await?;
    // The same repository, another setting.
    agent.write_manifest("a.yaml", &manifest("a", &url(&upstream, "a"), &["access: Authenticated"]))?;
    eventually(Duration::from_secs(10), "nobody to be let in", async || {
        let target = format!("/git/{}/info/refs?service=git-upload-pack", id(&upstream, "a"));
        let answer = agent.get(&target).await?;
        // There are no tokens to compare with: it is stalled, and declared all the same.
        ensure!(answer.status == 503, "{}", answer.status);
        ensure!(answer.text().starts_with("AccessUnsupported: "), "{}", answer.text());
        Ok(())
    })
    .await?;
    agent.remove_manifest("a.yaml")?;
    wait_gone(&agent, &id(&upstream, "a")).await?;
    // And back: nothing of its former life is in the way.
    agent.write_manifest("a.yaml", &manifest("a", &url(&upstream, "a"), &[]))?;
    agent.wait_phase(&id(&upstream, "a"), "Ready").await?;
    Git::new()?.ls_remote(&agent.git_url(&id(&upstream, "a"))?).await?;
    assert_eq!(agent.mirror_status(&id(&upstream, "c")).await?["phase"], "Ready");
    Ok(())
}

#[tokio::test]
async fn a_file_written_in_place_and_one_removed_while_it_clones_take_effect() -> Result<()> {
    let (_dir, upstream) = upstream(&["a", "b"]).await?;
    let agent = agent().start().await?;
    std::fs::write(agent.manifests().join("a.yaml"), manifest("a", &url(&upstream, "a"), &[]))?;
    agent.wait_phase(&id(&upstream, "a"), "Ready").await?;
    upstream.fault_in("b.git", tarn_testkit::upstream::Fault::Hang);
    agent.write_manifest("b.yaml", &manifest("b", &url(&upstream, "b"), &[]))?;
    eventually(Duration::from_secs(10), "b to begin", async || {
        agent.mirror_status(&id(&upstream, "b")).await
    })
    .await?;
    agent.remove_manifest("b.yaml")?;
    wait_gone(&agent, &id(&upstream, "b")).await?;
    agent.wait_idle().await
}

#[tokio::test]
async fn a_file_may_hold_many_documents() -> Result<()> {
    let (_dir, upstream) = upstream(&["a", "b", "c"]).await?;
    let yaml = ["a", "b", "c"].map(|name| manifest(name, &url(&upstream, name), &[])).join("---\n");
    let json = serde_json::json!({"apiVersion": "tarn.dev/v1alpha1", "kind": "GitMirror",
        "metadata": {"name": "j"}, "spec": {"url": "http://127.0.0.1:1/j.git"}});
    let agent = agent()
        .start_with(&[("all.yaml", &format!("---\n# a comment\n{yaml}---\n")), ("j.json", &json.to_string())])
        .await?;
    for name in ["a", "b", "c"] {
        agent.wait_phase(&id(&upstream, name), "Ready").await?;
    }
    agent.mirror_status("127.0.0.1:1/j").await?;
    Ok(())
}

#[tokio::test]
async fn a_bad_document_is_named_by_file_field_and_reason_and_disturbs_no_other() -> Result<()> {
    let (_dir, upstream) = upstream(&["a", "b"]).await?;
    let good = manifest("a", &url(&upstream, "a"), &[]);
    let any = "http://127.0.0.1:1/x.git";
    // In the order of the file names; the field, and a word of the reason.
    let bad = [
        ("b-unknown.yaml", manifest("x", any, &["intervall: 10s"]), "spec.intervall", "unknown"),
        (
            "c-nested.yaml",
            manifest("x", any, &["freshness: {maxStale: 0s}"]),
            "spec.freshness.maxStale",
            "unknown",
        ),
        ("d-short.yaml", manifest("x", any, &["interval: 1s"]), "spec.interval", "10s"),
        ("e-type.yaml", manifest("x", any, &["suspend: perhaps"]), "spec.suspend", "true"),
        ("f-duration.yaml", manifest("x", any, &["timeout: soon"]), "spec.timeout", ""),
        ("g-enum.yaml", manifest("x", any, &["access: Everyone"]), "spec.access", "Anonymous"),
        (
            "h-no-url.yaml",
            "apiVersion: tarn.dev/v1alpha1\nkind: GitMirror\nmetadata: {name: x}\nspec: {}\n".into(),
            "spec.url",
            "required",
        ),
        ("i-kind.yaml", manifest("x", any, &[]).replace("GitMirror", "GitMirage"), "kind", ""),
        ("j-version.yaml", manifest("x", any, &[]).replace("v1alpha1", "v9"), "apiVersion", ""),
        ("k-name.yaml", manifest("Not_A_Name!", any, &[]), "metadata.name", ""),
        ("l-syntax.yaml", "kind: [GitMirror\n".into(), "", ""),
        ("m-scalar.yaml", "just text\n".into(), "", ""),
    ];
    let mut files = vec![("a.yaml", good.as_str())];
    files.extend(bad.iter().map(|(file, yaml, ..)| (*file, yaml.as_str())));
    let agent = agent().start_with(&files).await?;
    agent.wait_phase(&id(&upstream, "a"), "Ready").await?;
    let rejected = wait_rejected(&agent, "all bad files", |rejected| rejected.len() >= bad.len()).await?;
    let logs = agent.logs()?;
    for (file, _, field, word) in &bad {
        let found = rejected.iter().find(|one| one["file"] == *file && one["field"] == *field);
        let Some(found) = found else {
            let of_file: Vec<_> = rejected.iter().filter(|one| one["file"] == *file).collect();
            anyhow::bail!("{file}: no error for {field:?} in {of_file:?}");
        };
        let reason = found["reason"].as_str().unwrap_or_default();
        ensure!(
            reason.to_lowercase().contains(&word.to_lowercase()) && !reason.is_empty(),
            "{file}: {reason}"
        );
        ensure!(found["document"] == 1, "{found}");
        ensure!(logs.contains(file), "the log names {file}");
    }
    assert!(!rejected.iter().any(|one| one["file"] == "a.yaml"), "{rejected:?}");
    // Mended, it works, and its error is gone.
    agent.write_manifest("b-unknown.yaml", &manifest("b", &url(&upstream, "b"), &["interval: 10s"]))?;
    agent.wait_phase(&id(&upstream, "b"), "Ready").await?;
    wait_rejected(&agent, "one error less", |rejected| {
        !rejected.iter().any(|one| one["file"] == "b-unknown.yaml")
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn one_bad_document_among_good_ones_is_told_by_its_number() -> Result<()> {
    let (_dir, upstream) = upstream(&["a", "b"]).await?;
    let yaml = [
        manifest("a", &url(&upstream, "a"), &[]),
        manifest("x", "http://127.0.0.1:1/x.git", &["intervall: 10s"]),
        manifest("b", &url(&upstream, "b"), &[]),
    ]
    .join("---\n");
    let agent = agent().start_with(&[("all.yaml", &yaml)]).await?;
    agent.wait_ready(&[&id(&upstream, "a"), &id(&upstream, "b")]).await?;
    let rejected = wait_rejected(&agent, "the bad one", |rejected| rejected.len() == 1).await?;
    assert_eq!((&rejected[0]["document"], &rejected[0]["file"]), (&Value::from(2), &Value::from("all.yaml")));
    Ok(())
}

#[tokio::test]
async fn of_two_manifests_for_one_repository_the_second_is_stalled_and_names_the_first() -> Result<()> {
    let (_dir, upstream) = upstream(&["a"]).await?;
    let plain = url(&upstream, "a");
    // The same repository in another spelling.
    let other = format!("{}/", plain.strip_suffix(".git").unwrap_or(&plain));
    let agent = agent()
        .start_with(&[
            ("1.yaml", &manifest("first", &plain, &[])),
            ("2.yaml", &manifest("second", &other, &[])),
        ])
        .await?;
    agent.wait_phase(&id(&upstream, "a"), "Ready").await?;
    let named = async |name: &str| -> Result<Value> {
        let status = agent.status().await?;
        let found =
            status["mirrors"].as_array().into_iter().flatten().find(|mirror| mirror["name"] == name).cloned();
        found.ok_or_else(|| anyhow::anyhow!("no {name} in {status}"))
    };
    let second = named("second").await?;
    assert!(condition(&second, "Stalled") && !condition(&second, "Ready"), "{second}");
    assert!(message(&second).contains("first"), "{second}");
    assert!(condition(&named("first").await?, "Ready"));
    // Without the first, the second takes over.
    agent.remove_manifest("1.yaml")?;
    eventually(Duration::from_secs(10), "the second to be ready", async || {
        let second = named("second").await?;
        ensure!(condition(&second, "Ready") && !condition(&second, "Stalled"), "{second}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn two_urls_of_one_host_and_path_are_one_repository_whatever_the_scheme() -> Result<()> {
    let agent = agent()
        .start_with(&[
            ("1.yaml", &manifest("https", "https://Git.Example.invalid/org/repo.git", &["suspend: true"])),
            ("2.yaml", &manifest("ssh", "ssh://git@git.example.invalid/org/repo", &["suspend: true"])),
            ("3.yaml", &manifest("port", "https://git.example.invalid:443/org/repo/", &["suspend: true"])),
            ("4.yaml", &manifest("another", "https://git.example.invalid/Org/repo", &["suspend: true"])),
        ])
        .await?;
    let status = agent.status().await?;
    let stalled: Vec<_> = status["mirrors"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|mirror| condition(mirror, "Stalled"))
        .map(|mirror| mirror["name"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(stalled, ["ssh", "port"], "{status}");
    Ok(())
}

#[tokio::test]
async fn a_directory_swapped_by_a_symbolic_link_is_followed_as_kubelet_does_it() -> Result<()> {
    let (dir, upstream) = upstream(&["a", "b"]).await?;
    let mount = dir.path().join("mount");
    let version = |number: u32, name: &str| -> Result<()> {
        let data = mount.join(format!("..{number}"));
        std::fs::create_dir_all(&data)?;
        std::fs::write(data.join("mirrors.yaml"), manifest(name, &url(&upstream, name), &[]))?;
        let staged = mount.join("..data_tmp");
        std::os::unix::fs::symlink(format!("..{number}"), &staged)?;
        std::fs::rename(staged, mount.join("..data"))?;
        Ok(())
    };
    version(1, "a")?;
    std::os::unix::fs::symlink("..data/mirrors.yaml", mount.join("mirrors.yaml"))?;
    let agent = agent().without_manifests().arg("--manifests").arg(&mount).start().await?;
    agent.wait_phase(&id(&upstream, "a"), "Ready").await?;
    version(2, "b")?;
    agent.wait_phase(&id(&upstream, "b"), "Ready").await?;
    wait_gone(&agent, &id(&upstream, "a")).await
}

#[tokio::test]
async fn other_files_in_the_directory_are_none_of_its_business() -> Result<()> {
    let (_dir, upstream) = upstream(&["a"]).await?;
    let good = manifest("a", &url(&upstream, "a"), &[]);
    let agent = agent()
        .start_with(&[
            ("a.yaml", &good),
            (".a.yaml.swp", "\0"),
            ("a.yaml~", "x"),
            ("README.md", "text"),
            (".hidden.yaml", "x"),
            ("empty.yaml", ""),
        ])
        .await?;
    agent.wait_phase(&id(&upstream, "a"), "Ready").await?;
    assert_eq!(agent.status().await?["rejected"], serde_json::json!([]));
    Ok(())
}

#[tokio::test]
async fn a_suspended_mirror_leaves_the_upstream_alone_and_serves_what_it_has() -> Result<()> {
    let (_dir, upstream) = upstream(&["a"]).await?;
    let repo = id(&upstream, "a");
    let agent = agent().start_with(&[("a.yaml", &manifest("a", &url(&upstream, "a"), &[]))]).await?;
    agent.wait_phase(&repo, "Ready").await?;
    let git = Git::new()?;
    let before = git.ls_remote(&agent.git_url(&repo)?).await?;
    agent.write_manifest("a.yaml", &manifest("a", &url(&upstream, "a"), &["suspend: true"]))?;
    let target = format!("/git/{repo}/info/refs?service=git-upload-pack");
    eventually(Duration::from_secs(10), "answers without a look", async || {
        let answer = agent.get(&target).await?;
        let freshness = answer.header("tarn-freshness").unwrap_or_default();
        ensure!(freshness.starts_with("stale"), "{} {freshness}", answer.status);
        Ok(())
    })
    .await?;
    upstream.clear_log();
    assert_eq!(git.ls_remote(&agent.git_url(&repo)?).await?, before);
    assert_eq!(upstream.log().len(), 0);
    Ok(())
}

#[tokio::test]
async fn a_directory_that_is_away_at_the_start_takes_nothing_away() -> Result<()> {
    let (_dir, upstream) = upstream(&["a", "b"]).await?;
    let all = [
        ("a.yaml", manifest("a", &url(&upstream, "a"), &[])),
        ("b.yaml", manifest("b", &url(&upstream, "b"), &[])),
    ];
    let mut agent = agent().start_with(&[("a.yaml", &all[0].1), ("b.yaml", &all[1].1)]).await?;
    agent.wait_ready(&[&id(&upstream, "a"), &id(&upstream, "b")]).await?;
    let kept = agent.data().join("declarations.json");
    eventually(Duration::from_secs(10), "the declarations to be kept", async || {
        let text = std::fs::read_to_string(&kept)?;
        ensure!(text.contains("a.yaml") && text.contains("b.yaml"), "{text}");
        Ok(())
    })
    .await?;
    agent.stop().await?;
    let (there, away) = (agent.manifests(), agent.manifests().with_extension("away"));
    std::fs::rename(&there, &away)?;
    agent.start_again().await?;
    agent.wait_ready(&[&id(&upstream, "a"), &id(&upstream, "b")]).await?;
    Git::new()?.ls_remote(&agent.git_url(&id(&upstream, "a"))?).await?;
    let answer = agent.get("/git/127.0.0.1:1/x/info/refs?service=git-upload-pack").await?;
    ensure!(answer.status == 503 && answer.text().starts_with("DeclarationsUnknown: "), "{}", answer.text());
    // Without what an earlier process left, a wrong directory is an error.
    agent.stop().await?;
    std::fs::remove_file(&kept)?;
    let error = agent.start_again().await.unwrap_err().to_string();
    ensure!(error.contains("--manifests must name a directory"), "{error}");
    std::fs::rename(&away, &there)?;
    agent.start_again().await?;
    agent.wait_ready(&[&id(&upstream, "a")]).await
}
