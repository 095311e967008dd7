//! A CRD's schema, compiled: fills in defaults and checks values.
//!
//! Our own walk and not a JSON Schema library, because an API server does more than JSON Schema (unknown fields, `null`,
//! defaults, list types) and because a library's messages repeat the value. Compiling fails on a keyword that the
//! walk does not know, so that none goes unchecked.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use regex::Regex;
use serde_json::{Map, Value};

use super::Problem;
use super::spelling::closest;

/// One place in the schema.
pub(super) struct Node {
    default: Option<Value>,
    shape: Shape,
}

enum Shape {
    Object(Object),
    Array { items: Box<Node>, bounds: Bounds, keys: Option<Vec<String>> },
    Text(Text),
    Integer { format: Option<String>, bounds: Bounds },
    IntegerOrText { text: Text, bounds: Bounds },
    Boolean,
    Anything,
}

struct Object {
    properties: BTreeMap<String, Node>,
    required: Vec<String>,
    /// The schema of all other fields; none of them are known without.
    additional: Option<Box<Node>>,
    bounds: Bounds,
}

struct Text {
    bounds: Bounds,
    pattern: Option<Regex>,
    choices: Vec<String>,
    format: Option<String>,
}

/// Smallest and largest: of a number, or of a length.
#[derive(Default)]
struct Bounds {
    min: Option<i64>,
    max: Option<i64>,
}

/// Keywords that the walk leaves to others: to people, to server-side apply, and to the CEL rules.
const ELSEWHERE: [&str; 4] = ["description", "title", "x-kubernetes-validations", "x-kubernetes-map-type"];

impl Node {
    /// Compiles a structural schema; the error names the keyword that the walk does not know.
    pub(super) fn compile(schema: &Value) -> Result<Self, String> {
        let Value::Object(fields) = schema else { return Err(format!("no schema: {schema}")) };
        let mut keywords = Keywords(fields.clone());
        keywords.0.retain(|keyword, _| !ELSEWHERE.contains(&keyword.as_str()));
        let default = keywords.0.remove("default");
        let shape = keywords.shape()?;
        match keywords.0.keys().next() {
            Some(unknown) => Err(unknown.clone()),
            None => Ok(Self { default, shape }),
        }
    }

    /// Drops `null`s and fills in defaults, as the API server does before it checks.
    pub(super) fn fill(&self, value: &mut Value) {
        match (&self.shape, value) {
            (Shape::Object(object), Value::Object(fields)) => {
                fields.retain(|name, value| !(value.is_null() && object.properties.contains_key(name)));
                for (name, node) in &object.properties {
                    if let (None, Some(default)) = (fields.get(name), &node.default) {
                        fields.insert(name.clone(), default.clone());
                    }
                }
                for (name, value) in fields {
                    if let Some(node) = object.node(name) {
                        node.fill(value);
                    }
                }
            }
            (Shape::Array { items, .. }, Value::Array(list)) => {
                list.iter_mut().for_each(|item| items.fill(item));
            }
            _ => {}
        }
    }

    /// Adds what is wrong with a value to `problems`.
    pub(super) fn check(&self, value: &Value, path: &str, problems: &mut Vec<Problem>) {
        let mut wrong = |reason: String| problems.push(Problem::new(path, reason));
        match (&self.shape, value) {
            (Shape::Anything, _) | (Shape::Boolean, Value::Bool(_)) => {}
            (Shape::Object(object), Value::Object(fields)) => object.check(fields, path, problems),
            (Shape::Array { items, bounds, keys }, Value::Array(list)) => {
                bounds.check(list.len(), "entries", &mut wrong);
                check_unique(list, keys.as_deref(), &mut wrong);
                for (index, item) in list.iter().enumerate() {
                    items.check(item, &format!("{path}[{index}]"), problems);
                }
            }
            (Shape::Text(text) | Shape::IntegerOrText { text, .. }, Value::String(value)) => {
                text.check(value, &mut wrong);
            }
            (Shape::Integer { bounds, .. } | Shape::IntegerOrText { bounds, .. }, Value::Number(number))
                if number.is_i64() || number.is_u64() =>
            {
                let small =
                    !matches!(&self.shape, Shape::Integer { format: Some(format), .. } if format == "int32");
                match number.as_i64() {
                    Some(number) if small || i32::try_from(number).is_ok() => {
                        bounds.check_number(number, &mut wrong);
                    }
                    _ => wrong("is too large a number".into()),
                }
            }
            (shape, _) => wrong(shape.expected(value)),
        }
    }
}

