//! Built-in kinds decoded through their typed form: wrong types are refused, unknown fields found.
//!
//! The JSON itself stays what is stored: the typed form knows the fields, and what it drops on the way
//! through is what the kind does not have.

use k8s_openapi::Resource as Typed;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Decodes a value and gives back what the type knows of it, or the decoder's complaint.
pub(crate) type Check = fn(&Value) -> Result<Value, String>;

/// The check for one type. The value's own kind and apiVersion may differ (another version of the
/// same shape); the type's are used.
pub(crate) fn check<T: Typed + Serialize + DeserializeOwned>(
    value: &Value,
) -> Result<Value, String> {
    let same = value.get("apiVersion").and_then(Value::as_str) == Some(T::API_VERSION)
        && value.get("kind").and_then(Value::as_str) == Some(T::KIND);
    let decoded: Result<T, _> = if same {
        serde_path_to_error::deserialize(value)
    } else {
        let mut copy = value.clone();
        crate::json::set(&mut copy, &["apiVersion"], T::API_VERSION.into());
        crate::json::set(&mut copy, &["kind"], T::KIND.into());
        serde_path_to_error::deserialize(copy)
    };
    let object = decoded.map_err(|e| complaint(T::KIND, &e))?;
    serde_json::to_value(&object).map_err(|e| e.to_string())
}

/// `json: cannot unmarshal number into Go struct field ConfigMap.data of type string`.
fn complaint(kind: &str, error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    use serde_path_to_error::Segment;
    let inner = error.inner().to_string();
    let fields: Vec<String> = error
        .path()
        .iter()
        .filter_map(|s| match s {
            Segment::Map { key } => Some(key.clone()),
            _ => None,
        })
        .collect();
    let Some((found, wanted)) = inner
        .strip_prefix("invalid type: ")
        .and_then(|s| s.split_once(", expected "))
    else {
        let path = error.path().to_string();
        return if path == "." {
            inner
        } else {
            format!("{kind}.{path}: {inner}")
        };
    };
    let found = match found.split_whitespace().next().unwrap_or_default() {
        "integer" | "floating" => "number",
        "boolean" => "bool",
        "sequence" => "array",
        "map" => "object",
        other => other,
    };
    let wanted = match wanted {
        w if w.contains("string") => "string",
        "a boolean" => "bool",
        "i32" => "int32",
        "i64" => "int64",
        "a sequence" => "[]string",
        "a map" => "map[string]string",
        other => other,
    };
    // The Go decoder names fields, not map keys.
    let fields = match fields.split_last() {
        Some((_, parents)) if is_string_map(parents) => parents.join("."),
        _ => fields.join("."),
    };
    format!("json: cannot unmarshal {found} into Go struct field {kind}.{fields} of type {wanted}")
}

fn is_string_map(path: &[String]) -> bool {
    matches!(
        path.last().map(String::as_str),
        Some(
            "data"
                | "labels"
                | "annotations"
                | "binaryData"
                | "stringData"
                | "matchLabels"
                | "nodeSelector"
                | "selector"
                | "limits"
                | "requests"
        )
    )
}

/// Fields of `value` that `known` does not have, as paths; they are removed on the way.
pub(crate) fn drop_unknown(value: &mut Value, known: &Value) -> Vec<String> {
    let mut unknown = Vec::new();
    walk(value, known, &mut String::new(), &mut unknown);
    unknown
}

fn walk(value: &mut Value, known: &Value, path: &mut String, unknown: &mut Vec<String>) {
    match (value, known) {
        (Value::Object(map), Value::Object(known)) => {
            let depth = path.len();
            map.retain(|key, value| {
                let field = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                match known.get(key) {
                    Some(k) => {
                        let before = std::mem::replace(path, field);
                        walk(value, k, path, unknown);
                        *path = before;
                        true
                    }
                    // Nulls and empty values decode to "absent" without being unknown.
                    None if value.is_null() => false,
                    None => {
                        unknown.push(field);
                        false
                    }
                }
            });
            path.truncate(depth);
        }
        (Value::Array(list), Value::Array(known)) => {
            for (i, (value, k)) in list.iter_mut().zip(known).enumerate() {
                let before = path.clone();
                path.push_str(&format!("[{i}]"));
                walk(value, k, path, unknown);
                *path = before;
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{ConfigMap, Pod};
    use serde_json::json;

    #[test]
    fn unknown_fields_are_named_and_dropped() {
        let mut pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "imag": "x", "emptyDir": {}}], "volumes": [{"name": "v", "emptyDir": {}}]}, "zz": 1});
        let known = check::<Pod>(&pod).unwrap();
        assert_eq!(
            drop_unknown(&mut pod, &known),
            [
                "spec.containers[0].imag",
                "spec.containers[0].emptyDir",
                "zz"
            ]
        );
        assert_eq!(
            pod["spec"]["volumes"][0],
            json!({"name": "v", "emptyDir": {}})
        );
    }

    #[test]
    fn type_errors_read_like_the_original() {
        let error =
            check::<ConfigMap>(&json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"a": 1}}))
                .unwrap_err();
        assert_eq!(
            error,
            "json: cannot unmarshal number into Go struct field ConfigMap.data of type string"
        );
    }
}
