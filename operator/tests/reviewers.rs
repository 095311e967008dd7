//! The one ClusterRoleBinding names the agents of the GitCaches there are, and nobody else.

use std::collections::BTreeSet;

use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use serde_json::json;
use tarn_operator::reviewers::{Account, bind};

use crate::sim::Sim;

const NAME: &str = "tarn-token-reviewers";

fn accounts(pairs: &[(&str, &str)]) -> BTreeSet<Account> {
    pairs.iter().map(|(namespace, name)| ((*namespace).to_owned(), (*name).to_owned())).collect()
}

fn subjects(sim: &Sim) -> Vec<String> {
    let binding = sim.list::<ClusterRoleBinding>("clusterrolebindings").pop().unwrap();
    let subjects = binding.subjects.unwrap_or_default();
    subjects.into_iter().map(|subject| format!("{}/{}", subject.namespace.unwrap(), subject.name)).collect()
}

#[tokio::test]
async fn agents_of_the_caches_there_are_may_ask_whose_tokens_are() {
    let sim = Sim::default();
    let client = sim.client();
    let both = accounts(&[("ci", "default-agent"), ("qa", "other-agent")]);
    assert!(bind(&client, NAME, None, &both).await.is_err(), "the chart makes it, not the operator");
    sim.put_global(
        "clusterrolebindings",
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": NAME},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAME}}),
    );
    bind(&client, NAME, None, &both).await.unwrap();
    assert_eq!(subjects(&sim), ["ci/default-agent", "qa/other-agent"]);
    sim.writes();
    bind(&client, NAME, None, &both).await.unwrap();
    assert!(sim.writes().is_empty(), "nothing is written where nothing changes");
    // One of several scopes leaves the others' alone.
    bind(&client, NAME, Some("ci"), &accounts(&[("ci", "new-agent")])).await.unwrap();
    assert_eq!(subjects(&sim), ["ci/new-agent", "qa/other-agent"]);
    // A cache that is gone takes its agents' right with it, the last one too.
    bind(&client, NAME, Some("qa"), &accounts(&[])).await.unwrap();
    bind(&client, NAME, None, &accounts(&[])).await.unwrap();
    assert!(subjects(&sim).is_empty());
}
