//! What the pods may do: the least that reporting, finding each other and reading credentials takes.

use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};

use super::{Validated, agent_name, metadata};
use crate::context::lease_name;

pub(super) fn build(cache: &Validated) -> Role {
    let mut rules = vec![
        rule("tarn.dev", "gitmirrors", &["list", "watch"]),
        rule("tarn.dev", "gitmirrors/status", &["patch"]),
        rule("discovery.k8s.io", "endpointslices", &["list", "watch"]),
        // Whether a caller may clone. Whose a token is belongs to no namespace: see `reviewers`.
        rule("authorization.k8s.io", "localsubjectaccessreviews", &["create"]),
    ];
    let leases: Vec<String> =
        (0..cache.replicas).map(|at| lease_name(&format!("{}-{at}", cache.name))).collect();
    // A server-side apply names what it creates, so the API server compares that name, too.
    rules.extend(named("coordination.k8s.io", "leases", &["create", "patch"], &leases));
    let secrets: Vec<String> = cache.secrets.iter().cloned().collect();
    // With the field selector metadata.name, a list or a watch is of one name.
    rules.extend(named("", "secrets", &["list", "watch"], &secrets));
    Role { metadata: metadata(cache, agent_name(cache)), rules: Some(rules) }
}

pub(super) fn binding(cache: &Validated) -> RoleBinding {
    let name = agent_name(cache);
    RoleBinding {
        metadata: metadata(cache, name.clone()),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".into(),
            kind: "Role".into(),
            name: name.clone(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name,
            namespace: Some(cache.namespace.clone()),
            api_group: None,
        }]),
    }
}

fn rule(group: &str, resource: &str, verbs: &[&str]) -> PolicyRule {
    PolicyRule {
        api_groups: Some(vec![group.into()]),
        resources: Some(vec![resource.into()]),
        verbs: verbs.iter().map(|verb| (*verb).into()).collect(),
        ..PolicyRule::default()
    }
}

/// A rule for objects of these names; none for no names, because an empty list of names means all of them.
fn named(group: &str, resource: &str, verbs: &[&str], names: &[String]) -> Option<PolicyRule> {
    let rule = PolicyRule { resource_names: Some(names.to_owned()), ..rule(group, resource, verbs) };
    (!names.is_empty()).then_some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_names_give_no_rule() {
        assert_eq!(named("", "secrets", &["get"], &[]), None);
        let one = named("", "secrets", &["get"], &["a".into()]).unwrap();
        assert_eq!(one.resource_names, Some(vec!["a".into()]));
    }
}
