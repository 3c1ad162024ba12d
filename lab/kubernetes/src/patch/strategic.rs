//! Strategic merge patch: a merge patch that knows which lists merge item by item.

use serde_json::{Map, Value};

use super::lists::{List, rule};
use crate::json;

const DIRECTIVE: &str = "$patch";
const ORDER: &str = "$setElementOrder/";
const DELETE_SCALARS: &str = "$deleteFromPrimitiveList/";
const RETAIN: &str = "$retainKeys";

/// Applies `patch` to an object of `kind`.
pub(crate) fn apply(kind: &str, target: &mut Value, patch: &Value) -> Result<(), String> {
    let Value::Object(patch) = patch else {
        return Err("a strategic merge patch must be a JSON object".to_owned());
    };
    merge_map(kind, &mut Vec::new(), json::as_map(target), patch)
}

fn merge_map<'a>(
    kind: &str,
    path: &mut Vec<&'a str>,
    target: &mut Map<String, Value>,
    patch: &'a Map<String, Value>,
) -> Result<(), String> {
    match patch.get(DIRECTIVE).and_then(Value::as_str) {
        Some("replace") => {
            *target = clean_map(patch);
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => {
            return Err(format!(
                "{}: unknown {DIRECTIVE} directive \"{other}\": delete, replace and merge are known",
                path.join(".")
            ));
        }
    }
    if let Some(keep) = patch.get(RETAIN).and_then(Value::as_array) {
        target.retain(|key, _| keep.iter().any(|k| k == key));
    }
    for (key, list) in patch {
        if let Some(field) = key.strip_prefix(DELETE_SCALARS)
            && let (Some(Value::Array(old)), Value::Array(gone)) = (target.get_mut(field), list)
        {
            old.retain(|v| !gone.contains(v));
        }
    }
    for (key, value) in patch {
        if key.starts_with('$') {
            continue;
        }
        path.push(key);
        let order = patch
            .get(&format!("{ORDER}{key}"))
            .and_then(Value::as_array);
        merge_field(kind, path, target, key, value, order)?;
        path.pop();
    }
    // An order alone, for a list whose items do not change.
    for (key, order) in patch {
        if let (Some(field), Value::Array(order)) = (key.strip_prefix(ORDER), order)
            && !patch.contains_key(field)
            && let Some(Value::Array(list)) = target.get_mut(field)
        {
            path.push(field);
            reorder(&rule(kind, path), list, order);
            path.pop();
        }
    }
    Ok(())
}

fn merge_field<'a>(
    kind: &str,
    path: &mut Vec<&'a str>,
    target: &mut Map<String, Value>,
    key: &str,
    value: &'a Value,
    order: Option<&Vec<Value>>,
) -> Result<(), String> {
    match value {
        Value::Null => drop(target.shift_remove(key)),
        Value::Object(patch) => {
            let delete = patch.get(DIRECTIVE).and_then(Value::as_str) == Some("delete");
            if delete {
                target.shift_remove(key);
            } else {
                merge_map(
                    kind,
                    path,
                    json::as_map(target.entry(key.to_owned()).or_insert(Value::Null)),
                    patch,
                )?;
            }
        }
        Value::Array(patch) => {
            let rule = rule(kind, path);
            let replace = patch
                .iter()
                .any(|i| i.get(DIRECTIVE).and_then(Value::as_str) == Some("replace"));
            let list = json::list_mut(target, key);
            match &rule {
                _ if replace => {
                    *list = patch
                        .iter()
                        .filter(|i| i.get(DIRECTIVE).is_none())
                        .map(clean)
                        .collect();
                }
                List::Atomic => *list = patch.iter().map(clean).collect(),
                List::Set => patch.iter().for_each(|v| {
                    if !list.contains(v) {
                        list.push(v.clone());
                    }
                }),
                List::Map(keys) => merge_items(kind, path, list, patch, &keys[0])?,
            }
            if let Some(order) = order {
                reorder(&rule, list, order);
            }
        }
        scalar => drop(target.insert(key.to_owned(), scalar.clone())),
    }
    Ok(())
}

