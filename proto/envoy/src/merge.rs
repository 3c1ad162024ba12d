//! Merging one message into another, as patches of configuration need it.
//!
//! Protobuf's own rules: what the patch sets replaces scalars, enters messages, is appended to lists; of a oneof only the
//! last member stays. Three rules are added, where protobuf's would surprise whoever writes a patch as JSON:
//!
//! - messages that stand for one value (`Duration`, `Timestamp`, the wrappers, `Value`, `ListValue`) are replaced: half
//!   a second merged into one second is half a second, not one and a half, and `false` replaces `true`;
//! - the content of an `Any` is merged if both are of one known type; otherwise the `Any` is replaced;
//! - an entry of a map replaces the one with its key, unless both are `Any`s, which are merged as above.

use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, ReflectMessage as _, Value};

use crate::json::{JsonError, named};

/// Full name of `Any`.
pub(crate) const ANY: &str = "google.protobuf.Any";

/// Messages that are values to whoever writes them.
const VALUES: [&str; 13] = [
    "google.protobuf.Duration",
    "google.protobuf.Timestamp",
    "google.protobuf.BoolValue",
    "google.protobuf.BytesValue",
    "google.protobuf.DoubleValue",
    "google.protobuf.FloatValue",
    "google.protobuf.Int32Value",
    "google.protobuf.Int64Value",
    "google.protobuf.StringValue",
    "google.protobuf.UInt32Value",
    "google.protobuf.UInt64Value",
    "google.protobuf.Value",
    "google.protobuf.ListValue",
];

/// Merges `patch` into `target`, which must be of the same type.
pub fn merge(target: &mut DynamicMessage, patch: &DynamicMessage) -> Result<(), JsonError> {
    if target.descriptor() != patch.descriptor() {
        return Err(JsonError::OtherType {
            target: target.descriptor().full_name().to_owned(),
            patch: patch.descriptor().full_name().to_owned(),
        });
    }
    if target.descriptor().full_name() == ANY {
        return merge_any(target, patch);
    }
    for (field, value) in patch.fields() {
        merge_field(target, &field, value)?;
    }
    Ok(())
}

fn merge_field(
    target: &mut DynamicMessage,
    field: &FieldDescriptor,
    patch: &Value,
) -> Result<(), JsonError> {
    match patch {
        Value::List(more) if target.has_field(field) => {
            if let Value::List(list) = target.get_field_mut(field) {
                list.extend(more.iter().cloned());
            }
        }
        Value::Map(more) if target.has_field(field) => {
            if let Value::Map(map) = target.get_field_mut(field) {
                for (key, value) in more {
                    match (map.get_mut(key), value) {
                        (Some(Value::Message(old)), Value::Message(new))
                            if new.descriptor().full_name() == ANY =>
                        {
                            merge_any(old, new)?;
                        }
                        _ => {
                            map.insert(key.clone(), value.clone());
                        }
                    }
                }
            }
        }
        Value::Message(new)
            if target.has_field(field) && !VALUES.contains(&new.descriptor().full_name()) =>
        {
            if let Value::Message(old) = target.get_field_mut(field) {
                merge(old, new)?;
            }
        }
        value => {
            // Cannot fail: both are fields of one descriptor.
            let _ = target.try_set_field(field, value.clone());
        }
    }
    Ok(())
}

fn merge_any(old: &mut DynamicMessage, new: &DynamicMessage) -> Result<(), JsonError> {
    let (Some(old_type), Some(new_type)) = (any_type(old), any_type(new)) else {
        old.clone_from(new);
        return Ok(());
    };
    let same = message_name(&old_type) == message_name(&new_type);
    let Some(descriptor) = named(&new_type).filter(|_| same) else {
        old.clone_from(new);
        return Ok(());
    };
    let decode = |any: &DynamicMessage| {
        DynamicMessage::decode(descriptor.clone(), any_value(any)).map_err(|source| {
            JsonError::Wire {
                message: descriptor.full_name().to_owned(),
                source,
            }
        })
    };
    let mut content = decode(old)?;
    merge(&mut content, &decode(new)?)?;
    if let Some(field) = old.descriptor().get_field_by_name("value") {
        let _ = old.try_set_field(&field, Value::Bytes(content.encode_to_vec().into()));
    }
    Ok(())
}

