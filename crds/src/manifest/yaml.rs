//! YAML to JSON, bounded: aliases can make a small text mean a huge value, so what comes out is counted, not what goes in.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::document::Chunk;

/// The most that one document may amount to: 16 for each value, and the bytes of each key and string. Far more than a
/// text of the longest length holds without aliases, as long as it has any content.
const MAX_COST: usize = 16 << 20;

const VALUE_COST: usize = 16;

/// Parses one document; `None` if it is empty.
pub(super) fn parse(chunk: &Chunk<'_>) -> Result<Option<Value>, String> {
    let mut left = MAX_COST;
    let deserializer = serde_yaml_ng::Deserializer::from_str(chunk.text);
    let value =
        Bounded { left: &mut left }.deserialize(deserializer).map_err(|error| reason(&error, chunk))?;
    Ok(Some(value).filter(|value| !value.is_null()))
}

/// The parser's words without its positions, which count from the document's start and not the text's.
fn reason(error: &serde_yaml_ng::Error, chunk: &Chunk<'_>) -> String {
    let text = error.to_string();
    let words = text.split(" at line ").next().unwrap_or(&text);
    // serde names the place with a path first (`spec.a: …`): keys are not secret, but can be any text.
    let words: String = words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    match error.location() {
        Some(location) => {
            format!("is not valid YAML, line {}: {words}", chunk.lines_before + location.line())
        }
        None => format!("is not valid YAML: {words}"),
    }
}

/// Builds a value and pays for it.
struct Bounded<'a> {
    left: &'a mut usize,
}

impl Bounded<'_> {
    fn pay<E: Error>(&mut self, length: usize) -> Result<(), E> {
        let left = self.left.checked_sub(VALUE_COST + length);
        *self.left =
            left.ok_or_else(|| E::custom("the document is too large once its aliases are followed"))?;
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value without a tag")
    }

    fn visit_unit<E: Error>(mut self) -> Result<Value, E> {
        self.pay(0)?;
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(mut self, value: bool) -> Result<Value, E> {
        self.pay(0)?;
        Ok(value.into())
    }

    fn visit_i64<E: Error>(mut self, value: i64) -> Result<Value, E> {
        self.pay(0)?;
        Ok(value.into())
    }

    fn visit_u64<E: Error>(mut self, value: u64) -> Result<Value, E> {
        self.pay(0)?;
        Ok(value.into())
    }

    fn visit_f64<E: Error>(mut self, value: f64) -> Result<Value, E> {
        self.pay(0)?;
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E: Error>(mut self, value: &str) -> Result<Value, E> {
        self.pay(value.len())?;
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        self.pay(0)?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Bounded { left: self.left })? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Value, A::Error> {
        self.pay(0)?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            self.pay(key.len())?;
            let value = entries.next_value_seed(Bounded { left: self.left })?;
            // A later key would win without a word.
            if map.insert(key, value).is_some() {
                return Err(A::Error::custom("a key is there twice"));
            }
        }
        Ok(Value::Object(map))
    }
}
