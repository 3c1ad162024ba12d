//! Structural schemas, compiled once per CRD version.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::Value;

use crate::json;

/// One node of a schema.
#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) kind: String,
    pub(crate) properties: BTreeMap<String, Node>,
    pub(crate) additional: Option<Box<Node>>,
    pub(crate) items: Option<Box<Node>>,
    pub(crate) required: Vec<String>,
    pub(crate) default: Option<Value>,
    pub(crate) choices: Vec<Value>,
    pub(crate) pattern: Option<(String, Regex)>,
    pub(crate) format: String,
    pub(crate) minimum: Option<(f64, bool)>,
    pub(crate) maximum: Option<(f64, bool)>,
    pub(crate) multiple_of: Option<f64>,
    pub(crate) min_length: Option<u64>,
    pub(crate) max_length: Option<u64>,
    pub(crate) min_items: Option<u64>,
    pub(crate) max_items: Option<u64>,
    pub(crate) min_properties: Option<u64>,
    pub(crate) max_properties: Option<u64>,
    pub(crate) unique_items: bool,
    pub(crate) nullable: bool,
    /// Fields that the schema does not name are kept.
    pub(crate) preserve: bool,
    pub(crate) int_or_string: bool,
    /// The value is a whole object with apiVersion, kind and metadata.
    pub(crate) embedded: bool,
    pub(crate) all_of: Vec<Node>,
    pub(crate) any_of: Vec<Node>,
    pub(crate) one_of: Vec<Node>,
    pub(crate) not: Option<Box<Node>>,
    pub(crate) list: ListType,
    /// A map whose fields have one owner together.
    pub(crate) atomic_map: bool,
}

/// How server-side apply merges a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum ListType {
    #[default]
    Atomic,
    Set,
    Map(Vec<String>),
}

/// A compiled schema beside its source.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) root: Node,
    pub(crate) source: Value,
}

impl Schema {
    pub(crate) fn new(source: Value) -> Result<Self, String> {
        Ok(Self {
            root: Node::compile(&source, "openAPIV3Schema")?,
            source,
        })
    }
}

impl Node {
    fn compile(source: &Value, path: &str) -> Result<Self, String> {
        let child = |key: &str| -> Result<Option<Box<Node>>, String> {
            match source.get(key) {
                Some(s) if s.is_object() => {
                    Ok(Some(Box::new(Node::compile(s, &format!("{path}.{key}"))?)))
                }
                Some(Value::Bool(true)) if key == "additionalProperties" => {
                    Ok(Some(Box::new(Node {
                        preserve: true,
                        ..Node::default()
                    })))
                }
                _ => Ok(None),
            }
        };
        let children = |key: &str| -> Result<Vec<Node>, String> {
            json::list_at(source, &[key])
                .iter()
                .enumerate()
                .map(|(i, s)| Node::compile(s, &format!("{path}.{key}[{i}]")))
                .collect()
        };
        let mut properties = BTreeMap::new();
        for (name, s) in json::map_at(source, &["properties"]).into_iter().flatten() {
            properties.insert(
                name.clone(),
                Node::compile(s, &format!("{path}.properties[{name}]"))?,
            );
        }
        let pattern = match json::str_at(source, &["pattern"]) {
            "" => None,
            p => Some((
                p.to_owned(),
                Regex::new(p).map_err(|e| format!("{path}.pattern: {e}"))?,
            )),
        };
        let count = |key: &str| source.get(key).and_then(Value::as_u64);
        let flag = |key: &str| source.get(key).and_then(Value::as_bool).unwrap_or(false);
        let bound = |key: &str, exclusive: &str| {
            source
                .get(key)
                .and_then(Value::as_f64)
                .map(|b| (b, flag(exclusive)))
        };
        let list = match json::str_at(source, &["x-kubernetes-list-type"]) {
            "set" => ListType::Set,
            "map" => ListType::Map(
                json::list_at(source, &["x-kubernetes-list-map-keys"])
                    .iter()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect(),
            ),
            _ => ListType::Atomic,
        };
        Ok(Self {
            kind: json::str_at(source, &["type"]).to_owned(),
            properties,
            additional: child("additionalProperties")?,
            items: child("items")?,
            required: json::list_at(source, &["required"])
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            default: source.get("default").cloned(),
            choices: json::list_at(source, &["enum"]).to_vec(),
            pattern,
            format: json::str_at(source, &["format"]).to_owned(),
            minimum: bound("minimum", "exclusiveMinimum"),
            maximum: bound("maximum", "exclusiveMaximum"),
            multiple_of: source.get("multipleOf").and_then(Value::as_f64),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            unique_items: flag("uniqueItems"),
            nullable: flag("nullable"),
            preserve: flag("x-kubernetes-preserve-unknown-fields"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            embedded: flag("x-kubernetes-embedded-resource"),
            all_of: children("allOf")?,
            any_of: children("anyOf")?,
            one_of: children("oneOf")?,
            not: child("not")?,
            list,
            atomic_map: json::str_at(source, &["x-kubernetes-map-type"]) == "atomic",
        })
    }
}
