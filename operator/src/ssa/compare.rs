//! Whether what is there says already what would be applied: a pure function.

use serde_json::Value;
use tarn_crds::v1alpha1::Quantity;

/// Whether `live` holds all that `wanted` says. More may be there: defaults, and what others added.
///
/// The API server leaves out zeros and empty values, and writes quantities in a form of its own.
pub fn covers(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, wanted)| live.get(key).map_or_else(|| empty(wanted), |live| covers(live, wanted))),
        (Value::Array(live), Value::Array(wanted)) => {
            wanted.iter().all(|wanted| live.iter().any(|live| covers(live, wanted)))
        }
        (Value::String(live), Value::String(wanted)) => live == wanted || same_amount(live, wanted),
        (live, wanted) => live == wanted,
    }
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(empty),
    }
}

/// Amounts that differ by less than a whole count as the same: the digest tells when the wanted one changes.
fn same_amount(live: &str, wanted: &str) -> bool {
    let (live, wanted) = (live.parse::<Quantity>(), wanted.parse::<Quantity>());
    live.ok().zip(wanted.ok()).is_some_and(|(live, wanted)| live.value() == wanted.value())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn more_may_be_there_but_not_less() {
        for (live, wanted, covered) in [
            (json!({"a": 1, "b": 2}), json!({"a": 1}), true),
            (json!({"a": 1}), json!({"a": 1, "b": 2}), false),
            (json!({"a": 1}), json!({"a": 1, "b": false, "c": {}, "d": {"e": []}}), true),
            (json!({"cpu": "1"}), json!({"cpu": "1000m"}), true),
            (json!({"cpu": "1"}), json!({"cpu": "2"}), false),
            (json!([{"name": "x", "y": 1}, {"name": "z"}]), json!([{"name": "z"}]), true),
            (json!([{"name": "x"}]), json!([{"name": "x"}, {"name": "z"}]), false),
            (json!("a"), json!("b"), false),
        ] {
            assert_eq!(covers(&live, &wanted), covered, "{live} {wanted}");
        }
    }
}
