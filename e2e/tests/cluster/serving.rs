//! The everyday: declare, wait, clone, look, push.

use anyhow::{Context, Result, ensure};
use tarn_e2e::play::play;
use tarn_e2e::scene::{PATIENCE, head, is_true, until};
use tarn_e2e::{release, settings};

/// An example as it stands in the project, but for the hosts of its URLs: those are the upstream's, over http.
fn adapted(name: &str, host: &str) -> Result<String> {
    let path = settings::root().join("examples").join(name);
    let mut text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    for foreign in ["github.com", "git.example.com", "git.kernel.org"] {
        text = text.replace(&format!("https://{foreign}/"), &format!("http://{host}/"));
        text = text.replace(&format!("tarn.dev/hosts: {foreign}"), &format!("tarn.dev/hosts: http://{host}"));
    }
    Ok(text)
}

#[tokio::test]
async fn the_examples_are_applied_waited_for_and_cloned_by_service_name() -> Result<()> {
    play("examples", async |scene| {
        scene.with_cache().await?;
        let examples = [
            ("public.yaml", "log", "rust-lang/log"),
            ("private.yaml", "team-service", "team/service"),
            ("tuned.yaml", "linux", "pub/scm/linux/kernel/git/torvalds/linux"),
        ];
        for (file, mirror, path) in examples {
            let bare = format!("git init --quiet --bare --initial-branch=main /data/{path}.git");
            scene.shell("deployment/upstream", &bare).await?;
            let pushed = scene.push_to(&scene.upstream_url(path), path).await?;
            scene.apply(&adapted(file, &scene.upstream_host())?).await?;
            let mirror = format!("gitmirror/{mirror}");
            scene.kubectl(&["wait", "--for=condition=Ready", &mirror, "--timeout=120s"]).await?;
            let cloned = scene.clone_head(&scene.tarn_url(path)).await?;
            ensure!(cloned == pushed, "{path}: {cloned} instead of {pushed}");
        }
        // Within the namespace, the Service's bare name does.
        let short = format!("http://default/git/{}/rust-lang/log", scene.upstream_host());
        scene.clone_head(&short).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_push_is_in_the_next_clone_and_in_status() -> Result<()> {
    play("push", async |scene| {
        scene.with_mirror("app").await?;
        for _ in 0..3 {
            let pushed = scene.push("app").await?;
            // At once: an answer rests on a look that began after the request.
            let cloned = scene.clone_head(&scene.tarn_url("app")).await?;
            ensure!(cloned == pushed, "{cloned} instead of {pushed}");
        }
        let last = scene.push("app").await?;
        let told = |status: &_| head(status) == Some(last.as_str());
        let status = scene.until_status("app", "the push to be in status", told).await?;
        ensure!(status.revision == Some(format!("main@{}", last.get(..12).unwrap_or_default())));
        ensure!(is_true(&status, "Ready"));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn ages_tick_in_kubectl_get_while_nobody_writes() -> Result<()> {
    play("ages", async |scene| {
        // For the length of this test there is nothing to tell.
        scene.with_quiet_mirror("app").await?;
        scene.until_published("app").await?;
        let columns = "NAME READY PODS HEAD CHECKED SNAPSHOT AGE";
        let row = async || {
            let table = scene.kubectl(&["get", "gitmirrors"]).await?;
            let mut lines = table.lines().map(|line| line.split_whitespace().map(String::from));
            let header: Vec<String> = lines.next().context("no header")?.collect();
            ensure!(header.join(" ") == columns, "the columns are {header:?}");
            let version = ["get", "gitmirror", "app", "--output=jsonpath={.metadata.resourceVersion}"];
            anyhow::Ok((lines.next().context("no line")?.collect::<Vec<_>>(), scene.kubectl(&version).await?))
        };
        let mut before = row().await?;
        until(PATIENCE, "the age of the last look to tick while the object stays as it is", async || {
            let now = row().await?;
            if now.1 != before.1 {
                before = now;
                anyhow::bail!("written to meanwhile, as after a start");
            }
            let ages = (before.0.get(4).context("no age")?, now.0.get(4).context("no age")?);
            ensure!(ages.0 != ages.1, "it is {} still", ages.1);
            ensure!(now.0.get(2).is_some_and(|pods| pods == "2/2"), "{:?}", now.0);
            Ok(())
        })
        .await?;
        // All that the operator had to say by then.
        let log = release::operator_log(&scene.client).await?;
        ensure!(!log.contains("panicked"), "the operator panicked");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_look_can_be_asked_for_by_annotation() -> Result<()> {
    play("requested", async |scene| {
        scene.with_quiet_mirror("app").await?;
        let pushed = scene.push("app").await?;
        scene.kubectl(&["annotate", "gitmirror", "app", "tarn.dev/requestedAt=now"]).await?;
        let status = scene
            .until_status("app", "every pod to have looked", |status| {
                status.last_handled_requested_at.as_deref() == Some("now")
            })
            .await?;
        let behind = status.replicas.iter().filter(|entry| entry.head.as_deref() != Some(&pushed));
        ensure!(behind.count() == 0, "{:?}", status.replicas);
        Ok(())
    })
    .await
}