impl Shape {
    fn expected(&self, found: &Value) -> String {
        let expected = match self {
            Self::Object(_) => "must be a mapping of fields",
            Self::Array { .. } => "must be a list",
            Self::Text(_) if matches!(found, Value::Number(_) | Value::Bool(_)) => {
                "must be a string; put it in quotes"
            }
            Self::Text(_) => "must be a string",
            Self::Integer { .. } => "must be a whole number",
            Self::IntegerOrText { .. } => "must be a string or a whole number",
            Self::Boolean => "must be true or false",
            Self::Anything => "",
        };
        expected.to_owned()
    }
}

impl Object {
    fn node(&self, name: &str) -> Option<&Node> {
        self.properties.get(name).or(self.additional.as_deref())
    }

    fn check(&self, fields: &Map<String, Value>, path: &str, problems: &mut Vec<Problem>) {
        for name in self.required.iter().filter(|name| !fields.contains_key(*name)) {
            problems.push(Problem::new(join(path, name), "is required"));
        }
        self.bounds.check(fields.len(), "entries", &mut |reason| problems.push(Problem::new(path, reason)));
        for (name, value) in fields {
            match self.node(name) {
                Some(node) => node.check(value, &join(path, name), problems),
                None => problems.push(Problem::new(join(path, name), self.unknown(name))),
            }
        }
    }

    fn unknown(&self, name: &str) -> String {
        match closest(name, self.properties.keys().map(String::as_str)) {
            Some(known) => format!("unknown field; did you mean {known}?"),
            None => "unknown field".to_owned(),
        }
    }
}

/// A field's path. A name that is none (a URL, say, in the wrong place) is not repeated.
fn join(path: &str, name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | '<');
    let name =
        if name.len() <= 64 && !name.is_empty() && name.chars().all(plain) { name } else { "<unprintable>" };
    match (path.is_empty(), name.contains(['.', '/'])) {
        (true, _) => name.to_owned(),
        (false, true) => format!("{path}[{name}]"),
        (false, false) => format!("{path}.{name}"),
    }
}

impl Text {
    fn check(&self, value: &str, wrong: &mut dyn FnMut(String)) {
        if !self.choices.is_empty() && !self.choices.iter().any(|choice| choice == value) {
            wrong(format!("must be one of {}", self.choices.join(", ")));
        } else if let Some(pattern) = self.pattern.as_ref().filter(|pattern| !pattern.is_match(value)) {
            wrong(in_words(pattern.as_str()));
        } else if self.format.as_deref().is_some_and(|format| !has_format(value, format)) {
            wrong(format!("is not in the form of a {}", self.format.as_deref().unwrap_or_default()));
        } else {
            self.bounds.check(value.chars().count(), "characters", wrong);
        }
    }
}

/// What a pattern of ours means, for people who do not read patterns.
fn in_words(pattern: &str) -> String {
    use crate::v1alpha1::{DurationError, QuantityError, patterns};
    match pattern {
        patterns::DURATION => DurationError.to_string(),
        patterns::QUANTITY => QuantityError.to_string(),
        patterns::REF => "must start with refs/ and hold no space".to_owned(),
        _ => format!("must match {pattern}"),
    }
}

fn has_format(value: &str, format: &str) -> bool {
    match format {
        "date-time" => serde_json::from_value::<Time>(value.into()).is_ok(),
        "byte" => {
            let digits = value.trim_end_matches('=');
            let digit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
            value.len().is_multiple_of(4) && value.len() - digits.len() <= 2 && digits.bytes().all(digit)
        }
        _ => true,
    }
}

impl Bounds {
    fn check(&self, length: usize, of: &str, wrong: &mut dyn FnMut(String)) {
        let length = i64::try_from(length).unwrap_or(i64::MAX);
        if let Some(min) = self.min.filter(|min| length < *min) {
            wrong(if min == 1 {
                "must not be empty".to_owned()
            } else {
                format!("must have at least {min} {of}")
            });
        }
        if let Some(max) = self.max.filter(|max| length > *max) {
            wrong(format!("must have at most {max} {of}"));
        }
    }

    fn check_number(&self, number: i64, wrong: &mut dyn FnMut(String)) {
        if let Some(min) = self.min.filter(|min| number < *min) {
            wrong(format!("must be at least {min}"));
        }
        if let Some(max) = self.max.filter(|max| number > *max) {
            wrong(format!("must be at most {max}"));
        }
    }
}

