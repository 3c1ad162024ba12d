//! Who owns which field: sets of paths, and `metadata.managedFields` around them.
//!
//! A path is a list of elements as FieldsV1 writes them: `f:name` for a field, `k:{…}` for a list item
//! known by its keys, `v:…` for a member of a set. A list item's own path means "the item exists".

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::lists::{self, List};
use crate::crd::schema::{ListType, Node};
use crate::json;
use crate::registry::{Resource, Version};

pub(super) type Path = Vec<String>;
pub(super) type Paths = BTreeSet<Path>;

/// Where in an object we are, and by which rules it merges.
#[derive(Clone)]
pub(super) struct Place<'a> {
    kind: &'a str,
    fields: Vec<&'a str>,
    /// The schema here, for custom resources (`None` below what the schema knows).
    node: Option<&'a Node>,
    custom: bool,
}

impl<'a> Place<'a> {
    pub(super) fn root(resource: &'a Resource, version: Option<&'a Version>) -> Self {
        let node = version.and_then(|v| v.schema.as_ref()).map(|s| &s.root);
        Self {
            kind: &resource.kind,
            fields: Vec::new(),
            node,
            custom: resource.custom,
        }
    }

    pub(super) fn field(&self, name: &'a str) -> Self {
        let mut next = self.clone();
        next.fields.push(name);
        next.node = self
            .node
            .and_then(|n| n.properties.get(name).or(n.additional.as_deref()));
        next
    }

    pub(super) fn item(&self) -> Self {
        let mut next = self.clone();
        next.node = self.node.and_then(|n| n.items.as_deref());
        next
    }

    pub(super) fn list(&self) -> List {
        if self.custom && self.fields.first() != Some(&"metadata") {
            return match self.node.map(|n| &n.list) {
                Some(ListType::Set) => List::Set,
                Some(ListType::Map(keys)) if !keys.is_empty() => List::Map(keys.clone()),
                _ => List::Atomic,
            };
        }
        lists::rule(self.kind, &self.fields)
    }

    pub(super) fn is_atomic_map(&self) -> bool {
        if self.custom {
            self.node.is_some_and(|n| n.atomic_map)
        } else {
            lists::atomic_map(self.kind, &self.fields)
        }
    }
}

/// The element of a list item: its keys as compact JSON.
pub(super) fn item_element(item: &Value, keys: &[String]) -> Option<String> {
    let mut id = BTreeMap::new();
    for key in keys {
        let value = item
            .get(key)
            .cloned()
            .or_else(|| lists::key_default(key).map(Value::from))?;
        id.insert(key.clone(), value);
    }
    serde_json::to_string(&id)
        .ok()
        .map(|text| format!("k:{text}"))
}

fn set_element(value: &Value) -> String {
    format!("v:{value}")
}

/// Fields nobody owns.
fn is_system(fields: &[&str]) -> bool {
    match fields {
        ["apiVersion" | "kind"] => true,
        ["metadata", rest] => matches!(
            *rest,
            "name"
                | "namespace"
                | "uid"
                | "creationTimestamp"
                | "generation"
                | "resourceVersion"
                | "managedFields"
                | "selfLink"
                | "deletionTimestamp"
                | "deletionGracePeriodSeconds"
                | "generateName"
        ),
        _ => false,
    }
}

/// Every leaf of a value with its path; list items appear themselves, with null.
pub(super) fn flatten<'a>(value: &'a Value, place: &Place<'a>) -> BTreeMap<Path, Value> {
    let mut out = BTreeMap::new();
    walk(value, place, &mut Vec::new(), &mut out);
    out
}

fn walk<'a>(value: &'a Value, place: &Place<'a>, path: &mut Path, out: &mut BTreeMap<Path, Value>) {
    match value {
        Value::Object(map) if !place.is_atomic_map() && (!map.is_empty() || path.is_empty()) => {
            for (key, child) in map {
                let next = place.field(key);
                if is_system(&next.fields) {
                    continue;
                }
                path.push(format!("f:{key}"));
                walk(child, &next, path, out);
                path.pop();
            }
        }
        Value::Array(list) => match place.list() {
            List::Map(keys) if list.iter().all(|i| item_element(i, &keys).is_some()) => {
                for item in list {
                    let Some(element) = item_element(item, &keys) else {
                        continue;
                    };
                    path.push(element);
                    out.insert(path.clone(), Value::Null);
                    walk(item, &place.item(), path, out);
                    path.pop();
                }
            }
            List::Set => {
                for item in list {
                    path.push(set_element(item));
                    out.insert(path.clone(), item.clone());
                    path.pop();
                }
            }
            _ => drop(out.insert(path.clone(), value.clone())),
        },
        leaf => drop(out.insert(path.clone(), leaf.clone())),
    }
}

/// One entry of managedFields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) manager: String,
    pub(super) operation: String,
    pub(super) api_version: String,
    pub(super) subresource: String,
    pub(super) time: String,
    pub(super) paths: Paths,
}

