//! What users delete is gone, with all that came of it.

use anyhow::{Result, ensure};
use tarn_e2e::play::play;
use tarn_e2e::scene::{PATIENCE, until};

#[tokio::test]
async fn a_deleted_cache_leaves_nothing_behind() -> Result<()> {
    play("removed", async |scene| {
        // The same namespace without and with Tarn in it.
        scene.with_services().await?;
        let kinds = "all,serviceaccounts,roles,rolebindings,poddisruptionbudgets,networkpolicies,leases,\
                     persistentvolumeclaims,configmaps,secrets,endpointslices,gitmirrors,gitcaches";
        let objects = async || {
            let list = scene.kubectl(&["get", kinds, "--output=name", "--ignore-not-found"]).await?;
            let mut names: Vec<String> = list.lines().map(String::from).collect();
            names.sort();
            anyhow::Ok(names)
        };
        let before = objects().await?;
        scene.with_mirror("app").await?;
        scene.until_published("app").await?;
        ensure!(objects().await?.len() > before.len() + 8, "is Tarn there at all?");
        // A pod knows its store, for people too.
        let stored = scene.kubectl(&["exec", "default-0", "--", "tarn-agent", "store", "ls"]).await?;
        let app = format!("{}/app", scene.upstream_host());
        ensure!(stored.contains(&app), "the store has {stored}");
        scene.kubectl(&["delete", "gitmirrors,gitcaches", "--all"]).await?;
        until(PATIENCE, "all of it to be gone", async || {
            let now = objects().await?;
            let left: Vec<_> = now.iter().filter(|name| !before.contains(name)).collect();
            ensure!(left.is_empty(), "left behind: {left:?}");
            Ok(())
        })
        .await
    })
    .await
}
