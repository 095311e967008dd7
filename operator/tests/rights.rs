//! What the chart lets the operator do (charts/tarn/templates/_rules.tpl) is enough: for all that it sends to the simulated
//! API server, which asks here, for what it watches, and for what it grants to agents.

use std::sync::LazyLock;

use http::{Method, Uri};
use k8s_openapi::api::rbac::v1::PolicyRule;
use tarn_crds::v1alpha1::GitCache;
use tarn_operator::gitcache::{build::build, validate::validate};

static RULES: LazyLock<Vec<PolicyRule>> = LazyLock::new(|| {
    let template = include_str!("../../charts/tarn/templates/_rules.tpl");
    let (_, rest) = template.split_once("{{- define \"tarn.operatorRules\" -}}").unwrap();
    let (rules, _) = rest.split_once("{{- end }}").unwrap();
    serde_yaml_ng::from_str(rules).unwrap()
});

/// Whether the chart lets the operator do this in a namespace it looks after, whatever the object's name.
fn allowed(group: &str, resource: &str, verb: &str) -> bool {
    let lists =
        |list: Option<&Vec<String>>, what: &str| list.is_some_and(|list| list.iter().any(|it| it == what));
    RULES.iter().any(|rule| {
        rule.resource_names.is_none()
            && lists(rule.api_groups.as_ref(), group)
            && lists(rule.resources.as_ref(), resource)
            && lists(Some(&rule.verbs), verb)
    })
}

/// Fails the test if the operator may not send this request. `there` tells whether `plural/namespace/name` exists: who
/// applies what does not exist creates it.
pub(crate) fn check(method: &Method, uri: &Uri, there: impl Fn(&str) -> bool) {
    let path: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    let group = if path[0] == "apis" { path[1] } else { "" };
    let Some(at) = path.iter().position(|part| *part == "namespaces") else {
        // One binding, by its name, of rights that the operator holds itself.
        assert!(path[3] == "clusterrolebindings" && path.len() == 5, "{uri}");
        let rbac = include_str!("../../charts/tarn/templates/operator/rbac.yaml");
        let verbs = "resources: [clusterrolebindings]\n    resourceNames: [{{ $name }}-token-reviewers]\n    verbs: [get, patch]";
        assert!([Method::GET, Method::PATCH].contains(method) && rbac.contains(verbs), "{method} {uri}");
        return;
    };
    let (namespace, plural, name) = (path[at + 1], path[at + 2], path.get(at + 3));
    let subresource = path.get(at + 4);
    let resource = subresource.map_or_else(|| plural.to_owned(), |sub| format!("{plural}/{sub}"));
    let verbs: &[&str] = match (method, name) {
        (&Method::GET, None) => &["list"],
        (&Method::GET, Some(_)) => &["get"],
        (&Method::POST, _) => &["create"],
        (&Method::DELETE, _) => &["delete"],
        (&Method::PATCH, Some(name))
            if subresource.is_none() && !there(&format!("{plural}/{namespace}/{name}")) =>
        {
            &["create", "patch"]
        }
        (&Method::PATCH, _) => &["patch"],
        _ => panic!("{method} {uri}: which verb is that?"),
    };
    for verb in verbs {
        assert!(
            allowed(group, &resource, verb),
            "the chart does not let the operator {verb} {resource} of {group:?}"
        );
    }
}

#[test]
fn the_chart_lets_the_operator_watch() {
    for (group, resource) in [
        ("tarn.dev", "gitmirrors"),
        ("tarn.dev", "gitcaches"),
        ("apps", "statefulsets"),
        ("coordination.k8s.io", "leases"),
        ("", "pods"),
        ("", "secrets"),
    ] {
        for verb in ["list", "watch"] {
            assert!(allowed(group, resource, verb), "{verb} {resource}");
        }
    }
}

/// The API server lets nobody grant what they do not hold.
#[test]
fn the_chart_lets_the_operator_grant_what_it_grants() {
    let cache: GitCache = serde_yaml_ng::from_str(include_str!("samples/bucket.yaml")).unwrap();
    let valid = validate(&cache, ["github".to_owned()].into(), "tarn:any").unwrap().unwrap();
    for rule in build(&valid).role.rules.unwrap() {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    assert!(allowed(group, resource, verb), "{verb} {resource} of {group:?}");
                }
            }
        }
    }
}

/// Each right of the agents is one that the agent uses: the test kit's API server refuses the agent what is not among them.
#[test]
fn agents_may_do_what_they_do_by_name_where_there_is_one_and_nothing_else() {
    let cache: GitCache = serde_yaml_ng::from_str(include_str!("samples/bucket.yaml")).unwrap();
    let valid = validate(&cache, ["github".to_owned()].into(), "tarn:any").unwrap().unwrap();
    let rules = build(&valid).role.rules.unwrap();
    let told: Vec<String> = rules
        .iter()
        .map(|rule| {
            let list =
                |list: &Option<Vec<String>>| list.as_ref().map_or_else(String::new, |all| all.join(" "));
            let (groups, resources) = (list(&rule.api_groups), list(&rule.resources));
            format!("{groups}/{resources} [{}]: {}", list(&rule.resource_names), rule.verbs.join(" "))
        })
        .collect();
    let leases: Vec<String> =
        (0..valid.replicas).map(|at| format!("tarn-agent-{}-{at}", valid.name)).collect();
    let leases = format!("coordination.k8s.io/leases [{}]: create patch", leases.join(" "));
    let expected = [
        "tarn.dev/gitmirrors []: list watch",
        "tarn.dev/gitmirrors/status []: patch",
        "discovery.k8s.io/endpointslices []: list watch",
        "authorization.k8s.io/localsubjectaccessreviews []: create",
        leases.as_str(),
        "/secrets [github]: list watch",
    ];
    assert_eq!(told, expected);
}

#[test]
fn the_chart_gives_nothing_wholesale() {
    let everything: Vec<&PolicyRule> = RULES
        .iter()
        .filter(|rule| {
            let lists = rule.api_groups.iter().chain(&rule.resources).flatten();
            lists.chain(&rule.verbs).any(|word| word == "*")
        })
        .collect();
    assert!(everything.is_empty(), "{everything:?}");
    for (resource, verb) in
        [("secrets", "create"), ("secrets", "patch"), ("pods", "create"), ("pods", "delete")]
    {
        assert!(!allowed("", resource, verb), "{verb} {resource}");
    }
    // Others' Leases elect leaders, those of the cluster's own controllers among them.
    for verb in ["get", "update", "delete", "deletecollection"] {
        assert!(!allowed("coordination.k8s.io", "leases", verb), "{verb} leases");
    }
    for verb in ["escalate", "bind"] {
        assert!(!allowed("rbac.authorization.k8s.io", "roles", verb), "{verb}");
    }
}
