//! Pruning and defaulting of custom resources.

use serde_json::Value;

use super::schema::{Node, Schema};

/// Removes what the schema does not know and names it.
pub(crate) fn prune(schema: &Schema, value: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    walk(&schema.root, value, "", true, &mut unknown);
    unknown
}

fn walk(node: &Node, value: &mut Value, path: &str, root: bool, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let free = node.preserve;
            map.retain(|key, value| {
                if (root || node.embedded)
                    && matches!(key.as_str(), "apiVersion" | "kind" | "metadata")
                {
                    return true;
                }
                let at = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                if let Some(child) = node.properties.get(key) {
                    walk(child, value, &at, false, unknown);
                    return true;
                }
                if let Some(child) = &node.additional {
                    walk(child, value, &at, false, unknown);
                    return true;
                }
                if !free {
                    unknown.push(at);
                }
                free
            });
        }
        Value::Array(list) => {
            if let Some(items) = &node.items {
                for (i, value) in list.iter_mut().enumerate() {
                    walk(items, value, &format!("{path}[{i}]"), false, unknown);
                }
            }
        }
        _ => {}
    }
}

/// Fills in defaults; a null where null is not allowed counts as absent.
pub(crate) fn default(node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, child) in &node.properties {
                let missing = match map.get(key) {
                    None => true,
                    Some(v) => v.is_null() && !child.nullable,
                };
                if let (true, Some(default)) = (missing, &child.default) {
                    map.insert(key.clone(), default.clone());
                }
                if let Some(value) = map.get_mut(key) {
                    default_below(child, value);
                }
            }
            if let Some(additional) = &node.additional {
                let named = &node.properties;
                map.iter_mut()
                    .filter(|(k, _)| !named.contains_key(*k))
                    .for_each(|(_, v)| default_below(additional, v));
            }
        }
        Value::Array(list) => {
            if let Some(items) = &node.items {
                list.iter_mut().for_each(|v| default_below(items, v));
            }
        }
        _ => {}
    }
}

fn default_below(node: &Node, value: &mut Value) {
    default(node, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_fields_go_and_defaults_come() {
        let schema = Schema::new(json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "size": {"type": "integer", "default": 3},
                "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "string", "default": "x"}}}}
            }}}}))
        .unwrap();
        let mut value = json!({"kind": "W", "metadata": {"name": "w"}, "zz": 1,
            "spec": {"no": 1, "any": {"free": true}, "map": {"k": {"b": 1}}}});
        assert_eq!(
            prune(&schema, &mut value),
            ["zz", "spec.no", "spec.map.k.b"]
        );
        default(&schema.root, &mut value);
        assert_eq!(
            value,
            json!({"kind": "W", "metadata": {"name": "w"}, "spec": {"any": {"free": true}, "map": {"k": {"a": "x"}}, "size": 3}})
        );
    }
}
