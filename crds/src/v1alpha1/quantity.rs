//! An amount of bytes, cores or anything else Kubernetes counts: `500m`, `2`, `10Gi`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::api::resource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::patterns::QUANTITY;

/// A Kubernetes quantity, kept as written; a bare number is accepted too (`cpu: 2`), as it is in a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub struct Quantity {
    text: String,
}

/// The two forms the API server stores.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(i64),
    Text(String),
}

/// A text that is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a quantity such as 500m, 2 or 10Gi")]
pub struct QuantityError;

/// Suffixes and their factor; those below one are only of use to CPUs and round up to a whole.
const SUFFIXES: [(&str, f64); 15] = [
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
    ("n", 1e-9),
    ("u", 1e-6),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
];

impl Quantity {
    /// The text as the user wrote it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The amount, rounded up to a whole number; exact below 2^53.
    pub fn value(&self) -> u64 {
        // `from_str` accepted the text. Casting saturates.
        amount(&self.text).map_or(0, |amount| amount.ceil() as u64)
    }
}

/// Parses a decimal number with an optional suffix or exponent; `None` for what is none, or is negative.
fn amount(text: &str) -> Option<f64> {
    let (number, factor) = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))
        .unwrap_or((text, 1.0));
    let (mantissa, exponent) = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) if factor == 1.0 => (mantissa, exponent),
        Some(_) => return None,
        None => (number, "0"),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let unsigned = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if whole.len() + fraction.len() == 0 || !digits(whole) || !digits(fraction) {
        return None;
    }
    if unsigned.is_empty() || unsigned.len() > 2 || !digits(unsigned) {
        return None;
    }
    let value: f64 = format!("{mantissa}e{exponent}").parse().ok()?;
    Some(value * factor)
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        amount(text).filter(|_| text.len() <= MAX_LENGTH).ok_or(QuantityError)?;
        Ok(Self { text: text.to_owned() })
    }
}

impl TryFrom<Written> for Quantity {
    type Error = QuantityError;

    fn try_from(written: Written) -> Result<Self, QuantityError> {
        match written {
            Written::Number(number) => number.to_string().parse(),
            Written::Text(text) => text.parse(),
        }
    }
}

impl From<Quantity> for String {
    fn from(quantity: Quantity) -> Self {
        quantity.text
    }
}

impl From<&Quantity> for resource::Quantity {
    fn from(quantity: &Quantity) -> Self {
        Self(quantity.text.clone())
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

const MAX_LENGTH: usize = 32;

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": MAX_LENGTH,
            "minimum": 0,
            "pattern": QUANTITY,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_and_printed_as_written() {
        for (text, value) in [
            ("0", 0),
            ("2", 2),
            ("500m", 1),
            ("10Gi", 10 << 30),
            ("1.5Ki", 1536),
            ("3e2", 300),
            ("1E3", 1000),
            ("2E", 2_000_000_000_000_000_000),
            (".5k", 500),
        ] {
            let quantity: Quantity = text.parse().unwrap();
            assert_eq!((quantity.value(), quantity.as_str()), (value, text));
        }
        assert_eq!(serde_json::from_str::<Quantity>("2").unwrap().as_str(), "2");
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "",
            ".",
            "-1",
            "+1",
            "Gi",
            "1 Gi",
            "1gi",
            "1KiB",
            "1e",
            "1e999",
            "1e2Ki",
            "0x10",
            "inf",
            "NaN",
            &"1".repeat(40),
        ] {
            assert_eq!(text.parse::<Quantity>(), Err(QuantityError), "{text}");
        }
        assert!(serde_json::from_str::<Quantity>("-2").is_err());
    }
}
