//! Server-side apply, on values.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// Paths of leaves: keys, or `[pod=x]` for items of lists that have a key.
pub(crate) type Fields = BTreeSet<Vec<String>>;

/// The name of an item within its list, if it has one.
fn key(item: &Value) -> Option<String> {
    ["pod", "type"].into_iter().find_map(|key| Some(format!("[{key}={}]", item.get(key)?.as_str()?)))
}

/// All items of a list by name; none if the list is whole.
fn keyed(list: &[Value]) -> Option<Vec<(String, &Value)>> {
    list.iter().map(|item| Some((key(item)?, item))).collect()
}

/// The leaves of a value.
pub(crate) fn leaves(value: &Value) -> Fields {
    fn walk(value: &Value, path: &mut Vec<String>, out: &mut Fields) {
        let children: Vec<(String, &Value)> = match value {
            Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), value)).collect(),
            Value::Array(items) if !items.is_empty() => keyed(items).unwrap_or_default(),
            _ => Vec::new(),
        };
        if children.is_empty() {
            out.insert(path.clone());
        }
        for (key, child) in children {
            path.push(key);
            walk(child, path, out);
            path.pop();
        }
    }
    let mut out = Fields::new();
    walk(value, &mut Vec::new(), &mut out);
    out
}

/// Puts `new` over `old`.
fn merge(old: &mut Value, new: &Value) {
    match (&mut *old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                merge(old.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(items), Value::Array(new)) if keyed(new).is_some() => {
            for item in new {
                match items.iter_mut().find(|old| key(old) == key(item)) {
                    Some(old) => merge(old, item),
                    None => items.push(item.clone()),
                }
            }
        }
        _ => *old = new.clone(),
    }
}

/// Takes the leaf at `path` away, and what is empty without it.
fn remove(value: &mut Value, path: &[String]) {
    let Some((first, rest)) = path.split_first() else { return };
    let bare = |value: &Value| {
        value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
    };
    match value {
        Value::Object(fields) => {
            if let Some(child) = fields.get_mut(first).filter(|_| !rest.is_empty()) {
                remove(child, rest);
            }
            if rest.is_empty() || fields.get(first).is_some_and(bare) {
                fields.remove(first);
            }
        }
        Value::Array(items) => {
            for item in items.iter_mut().filter(|item| key(item).as_ref() == Some(first)) {
                remove(item, rest);
            }
            // Without its key an item is no more.
            items.retain(|item| !bare(item) && key(item).is_some());
        }
        _ => {}
    }
}

/// Applies `new` over `old` as `manager`.
pub(crate) fn apply(old: &mut Value, managers: &mut BTreeMap<String, Fields>, manager: &str, new: &Value) {
    let owned = leaves(new);
    let before = managers.insert(manager.to_owned(), owned.clone()).unwrap_or_default();
    for path in before.difference(&owned) {
        let others = managers.iter().any(|(name, fields)| name != manager && fields.contains(path));
        // A path that became longer is still there.
        let grown = owned.iter().any(|new| new.starts_with(path));
        if !others && !grown {
            remove(old, path);
        }
    }
    merge(old, new);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_manager_has_its_own_entries() {
        let (mut object, mut managers) = (json!({}), BTreeMap::new());
        let entry = |pod: &str| json!({"replicas": [{"pod": pod, "phase": "Ready"}]});
        apply(&mut object, &mut managers, "a", &entry("a"));
        apply(&mut object, &mut managers, "b", &entry("b"));
        apply(&mut object, &mut managers, "op", &json!({"pods": "2/2", "size": "1"}));
        apply(&mut object, &mut managers, "op", &json!({"pods": "1/2"}));
        apply(&mut object, &mut managers, "a", &json!({}));
        assert_eq!(object, json!({"pods": "1/2", "replicas": [{"pod": "b", "phase": "Ready"}]}));
    }
}
