//! What the agents' Role grants, as the operator makes it: the agent is refused all else, as by a real API server.

use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;

/// What the operator makes of a GitCache, as reviewed: its Role is among it.
const REVIEWED: &str = include_str!("../../../operator/tests/golden/bucket.yaml");

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    verbs: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let documents = serde_yaml_ng::Deserializer::from_str(REVIEWED);
    let documents = documents.filter_map(|document| Value::deserialize(document).ok());
    let role = documents.into_iter().find(|document| document["kind"] == "Role");
    role.and_then(|mut role| serde_json::from_value(role["rules"].take()).ok()).unwrap_or_default()
});

/// Whether an agent may do this. Which names a rule lists depends on the cache, so `named` is all that is compared: whether
/// the request tells the name of the one object it is about.
pub(super) fn allow(group: &str, resource: &str, verb: &str, named: bool) -> bool {
    let lists = |list: &[String], what: &str| list.iter().any(|one| one == what);
    RULES.iter().any(|rule| {
        lists(&rule.api_groups, group)
            && lists(&rule.resources, resource)
            && lists(&rule.verbs, verb)
            && (named || rule.resource_names.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_those_of_the_reviewed_role() {
        assert!(allow("tarn.dev", "gitmirrors", "watch", false));
        assert!(allow("", "secrets", "list", true) && !allow("", "secrets", "list", false));
        assert!(allow("coordination.k8s.io", "leases", "create", true));
        assert!(!allow("coordination.k8s.io", "leases", "create", false));
        assert!(!allow("tarn.dev", "gitmirrors", "delete", true));
    }
}
