//! Bodies into objects: media types, duplicate and unknown fields, kinds, versions.

use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::Context;
use crate::registry::{Resource, split_api_version};
use crate::status::{ApiError, Result};
use crate::{convert, crd, json, protobuf, typed};

const ACCEPTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// A body decoded, with the names of fields that occur twice.
pub(crate) struct Decoded {
    pub(crate) value: Value,
    duplicates: Vec<String>,
}

impl Decoded {
    /// A value that did not come from a text, so cannot have duplicates.
    pub(crate) fn plain(value: Value) -> Self {
        Self {
            value,
            duplicates: Vec::new(),
        }
    }
}

/// Decodes JSON (also without a Content-Type), YAML or protobuf.
pub(crate) fn decode(content_type: &str, bytes: &[u8], kind: &str) -> Result<Decoded> {
    match content_type {
        "" | "application/json" | "*/*" => decode_json(bytes, kind),
        "application/yaml" | "application/x-yaml" | "text/yaml" => {
            let text =
                std::str::from_utf8(bytes).map_err(|e| ApiError::bad_request(e.to_string()))?;
            let value = serde_saphyr::from_str(text).map_err(|e| {
                ApiError::bad_request(format!("error decoding YAML into a {kind}: {e}"))
            })?;
            Ok(Decoded {
                value,
                duplicates: Vec::new(),
            })
        }
        "application/vnd.kubernetes.protobuf" => {
            let value = protobuf::decode(bytes).map_err(ApiError::bad_request)?;
            Ok(Decoded {
                value,
                duplicates: Vec::new(),
            })
        }
        _ => Err(ApiError::unsupported_media(ACCEPTED)),
    }
}

fn decode_json(bytes: &[u8], kind: &str) -> Result<Decoded> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let seed = Tracking {
        path: String::new(),
        duplicates: &mut duplicates,
    };
    let value = seed.deserialize(&mut deserializer).and_then(|v| deserializer.end().map(|()| v)).map_err(|e| {
        ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: {e} ({})",
            excerpt(bytes)
        ))
    })?;
    Ok(Decoded { value, duplicates })
}

fn excerpt(bytes: &[u8]) -> String {
    bytes
        .iter()
        .take(10)
        .map(|b| format!("{b:02x}"))
        .collect::<String>()
        + if bytes.len() > 10 { " ..." } else { "" }
}

/// Options sent as a body (DeleteOptions); an empty body is an empty object.
pub(crate) fn options(context: &Context, bytes: &[u8]) -> Result<Value> {
    if bytes.is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    Ok(decode(&context.content_type, bytes, "DeleteOptions")?.value)
}

/// Builds a `Value` and notes keys that occur twice; the last one wins, as in Go.
struct Tracking<'a> {
    path: String,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Tracking<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tracking<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        Value::deserialize(d)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, list.len());
            match seq.next_element_seed(Tracking {
                path,
                duplicates: self.duplicates,
            })? {
                Some(v) => list.push(v),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let path = if self.path.is_empty() {
                key.clone()
            } else {
                format!("{}.{key}", self.path)
            };
            let value = entries.next_value_seed(Tracking {
                path: path.clone(),
                duplicates: self.duplicates,
            })?;
            if map.insert(key, value).is_some() {
                self.duplicates.push(path);
            }
        }
        Ok(Value::Object(map))
    }
}

/// What to do about fields the kind does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FieldValidation {
    Strict,
    Warn,
    Ignore,
}

fn field_validation(context: &Context) -> FieldValidation {
    match context.options.get("fieldValidation") {
        Some("Strict") => FieldValidation::Strict,
        Some("Ignore") => FieldValidation::Ignore,
        _ => FieldValidation::Warn,
    }
}

