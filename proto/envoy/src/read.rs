//! Messages as people write them, in EnvoyFilters and the like.
//!
//! Strict where `serde` alone would be terse: the first thing that does not fit is reported with its path and with what
//! would fit. What is written in terms of the v2 API is understood where it has a v3 counterpart ([`crate::v2`]).

use std::fmt;

use prost_reflect::{
    DeserializeOptions, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor,
};
use serde_json::{Map, Value};

use crate::json::{descriptor, has_own_form, named};
use crate::merge::ANY;
use crate::v2;
use crate::walk::{Path, Step};

/// Why JSON is not the message it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadError {
    /// Where, from the outermost message.
    pub path: Path,
    /// What is wrong there.
    pub message: String,
    /// What would be right, if that can be said briefly.
    pub accepted: Option<String>,
}

impl ReadError {
    pub(crate) fn new(path: &Path, message: impl Into<String>) -> Self {
        Self {
            path: path.clone(),
            message: message.into(),
            accepted: None,
        }
    }

    pub(crate) fn accepting(mut self, accepted: impl Into<String>) -> Self {
        self.accepted = Some(accepted.into());
        self
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.to_string();
        if !path.is_empty() {
            write!(f, "{path}: ")?;
        }
        f.write_str(&self.message)?;
        match &self.accepted {
            Some(accepted) => write!(f, "; accepted: {accepted}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ReadError {}

/// The message of this full name that the JSON stands for.
pub fn read(full_name: &str, json: &Value) -> Result<DynamicMessage, ReadError> {
    let root = Path::default();
    let descriptor = descriptor(full_name).map_err(|e| ReadError::new(&root, e.to_string()))?;
    let mut json = json.clone();
    v2::translate(&descriptor, &mut json)?;
    Inspector::default().message(&descriptor, &json)?;
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let mut track = serde_path_to_error::Track::new();
    let reader = serde_path_to_error::Deserializer::new(&json, &mut track);
    DynamicMessage::deserialize_with_options(descriptor, reader, &options).map_err(|error| {
        let mut path = Path::default();
        for segment in track.path().iter() {
            match segment {
                serde_path_to_error::Segment::Seq { index } => path.push(Step::Index(*index)),
                serde_path_to_error::Segment::Map { key } => path.push(Step::Field(key.clone())),
                _ => {}
            }
        }
        ReadError::new(&path, error.to_string())
    })
}

/// Looks for what is unknown before anything is decoded, because only here it is known what would be accepted.
#[derive(Default)]
struct Inspector {
    path: Path,
}

impl Inspector {
    fn error(&self, message: impl Into<String>) -> ReadError {
        ReadError::new(&self.path, message)
    }

    fn message(&mut self, descriptor: &MessageDescriptor, json: &Value) -> Result<(), ReadError> {
        let name = descriptor.full_name();
        if name == ANY {
            return self.any(json);
        }
        if has_own_form(name) {
            return Ok(());
        }
        let Some(object) = json.as_object() else {
            let short = descriptor.name();
            return Err(self
                .error(format!("is {}, not a {short}", kind_of(json)))
                .accepting("an object"));
        };
        self.fields(descriptor, object)
    }

    fn fields(
        &mut self,
        descriptor: &MessageDescriptor,
        object: &Map<String, Value>,
    ) -> Result<(), ReadError> {
        for (key, value) in object {
            let field = descriptor
                .get_field_by_name(key)
                .or_else(|| descriptor.get_field_by_json_name(key));
            let Some(field) = field else {
                let message = format!("{} has no field {key:?}", descriptor.full_name());
                let names = descriptor.fields().map(|f| f.name().to_owned()).collect();
                return Err(self.error(message).accepting(suggestions(key, names)));
            };
            if value.is_null() {
                continue;
            }
            self.path.push(Step::Field(field.name().to_owned()));
            self.field(&field, value)?;
            self.path.pop();
        }
        Ok(())
    }

    fn field(&mut self, field: &FieldDescriptor, value: &Value) -> Result<(), ReadError> {
        if field.is_map() {
            let Some(entries) = value.as_object() else {
                return Err(self.error(format!("is {}, not a map", kind_of(value))));
            };
            let Kind::Message(entry) = field.kind() else {
                return Ok(());
            };
            let of_entries = entry.map_entry_value_field();
            for (key, value) in entries {
                self.path.push(Step::Key(key.clone()));
                self.single(&of_entries, value)?;
                self.path.pop();
            }
            Ok(())
        } else if field.is_list() {
            let Some(items) = value.as_array() else {
                return Err(self.error(format!("is {}, not a list", kind_of(value))));
            };
            for (index, item) in items.iter().enumerate() {
                self.path.push(Step::Index(index));
                self.single(field, item)?;
                self.path.pop();
            }
            Ok(())
        } else {
            self.single(field, value)
        }
    }

    fn single(&mut self, field: &FieldDescriptor, value: &Value) -> Result<(), ReadError> {
        match field.kind() {
            Kind::Message(inner) => self.message(&inner, value),
            Kind::Enum(values) => self.enum_value(&values, value),
            _ => Ok(()),
        }
    }

    fn enum_value(&self, values: &EnumDescriptor, value: &Value) -> Result<(), ReadError> {
        let Some(name) = value.as_str() else {
            return Ok(());
        };
        if values.get_value_by_name(name).is_some()
            || values.full_name() == "google.protobuf.NullValue"
        {
            return Ok(());
        }
        let names = values.values().map(|v| v.name().to_owned()).collect();
        Err(self
            .error(format!("{name:?} is no value of {}", values.full_name()))
            .accepting(suggestions(name, names)))
    }

    fn any(&mut self, json: &Value) -> Result<(), ReadError> {
        const WANTED: &str =
            "an object with \"@type\": \"type.googleapis.com/…\" and the fields of that message";
        let url = json.get("@type").and_then(Value::as_str);
        let (Some(object), Some(url)) = (json.as_object(), url) else {
            return Err(self.error("has no @type").accepting(WANTED));
        };
        let Some(descriptor) = named(url) else {
            self.path.push(Step::Field("@type".to_owned()));
            return Err(self
                .error(format!("{url:?} is not a message of Envoy's v3 API"))
                .accepting(
                    "such as type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
                ));
        };
        if has_own_form(descriptor.full_name()) {
            return Ok(());
        }
        let mut content = object.clone();
        content.shift_remove("@type");
        self.fields(&descriptor, &content)
    }
}

fn kind_of(json: &Value) -> &'static str {
    match json {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The names that may have been meant, else as many of all names as fit into a message.
fn suggestions(given: &str, names: Vec<String>) -> String {
    const MOST: usize = 16;
    let near: Vec<&str> = names
        .iter()
        .filter(|name| near(given, name))
        .map(String::as_str)
        .collect();
    if !near.is_empty() {
        return near.join(" or ");
    }
    let more = if names.len() > MOST { ", …" } else { "" };
    format!("{}{more}", names[..names.len().min(MOST)].join(", "))
}

/// Whether two names differ by two letters at most, apart from case and separators.
fn near(a: &str, b: &str) -> bool {
    let plain = |s: &str| -> Vec<char> {
        let kept = s.chars().filter(|c| *c != '_' && *c != '-');
        kept.take(64).map(|c| c.to_ascii_lowercase()).collect()
    };
    let (a, b) = (plain(a), plain(b));
    if a.len().abs_diff(b.len()) > 2 || b.len() < 4 {
        return a == b;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (corner + usize::from(x != y))
                .min(above + 1)
                .min(row[j] + 1);
            corner = above;
        }
    }
    row[b.len()] <= 2
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::json::dynamic_to_json;

    const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
    const FILTER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";
    const LUA: &str = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua";

    fn error(message: &str, json: Value) -> String {
        read(message, &json).unwrap_err().to_string()
    }

    #[test]
    fn errors_say_where_and_what_would_fit() {
        assert_eq!(
            error(CLUSTER, json!({"circuit_breakers": {"treshold": []}})),
            "circuit_breakers: envoy.config.cluster.v3.CircuitBreakers has no field \"treshold\"; accepted: thresholds"
        );
        assert_eq!(
            error(CLUSTER, json!({"lb_policy": "LEAST_REQEST"})),
            "lb_policy: \"LEAST_REQEST\" is no value of envoy.config.cluster.v3.Cluster.LbPolicy; accepted: LEAST_REQUEST"
        );
        let text = error(
            CLUSTER,
            json!({"circuit_breakers": {"thresholds": [{"max_connections": "many"}]}}),
        );
        assert!(
            text.starts_with("circuit_breakers.thresholds[0].max_connections: invalid digit"),
            "{text}"
        );
        let text = error(CLUSTER, json!({"connectTimeout": "soon"}));
        assert!(text.starts_with("connect"), "{text}");
        assert_eq!(
            error(CLUSTER, json!({"health_checks": {}})),
            "health_checks: is an object, not a list"
        );
        assert_eq!(
            error(CLUSTER, json!([])),
            "is a list, not a Cluster; accepted: an object"
        );
        let text = error(
            FILTER,
            json!({"name": "a", "typed_config": {"@type": LUA, "inline_cod": ""}}),
        );
        assert!(
            text.starts_with("typed_config: envoy.extensions.filters.http.lua.v3.Lua has no field \"inline_cod\"; accepted: inline_code"),
            "{text}"
        );
        let text = error(
            FILTER,
            json!({"name": "a", "typed_config": {"inline_code": ""}}),
        );
        assert!(
            text.starts_with("typed_config: has no @type; accepted: an object with"),
            "{text}"
        );
        let text = error(
            FILTER,
            json!({"typed_config": {"@type": "type.googleapis.com/envoy.Nope"}}),
        );
        assert!(
            text.starts_with(
                "typed_config.@type: \"type.googleapis.com/envoy.Nope\" is not a message"
            ),
            "{text}"
        );
        let text = error(
            "envoy.config.route.v3.RouteMatch",
            json!({"prefix": "/", "path": "/a"}),
        );
        assert!(text.contains("path_specifier"), "{text}");
    }

    #[test]
    fn both_spellings_and_null_are_read() {
        let cluster = read(
            CLUSTER,
            &json!({"name": "a", "connectTimeout": "1s", "lb_policy": null}),
        )
        .unwrap();
        assert_eq!(
            dynamic_to_json(&cluster).unwrap(),
            json!({"name": "a", "connect_timeout": "1s"})
        );
    }
}
