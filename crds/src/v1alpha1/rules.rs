//! Every CEL rule of the CRDs, evaluated without a cluster: what it lets through, what it refuses, and with which words.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use kube::core::cel::{ErrorKind, Validator};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{GitCache, GitMirror};
use crate::repo::{RepoIdError, UpstreamUrl};
use crate::schema;

static MIRROR: LazyLock<Value> = LazyLock::new(schema::openapi::<GitMirror>);
static CACHE: LazyLock<Value> = LazyLock::new(schema::openapi::<GitCache>);

/// A rule that refused: path, message, and the rule itself.
type Refusal = (String, String, String);

fn evaluate(schema: &Value, object: &Value, old: Option<&Value>) -> Vec<Refusal> {
    let errors = Validator::new().validate(schema, object, old).err();
    let errors = errors.into_iter().flatten();
    let refusals = errors.map(|error| {
        assert_eq!(error.kind, ErrorKind::ValidationFailure, "{error}");
        (error.field_path, error.message, error.rule)
    });
    refusals.collect()
}

/// One step: the object before, if any, the object, and what is said of it.
struct Case {
    schema: &'static Value,
    old: Option<Value>,
    new: Value,
    refusals: Vec<(&'static str, &'static str)>,
}

/// A GitMirror's spec, with a URL of no interest if it has none.
fn spec(mut fields: Value) -> Value {
    if fields.get("url").is_none() {
        fields["url"] = "https://h/a".into();
    }
    fields
}

fn object(spec: &Value) -> Value {
    json!({"metadata": {"name": "x"}, "spec": spec})
}

fn mirror(fields: Value, refusals: &[(&'static str, &'static str)]) -> Case {
    Case { schema: &MIRROR, old: None, new: object(&spec(fields)), refusals: refusals.to_vec() }
}

fn mirror_update(old: Value, new: Value, refusals: &[(&'static str, &'static str)]) -> Case {
    Case { old: Some(object(&spec(old))), ..mirror(new, refusals) }
}

fn cache(spec: &Value, refusals: &[(&'static str, &'static str)]) -> Case {
    Case { schema: &CACHE, old: None, new: object(spec), refusals: refusals.to_vec() }
}

fn cache_update(old: &Value, new: &Value, refusals: &[(&'static str, &'static str)]) -> Case {
    Case { old: Some(object(old)), ..cache(new, refusals) }
}

const FORM: &str = "must be an absolute https, http, ssh or file URL with a path; git@host:org/repo is written ssh://git@host/org/repo";
const CREDENTIALS: &str = "must not contain credentials; put them in a Secret and name it in spec.secretRef";
const CHARACTERS: &str =
    "must not contain a query, a fragment, a backslash, spaces, control characters or anything outside ASCII";
const HOST: &str = "must name a valid host and, if any, a port from 1 to 65535";
const SEGMENTS: &str = "must not contain empty path segments or the segments . and ..";
const INNER_GIT: &str =
    "must not have a path segment that ends in .git before the end, or a repository named .git";
const ENCODING: &str = "must percent-encode with two hexadecimal digits, and neither slashes, backslashes, dots nor control characters";
const LENGTH: &str = "must have at most 251 characters in a path segment and 512 in the whole path";
const IMMUTABLE: &str = "is immutable; create another GitMirror";

