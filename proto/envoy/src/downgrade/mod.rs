//! The way back from [`crate::v2`]: v3 resources in the form that clients of the v2 API read: Envoy 1.12 to 1.17, gRPC before 1.50.
//!
//! Who calls: the xDS engine, for each resource that a v2 stream is sent and has not been sent before. A resource is
//! decoded by its descriptor, walked once, and encoded again; cost is linear in its size, tens of microseconds for a
//! cluster.
//!
//! The bodies of both versions agree field by field for the most part, since v3 kept the numbers. What differs, and is
//! translated:
//!
//! - type URLs inside `Any`s, by what the v3 messages say of their ancestors; names of extensions ([`v2`]); extensions
//!   that had no configuration get none ([`names`]);
//! - fields that v3 moved or added, where v2 has a place for them ([`fields`]): protocol options of clusters, string
//!   matchers of headers, CORS, weights' total, gRPC timeouts, bound ports, header operations, access-log formats,
//!   alternative names of certificates, the engine of regular expressions;
//! - versions in config sources.
//!
//! What is not translated: extensions that have no ancestor in v2 keep their v3 type URL, which an old Envoy refuses; fields that v2 lacks altogether (such as tracing providers in the connection manager: an old Envoy
//! has its tracer in the bootstrap) are sent and ignored.

mod fields;
mod names;

use prost::Message as _;
use prost_reflect::{DynamicMessage, MapKey, ReflectMessage as _, Value};

use crate::{
    ResourceType, TYPE_PREFIX,
    json::{JsonError, descriptor},
    v2,
};

/// Extensions nest a few levels deep: listener, connection manager, route, filter. Deeper ones are left as they are.
const MAX_DEPTH: u8 = 8;

/// The v2 form of an encoded v3 resource.
pub fn downgrade(ty: ResourceType, body: &[u8]) -> Result<Vec<u8>, JsonError> {
    downgrade_named(ty.type_url().trim_start_matches(TYPE_PREFIX), body, 0)
}

fn downgrade_named(full_name: &str, body: &[u8], depth: u8) -> Result<Vec<u8>, JsonError> {
    let mut message =
        DynamicMessage::decode(descriptor(full_name)?, body).map_err(|source| JsonError::Wire {
            message: full_name.to_owned(),
            source,
        })?;
    walk(&mut message, depth);
    Ok(message.encode_to_vec())
}

/// Adapts a message, then what is in it, so that what a message is given in place of something else is adapted too.
fn walk(message: &mut DynamicMessage, depth: u8) {
    if message.descriptor().full_name() == "google.protobuf.Any" {
        return any(message, depth);
    }
    fields::adapt(message);
    rename(message);
    for (_, value) in message.fields_mut() {
        match value {
            Value::Message(message) => walk(message, depth),
            Value::List(list) => list.iter_mut().for_each(|value| walk_value(value, depth)),
            Value::Map(map) => map.values_mut().for_each(|value| walk_value(value, depth)),
            _ => {}
        }
    }
}

fn walk_value(value: &mut Value, depth: u8) {
    if let Value::Message(message) = value {
        walk(message, depth);
    }
}

/// Translates what an `Any` holds. What is unknown stays as it is.
fn any(message: &mut DynamicMessage, depth: u8) {
    let Some(name) = string(message, "type_url") else {
        return;
    };
    let name = name.trim_start_matches(TYPE_PREFIX).to_owned();
    let Some(v2) = names::v2_type(&name).filter(|_| depth < MAX_DEPTH) else {
        return;
    };
    let body = message.get_field_by_name("value");
    let body = body.as_ref().and_then(|value| value.as_bytes()).cloned();
    if let Ok(body) = downgrade_named(&name, &body.unwrap_or_default(), depth + 1) {
        message.set_field_by_name("type_url", Value::String(format!("{TYPE_PREFIX}{v2}")));
        message.set_field_by_name("value", Value::Bytes(body.into()));
    }
}

/// Gives an extension its old name, where it stands and where it is referred to.
fn rename(message: &mut DynamicMessage) {
    let config = message.has_field_by_name("typed_config");
    if config && let Some(old) = string(message, "name").and_then(|name| v2::old_name(&name)) {
        message.set_field_by_name("name", Value::String(old.to_owned()));
    }
    let any = message.get_field_by_name("typed_config");
    let url = any
        .as_ref()
        .and_then(|any| string(any.as_message()?, "type_url"));
    let none = url.is_some_and(|url| names::is_without_config(url.trim_start_matches(TYPE_PREFIX)));
    drop(any);
    if none {
        message.clear_field_by_name("typed_config");
    }
    if let Some(map) = message
        .get_field_by_name_mut("typed_per_filter_config")
        .and_then(Value::as_map_mut)
    {
        let renamed = std::mem::take(map).into_iter().map(|(key, value)| {
            let old = key.as_str().and_then(v2::old_name);
            (old.map_or(key, |old| MapKey::String(old.to_owned())), value)
        });
        *map = renamed.collect();
    }
}

/// A text field, if it is there and not empty.
fn string(message: &DynamicMessage, field: &str) -> Option<String> {
    let value = message.get_field_by_name(field)?;
    value
        .as_str()
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests;
