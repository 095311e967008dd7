//! What is checked of each kind.

use std::sync::LazyLock;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use kube::core::cel::{CompiledSchema, ErrorKind, Validator, compile_schema};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::node::Node;
use super::{Manifest, Problem, identify};
use crate::repo::UpstreamUrl;
use crate::schema;
use crate::v1alpha1::{GitCache, GitMirror};

/// A kind's schema, compiled once: a node to walk, and the CEL rules.
struct Checks {
    node: Node,
    rules: CompiledSchema,
    /// Without those on `spec.url`. They are regular expressions, compiled anew at each evaluation: nearly all of the
    /// 4 ms that a GitMirror takes. Good for a URL that parses, as CEL refuses none of those; a property test says so.
    rules_but_url: CompiledSchema,
}

static VALIDATOR: LazyLock<Validator> = LazyLock::new(Validator::new);
static GIT_MIRROR: LazyLock<Checks> = LazyLock::new(Checks::of::<GitMirror>);
static GIT_CACHE: LazyLock<Checks> = LazyLock::new(Checks::of::<GitCache>);
static SECRET: LazyLock<Node> = LazyLock::new(|| {
    let schema = plain_schema::<Secret>();
    Node::compile(&schema).expect("a test compiles this schema")
});

impl Checks {
    fn of<K: CustomResourceExt>() -> Self {
        let mut schema = complete(schema::openapi::<K>());
        let (node, rules) = (Node::compile(&schema), compile_schema(&schema));
        if let Some(Value::Object(url)) = schema.pointer_mut("/properties/spec/properties/url") {
            url.remove("x-kubernetes-validations");
        }
        let rules_but_url = compile_schema(&schema);
        Self { node: node.expect("a test compiles this schema"), rules, rules_but_url }
    }
}

/// A CRD's schema with what the API server adds to it, and without status: in a file it means nothing.
fn complete(mut schema: Value) -> Value {
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.remove("status");
        properties.insert("apiVersion".into(), json!({"type": "string"}));
        properties.insert("kind".into(), json!({"type": "string"}));
        properties.insert("metadata".into(), plain_schema::<ObjectMeta>());
    }
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.push("metadata".into());
    }
    schema
}

/// The schema of one of Kubernetes' own types, with nothing referred to.
fn plain_schema<T: JsonSchema>() -> Value {
    let mut settings = SchemaSettings::openapi3();
    settings.inline_subschemas = true;
    settings.meta_schema = None;
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    schema::tidy(&mut schema);
    schema
}

/// Checks a document of any kind and turns it into its type.
pub(super) fn check(mut value: Value) -> Result<Manifest, Vec<Problem>> {
    let (kind, expected) = match value.get("kind").and_then(Value::as_str) {
        Some(kind @ ("GitMirror" | "GitCache")) => (kind.to_owned(), "tarn.dev/v1alpha1"),
        Some(kind @ "Secret") => (kind.to_owned(), "v1"),
        Some(_) => return one("kind", "is none that Tarn reads: GitMirror, GitCache and Secret"),
        None if !value.is_object() => return one("", "must be a mapping with apiVersion, kind and metadata"),
        None => return one("kind", "is required: GitMirror, GitCache or Secret"),
    };
    if value.get("apiVersion").and_then(Value::as_str) != Some(expected) {
        return one("apiVersion", &format!("must be {expected} for a {kind}"));
    }
    match kind.as_str() {
        "GitMirror" => {
            custom(&GIT_MIRROR, &mut value)?;
            let mirror: GitMirror = read(value)?;
            UpstreamUrl::parse(&mirror.spec.url)
                .map_err(|error| vec![Problem::new("spec.url", error.to_string())])?;
            Ok(Manifest::GitMirror(Box::new(mirror)))
        }
        "GitCache" => {
            custom(&GIT_CACHE, &mut value)?;
            Ok(Manifest::GitCache(Box::new(read(value)?)))
        }
        _ => {
            walk(&SECRET, &mut value)?;
            let mut secret: Secret = read(value)?;
            for (key, text) in secret.string_data.take().unwrap_or_default() {
                let bytes = k8s_openapi::ByteString(text.into_bytes());
                secret.data.get_or_insert_default().insert(key, bytes);
            }
            Ok(Manifest::Secret(Box::new(secret)))
        }
    }
}

fn one<T>(field: &str, reason: &str) -> Result<T, Vec<Problem>> {
    Err(vec![Problem::new(field, reason)])
}

/// The checks of one of our own kinds.
fn custom(checks: &Checks, value: &mut Value) -> Result<(), Vec<Problem>> {
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
    }
    walk(&checks.node, value)?;
    // Only on what fits the schema, as the rules take the types for granted.
    let url = value.pointer("/spec/url").and_then(Value::as_str);
    let parses = url.is_some_and(|url| UpstreamUrl::parse(url).is_ok());
    let rules = if parses { &checks.rules_but_url } else { &checks.rules };
    let broken = VALIDATOR.validate_compiled(rules, value, None).err();
    let mut problems: Vec<_> = broken
        .into_iter()
        .flatten()
        .map(|broken| match broken.kind {
            ErrorKind::ValidationFailure => Problem::new(broken.field_path, broken.message),
            // Its message may repeat the value.
            _ => Problem::new(broken.field_path, "could not be checked by this version of Tarn"),
        })
        .collect();
    // The rules come in the order of a hash map.
    problems.sort_by(|a, b| a.field.cmp(&b.field));
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// Fills in defaults, then checks names, unknown fields and the schema.
fn walk(node: &Node, value: &mut Value) -> Result<(), Vec<Problem>> {
    node.fill(value);
    let mut problems = Vec::new();
    node.check(value, "", &mut problems);
    let metadata = |field: &str| value.pointer(&format!("/metadata/{field}")).and_then(Value::as_str);
    match metadata("name") {
        Some(name) if identify::is_subdomain(name) => {}
        Some(_) => problems.push(Problem::new(
            "metadata.name",
            "must be lower-case letters, digits, dashes and dots, at most 253, with a letter or digit at either end",
        )),
        None if value.pointer("/metadata/name").is_none() => {
            problems.push(Problem::new("metadata.name", "is required"));
        }
        // Of the wrong type, which the walk has said.
        None => {}
    }
    if metadata("namespace").is_some_and(|name| name.len() > 63 || !identify::is_label(name)) {
        problems.push(Problem::new(
            "metadata.namespace",
            "must be lower-case letters, digits and dashes, at most 63, with a letter or digit at either end",
        ));
    }
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// Into the Rust type. Its own errors may repeat values, and are not expected once the schema is met.
fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, Vec<Problem>> {
    serde_json::from_value(value).or_else(|_| one("", "does not fit the types of this version of Tarn"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_walk_knows_every_keyword_of_every_schema() {
        for schema in [
            complete(schema::openapi::<GitMirror>()),
            complete(schema::openapi::<GitCache>()),
            plain_schema::<Secret>(),
        ] {
            assert_eq!(Node::compile(&schema).err(), None);
        }
    }

    #[test]
    fn every_cel_rule_compiles() {
        fn errors(schema: &CompiledSchema) -> Vec<String> {
            let own = schema.compilation_errors().into_iter().map(ToString::to_string);
            let below = schema
                .properties
                .values()
                .chain(schema.items.as_deref())
                .chain(schema.additional_properties.as_deref());
            own.chain(below.flat_map(errors)).collect()
        }
        assert_eq!(errors(&GIT_MIRROR.rules), Vec::<String>::new());
        assert_eq!(errors(&GIT_CACHE.rules), Vec::<String>::new());
    }
}
