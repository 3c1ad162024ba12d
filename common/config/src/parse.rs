//! From YAML and JSON to typed objects.
//!
//! Read by sources (which then validate, see [`load`]) and by `istioctl validate`. An object that cannot be read yields
//! errors and never stops the ones beside it. Manifests of kinds that are not ours are reported as skipped, not as
//! errors: people keep Deployments and VirtualServices in one file.
//!
//! The spec is read by the generated proto3 JSON code. It stops at the first unknown field; we then take that field
//! away and read again, so that all of them are reported at once.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{ConfigError, Place};
use crate::kind::{ConfigKind, Scope, TypedObject};
use crate::meta::Meta;
use crate::path::{FieldPath, Segment};
use crate::validate::{self, FieldError};
use crate::yaml::{self, Node};

/// More unknown fields than this in one object are not listed one by one.
const MAX_UNKNOWN_FIELDS: usize = 20;

/// What came out of a text.
#[derive(Debug, Default)]
pub struct Parsed {
    /// What could be read.
    pub objects: Vec<TypedObject>,
    /// What is wrong with the rest.
    pub errors: Vec<ConfigError>,
    /// Objects of kinds that are not ours.
    pub skipped: Vec<Place>,
}

/// How to read a text.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Name of the file, for messages.
    pub file: Option<&'a str>,
    /// Namespace of namespaced objects that name none.
    pub default_namespace: &'a str,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            file: None,
            default_namespace: "default",
        }
    }
}

/// Reads a text of one or more YAML (or JSON) documents without validating.
pub fn from_yaml(text: &str, options: Options<'_>) -> Parsed {
    Reader {
        options,
        check: |_| Vec::new(),
    }
    .read(text)
}

/// Reads a text of one or more YAML (or JSON) documents; objects that break a rule of their kind become errors.
pub fn load(text: &str, options: Options<'_>) -> Parsed {
    Reader {
        options,
        check: validate::object,
    }
    .read(text)
}

/// As [`load`], with the checks that only people and admission ask for ([`validate::complete`]).
pub fn review(text: &str, options: Options<'_>) -> Parsed {
    Reader {
        options,
        check: validate::complete,
    }
    .read(text)
}

/// Reads one object in its JSON form, as an API server gives it, and validates it.
pub fn from_json(value: Value) -> Result<TypedObject, Vec<ConfigError>> {
    let place = place_of(&value);
    let placed = |problem: FieldError| problem.into_error(place.clone());
    match read(value, "") {
        Ok(object) => {
            let problems = validate::object(&object);
            if problems.is_empty() {
                Ok(object)
            } else {
                Err(problems.into_iter().map(placed).collect())
            }
        }
        Err(Refusal::NotOurs) => Err(vec![
            ConfigError::new(place, "kind", "not a config kind of the mesh").accepted(
                ConfigKind::ALL
                    .iter()
                    .map(|k| k.kind())
                    .collect::<Vec<_>>()
                    .join(", "),
            ),
        ]),
        Err(Refusal::Problems(problems)) => Err(problems.into_iter().map(placed).collect()),
    }
}

/// Reads the spec of an object whose metadata is known already, and validates it.
pub fn from_parts(meta: Meta, mut spec: Value) -> Result<TypedObject, Vec<ConfigError>> {
    let place = Place {
        kind: Some(meta.kind.to_string()),
        namespace: Some(meta.namespace.clone()),
        name: Some(meta.name.clone()),
        ..Place::default()
    };
    if spec.is_null() {
        spec = Value::Object(serde_json::Map::new());
    }
    without_nulls(&mut spec, meta.kind == ConfigKind::EnvoyFilter);
    let problems = match read_spec(meta.kind, meta, spec) {
        Ok(object) => match validate::object(&object) {
            problems if problems.is_empty() => return Ok(object),
            problems => problems,
        },
        Err(problems) => problems,
    };
    Err(problems
        .into_iter()
        .map(|p| p.into_error(place.clone()))
        .collect())
}

struct Reader<'a> {
    options: Options<'a>,
    check: fn(&TypedObject) -> Vec<FieldError>,
}