fn merge_items<'a>(
    kind: &str,
    path: &mut Vec<&'a str>,
    list: &mut Vec<Value>,
    patch: &'a [Value],
    key: &str,
) -> Result<(), String> {
    for item in patch {
        let Value::Object(fields) = item else {
            return Err(format!(
                "{}: an item of this list must be an object with the key \"{key}\"",
                path.join(".")
            ));
        };
        let id = fields
            .get(key)
            .ok_or_else(|| format!("map: {item} does not contain declared merge key: {key}"))?;
        let position = list.iter().position(|i| i.get(key) == Some(id));
        match (fields.get(DIRECTIVE).and_then(Value::as_str), position) {
            (Some("delete"), _) => list.retain(|i| i.get(key) != Some(id)),
            (Some("replace"), Some(at)) => list[at] = clean(item),
            (_, Some(at)) => merge_map(kind, path, json::as_map(&mut list[at]), fields)?,
            (_, None) => {
                let mut fresh = Map::new();
                merge_map(kind, path, &mut fresh, fields)?;
                list.push(Value::Object(fresh));
            }
        }
    }
    Ok(())
}

/// Orders the items named in `order`; others keep their place relative to their predecessors.
fn reorder(rule: &List, list: &mut Vec<Value>, order: &[Value]) {
    let wanted = |item: &Value| {
        order.iter().position(|o| match rule {
            List::Map(keys) => {
                item.get(&keys[0]).is_some() && o.get(&keys[0]) == item.get(&keys[0])
            }
            _ => o == item,
        })
    };
    let mut ranked: Vec<(usize, usize, Value)> = Vec::with_capacity(list.len());
    let mut previous = 0;
    for (i, item) in list.drain(..).enumerate() {
        // Items the patch does not know stay behind the item they followed.
        let rank = wanted(&item).map_or(previous, |r| r + 1);
        previous = rank;
        ranked.push((rank, i, item));
    }
    ranked.sort_by_key(|(rank, i, _)| (*rank, *i));
    list.extend(ranked.into_iter().map(|(_, _, item)| item));
}

/// A value without directives, which must never be stored.
fn clean(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(clean_map(map)),
        Value::Array(list) => list
            .iter()
            .filter(|v| v.get(DIRECTIVE).and_then(Value::as_str) != Some("delete"))
            .map(clean)
            .collect(),
        other => other.clone(),
    }
}

fn clean_map(map: &Map<String, Value>) -> Map<String, Value> {
    map.iter()
        .filter(|(k, v)| !k.starts_with('$') && !v.is_null())
        .map(|(k, v)| (k.clone(), clean(v)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(mut value: Value, patch: Value) -> Value {
        apply("Pod", &mut value, &patch).unwrap();
        value
    }

    #[test]
    fn containers_merge_by_name_and_ports_by_number() {
        let pod = json!({"spec": {"containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80, "name": "http"}]}, {"name": "b"}]}});
        let merged = run(
            pod,
            json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}],
            "containers": [{"name": "c", "image": "z"}, {"name": "a", "ports": [{"containerPort": 81}]}, {"name": "b", "$patch": "delete"}]}}),
        );
        assert_eq!(
            merged,
            json!({"spec": {"containers": [{"name": "c", "image": "z"},
                {"name": "a", "image": "x", "ports": [{"containerPort": 80, "name": "http"}, {"containerPort": 81}]}]}})
        );
    }

    #[test]
    fn directives() {
        let pod = || json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}], "args": ["a"]}, "metadata": {"finalizers": ["a", "b"], "labels": {"x": "y"}}});
        let v = run(
            pod(),
            json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}]}}),
        );
        assert_eq!(
            v["spec"]["volumes"],
            json!([{"name": "v", "configMap": {"name": "c"}}])
        );
        let v = run(
            pod(),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "labels": {"$patch": "replace", "n": "m"}}}),
        );
        assert_eq!(
            v["metadata"],
            json!({"finalizers": ["b"], "labels": {"n": "m"}})
        );
        let v = run(
            pod(),
            json!({"metadata": {"finalizers": ["c"], "labels": null}, "spec": {"args": ["b"]}}),
        );
        assert_eq!(v["metadata"], json!({"finalizers": ["a", "b", "c"]}));
        assert_eq!(v["spec"]["args"], json!(["b"]));
        let text = run(pod(), json!({"spec": {"containers": [{"name": "n", "env": [{"name": "e", "$patch": "delete"}]}]}})).to_string();
        assert!(!text.contains('$'), "{text}");
        assert!(
            apply(
                "Pod",
                &mut pod(),
                &json!({"spec": {"containers": [{"image": "x"}]}})
            )
            .is_err()
        );
    }
}
