//! What all tests need goes away: the operator, the API server, the release.

use std::time::Duration;

use anyhow::{Result, ensure};
use tarn_crds::v1alpha1::GitMirrorStatus;
use tarn_e2e::cloner::{Cloner, Habit, Outcome, now};
use tarn_e2e::play::{note, play_alone};
use tarn_e2e::scene::{PATIENCE, head, until};
use tarn_e2e::{node, release, tool};

/// How long the API server is away: longer than the pods' Leases hold.
const OUTAGE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn without_the_api_server_clones_go_on_and_all_recovers() -> Result<()> {
    play_alone("api-server", async |scene| {
        scene.with_mirror("app").await?;
        let cloner = Cloner::start(scene, "cloner", "app", Habit::PushAndClone).await?;
        let Some(stopped) = node::stop_api_server().await? else {
            note("not tried: the API server of this cluster is not ours to stop");
            return Ok(());
        };
        // The length of what is done to the cluster, not of a wait for something.
        let from = now();
        tokio::time::sleep(OUTAGE).await;
        let to = now();
        stopped.resume().await?;
        cloner.until_more(3).await?;
        let attempts = cloner.without_failure().await?;
        let during = attempts.iter().filter(|attempt| attempt.outcome == Outcome::Ok);
        let during = during.filter(|attempt| (from..=to).contains(&attempt.seconds)).count();
        note(&format!("{during} clones with a push before each in {} s without an API server", to - from));
        ensure!(during >= 10, "{during} clones in {OUTAGE:?}");
        until(PATIENCE, "status to follow what was pushed since", async || {
            let since: Vec<_> = cloner.attempts().await?;
            let since = since.iter().filter(|attempt| attempt.seconds > to);
            let status = scene.status("app").await?;
            let told = head(&status).unwrap_or_default();
            let known = since.map(|attempt| attempt.text.as_str()).any(|commit| commit == told);
            ensure!(known, "it says {told}");
            Ok(())
        })
        .await?;
        scene.until_held("app", 2).await
    })
    .await
}

#[tokio::test]
async fn without_the_operator_mirrors_are_served_and_reported_and_the_sum_follows_after() -> Result<()> {
    play_alone("operator", async |scene| {
        scene.with_mirror("app").await?;
        release::scale_operator(&scene.client, 0).await?;
        let cloner = Cloner::start(scene, "cloner", "app", Habit::Clone).await?;
        let before = scene.status("app").await?;
        let pushed = scene.push("app").await?;
        let cloned = scene.clone_head(&scene.tarn_url("app")).await?;
        ensure!(cloned == pushed, "{cloned} instead of {pushed}");
        let told = |status: &GitMirrorStatus| {
            status.replicas.iter().filter(|entry| entry.head.as_deref() == Some(&pushed)).count() == 2
        };
        let status = scene.until_status("app", "both pods to report the push", told).await?;
        ensure!(head(&status) == head(&before), "somebody else wrote the sum");
        let uid = scene.replace("default-1").await?;
        scene.until_pod_holds("app", &uid).await?;
        cloner.until_more(5).await?;
        release::scale_operator(&scene.client, 1).await?;
        let summed = |status: &GitMirrorStatus| head(status) == Some(&pushed);
        scene.until_status("app", "the sum to follow", summed).await?;
        scene.until_held("app", 2).await?;
        cloner.without_failure().await.map(drop)
    })
    .await
}

#[tokio::test]
async fn a_release_that_is_removed_leaves_only_what_users_wrote_and_can_come_back() -> Result<()> {
    play_alone("release", async |scene| {
        scene.with_mirror("app").await?;
        release::uninstall().await?;
        // The agents belong to the GitCache, which is the user's.
        let pushed = scene.push("app").await?;
        let cloned = scene.clone_head(&scene.tarn_url("app")).await?;
        ensure!(cloned == pushed, "{cloned} instead of {pushed}");
        until(PATIENCE, "the release to be gone", async || {
            let left = left_behind().await?;
            ensure!(left.is_empty(), "left behind: {left:?}");
            Ok(())
        })
        .await?;
        release::install().await?;
        let summed = |status: &GitMirrorStatus| head(status) == Some(&pushed);
        scene.until_status("app", "the new operator to sum up", summed).await?;
        scene.until_held("app", 2).await
    })
    .await
}

/// What Helm made, but for the CRDs, which keep the users' objects; and pods of the operator.
async fn left_behind() -> Result<Vec<String>> {
    let global =
        "clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings";
    let args = ["get", global, "--output=name", "--selector=app.kubernetes.io/instance=tarn"];
    let mut left = tool::kubectl(&args).await?;
    let local = "deployments,pods,services,serviceaccounts,roles,rolebindings,configmaps,secrets,networkpolicies,\
                 poddisruptionbudgets";
    left.push('\n');
    left.push_str(&tool::kubectl(&["get", local, "--output=name", "--namespace", release::NAMESPACE]).await?);
    // What every namespace has.
    let own = |name: &&str| !["configmap/kube-root-ca.crt", "serviceaccount/default", ""].contains(name);
    Ok(left.lines().filter(own).map(String::from).collect())
}
