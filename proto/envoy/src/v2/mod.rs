//! JSON in terms of Envoy's v2 API, put into terms of v3.
//!
//! What users of Istio 1.4 wrote was v2: untyped `config` beside a filter's name, v2 names, v2 type URLs, fields that v3 has
//! moved. All of it that has a v3 counterpart is rewritten here, guided by the descriptors of the v3 messages:
//!
//! - type URLs: every v3 message names its v2 ancestor in its options, so that table is complete;
//! - names and untyped configs of extensions: a table of those that v2 had ([`names`]);
//! - moved fields: those that configuration of a mesh touches ([`fields`]).
//!
//! What has no counterpart is left as it is; the strict reader then says that v3 does not know it. JSON in terms of v3
//! passes unchanged.

mod fields;
mod names;

use std::collections::HashMap;
use std::sync::LazyLock;

use prost_reflect::{Kind, MessageDescriptor, Value as Reflected};
use serde_json::{Map, Value, json};

use self::names::Category;
use crate::TYPE_PREFIX;
use crate::json::{has_own_form, named, pool};
use crate::merge::{ANY, message_name};
use crate::read::ReadError;
use crate::walk::{Path, Step};

type Object = Map<String, Value>;

/// Rewrites the JSON of a message.
pub(crate) fn translate(descriptor: &MessageDescriptor, json: &mut Value) -> Result<(), ReadError> {
    Translator::default().message(descriptor, json)
}

/// The v3 name of a filter that may be given by its v2 name: of an HTTP filter, else of a network or listener filter.
pub fn filter_name(name: &str) -> &str {
    [Category::Http, Category::Network, Category::Listener]
        .into_iter()
        .find_map(|category| names::find(category, name))
        .map_or(name, |extension| extension.name)
}

/// The v3 name of an HTTP filter that may be given by its v2 name.
pub fn http_filter_name(name: &str) -> &str {
    names::find(Category::Http, name).map_or(name, |extension| extension.name)
}

/// The v3 name of a network filter that may be given by its v2 name.
pub fn network_filter_name(name: &str) -> &str {
    names::find(Category::Network, name).map_or(name, |extension| extension.name)
}

/// The v2 name of an extension, if it had another one.
pub(crate) fn old_name(name: &str) -> Option<&'static str> {
    names::old(name)
}

/// v2 messages and the v3 messages that say they descend from them.
static DESCENDANTS: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    let mut out = HashMap::new();
    let Some(pool) = pool() else { return out };
    let Some(versioning) = pool.get_extension_by_name("udpa.annotations.versioning") else {
        return out;
    };
    for message in pool.all_messages() {
        let options = message.options();
        let Reflected::Message(versioning) = &*options.get_extension(&versioning) else {
            continue;
        };
        let previous = versioning.get_field_by_name("previous_message_type");
        if let Some(Reflected::String(previous)) = previous.as_deref()
            && !previous.is_empty()
        {
            out.insert(previous.clone(), message.full_name().to_owned());
        }
    }
    out
});

/// The v3 message of a v2 name or type URL.
pub fn v3_message(type_url: &str) -> Option<&'static str> {
    DESCENDANTS.get(message_name(type_url)).map(String::as_str)
}

#[derive(Default)]
struct Translator {
    path: Path,
    /// Inside a cluster, where transport sockets are those of clients.
    upstream: bool,
}

impl Translator {
    fn message(
        &mut self,
        descriptor: &MessageDescriptor,
        json: &mut Value,
    ) -> Result<(), ReadError> {
        let Some(object) = json.as_object_mut() else {
            return Ok(());
        };
        let name = descriptor.full_name();
        if name == ANY {
            return self.any(object);
        }
        if has_own_form(name) {
            return Ok(());
        }
        self.object(descriptor, object)
    }

    fn object(
        &mut self,
        descriptor: &MessageDescriptor,
        object: &mut Object,
    ) -> Result<(), ReadError> {
        let name = descriptor.full_name();
        let outer = self.upstream;
        match name {
            "envoy.config.cluster.v3.Cluster" => self.upstream = true,
            "envoy.config.listener.v3.Listener" | "envoy.config.listener.v3.FilterChain" => {
                self.upstream = false;
            }
            _ => {}
        }
        fields::rewrite(name, object);
        self.extension(descriptor, object)?;
        for (key, value) in object.iter_mut() {
            let field = descriptor
                .get_field_by_name(key)
                .or_else(|| descriptor.get_field_by_json_name(key));
            let Some(field) = field else { continue };
            let Kind::Message(inner) = field.kind() else {
                continue;
            };
            self.path.push(Step::Field(field.name().to_owned()));
            if field.is_map() {
                if let Kind::Message(inner) = inner.map_entry_value_field().kind() {
                    self.entries(field.name(), &inner, value)?;
                }
            } else if let Value::Array(list) = value {
                for (index, item) in list.iter_mut().enumerate() {
                    self.path.push(Step::Index(index));
                    self.message(&inner, item)?;
                    self.path.pop();
                }
            } else {
                self.message(&inner, value)?;
            }
            self.path.pop();
        }
        self.upstream = outer;
        Ok(())
    }