fn urls() -> Vec<Case> {
    let long = format!("https://h/{}", "x".repeat(252));
    let longer = format!("https://h/{}", "xxxxxxx/".repeat(65));
    let cases: [(&str, &[&'static str]); 54] = [
        ("https://github.com/org/repo.git", &[]),
        ("https://GitHub.com:8443/org/repo/", &[]),
        ("http://h/a", &[]),
        ("http://h_x/a/b/c//", &[]),
        ("https://my.git/a", &[]),
        ("https://h/.github", &[]),
        ("https://h/a%20b%C3%BC", &[]),
        ("https://h/..a/b../.c", &[]),
        ("https://[2001:db8::1]:8443/a", &[]),
        ("ssh://git@h/~me/a", &[]),
        ("ssh://h:22/a", &[]),
        ("file:///srv/git/a.git", &[]),
        ("", &[FORM, HOST]),
        ("a/b", &[FORM, HOST]),
        ("git@h:org/repo", &[FORM, HOST]),
        ("ftp://h/a", &[FORM]),
        ("HTTPS://h/a", &[FORM, HOST]),
        ("https://h", &[FORM]),
        ("https://h/", &[FORM]),
        ("file:///", &[FORM]),
        ("file://h/a", &[FORM]),
        ("https://u@h/a", &[CREDENTIALS]),
        ("https://u:hunter2@h/a", &[CREDENTIALS, HOST]),
        ("https://u:hunter2/x@h/a", &[HOST]),
        ("ssh://u:hunter2@h/a", &[CREDENTIALS, HOST]),
        ("https://h/a?b", &[CHARACTERS]),
        ("https://h/a#b", &[CHARACTERS]),
        ("https://h/a b", &[CHARACTERS]),
        ("https://h/a\\b", &[CHARACTERS]),
        ("https://h/a\n", &[CHARACTERS]),
        ("https://h/ü", &[CHARACTERS]),
        ("https://-h/a", &[HOST]),
        ("https://h..x/a", &[HOST]),
        ("https://h:0/a", &[HOST]),
        ("https://h:65536/a", &[HOST]),
        ("https://h:x/a", &[HOST]),
        ("ssh://-oProxyCommand=id@h/a", &[HOST]),
        ("https://h//a", &[SEGMENTS]),
        ("https://h/a//b", &[SEGMENTS]),
        ("https://h/../a", &[SEGMENTS]),
        ("https://h/a/./b", &[SEGMENTS]),
        ("https://h/a/..", &[SEGMENTS]),
        ("https://h/a/..git", &[SEGMENTS]),
        ("https://h/...git/", &[SEGMENTS]),
        ("https://h/a.git/b", &[INNER_GIT]),
        ("https://h/a.git.git", &[INNER_GIT]),
        ("file:///srv/.git", &[INNER_GIT]),
        ("https://h/a%2", &[ENCODING]),
        ("https://h/a%zz", &[ENCODING]),
        ("https://h/a%2Fb", &[ENCODING]),
        ("https://h/%2e%2e/b", &[ENCODING]),
        ("https://h/a%00", &[ENCODING]),
        (&long, &[LENGTH]),
        (&longer, &[LENGTH]),
    ];
    cases
        .iter()
        .map(|(url, messages)| {
            let refusals: Vec<_> = messages.iter().map(|message| ("spec.url", *message)).collect();
            mirror(json!({"url": url}), &refusals)
        })
        .collect()
}

fn mirrors() -> Vec<Case> {
    let at_least = |field: &'static str, message: &'static str| [(field, message)];
    let ten = "must be at least 10s";
    vec![
        mirror(json!({}), &[]),
        mirror(json!({"secretRef": {"name": "s"}, "access": "Anonymous"}), &[]),
        mirror(
            json!({"url": "file:///a", "secretRef": {"name": "s"}}),
            &[("spec.secretRef", "a file:// upstream takes no secretRef")],
        ),
        mirror(json!({"access": "Upstream"}), &[]),
        mirror(json!({"url": "http://h/a", "access": "Upstream"}), &[]),
        mirror(json!({"url": "ssh://h/a", "access": "RBAC"}), &[]),
        mirror(
            json!({"url": "ssh://h/a", "access": "Upstream"}),
            &[("spec.access", "Upstream needs an https or http url: git's ssh credentials never reach Tarn")],
        ),
        mirror(json!({"interval": "10s", "timeout": "10s"}), &[]),
        mirror(json!({"interval": "9s"}), &at_least("spec.interval", ten)),
        mirror(json!({"timeout": "9s"}), &at_least("spec.timeout", ten)),
        mirror(json!({"freshness": {"lookTimeout": "1s", "maxStaleness": "0s"}}), &[]),
        mirror(
            json!({"freshness": {"lookTimeout": "0s"}}),
            &at_least("spec.freshness.lookTimeout", "must be at least 1s"),
        ),
        mirror(json!({"limits": {"maxBytes": "20Gi"}, "snapshot": {"suspend": true}}), &[]),
        mirror(json!({"limits": {"maxBytes": "0"}}), &at_least("spec.limits.maxBytes", "must be above zero")),
        mirror(json!({"checkpoint": {"interval": "5s"}}), &[]),
        mirror(
            json!({"checkpoint": {"interval": "4s"}}),
            &at_least("spec.checkpoint.interval", "must be at least 5s"),
        ),
        mirror(json!({"snapshot": {"interval": "10s", "maxAge": "10s"}}), &[]),
        mirror(json!({"snapshot": {"interval": "9s"}}), &at_least("spec.snapshot.interval", ten)),
        mirror(
            json!({"snapshot": {"interval": "25h"}}),
            &[("spec.snapshot.maxAge", "maxAge (24h) must not be shorter than interval (25h)")],
        ),
        mirror_update(
            json!({}),
            json!({"interval": "1h", "suspend": true, "cacheRef": {"name": "default"}}),
            &[],
        ),
        mirror_update(json!({}), json!({"url": "https://h/b"}), &[("spec.url", IMMUTABLE)]),
        mirror_update(json!({}), json!({"cacheRef": {"name": "other"}}), &[("spec.cacheRef", IMMUTABLE)]),
    ]
}

fn caches() -> Vec<Case> {
    let claim = |size: &str| json!({"storage": {"volumeClaim": {"size": size}}});
    let class = |class: &str| json!({"storage": {"volumeClaim": {"size": "1Gi", "storageClassName": class}}});
    let kind = "cannot change between emptyDir and volumeClaim; create another GitCache";
    let store = |field: &str, value: &str| {
        let mut s3 = json!({"bucket": "tarn"});
        s3[field] = value.into();
        json!({"store": {"s3": s3}})
    };
    let bucket = "must be the name of a bucket: 3 to 63 lower-case letters, digits, dots and dashes";
    let prefix =
        "must be letters, digits and . _ = - in segments between single slashes, none of them . or ..";
    let endpoint = "must be http:// or https:// and a host, perhaps a port; credentials belong in the Secret of secretRef";
    let budget = "must be a percentage from 1% to 100% or a quantity above zero such as 500Gi";
    let class_fixed = "storageClassName is immutable; create another GitCache";
    let name = "name must be at most 52 characters: pods of a StatefulSet get a label of the name and 11 more, and a label has at most 63";
    let mut cases = vec![
        cache(&json!({}), &[]),
        cache(&json!({"storage": {"emptyDir": {"sizeLimit": "1Gi"}}}), &[]),
        cache(&claim("1Gi"), &[]),
        cache(
            &json!({"storage": {"emptyDir": {}, "volumeClaim": {"size": "1Gi"}}}),
            &[("spec.storage", "set one of emptyDir and volumeClaim, not both")],
        ),
        cache(&claim("0"), &[("spec.storage.volumeClaim.size", "must be above zero")]),
        cache(&json!({"storage": {"volumeClaim": {"size": 1_073_741_824}}}), &[]),
        cache_update(&claim("1Gi"), &claim("2Gi"), &[]),
        cache_update(&claim("1024Mi"), &claim("1Gi"), &[]),
        cache_update(
            &claim("2Gi"),
            &claim("2000Mi"),
            &[("spec.storage.volumeClaim.size", "a volume cannot shrink")],
        ),
        cache_update(&json!({}), &json!({"storage": {"emptyDir": {}}}), &[]),
        cache_update(&claim("1Gi"), &json!({}), &[("spec.storage", kind)]),
        cache_update(&json!({}), &claim("1Gi"), &[("spec.storage", kind)]),
        cache_update(&class("a"), &class("a"), &[]),
        cache_update(&class("a"), &class("b"), &[("spec.storage.volumeClaim.storageClassName", class_fixed)]),
        cache_update(
            &claim("1Gi"),
            &class("a"),
            &[("spec.storage.volumeClaim.storageClassName", class_fixed)],
        ),
        cache(&json!({"store": {}}), &[("spec.store", "needs s3")]),
        cache(&json!({"prewarm": {"window": "1h"}}), &[]),
        cache(&json!({"prewarm": {"window": "59m"}}), &[("spec.prewarm.window", "must be at least 1h")]),
    ];
    for (field, value, said) in [
        ("bucket", "my.bucket-1", None),
        ("bucket", "ab", Some(bucket)),
        ("bucket", "My-Bucket", Some(bucket)),
        ("bucket", "bucket-", Some(bucket)),
        ("prefix", "team/git_1", None),
        ("prefix", "/team", Some(prefix)),
        ("prefix", "team/", Some(prefix)),
        ("prefix", "a//b", Some(prefix)),
        ("prefix", "a/../b", Some(prefix)),
        ("endpoint", "http://minio.minio:9000", None),
        ("endpoint", "https://[::1]:9000/", None),
        ("endpoint", "https://key:hunter2@minio", Some(endpoint)),
        ("endpoint", "minio:9000", Some(endpoint)),
        ("endpoint", "https://minio/path", Some(endpoint)),
        ("region", "eu-central-1", None),
        ("region", "eu central", Some("must be the name of a region such as eu-central-1")),
    ] {
        let path = match field {
            "bucket" => "spec.store.s3.bucket",
            "prefix" => "spec.store.s3.prefix",
            "endpoint" => "spec.store.s3.endpoint",
            _ => "spec.store.s3.region",
        };
        let refusals: Vec<_> = said.into_iter().map(|message| (path, message)).collect();
        cases.push(cache(&store(field, value), &refusals));
    }
    for value in ["1%", "80%", "100%", "500Gi", "1e9"] {
        cases.push(cache(&json!({"disk": {"budget": value}}), &[]));
    }
    for value in ["", "0%", "101%", "080%", "0", "-5Gi", "lots", "5 Gi"] {
        cases.push(cache(&json!({"disk": {"budget": value}}), &[("spec.disk.budget", budget)]));
    }
    let (rate, silence) = ("must be at least 1Ki", "must be from 1s to 1h");
    for (field, value, said) in [
        ("maxBytesPerSecond", json!("500Mi"), None),
        ("maxBytesPerSecond", json!(1024), None),
        ("maxBytesPerSecond", json!("1023"), Some(("spec.limits.maxBytesPerSecond", rate))),
        ("maxBytesPerSecondPerClient", json!("1Ki"), None),
        ("maxBytesPerSecondPerClient", json!(0), Some(("spec.limits.maxBytesPerSecondPerClient", rate))),
        ("clientTimeout", json!("1s"), None),
        ("clientTimeout", json!("1h"), None),
        ("clientTimeout", json!("0s"), Some(("spec.limits.clientTimeout", silence))),
        ("clientTimeout", json!("1h1s"), Some(("spec.limits.clientTimeout", silence))),
    ] {
        let refusals: Vec<_> = said.into_iter().collect();
        cases.push(cache(&json!({"limits": {field: value}}), &refusals));
    }
    for (value, fits) in [("0s", true), ("25s", true), ("1h", true), ("1h1s", false)] {
        let refusals = [("spec.drain", "must be from 0s to 1h")];
        cases.push(cache(&json!({"drain": value}), if fits { &[] } else { &refusals }));
    }
    for (length, said) in [(52, None), (53, Some(("", name)))] {
        let mut case = cache(&json!({}), &said.into_iter().collect::<Vec<_>>());
        case.new["metadata"]["name"] = "x".repeat(length).into();
        cases.push(case);
    }
    cases
}

fn cases() -> Vec<Case> {
    [urls(), mirrors(), caches()].into_iter().flatten().collect()
}

#[test]
fn every_rule_refuses_what_it_should_and_says_why() {
    for Case { schema, old, new, refusals } in cases() {
        let mut found: Vec<_> = evaluate(schema, &new, old.as_ref());
        found.sort();
        let mut found: Vec<_> =
            found.iter().map(|(path, message, _)| (path.as_str(), message.as_str())).collect();
        found.dedup();
        let mut expected = refusals;
        expected.sort_unstable();
        assert_eq!(found, expected, "{old:?} {new}");
    }
}

/// The rules below a schema node, each with the path that its refusals carry.
fn rules(schema: &Value, path: &str, found: &mut BTreeSet<(String, String)>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        assert!(rule["message"].is_string() || rule["messageExpression"].is_string(), "{rule} says nothing");
        let path = format!("{path}{}", rule["fieldPath"].as_str().unwrap_or_default());
        found.insert((path, rule["rule"].as_str().unwrap().to_owned()));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        rules(property, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, found);
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            rules(&schema[inner], &format!("{path}[]"), found);
        }
    }
}