/// In a set all entries differ; in a map their keys do.
fn check_unique(list: &[Value], keys: Option<&[String]>, wrong: &mut dyn FnMut(String)) {
    let Some(keys) = keys else { return };
    let key = |item: &Value| match keys {
        [] => item.to_string(),
        keys => {
            keys.iter().map(|key| item.get(key).map(Value::to_string).unwrap_or_default() + "\n").collect()
        }
    };
    let mut seen = HashSet::new();
    if !list.iter().all(|item| seen.insert(key(item))) {
        wrong("must not have the same entry twice".to_owned());
    }
}

/// The keywords of one node that are still to be understood.
struct Keywords(Map<String, Value>);

impl Keywords {
    fn shape(&mut self) -> Result<Shape, String> {
        let preserve = self.flag("x-kubernetes-preserve-unknown-fields");
        if self.flag("x-kubernetes-int-or-string") {
            self.0.remove("anyOf");
            self.0.remove("type");
            let bounds = self.bounds("minimum", "maximum");
            return Ok(Shape::IntegerOrText { text: self.text()?, bounds });
        }
        match self.take("type")?.as_deref() {
            Some("object") => self.object(preserve),
            Some("array") => self.array(),
            Some("string") => Ok(Shape::Text(self.text()?)),
            Some("integer") => {
                Ok(Shape::Integer { format: self.take("format")?, bounds: self.bounds("minimum", "maximum") })
            }
            Some("boolean") => Ok(Shape::Boolean),
            None => Ok(Shape::Anything),
            Some(other) => Err(format!("type: {other}")),
        }
    }

    fn object(&mut self, preserve: bool) -> Result<Shape, String> {
        let properties: Map<String, Value> = self.read("properties")?.unwrap_or_default();
        let properties = properties.iter().map(|(name, schema)| Ok((name.clone(), Node::compile(schema)?)));
        let properties = properties.collect::<Result<BTreeMap<_, _>, String>>()?;
        let additional = match self.0.remove("additionalProperties") {
            Some(schema @ Value::Object(_)) => Some(Node::compile(&schema)?),
            Some(Value::Bool(true)) => Some(ANYTHING),
            // An object of which nothing is known, such as managedFields' fieldsV1.
            None if preserve || properties.is_empty() => Some(ANYTHING),
            _ => None,
        };
        Ok(Shape::Object(Object {
            properties,
            required: self.read("required")?.unwrap_or_default(),
            additional: additional.map(Box::new),
            bounds: self.bounds("minProperties", "maxProperties"),
        }))
    }

    fn array(&mut self) -> Result<Shape, String> {
        let items = self.0.remove("items").ok_or("array without items")?;
        let map_keys = self.read("x-kubernetes-list-map-keys")?;
        let keys = match self.take("x-kubernetes-list-type")?.as_deref() {
            Some("set") => Some(Vec::new()),
            Some("map") => map_keys,
            _ => None,
        };
        let bounds = self.bounds("minItems", "maxItems");
        Ok(Shape::Array { items: Box::new(Node::compile(&items)?), bounds, keys })
    }

    fn text(&mut self) -> Result<Text, String> {
        let pattern = self.take("pattern")?;
        Ok(Text {
            bounds: self.bounds("minLength", "maxLength"),
            pattern: pattern
                .map(|pattern| Regex::new(&pattern))
                .transpose()
                .map_err(|error| error.to_string())?,
            choices: self.read("enum")?.unwrap_or_default(),
            format: self.take("format")?,
        })
    }

    fn flag(&mut self, keyword: &str) -> bool {
        self.0.remove(keyword) == Some(Value::Bool(true))
    }

    fn take(&mut self, keyword: &str) -> Result<Option<String>, String> {
        self.read(keyword)
    }

    fn read<T: serde::de::DeserializeOwned>(&mut self, keyword: &str) -> Result<Option<T>, String> {
        let value = self.0.remove(keyword).map(serde_json::from_value).transpose();
        value.map_err(|error| format!("{keyword}: {error}"))
    }

    fn bounds(&mut self, min: &str, max: &str) -> Bounds {
        // schemars writes the bounds of numbers as floats.
        let mut whole =
            |keyword| self.0.remove(keyword).and_then(|value| value.as_f64()).map(|bound| bound as i64);
        Bounds { min: whole(min), max: whole(max) }
    }
}

const ANYTHING: Node = Node { default: None, shape: Shape::Anything };