/// The full name behind a type URL.
pub(crate) fn message_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or_default()
}

/// The type URL of an `Any`, if it has one.
pub(crate) fn any_type(any: &DynamicMessage) -> Option<String> {
    let value = any.get_field_by_name("type_url")?;
    value.as_str().filter(|t| !t.is_empty()).map(str::to_owned)
}

/// The content of an `Any`.
pub(crate) fn any_value(any: &DynamicMessage) -> prost::bytes::Bytes {
    any.get_field_by_name("value")
        .and_then(|value| value.as_bytes().cloned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::json::{dynamic_from_json, dynamic_to_json};

    fn merged(message: &str, target: &Json, patch: &Json) -> Json {
        let mut target = dynamic_from_json(message, target).unwrap();
        merge(&mut target, &dynamic_from_json(message, patch).unwrap()).unwrap();
        dynamic_to_json(&target).unwrap()
    }

    #[test]
    fn values_are_replaced_and_messages_entered() {
        let merged = merged(
            "envoy.config.cluster.v3.Cluster",
            &json!({
                "name": "a", "connect_timeout": "1s", "lb_policy": "RANDOM",
                "circuit_breakers": {"thresholds": [{"max_connections": 5}]},
                "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 7, "keepalive_probes": 2}},
                "track_timeout_budgets": true
            }),
            &json!({
                "connect_timeout": "0.500s",
                "circuit_breakers": {"thresholds": [{"priority": "HIGH", "max_connections": 1}]},
                "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 0}},
            }),
        );
        assert_eq!(
            merged,
            json!({
                "name": "a", "connect_timeout": "0.500s", "lb_policy": "RANDOM",
                "circuit_breakers": {"thresholds": [{"max_connections": 5}, {"priority": "HIGH", "max_connections": 1}]},
                "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 0, "keepalive_probes": 2}},
                "track_timeout_budgets": true
            })
        );
    }

    #[test]
    fn of_a_oneof_the_patch_wins() {
        let route = "envoy.config.route.v3.RouteMatch";
        let merged = merged(route, &json!({"prefix": "/"}), &json!({"path": "/x"}));
        assert_eq!(merged, json!({"path": "/x"}));
    }

    #[test]
    fn the_content_of_anys_is_merged_if_it_is_of_one_type() {
        const LUA: &str = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua";
        const CORS: &str = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors";
        let filter = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";
        let with = |config: Json| json!({"name": "x", "typed_config": config});
        let base = with(json!({"@type": LUA, "inline_code": "a", "stat_prefix": "p"}));
        let patch = with(json!({"@type": LUA, "inline_code": "b"}));
        assert_eq!(
            merged(filter, &base, &patch)["typed_config"],
            json!({"@type": LUA, "inline_code": "b", "stat_prefix": "p"})
        );
        let other = with(json!({"@type": CORS}));
        assert_eq!(merged(filter, &base, &other), other);
        // Of the same key of a map as well.
        let route = |config: Json| json!({"typed_per_filter_config": {"lua": config}});
        let vhost = "envoy.config.route.v3.VirtualHost";
        assert_eq!(
            merged(
                vhost,
                &route(json!({"@type": LUA, "inline_code": "a", "stat_prefix": "p"})),
                &route(json!({"@type": LUA, "inline_code": "b"}))
            ),
            route(json!({"@type": LUA, "inline_code": "b", "stat_prefix": "p"}))
        );
    }

    #[test]
    fn messages_of_two_types_do_not_merge() {
        let mut cluster = dynamic_from_json("envoy.config.cluster.v3.Cluster", &json!({})).unwrap();
        let route = dynamic_from_json("envoy.config.route.v3.Route", &json!({})).unwrap();
        let error = merge(&mut cluster, &route).unwrap_err();
        assert!(error.to_string().contains("v3.Route"), "{error}");
    }
}