impl Reader<'_> {
    fn read(&self, text: &str) -> Parsed {
        let mut parsed = Parsed::default();
        for document in yaml::documents(text) {
            match Node::parse(document) {
                Ok(node) => self.read_node(&node, &mut parsed),
                Err(error) => {
                    let place = Place {
                        file: self.options.file.map(str::to_owned),
                        line: error.line.or(Some(document.offset + 1)),
                        ..Place::default()
                    };
                    parsed
                        .errors
                        .push(ConfigError::new(place, "", error.message));
                }
            }
        }
        parsed
    }

    fn read_node(&self, node: &Node, parsed: &mut Parsed) {
        let value = node.to_json();
        // `kubectl get -o yaml` gives a List; its items stand for themselves.
        let is_list = value["kind"].as_str().is_some_and(|k| k.ends_with("List"));
        if let Some(items) = node.get("items").filter(|_| is_list) {
            for item in items.elements() {
                self.read_node(item, parsed);
            }
            return;
        }
        let mut place = place_of(&value);
        place.file = self.options.file.map(str::to_owned);
        let problems = match read(value, self.options.default_namespace) {
            Ok(object) => {
                place.namespace = Some(object.meta().namespace.clone());
                let problems = (self.check)(&object);
                if problems.is_empty() {
                    parsed.objects.push(object);
                }
                problems
            }
            Err(Refusal::NotOurs) => {
                place.line = Some(node.line());
                parsed.skipped.push(place);
                return;
            }
            Err(Refusal::Problems(problems)) => problems,
        };
        parsed.errors.extend(problems.into_iter().map(|problem| {
            let mut place = place.clone();
            place.line = Some(node.line_of(&problem.path));
            problem.into_error(place)
        }));
    }
}

enum Refusal {
    /// Not our kind, so not our business.
    NotOurs,
    Problems(Vec<FieldError>),
}

impl From<FieldError> for Refusal {
    fn from(problem: FieldError) -> Self {
        Self::Problems(vec![problem])
    }
}

fn place_of(value: &Value) -> Place {
    let text = |v: &Value| v.as_str().map(str::to_owned);
    Place {
        kind: text(&value["kind"]),
        namespace: text(&value["metadata"]["namespace"]),
        name: text(&value["metadata"]["name"]),
        ..Place::default()
    }
}

/// Only the metadata we use; the rest is the API server's.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawMeta {
    name: Option<String>,
    namespace: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<jiff::Timestamp>,
    resource_version: Option<String>,
    generation: Option<i64>,
    uid: Option<String>,
}

fn read(mut value: Value, default_namespace: &str) -> Result<TypedObject, Refusal> {
    let root = FieldPath::root();
    if !value.is_object() {
        return Err(
            FieldError::new(&root, format!("{} is not an object", type_name(&value)))
                .accepted("a manifest with apiVersion, kind, metadata and spec")
                .into(),
        );
    }
    let kind = config_kind(&value)?;
    let raw: RawMeta = match value["metadata"].take() {
        Value::Null => RawMeta::default(),
        metadata => serde_path_to_error::deserialize(metadata).map_err(|e| {
            FieldError::new(&root.key("metadata").join(e.path()), readable(e.inner()))
        })?,
    };
    let meta = read_meta(kind, raw, default_namespace)?;
    let mut spec = value["spec"].take();
    if spec.is_null() {
        spec = Value::Object(serde_json::Map::new());
    }
    without_nulls(&mut spec, kind == ConfigKind::EnvoyFilter);
    read_spec(kind, meta, spec).map_err(Refusal::Problems)
}

fn config_kind(value: &Value) -> Result<ConfigKind, Refusal> {
    let root = FieldPath::root();
    let missing =
        |field: &str| FieldError::new(&root, format!("{field} is missing")).accepted("a text");
    let kind = value["kind"].as_str().ok_or_else(|| missing("kind"))?;
    let api_version = value["apiVersion"]
        .as_str()
        .ok_or_else(|| missing("apiVersion"))?;
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    let Some(found) = ConfigKind::find(group, kind) else {
        // The group config.istio.io also holds Mixer's kinds, which others read.
        if !ConfigKind::is_our_group(group) || group == "config.istio.io" {
            return Err(Refusal::NotOurs);
        }
        let known = ConfigKind::ALL.iter().filter(|k| k.group() == group);
        return Err(
            FieldError::new(&root.key("kind"), format!("{group} has no kind {kind:?}"))
                .accepted(known.map(|k| k.kind()).collect::<Vec<_>>().join(", "))
                .into(),
        );
    };
    let older = found
        .older_versions()
        .iter()
        .any(|(group, version)| api_version.split_once('/') == Some((*group, *version)));
    if older || api_version == found.api_version() {
        Ok(found)
    } else {
        Err(FieldError::new(
            &root.key("apiVersion"),
            format!("{api_version:?} is not a version of {kind}"),
        )
        .accepted(found.api_version())
        .into())
    }
}

fn read_meta(kind: ConfigKind, raw: RawMeta, default_namespace: &str) -> Result<Meta, FieldError> {
    let name = raw.name.filter(|n| !n.is_empty()).ok_or_else(|| {
        FieldError::new(&FieldPath::root().key("metadata"), "the object has no name")
    })?;
    let namespace = match kind.scope() {
        Scope::Cluster => String::new(),
        Scope::Namespaced => raw
            .namespace
            .filter(|n| !n.is_empty())
            .unwrap_or_else(|| default_namespace.to_owned()),
    };
    let mut meta = Meta::new(kind, namespace, name);
    meta.labels = raw.labels.unwrap_or_default();
    meta.annotations = raw.annotations.unwrap_or_default();
    meta.creation_timestamp = raw
        .creation_timestamp
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    meta.resource_version = raw.resource_version.unwrap_or_default();
    meta.generation = raw.generation.unwrap_or_default();
    meta.uid = raw.uid.unwrap_or_default();
    Ok(meta)
}

