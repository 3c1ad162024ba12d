//! One immutable version of one object, with its JSON made once.

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::json;

/// An object as stored. `value` holds kind, apiVersion and everything else in the storage version.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) rv: u64,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) value: Value,
    /// The whole object as JSON, `kind` and `apiVersion` first.
    pub(crate) json: Bytes,
    /// Where `"metadata"` starts in `json`: lists of built-in kinds leave the type out.
    body_at: usize,
}

impl Object {
    /// Takes ownership of `value`, stamps `rv` on it and serialises it.
    pub(crate) fn new(mut value: Value, rv: u64) -> Self {
        json::set(
            &mut value,
            &["metadata", "resourceVersion"],
            Value::String(rv.to_string()),
        );
        Self::from_stamped(value, rv)
    }

    /// From a value that already carries its resourceVersion.
    pub(crate) fn from_stamped(value: Value, rv: u64) -> Self {
        let mut ordered = Map::new();
        if let Value::Object(mut map) = value {
            for key in ["kind", "apiVersion", "metadata"] {
                if let Some(v) = map.shift_remove(key) {
                    ordered.insert(key.to_owned(), v);
                }
            }
            ordered.extend(map);
        }
        let value = Value::Object(ordered);
        let json = Bytes::from(value.to_string());
        let text =
            |key: &str| serde_json::to_string(json::str_at(&value, &[key])).unwrap_or_default();
        let body_at = r#"{"kind":"#.len()
            + text("kind").len()
            + r#","apiVersion":"#.len()
            + text("apiVersion").len()
            + 1;
        Self {
            rv,
            namespace: json::str_at(&value, &["metadata", "namespace"]).to_owned(),
            name: json::str_at(&value, &["metadata", "name"]).to_owned(),
            value,
            json,
            body_at,
        }
    }

    /// The object as an item of a list of its kind: without kind and apiVersion.
    pub(crate) fn write_item(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        out.extend_from_slice(&self.json[self.body_at.min(self.json.len())..]);
    }

    /// `metadata.uid`.
    pub(crate) fn uid(&self) -> &str {
        json::str_at(&self.value, &["metadata", "uid"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn items_drop_the_type_and_nothing_else() {
        let object = Object::new(
            json!({"data": {"a": "b"}, "metadata": {"name": "x"}, "apiVersion": "v1", "kind": "ConfigMap"}),
            7,
        );
        let mut item = Vec::new();
        object.write_item(&mut item);
        assert_eq!(
            String::from_utf8(item).unwrap(),
            r#"{"metadata":{"name":"x","resourceVersion":"7"},"data":{"a":"b"}}"#
        );
        assert!(
            object
                .json
                .starts_with(br#"{"kind":"ConfigMap","apiVersion":"v1","metadata""#)
        );
    }
}
