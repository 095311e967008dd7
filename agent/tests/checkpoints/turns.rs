//! Many mirrors to restore, few at a time: who is waited for goes first.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::Method;
use tarn_testkit::agent::{manifest, repo_id};
use tarn_testkit::eventually::eventually;
use tarn_testkit::proxy::{HttpFault, HttpFaultProxy, Select, When};

use super::{Kind, Stage};
use crate::scene::agent;

#[tokio::test(flavor = "multi_thread")]
async fn the_mirror_that_a_client_asks_for_is_restored_next() -> Result<()> {
    const MIRRORS: usize = 9;
    let stage = Stage::new(Kind::Bucket).await?;
    let names: Vec<String> = (0..MIRRORS).map(|number| format!("many-{number}.git")).collect();
    let mut yaml = Vec::new();
    for name in &names {
        stage.upstream.seed(name).await?;
        yaml.push(manifest(name.trim_end_matches(".git"), &stage.upstream.url(name), &stage.spec));
    }
    let yaml = [("all.yaml", &*yaml.join("---\n"))];
    let repos: Vec<String> = names.iter().map(|name| repo_id(&stage.upstream.url(name))).collect();
    let mut first = stage.with_store(agent(), None).start_with(&yaml).await?;
    for repo in &repos {
        first.wait_status(repo, "a checkpoint", |status| status["checkpoint"]["generation"] == 1).await?;
    }
    first.stop().await?;

    let slow = HttpFaultProxy::start(stage.s3.as_ref().context("a bucket")?.address())?;
    let packs = Select { method: Some(Method::GET), path: Some("/packs/".into()) };
    slow.add(packs, When::Always, HttpFault::Delay(Duration::from_secs(2)));
    let second = stage.with_store(agent(), Some(&slow.url())).start_with(&yaml).await?;
    // In the order in which their packs are asked for.
    let restored = || -> Vec<usize> {
        let mut order = Vec::new();
        for seen in slow.seen() {
            let of = |name: &String| seen.target.contains(&format!("/{name}/packs/"));
            let asked = names.iter().position(of).filter(|_| seen.method == Method::GET);
            order.extend(asked.filter(|number| !order.contains(number)));
        }
        order
    };
    eventually(Duration::from_secs(20), "restores under way", async || {
        ensure!(restored().len() >= 2, "none yet");
        Ok(())
    })
    .await?;
    let wanted =
        (0..MIRRORS).rev().find(|number| !restored().contains(number)).context("all are restored")?;
    stage.git.ls_remote(&second.git_url(&repos[wanted])?).await?;
    let before = restored().len();
    second.wait_status(&repos[wanted], "restored", |status| status["refCount"] != 0).await?;
    let order = restored();
    let place = order.iter().position(|number| *number == wanted).context("restored")?;
    ensure!(place <= before, "{before} were under way when {wanted} was asked for; the order was {order:?}");
    Ok(())
}