#[test]
fn no_rule_is_without_a_test() {
    for schema in [&*MIRROR, &*CACHE] {
        let mut declared = BTreeSet::new();
        rules(schema, "", &mut declared);
        let of_kind = cases().into_iter().filter(|case| std::ptr::eq(case.schema, schema));
        let refused: BTreeSet<_> = of_kind
            .flat_map(|case| evaluate(schema, &case.new, case.old.as_ref()))
            .map(|(path, _, rule)| (path, rule))
            .collect();
        assert_eq!(declared, refused);
    }
}

#[test]
fn no_refusal_repeats_a_secret() {
    for url in [
        "https://u:hunter2@h/a",
        "ssh://u:hunter2@h/a",
        "https://u:hunter2/x@h/a",
        "hunter2",
        "https://h/hunter2?x y",
    ] {
        let refusals = evaluate(&MIRROR, &object(&json!({"url": url})), None);
        assert!(!refusals.is_empty());
        assert!(refusals.iter().all(|(_, message, _)| !message.contains("hunter2")), "{refusals:?}");
    }
    let refusals = evaluate(
        &CACHE,
        &object(&json!({"store": {"s3": {"bucket": "tarn", "endpoint": "https://k:hunter2@h"}}})),
        None,
    );
    assert!(refusals.iter().all(|(_, message, _)| !message.contains("hunter2")), "{refusals:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// What the API server lets through, the agent can use, but for what CEL cannot see; and what it refuses, the
    /// agent would refuse.
    #[test]
    fn cel_and_the_agent_agree_on_urls(
        scheme in prop_oneof![4 => Just("https://"), 1 => Just("ssh://git@"), 1 => Just("file://"), 1 => Just("http://u@"), 1 => Just("ssh:/")],
        host in "[A-Za-z0-9._:@\\[\\]-]{0,6}",
        path in "(/|\\.git|\\.|%2[0ef]|%[0-9A-F]{2}|[a-z~+ ?@:]){0,12}",
    ) {
        let url = format!("{scheme}{host}/{path}");
        let refusals = evaluate(&MIRROR, &object(&json!({"url": &url})), None);
        match UpstreamUrl::parse(&url) {
            Ok(_) => prop_assert!(refusals.is_empty(), "{url}: {refusals:?}"),
            // What only decoding shows; and an address in brackets that is none.
            Err(RepoIdError::NotUtf8 | RepoIdError::Control | RepoIdError::PathTooLong) => {}
            Err(RepoIdError::Host) if host.contains('[') => {}
            Err(error) => prop_assert!(!refusals.is_empty(), "{url}: {error}"),
        }
    }
}