/// Takes away map entries that are null: in proto3 JSON they mean "not set". In an EnvoyFilter, null may be meant
/// inside the free-form `value` and `filterConfig`.
fn without_nulls(value: &mut Value, keep_in_structs: bool) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            for (key, value) in map {
                let is_struct = matches!(key.as_str(), "value" | "filterConfig" | "filter_config");
                if !(keep_in_structs && is_struct) {
                    without_nulls(value, keep_in_structs);
                }
            }
        }
        Value::Array(list) => list
            .iter_mut()
            .for_each(|v| without_nulls(v, keep_in_structs)),
        _ => {}
    }
}

fn read_spec(
    kind: ConfigKind,
    meta: Meta,
    mut spec: Value,
) -> Result<TypedObject, Vec<FieldError>> {
    let mut problems = Vec::new();
    loop {
        let error = match TypedObject::read(kind, meta.clone(), spec.clone()) {
            Ok(object) if problems.is_empty() => return Ok(object),
            Ok(_) => return Err(problems),
            Err(error) => error,
        };
        let mut path = FieldPath::spec().join(error.path());
        let text = error.inner().to_string();
        let unknown = text
            .strip_prefix("unknown field `")
            .and_then(|rest| rest.split_once('`'))
            .map(|(field, _)| field.to_owned());
        if let Some(field) = &unknown {
            // Some deserializers name the field in the path already.
            if path.segments().last() != Some(&Segment::Key(field.clone())) {
                path = path.key(field);
            }
        }
        problems
            .push(FieldError::new(&path, readable(error.inner())).accepted_opt(accepted(&text)));
        let removed = unknown.is_some() && remove(&mut spec, &path);
        if !removed || problems.len() >= MAX_UNKNOWN_FIELDS {
            return Err(problems);
        }
    }
}

/// The field that a message does not have.
fn unknown_field(error: &serde_path_to_error::Error<serde_json::Error>) -> Option<String> {
    let text = error.inner().to_string();
    let (field, _) = text.strip_prefix("unknown field `")?.split_once('`')?;
    Some(field.to_owned())
}

/// What the generated JSON code did not like, and where below `root`.
pub(crate) fn unreadable(
    root: &FieldPath,
    error: &serde_path_to_error::Error<serde_json::Error>,
) -> FieldError {
    let mut path = root.join(error.path());
    if let Some(field) = unknown_field(error) {
        // Depending on the deserializer the path ends at the field or at its message.
        if path.segments().last() != Some(&Segment::Key(field.clone())) {
            path = path.key(field);
        }
    }
    FieldError::new(&path, readable(error.inner()))
        .accepted_opt(accepted(&error.inner().to_string()))
}

/// Takes the value at a path (which starts with `spec`) out of the spec.
fn remove(spec: &mut Value, path: &FieldPath) -> bool {
    let Some((Segment::Key(last), parents)) = path.segments().get(1..).and_then(<[_]>::split_last)
    else {
        return false;
    };
    let mut value = spec;
    for segment in parents {
        let next = match segment {
            Segment::Index(i) => value.get_mut(i),
            Segment::Key(key) => value.get_mut(key),
        };
        match next {
            Some(next) => value = next,
            None => return false,
        }
    }
    value
        .as_object_mut()
        .and_then(|map| map.shift_remove(last))
        .is_some()
}

/// Serde's message without the list of alternatives, which we show separately.
fn readable(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let end = [
        ", expected one of ",
        ", expected `",
        ", there are no fields",
    ]
    .iter()
    .filter_map(|marker| text.find(marker))
    .min()
    .unwrap_or(text.len());
    text[..end].to_owned()
}

/// The alternatives in serde's message, each in one spelling.
fn accepted(text: &str) -> Option<String> {
    let (_, list) = text
        .split_once("expected one of ")
        .or_else(|| text.split_once(", expected `"))?;
    let mut names: Vec<&str> = list
        .split([',', '`'])
        .map(str::trim)
        .filter(|name| !name.is_empty() && *name != "or")
        .collect();
    let camel: Vec<String> = names.iter().map(|n| crate::path::camel(n)).collect();
    // Enum values are upper case and stay; of field names the camelCase spelling does.
    let upper = |n: &str| n.chars().all(|c| !c.is_ascii_lowercase());
    let mut i = 0;
    names.retain(|name| {
        i += 1;
        upper(name) || *name == camel[i - 1]
    });
    names.dedup();
    Some(names.join(", "))
}

pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests;