/// An object as a client sent it into the form that is stored: kind and version checked, decoded
/// through the typed form or pruned by the schema, converted.
pub(crate) fn object(context: &Context, decoded: Decoded) -> Result<Value> {
    let Decoded {
        mut value,
        duplicates,
    } = decoded;
    let resource = &context.resource;
    if !value.is_object() {
        return Err(ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): the body is {} and not an object",
            resource.kind,
            json::type_name(&value)
        )));
    }
    check_type(resource, &context.version, &mut value)?;
    let mut complaints: Vec<String> = duplicates
        .iter()
        .map(|d| format!("duplicate field \"{d}\""))
        .collect();
    let validation = field_validation(context);
    let version = resource
        .version(&context.version)
        .ok_or_else(ApiError::unknown_resource)?;
    let refuse = |why: &str| {
        ApiError::bad_request(format!(
            "{} in version \"{}\" cannot be handled as a {}: {why}",
            resource.kind, context.version, resource.kind
        ))
    };
    if let Some(check) = version.check {
        json::strip_nulls(&mut value);
        let known = check(&value).map_err(|e| refuse(&e))?;
        let unknown = typed::drop_unknown(&mut value, &known);
        complaints.splice(
            0..0,
            unknown.iter().map(|u| format!("unknown field \"{u}\"")),
        );
    }
    if let Some(schema) = &version.schema {
        check_metadata(&value).map_err(|e| refuse(&e))?;
        let unknown = crd::prune::prune(schema, &mut value);
        complaints.splice(
            0..0,
            unknown.iter().map(|u| format!("unknown field \"{u}\"")),
        );
    }
    if !complaints.is_empty() {
        match validation {
            FieldValidation::Strict => {
                return Err(refuse(&format!(
                    "strict decoding error: {}",
                    complaints.join(", ")
                )));
            }
            FieldValidation::Warn => complaints.into_iter().for_each(|c| context.warn(c)),
            FieldValidation::Ignore => {}
        }
    }
    Ok(convert::to_storage(resource, &context.version, value))
}

/// Custom resources: metadata is typed even where the rest is free.
fn check_metadata(value: &Value) -> Result<(), String> {
    let Some(metadata) = value.get("metadata") else {
        return Ok(());
    };
    let mut metadata = metadata.clone();
    json::strip_nulls(&mut metadata);
    let probe = serde_json::json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata});
    typed::check::<k8s_openapi::api::core::v1::ConfigMap>(&probe)
        .map(drop)
        .map_err(|e| e.replace("ConfigMap.", ""))
}

fn check_type(resource: &Resource, version: &str, value: &mut Value) -> Result<()> {
    let wanted = resource.api_version(version);
    let (kind, api_version) = (
        json::str_at(value, &["kind"]).to_owned(),
        json::str_at(value, &["apiVersion"]).to_owned(),
    );
    if resource.custom {
        for (field, text) in [("Kind", &kind), ("apiVersion", &api_version)] {
            if text.is_empty() {
                return Err(ApiError::bad_request(format!(
                    "Object '{field}' is missing in '{value}'"
                )));
            }
        }
    }
    if (!kind.is_empty() && kind != resource.kind)
        || (!api_version.is_empty() && api_version != wanted)
    {
        let (group, sent_version) = split_api_version(&api_version);
        if kind == resource.kind && group == resource.group && !resource.custom {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({api_version}) does not match the expected API version ({wanted})"
            )));
        }
        let go = |group: &str| match group.split('.').next() {
            None | Some("") => "core".to_owned(),
            Some(first) => first.to_owned(),
        };
        let sent = if group.is_empty() {
            sent_version.to_owned()
        } else {
            go(group)
        };
        return Err(ApiError::bad_request(format!(
            "{kind} in version \"{sent_version}\" cannot be handled as a {}: converting ({sent}.{kind}) to ({}.{}): unknown conversion",
            resource.kind,
            go(&resource.group),
            resource.kind
        )));
    }
    json::set(value, &["kind"], resource.kind.clone().into());
    json::set(value, &["apiVersion"], wanted.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_named() {
        let decoded = decode("", br#"{"data":{"a":1,"a":2},"data":{}}"#, "ConfigMap")
            .ok()
            .unwrap();
        assert_eq!(decoded.duplicates, ["data.a", "data"]);
        let error = decode("", b"{", "ConfigMap").err().unwrap();
        assert!(
            error
                .message()
                .starts_with("the object provided is unrecognized (must be of type ConfigMap)")
        );
        assert_eq!(decode("text/plain", b"", "X").err().unwrap().code(), 415);
    }
}
