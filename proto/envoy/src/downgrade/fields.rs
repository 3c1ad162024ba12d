//! Fields that v3 moved, and where v2 has them. The descriptors are v3's, which still know most old fields as deprecated.

use bytes::Bytes;
use prost::{Message as _, encoding};
use prost_reflect::{DynamicMessage, MapKey, ReflectMessage as _, Value};

use super::string;
use crate::{TYPE_PREFIX, json::descriptor};

/// `APPEND_IF_EXISTS_OR_ADD`, the default, and what v2 can say beside it.
const OVERWRITE: i32 = 2;
const HTTP_PROTOCOL_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Brings one message into v2's form, without its children.
pub(super) fn adapt(message: &mut DynamicMessage) {
    let descriptor = message.descriptor();
    match descriptor.full_name() {
        "envoy.config.core.v3.ConfigSource" => message.clear_field_by_name("resource_api_version"),
        "envoy.config.core.v3.ApiConfigSource" => {
            message.clear_field_by_name("transport_api_version");
        }
        "envoy.config.core.v3.HeaderValueOption" => header_operation(message),
        "envoy.config.cluster.v3.Cluster" => cluster(message),
        "envoy.config.listener.v3.Listener" => bound_port(message),
        "envoy.config.route.v3.Route" => cors(message),
        "envoy.config.route.v3.RouteAction" => grpc_timeout(message),
        "envoy.config.route.v3.WeightedCluster" => total_weight(message),
        "envoy.config.route.v3.HeaderMatcher" => header_matcher(message),
        "envoy.type.matcher.v3.RegexMatcher" => regex(message),
        "envoy.extensions.access_loggers.file.v3.FileAccessLog" => access_log(message),
        "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext" => {
            alternative_names(message);
        }
        _ => {}
    }
}

/// Moves a field of one message into a field of another, if it is there.
fn carry(from: &mut DynamicMessage, field: &str, to: &mut DynamicMessage, target: &str) {
    if let Some(value) = from.take_field_by_name(field) {
        set(to, target, value);
    }
}

fn set(message: &mut DynamicMessage, field: &str, value: Value) {
    // A field that the descriptor does not have would be a bug here, not in what is translated.
    let set = message.try_set_field_by_name(field, value);
    debug_assert!(
        set.is_ok(),
        "{}.{field}: {set:?}",
        message.descriptor().full_name()
    );
}

fn take_message(message: &mut DynamicMessage, field: &str) -> Option<DynamicMessage> {
    match message.take_field_by_name(field)? {
        Value::Message(message) => Some(message),
        _ => None,
    }
}

/// An empty message of the type of a field.
fn new_of_field(message: &DynamicMessage, field: &str) -> Option<DynamicMessage> {
    let kind = message.descriptor().get_field_by_name(field)?.kind();
    Some(DynamicMessage::new(kind.as_message()?.clone()))
}

fn wrapped(message: &DynamicMessage, field: &str, value: Value) -> Option<Value> {
    let mut wrapper = new_of_field(message, field)?;
    set(&mut wrapper, "value", value);
    Some(Value::Message(wrapper))
}

/// What an `Any` of a map holds, taken out of the map.
fn take_any(message: &mut DynamicMessage, map: &str, key: &str) -> Option<DynamicMessage> {
    let entries = message.get_field_by_name_mut(map)?.as_map_mut()?;
    let any = entries.remove(&MapKey::String(key.to_owned()))?;
    let any = any.as_message()?;
    let full_name = string(any, "type_url")?;
    let descriptor = descriptor(full_name.trim_start_matches(TYPE_PREFIX)).ok()?;
    let body = any.get_field_by_name("value")?.as_bytes()?.clone();
    DynamicMessage::decode(descriptor, body).ok()
}

/// Protocol options stood in the cluster itself.
fn cluster(cluster: &mut DynamicMessage) {
    let map = "typed_extension_protocol_options";
    let Some(mut options) = take_any(cluster, map, HTTP_PROTOCOL_OPTIONS) else {
        return;
    };
    if let Some(common) = take_message(&mut options, "common_http_protocol_options") {
        if let Some(limit) = common.get_field_by_name("max_requests_per_connection")
            && common.has_field_by_name("max_requests_per_connection")
        {
            set(cluster, "max_requests_per_connection", limit.into_owned());
        }
        set(
            cluster,
            "common_http_protocol_options",
            Value::Message(common),
        );
    }
    let both = ["http_protocol_options", "http2_protocol_options"];
    if let Some(mut explicit) = take_message(&mut options, "explicit_http_config") {
        both.iter()
            .for_each(|field| carry(&mut explicit, field, cluster, field));
    } else if let Some(mut downstream) =
        take_message(&mut options, "use_downstream_protocol_config")
    {
        both.iter()
            .for_each(|field| carry(&mut downstream, field, cluster, field));
        // USE_DOWNSTREAM_PROTOCOL
        set(cluster, "protocol_selection", Value::EnumNumber(1));
    }
}

