//! The CRDs as the API server gets them.

use kube::CustomResourceExt;
use serde_json::Value;

/// The CustomResourceDefinition of a kind.
///
/// Differs from `K::crd()` in that no field is `nullable` (so the API server drops a `null` before it fills in defaults,
/// and an absent field and `null` mean the same) and that whole numbers are written as such.
///
/// # Panics
///
/// Never: a CustomResourceDefinition always has a JSON form.
pub fn crd<K: CustomResourceExt>() -> Value {
    let mut crd = serde_json::to_value(K::crd()).expect("a CustomResourceDefinition has only string keys");
    tidy(&mut crd);
    crd
}

/// The schema of a kind's only version, as `openAPIV3Schema`.
#[cfg(feature = "manifest")]
pub(crate) fn openapi<K: CustomResourceExt>() -> Value {
    let mut crd = crd::<K>();
    crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema")
        .map(Value::take)
        .expect("derived CRDs have a schema")
}

pub(crate) fn tidy(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // A field of that name would hold a schema, not a boolean.
            if fields.get("nullable").is_some_and(Value::is_boolean) {
                fields.remove("nullable");
            }
            fields.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        // Bounds are floats in the API's types. Casting is exact: they are far below 2^53.
        Value::Number(number)
            if number.as_f64().is_some_and(|float| number.is_f64() && float.fract() == 0.0) =>
        {
            *value = Value::from(number.as_f64().unwrap_or_default() as i64);
        }
        _ => {}
    }
}