    fn entries(
        &mut self,
        field: &str,
        descriptor: &MessageDescriptor,
        map: &mut Value,
    ) -> Result<(), ReadError> {
        let Some(map) = map.as_object_mut() else {
            return Ok(());
        };
        if field == "typed_per_filter_config" {
            for (key, value) in std::mem::take(map) {
                let (key, value) = self.per_filter(key, value)?;
                map.insert(key, value);
            }
        }
        for (key, value) in map.iter_mut() {
            self.path.push(Step::Key(key.clone()));
            self.message(descriptor, value)?;
            self.path.pop();
        }
        Ok(())
    }

    /// An entry of `typed_per_filter_config`: the key is the filter's name, and v2 had untyped ones.
    fn per_filter(&mut self, key: String, value: Value) -> Result<(String, Value), ReadError> {
        let known = names::find(Category::Http, &key);
        let value = match value {
            Value::Object(config) if !config.contains_key("@type") => match known {
                Some(extension) if !extension.per_route.is_empty() => {
                    typed(extension.per_route, config)
                }
                _ => {
                    self.path.push(Step::Key(key));
                    return Err(ReadError::new(&self.path, "has no @type")
                        .accepting("the filter's config for a route with its \"@type\""));
                }
            },
            typed => typed,
        };
        Ok((known.map_or(key, |e| e.name.to_owned()), value))
    }

    fn any(&mut self, object: &mut Object) -> Result<(), ReadError> {
        untangle(object);
        let Some(url) = object.get("@type").and_then(Value::as_str) else {
            return Ok(());
        };
        let name = match named(url) {
            Some(known) => known.full_name().to_owned(),
            None => match v3_message(url) {
                Some(name) => name.to_owned(),
                None => return Ok(()),
            },
        };
        let Some(descriptor) = named(&name) else {
            return Ok(());
        };
        object.shift_remove("@type");
        if !has_own_form(&name) {
            self.object(&descriptor, object)?;
        }
        // First: the reader then knows the type before it reads the fields, and can say where an error is.
        object.shift_insert(0, "@type".to_owned(), format!("{TYPE_PREFIX}{name}").into());
        Ok(())
    }

    /// The name and config of an extension, in the messages that hold one.
    fn extension(
        &mut self,
        descriptor: &MessageDescriptor,
        object: &mut Object,
    ) -> Result<(), ReadError> {
        let has = |field: &str| descriptor.get_field_by_name(field).is_some();
        if !has("name") || !has("typed_config") || has("config") {
            return Ok(());
        }
        let name = object
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let known = Category::of(descriptor.full_name(), self.upstream)
            .and_then(|category| names::find(category, name));
        let name = name.to_owned();
        if let Some(extension) = known {
            object.insert("name".to_owned(), extension.name.into());
        }
        let config = fields::take(object, "config").or_else(|| untyped(object));
        match (config, known) {
            (Some(Value::Object(config)), Some(extension)) => {
                object.insert("typed_config".to_owned(), typed(extension.message, config));
            }
            (Some(Value::Null), _) => {}
            (Some(_), _) => {
                self.path.push(Step::Field("config".to_owned()));
                let message = match name.is_empty() {
                    true => "says nothing without the extension's name".to_owned(),
                    false => format!(
                        "is the form of Envoy's v2 API, and {name:?} is no extension that had it"
                    ),
                };
                return Err(ReadError::new(&self.path, message)
                    .accepting("typed_config with the \"@type\" of the extension's config"));
            }
            (None, Some(extension)) => {
                let given = [
                    "typed_config",
                    "typedConfig",
                    "config_discovery",
                    "configDiscovery",
                ];
                if !given.iter().any(|key| object.contains_key(*key)) {
                    object.insert(
                        "typed_config".to_owned(),
                        typed(extension.message, Object::new()),
                    );
                }
            }
            (None, None) => {}
        }
        Ok(())
    }
}

/// The config of an extension with its type.
fn typed(message: &str, config: Object) -> Value {
    let mut out = Object::new();
    out.insert("@type".to_owned(), format!("{TYPE_PREFIX}{message}").into());
    out.extend(config);
    out.into()
}

/// A `Struct` in `typed_config` is as untyped as `config` was.
fn untyped(object: &mut Object) -> Option<Value> {
    let key = ["typed_config", "typedConfig"]
        .into_iter()
        .find(|key| object.contains_key(*key))?;
    let url = object[key].get("@type")?.as_str()?;
    if message_name(url) != "google.protobuf.Struct" {
        return None;
    }
    let mut config = object.shift_remove(key)?;
    Some(
        config
            .get_mut("value")
            .map_or_else(|| json!({}), Value::take),
    )
}

/// A `TypedStruct` says in JSON what a message of the type says; that message is easier to look into.
fn untangle(object: &mut Object) {
    const TYPED_STRUCTS: [&str; 2] = ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"];
    let is_one = object
        .get("@type")
        .and_then(Value::as_str)
        .is_some_and(|url| TYPED_STRUCTS.contains(&message_name(url)));
    if !is_one {
        return;
    }
    let url = ["type_url", "typeUrl"]
        .into_iter()
        .find_map(|key| object.get(key)?.as_str())
        .unwrap_or_default();
    let known = named(url).is_some() || v3_message(url).is_some();
    if !known {
        return;
    }
    let url = url.to_owned();
    let value = object.shift_remove("value");
    object.clear();
    object.insert("@type".to_owned(), url.into());
    if let Some(Value::Object(fields)) = value {
        object.extend(fields);
    }
}

#[cfg(test)]
mod tests;