/// `bind_to_port` stood in a message of its own.
fn bound_port(listener: &mut DynamicMessage) {
    let Some(bind) = take_message(listener, "bind_to_port") else {
        return;
    };
    if let Some(mut old) = new_of_field(listener, "deprecated_v1") {
        set(&mut old, "bind_to_port", Value::Message(bind));
        set(listener, "deprecated_v1", Value::Message(old));
    }
}

/// CORS of a route stood in its action.
fn cors(route: &mut DynamicMessage) {
    let map = "typed_per_filter_config";
    let Some(mut policy) = take_any(route, map, "envoy.filters.http.cors") else {
        return;
    };
    let Some(action) = route
        .get_field_by_name_mut("route")
        .and_then(Value::as_message_mut)
    else {
        return;
    };
    let Some(mut old) = new_of_field(action, "cors") else {
        return;
    };
    for field in [
        "allow_origin_string_match",
        "allow_methods",
        "allow_headers",
        "expose_headers",
        "max_age",
        "allow_credentials",
        "filter_enabled",
        "shadow_enabled",
    ] {
        if policy.has_field_by_name(field) {
            carry(&mut policy, field, &mut old, field);
        }
    }
    set(action, "cors", Value::Message(old));
}

fn grpc_timeout(action: &mut DynamicMessage) {
    let Some(mut durations) = take_message(action, "max_stream_duration") else {
        return;
    };
    carry(
        &mut durations,
        "grpc_timeout_header_max",
        action,
        "max_grpc_timeout",
    );
}

/// v2 refuses weights that do not add up to a total, 100 unless said.
fn total_weight(clusters: &mut DynamicMessage) {
    let weight = |entry: &Value| {
        let wrapper = entry.as_message()?.get_field_by_name("weight")?;
        wrapper.as_message()?.get_field_by_name("value")?.as_u32()
    };
    let total = clusters
        .get_field_by_name("clusters")
        .and_then(|list| Some(list.as_list()?.iter().filter_map(weight).sum::<u32>()));
    if let Some(total) = total
        && let Some(value) = wrapped(clusters, "total_weight", Value::U32(total))
    {
        set(clusters, "total_weight", value);
    }
}

/// String matchers stood in the header matcher itself. `ignore_case` had no place.
fn header_matcher(header: &mut DynamicMessage) {
    let Some(mut text) = take_message(header, "string_match") else {
        return;
    };
    for (from, to) in [
        ("exact", "exact_match"),
        ("prefix", "prefix_match"),
        ("suffix", "suffix_match"),
        ("contains", "contains_match"),
        ("safe_regex", "safe_regex_match"),
    ] {
        if text.has_field_by_name(from) {
            carry(&mut text, from, header, to);
        }
    }
}

/// v2 demands to be told which engine it has.
fn regex(regex: &mut DynamicMessage) {
    if let Some(engine) = new_of_field(regex, "google_re2") {
        set(regex, "google_re2", Value::Message(engine));
    }
}

fn header_operation(option: &mut DynamicMessage) {
    let action = option.take_field_by_name("append_action");
    let overwrite = action.is_some_and(|action| action.as_enum_number() == Some(OVERWRITE));
    if overwrite && let Some(no) = wrapped(option, "append", Value::Bool(false)) {
        set(option, "append", no);
    }
}

/// Formats stood in the log itself.
fn access_log(log: &mut DynamicMessage) {
    let Some(mut format) = take_message(log, "log_format") else {
        return;
    };
    if let Some(source) = take_message(&mut format, "text_format_source") {
        if let Some(text) = string(&source, "inline_string") {
            set(log, "format", Value::String(text));
        }
    } else if format.has_field_by_name("json_format") {
        carry(&mut format, "json_format", log, "json_format");
    }
}

/// v2 had the names as plain text under a number that v3 has given up; Envoy from 1.14 reads matchers instead. An old
/// client that was sent neither would verify nothing, so it is sent both.
fn alternative_names(context: &mut DynamicMessage) {
    const VERIFY_SUBJECT_ALT_NAME: u32 = 4;
    let typed = context.take_field_by_name("match_typed_subject_alt_names");
    let mut plain = Vec::new();
    let mut matchers: Vec<Value> = Vec::new();
    for entry in typed.iter().filter_map(Value::as_list).flatten() {
        let Some(matcher) = entry
            .as_message()
            .and_then(|e| e.get_field_by_name("matcher"))
        else {
            continue;
        };
        if let Some(exact) = matcher.as_message().and_then(|m| string(m, "exact")) {
            plain.push(exact);
        }
        if !matchers.contains(&matcher) {
            matchers.push(matcher.into_owned());
        }
    }
    if matchers.is_empty() {
        return;
    }
    set(context, "match_subject_alt_names", Value::List(matchers));
    let mut bytes = context.encode_to_vec();
    for name in &plain {
        encoding::string::encode(VERIFY_SUBJECT_ALT_NAME, name, &mut bytes);
    }
    let descriptor = context.descriptor();
    if let Ok(with_names) = DynamicMessage::decode(descriptor, Bytes::from(bytes)) {
        *context = with_names;
    }
}
