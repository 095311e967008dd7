//! Kubernetes names; and what else can be told of a document that is otherwise wrong.

use serde_json::Value;

use crate::v1alpha1::{Access, GitMirrorSpec, SecretRef};

/// The object's name, if it is a valid one: any other is not fit to be printed.
pub(super) fn name(document: &Value) -> Option<String> {
    let name = document.pointer("/metadata/name")?.as_str()?;
    is_subdomain(name).then(|| name.to_owned())
}

/// Who may read the mirror that a document declares, whatever else is wrong with it.
pub(super) fn access(document: &Value) -> Option<Access> {
    let spec =
        document.get("spec").filter(|_| document.get("kind").is_some_and(|kind| kind == "GitMirror"))?;
    let mut readable = GitMirrorSpec::for_url("");
    let given = |field: &str| spec.get(field).filter(|value| !value.is_null());
    readable.secret_ref = given("secretRef").map(|_| SecretRef { name: String::new() });
    readable.access =
        given("access").map(|written| serde_json::from_value(written.clone())).transpose().ok()?;
    Some(readable.effective_access())
}

/// DNS-1123 subdomain: what an object may be named.
pub(super) fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

/// DNS-1123 label of any length: what a namespace may be named, up to 63.
pub(super) fn is_label(label: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = label.as_bytes();
    bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
}
