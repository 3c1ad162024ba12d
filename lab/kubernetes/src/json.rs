//! Small helpers on `serde_json::Value`; objects are handled as JSON throughout.

use serde_json::{Map, Value};

/// The value at a path of keys.
pub(crate) fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |v, key| v.get(*key))
}

/// The text at a path, empty if absent or not text.
pub(crate) fn str_at<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    at(value, path).and_then(Value::as_str).unwrap_or_default()
}

/// The integer at a path.
pub(crate) fn int_at(value: &Value, path: &[&str]) -> Option<i64> {
    at(value, path).and_then(Value::as_i64)
}

/// The list at a path, empty if absent.
pub(crate) fn list_at<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    at(value, path)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The map at a path, if there is one.
pub(crate) fn map_at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Map<String, Value>> {
    at(value, path).and_then(Value::as_object)
}

/// The value at a path, mutably; nothing is created.
pub(crate) fn at_mut<'a>(value: &'a mut Value, path: &[&str]) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |v, key| v.get_mut(*key))
}

/// The value itself as a map; anything else is replaced by an empty map.
pub(crate) fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

/// The map at a path; missing or mistyped steps are created.
pub(crate) fn map_mut<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    let mut map = as_map(value);
    for key in path {
        map = as_map(map.entry((*key).to_owned()).or_insert(Value::Null));
    }
    map
}

/// The list in a map under a key; created if missing.
pub(crate) fn list_mut<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    let slot = map.entry(key.to_owned()).or_insert(Value::Null);
    if !slot.is_array() {
        *slot = Value::Array(Vec::new());
    }
    match slot {
        Value::Array(list) => list,
        _ => unreachable!("made a list above"),
    }
}

/// Sets the value at a path, creating the steps.
pub(crate) fn set(value: &mut Value, path: &[&str], new: Value) {
    if let Some((last, parents)) = path.split_last() {
        map_mut(value, parents).insert((*last).to_owned(), new);
    }
}

/// Removes the value at a path and returns it.
pub(crate) fn remove(value: &mut Value, path: &[&str]) -> Option<Value> {
    let (last, parents) = path.split_last()?;
    at_mut(value, parents)?.as_object_mut()?.shift_remove(*last)
}

/// Sets a key unless it is present (null counts as absent).
pub(crate) fn default(map: &mut Map<String, Value>, key: &str, new: impl Into<Value>) {
    match map.get_mut(key) {
        Some(slot) if slot.is_null() => *slot = new.into(),
        Some(_) => {}
        None => {
            map.insert(key.to_owned(), new.into());
        }
    }
}

/// Drops nulls from maps, as decoding into a typed object does.
pub(crate) fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(strip_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}

/// [`strip_nulls`] where a condition holds.
pub(crate) fn strip_nulls_if(condition: bool, value: &mut Value) {
    if condition {
        strip_nulls(value);
    }
}

/// Now, as Kubernetes writes times: RFC 3339, whole seconds, Z.
pub(crate) fn now() -> String {
    seconds(jiff::Timestamp::now())
}

/// A time in whole seconds.
pub(crate) fn seconds(time: jiff::Timestamp) -> String {
    jiff::Timestamp::from_second(time.as_second())
        .unwrap_or(time)
        .to_string()
}

/// The JSON name of a value's type.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
