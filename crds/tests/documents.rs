//! The documents of the API name every field with its default, every condition and every reason, and none that is not there.

#![expect(clippy::indexing_slicing, reason = "a missing cell or field fails the test")]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tarn_crds::{
    schema,
    v1alpha1::{
        GitCache, GitMirror,
        conditions::{ConditionType, Reason},
    },
};

/// Parts of the schema that are Kubernetes' own, or documented elsewhere.
const OPAQUE: [&str; 5] =
    ["affinity", "conditions", "metricsFrom", "tolerations", "topologySpreadConstraints"];

/// The document of a kind.
fn document(name: &str) -> String {
    let path = format!("{}/../docs/api/{name}.md", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The tables below the heading, up to the next one: the cells of each row.
fn rows(document: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, rest) = document.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let section = rest.split("\n#").next().unwrap_or_default();
    let cells = |line: &str| {
        let inner = line.strip_prefix('|')?.strip_suffix('|')?;
        Some(inner.split('|').map(|cell| cell.trim().to_owned()).collect())
    };
    section.lines().filter_map(cells).filter(|row: &Vec<String>| row[0].starts_with('`')).collect()
}

/// What stands in backquotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The fields below a schema node that have none below themselves, with their defaults.
fn leaves(node: &Value, path: &str, found: &mut BTreeMap<String, Value>) {
    for (name, field) in node["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let opaque = OPAQUE.contains(&name.as_str());
        let within = if field["items"].is_object() { &field["items"] } else { field };
        if opaque || !within["properties"].is_object() {
            found.insert(path, field["default"].clone());
        } else if field["items"].is_object() {
            leaves(within, &format!("{path}[]"), found);
        } else {
            leaves(field, &path, found);
        }
    }
}

/// A default as the documents write it.
fn written(default: &Value) -> Vec<String> {
    match default {
        Value::Null => Vec::new(),
        Value::Array(items) => items.iter().flat_map(written).collect(),
        Value::String(text) => vec![text.clone()],
        other => vec![other.to_string()],
    }
}

fn schemas() -> [(&'static str, Value); 2] {
    let of = |crd: Value| crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    [("gitmirror", of(schema::crd::<GitMirror>())), ("gitcache", of(schema::crd::<GitCache>()))]
}

#[test]
fn every_field_of_a_spec_is_documented_with_its_default() {
    for (name, schema) in schemas() {
        let mut fields = BTreeMap::new();
        leaves(&schema["properties"]["spec"], "", &mut fields);
        let documented: BTreeMap<String, Vec<String>> = rows(&document(name), "## Spec")
            .into_iter()
            .flat_map(|row| {
                let default: Vec<String> = match row[2].as_str() {
                    text if text.starts_with('`') => quoted(text).into_iter().map(str::to_owned).collect(),
                    _ => Vec::new(),
                };
                let fields: Vec<String> = quoted(&row[0]).into_iter().map(str::to_owned).collect();
                fields.into_iter().map(move |field| (field, default.clone()))
            })
            .collect();
        let expected: BTreeMap<String, Vec<String>> =
            fields.iter().map(|(field, default)| (field.clone(), written(default))).collect();
        assert_eq!(documented, expected, "docs/api/{name}.md");
    }
}

#[test]
fn every_field_of_a_status_is_documented() {
    for (name, schema) in schemas() {
        let mut fields = BTreeMap::new();
        leaves(&schema["properties"]["status"], "", &mut fields);
        let rows = rows(&document(name), "## Status");
        let documented: BTreeSet<&str> = rows.iter().flat_map(|row| quoted(&row[0])).collect();
        let expected: BTreeSet<&str> = fields.keys().map(String::as_str).collect();
        assert_eq!(documented, expected, "docs/api/{name}.md");
    }
}

#[test]
fn every_condition_and_reason_is_documented() {
    let first = |name: &str, heading: &str| -> Vec<String> {
        rows(&document(name), heading)
            .iter()
            .flat_map(|row| quoted(&row[0]).into_iter().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    };
    let conditions = first("gitmirror", "### Conditions");
    assert_eq!(conditions, ConditionType::ALL.map(|condition| condition.as_str().to_owned()));
    let mut reasons = first("gitmirror", "### Reasons");
    reasons.extend(first("gitcache", "### Reasons"));
    let documented: BTreeSet<&str> = reasons.iter().map(String::as_str).collect();
    let expected: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(documented, expected);
}
