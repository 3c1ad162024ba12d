//! What an EnvoyFilter's patches hold: untyped objects that must be messages of Envoy's API.
//!
//! Read by validation, which reports what is wrong with them, and by Pilot, which applies them. Both see the same errors.
//!
//! Sizes are bounded before anything is decoded: one EnvoyFilter may hold [`MAX_PATCHES`] patches and [`MAX_BYTES`] of
//! values, nested [`MAX_DEPTH`] deep. An API server would not take much more, but files and MCP servers would.

use proto_envoy::{DynamicMessage, ReadError};
use proto_networking::networking::EnvoyFilter;
use proto_networking::networking::envoy_filter::ApplyTo;
use proto_networking::networking::envoy_filter::Filter;
use proto_networking::networking::envoy_filter::filter::FilterType;
use proto_networking::networking::envoy_filter::patch::Operation;
use proto_networking::{Struct, Value};
use serde_json::json;

/// Patches that one EnvoyFilter may hold, old and new form together.
pub const MAX_PATCHES: usize = 500;
/// Bytes that the values of one EnvoyFilter may have, about as JSON.
pub const MAX_BYTES: usize = 1 << 20;
/// How deep objects and lists of a value may be nested.
pub const MAX_DEPTH: usize = 48;

const NETWORK_FILTER: &str = "envoy.config.listener.v3.Filter";
const HTTP_FILTER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";

/// The message that a patch's value must be.
pub fn message(apply_to: ApplyTo) -> Option<&'static str> {
    Some(match apply_to {
        ApplyTo::Invalid => return None,
        ApplyTo::Listener => "envoy.config.listener.v3.Listener",
        ApplyTo::FilterChain => "envoy.config.listener.v3.FilterChain",
        ApplyTo::NetworkFilter => NETWORK_FILTER,
        ApplyTo::HttpFilter => HTTP_FILTER,
        ApplyTo::RouteConfiguration => "envoy.config.route.v3.RouteConfiguration",
        ApplyTo::VirtualHost => "envoy.config.route.v3.VirtualHost",
        ApplyTo::HttpRoute => "envoy.config.route.v3.Route",
        ApplyTo::Cluster => "envoy.config.cluster.v3.Cluster",
    })
}

/// What an operation cannot be used for: what is accepted instead.
pub fn misplaced(apply_to: ApplyTo, operation: Operation) -> Option<&'static str> {
    let filters = matches!(apply_to, ApplyTo::NetworkFilter | ApplyTo::HttpFilter);
    match operation {
        Operation::Replace if !filters => {
            Some("MERGE, or REMOVE and ADD (only NETWORK_FILTER and HTTP_FILTER can be replaced)")
        }
        Operation::Merge => None,
        _ if apply_to == ApplyTo::RouteConfiguration => Some("MERGE"),
        _ => None,
    }
}

/// Whether a value stands for itself, rather than being merged into something.
fn is_whole(operation: Operation) -> bool {
    !matches!(
        operation,
        Operation::Merge | Operation::Remove | Operation::Invalid
    )
}

/// Why an EnvoyFilter is too large to be looked at, with the field that is.
pub fn too_large(spec: &EnvoyFilter) -> Option<(&'static str, String)> {
    let field = if spec.config_patches.is_empty() {
        "filters"
    } else {
        "configPatches"
    };
    let patches = spec.config_patches.len() + spec.filters.len();
    if patches > MAX_PATCHES {
        let reason =
            format!("{patches} patches; at most {MAX_PATCHES} are accepted in one EnvoyFilter");
        return Some((field, reason));
    }
    let mut room = MAX_BYTES;
    let values = spec
        .config_patches
        .iter()
        .filter_map(|p| p.patch.as_ref()?.value.as_ref());
    let configs = spec.filters.iter().filter_map(|f| f.filter_config.as_ref());
    for value in values.chain(configs) {
        if let Err(reason) = measure_fields(value, &mut room, 0) {
            return Some((field, reason));
        }
    }
    None
}

fn measure_fields(value: &Struct, room: &mut usize, depth: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("a value is nested deeper than {MAX_DEPTH} levels"));
    }
    for (key, value) in &value.fields {
        spend(room, key.len() + 4)?;
        measure(value, room, depth + 1)?;
    }
    Ok(())
}

fn measure(value: &Value, room: &mut usize, depth: usize) -> Result<(), String> {
    use proto_networking::Kind;
    match &value.kind {
        Some(Kind::StringValue(text)) => spend(room, text.len() + 3),
        Some(Kind::StructValue(fields)) => measure_fields(fields, room, depth),
        Some(Kind::ListValue(list)) => {
            if depth > MAX_DEPTH {
                return Err(format!("a value is nested deeper than {MAX_DEPTH} levels"));
            }
            list.values
                .iter()
                .try_for_each(|v| measure(v, room, depth + 1))
        }
        _ => spend(room, 8),
    }
}

fn spend(room: &mut usize, bytes: usize) -> Result<(), String> {
    match room.checked_sub(bytes) {
        Some(left) => {
            *room = left;
            Ok(())
        }
        None => Err(format!(
            "the values are larger than {} KiB together; split the EnvoyFilter",
            MAX_BYTES / 1024
        )),
    }
}

/// The value of a patch as the message it must be. A value that is not merged into something must be complete as well.
pub fn value(
    apply_to: ApplyTo,
    operation: Operation,
    value: &Struct,
) -> Result<DynamicMessage, ReadError> {
    let message = message(apply_to).unwrap_or_default();
    read(message, json(value), is_whole(operation))
}

/// The filter that an entry of the deprecated `filters` stands for.
pub fn filter(filter: &Filter) -> Result<DynamicMessage, ReadError> {
    let message = match filter.filter_type() {
        FilterType::Network => NETWORK_FILTER,
        _ => HTTP_FILTER,
    };
    let config = filter
        .filter_config
        .as_ref()
        .map_or_else(|| json!({}), json);
    read(
        message,
        json!({"name": filter.filter_name, "config": config}),
        true,
    )
}

fn read(message: &str, json: serde_json::Value, whole: bool) -> Result<DynamicMessage, ReadError> {
    let read = proto_envoy::read(message, &json)?;
    if whole {
        proto_envoy::rules::check(&read).map_err(|finding| ReadError {
            path: finding.path,
            message: finding.reason,
            accepted: None,
        })?;
    }
    Ok(read)
}

/// JSON with its keys in order, so that of several errors always the same is found first.
fn json(value: &Struct) -> serde_json::Value {
    let mut json = serde_json::to_value(value).unwrap_or_default();
    json.sort_all_objects();
    json
}

#[cfg(test)]
mod tests {
    use proto_networking::Kind;
    use proto_networking::networking::envoy_filter::{EnvoyConfigObjectPatch, Patch};

    use super::*;

    #[test]
    fn what_is_too_deep_is_not_looked_at() {
        let mut value = Struct::default();
        for _ in 0..100 {
            let inner = Value {
                kind: Some(Kind::StructValue(value)),
            };
            value = Struct {
                fields: [("a".to_owned(), inner)].into(),
            };
        }
        let spec = EnvoyFilter {
            config_patches: vec![EnvoyConfigObjectPatch {
                patch: Some(Patch {
                    value: Some(value),
                    ..Patch::default()
                }),
                ..EnvoyConfigObjectPatch::default()
            }],
            ..EnvoyFilter::default()
        };
        let (field, reason) = too_large(&spec).unwrap();
        assert_eq!(
            (field, reason.as_str()),
            ("configPatches", "a value is nested deeper than 48 levels")
        );
    }
}