pub(super) fn owners(value: &Value) -> Vec<Owner> {
    json::list_at(value, &["metadata", "managedFields"])
        .iter()
        .map(|entry| {
            let text = |key| json::str_at(entry, &[key]).to_owned();
            let mut paths = Paths::new();
            decode(&entry["fieldsV1"], &mut Vec::new(), &mut paths);
            Owner {
                manager: text("manager"),
                operation: text("operation"),
                api_version: text("apiVersion"),
                subresource: text("subresource"),
                time: text("time"),
                paths,
            }
        })
        .collect()
}

pub(super) fn set_owners(value: &mut Value, owners: &[Owner]) {
    let entries: Vec<Value> = owners
        .iter()
        .filter(|o| !o.paths.is_empty())
        .map(|o| {
            let mut entry = json!({"manager": o.manager, "operation": o.operation, "apiVersion": o.api_version, "time": o.time,
                "fieldsType": "FieldsV1", "fieldsV1": encode(&o.paths)});
            if !o.subresource.is_empty() {
                entry["subresource"] = o.subresource.clone().into();
            }
            entry
        })
        .collect();
    if entries.is_empty() {
        json::remove(value, &["metadata", "managedFields"]);
    } else {
        json::set(value, &["metadata", "managedFields"], Value::Array(entries));
    }
}

fn decode(fields: &Value, path: &mut Path, out: &mut Paths) {
    let Some(map) = fields.as_object() else {
        return;
    };
    if map.is_empty() && !path.is_empty() {
        out.insert(path.clone());
    }
    for (key, child) in map {
        if key == "." {
            out.insert(path.clone());
            continue;
        }
        path.push(key.clone());
        decode(child, path, out);
        path.pop();
    }
}

fn encode(paths: &Paths) -> Value {
    let mut root = Value::Object(Map::new());
    for path in paths {
        let mut node = &mut root;
        for element in path {
            let map = json::as_map(node);
            // A leaf that turns out to have children is a member itself.
            node = map
                .entry(element.clone())
                .or_insert_with(|| Value::Object(Map::new()));
        }
    }
    for path in paths {
        let found = path
            .iter()
            .try_fold(&mut root, |node, element| node.get_mut(element));
        if let Some(Value::Object(map)) = found
            && !map.is_empty()
        {
            map.shift_insert(0, ".".to_owned(), json!({}));
        }
    }
    root
}

/// `.spec.containers[name="c"].image`, as conflicts print paths.
pub(super) fn show(path: &Path) -> String {
    path.iter()
        .map(|element| match element.split_once(':') {
            Some(("f", name)) => format!(".{name}"),
            Some(("k", keys)) => {
                let keys: BTreeMap<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let terms: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                format!("[{}]", terms.join(","))
            }
            Some(("v", value)) => format!("[={value}]"),
            _ => element.clone(),
        })
        .collect()
}

/// Removes the leaf or item at a path, and maps that it leaves empty.
pub(super) fn remove<'a>(value: &mut Value, path: &'a [String], place: &Place<'a>) {
    let Some((first, rest)) = path.split_first() else {
        return;
    };
    match first.split_once(':') {
        Some(("f", name)) => {
            let next = place.field(name);
            let Some(map) = value.as_object_mut() else {
                return;
            };
            if rest.is_empty() {
                map.shift_remove(name);
                return;
            }
            if let Some(child) = map.get_mut(name) {
                remove(child, rest, &next);
                let empty = child.as_object().is_some_and(Map::is_empty)
                    || child.as_array().is_some_and(Vec::is_empty);
                if empty {
                    map.shift_remove(name);
                }
            }
        }
        Some(("k", _)) => {
            let (List::Map(keys), Some(list)) = (place.list(), value.as_array_mut()) else {
                return;
            };
            let Some(at) = list
                .iter()
                .position(|i| item_element(i, &keys).as_ref() == Some(first))
            else {
                return;
            };
            if rest.is_empty() {
                list.remove(at);
            } else {
                remove(&mut list[at], rest, &place.item());
            }
        }
        Some(("v", _)) => {
            if let Some(list) = value.as_array_mut() {
                list.retain(|i| set_element(i) != *first);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_round_trip() {
        let fields = json!({"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}}}},
            "f:data": {"f:x": {}}, "f:finalizers": {"v:\"a\"": {}}});
        let mut paths = Paths::new();
        decode(&fields, &mut Vec::new(), &mut paths);
        assert_eq!(paths.len(), 5);
        let again = encode(&paths);
        let mut second = Paths::new();
        decode(&again, &mut Vec::new(), &mut second);
        assert_eq!(paths, second);
        let shown: Vec<String> = paths.iter().map(show).collect();
        assert!(
            shown.contains(&".spec.containers[name=\"c\"].image".to_owned()),
            "{shown:?}"
        );
    }
}
