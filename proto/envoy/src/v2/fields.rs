//! Fields that v3 has moved or renamed, by the v3 message that now stands in their place.
//!
//! Every rule takes a v2 field away and says the same in v3, unless the v3 field is given as well: then the v2 field is
//! left to be refused. Fields that are merely deprecated, and still read by Envoy, stay.

use serde_json::{Map, Value, json};

use crate::TYPE_PREFIX;

type Object = Map<String, Value>;

const PROTOCOL_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const UPSTREAM_TLS: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const DOWNSTREAM_TLS: &str = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";

/// Takes a field by its name in either spelling.
pub(super) fn take(object: &mut Object, name: &str) -> Option<Value> {
    object
        .shift_remove(name)
        .or_else(|| object.shift_remove(&camel(name)))
}

fn has(object: &Object, name: &str) -> bool {
    object.contains_key(name) || object.contains_key(&camel(name))
}

fn camel(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        match c {
            '_' => upper = true,
            c if upper => {
                out.extend(c.to_uppercase());
                upper = false;
            }
            c => out.push(c),
        }
    }
    out
}

/// Moves a field, changed by `change`, unless its new place is taken.
fn moved(object: &mut Object, from: &str, to: &str, change: impl FnOnce(Value) -> Value) {
    if !has(object, to)
        && let Some(value) = take(object, from)
    {
        object.insert(to.to_owned(), change(value));
    }
}

/// Rewrites the fields of one message.
pub(super) fn rewrite(message: &str, object: &mut Object) {
    match message {
        "envoy.config.cluster.v3.Cluster" => cluster(object),
        "envoy.config.listener.v3.FilterChain" => {
            moved(object, "tls_context", "transport_socket", |c| {
                tls(DOWNSTREAM_TLS, c)
            });
        }
        "envoy.config.route.v3.VirtualHost"
        | "envoy.config.route.v3.Route"
        | "envoy.config.route.v3.WeightedCluster.ClusterWeight" => {
            moved(
                object,
                "per_filter_config",
                "typed_per_filter_config",
                |c| c,
            );
        }
        "envoy.config.route.v3.RouteMatch" => moved(object, "regex", "safe_regex", regex),
        "envoy.config.route.v3.RouteAction" => {
            moved(object, "host_rewrite", "host_rewrite_literal", |v| v);
            moved(
                object,
                "auto_host_rewrite_header",
                "host_rewrite_header",
                |v| v,
            );
            moved(
                object,
                "request_mirror_policy",
                "request_mirror_policies",
                |v| json!([v]),
            );
        }
        "envoy.config.route.v3.HeaderMatcher" => {
            moved(
                object,
                "regex_match",
                "string_match",
                |v| json!({"safe_regex": regex(v)}),
            );
        }
        "envoy.config.route.v3.QueryParameterMatcher" => query_parameter(object),
        "envoy.config.route.v3.CorsPolicy" | "envoy.extensions.filters.http.cors.v3.CorsPolicy" => {
            cors(object);
        }
        "envoy.type.matcher.v3.StringMatcher" => moved(object, "regex", "safe_regex", regex),
        "envoy.type.matcher.v3.RegexMatcher" => {
            // The only engine there is; only its limit says anything.
            if let Some(engine) = take(object, "google_re2")
                && engine != json!({})
            {
                object.insert("google_re2".to_owned(), engine);
            }
        }
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
            if let Some(timeout) = take(object, "idle_timeout") {
                within(object, "common_http_protocol_options", |options| {
                    options.entry("idle_timeout").or_insert(timeout);
                });
            }
        }
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.Tracing" =>
        {
            // The direction of the listener says it.
            take(object, "operation_name");
        }
        "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext" => {
            moved(
                object,
                "verify_subject_alt_name",
                "match_typed_subject_alt_names",
                |names| {
                    let names = names.as_array().cloned().unwrap_or_default();
                    names.iter().map(subject_alt_name).collect()
                },
            );
        }
        _ => {}
    }
}

/// Changes the object in a field, which is made if it is not there.
fn within(object: &mut Object, name: &str, change: impl FnOnce(&mut Object)) {
    let key = match object.contains_key(&camel(name)) {
        true => camel(name),
        false => name.to_owned(),
    };
    if let Value::Object(inner) = object.entry(key).or_insert_with(|| json!({})) {
        change(inner);
    }
}

fn typed(message: &str, content: Value) -> Value {
    let mut out = Object::new();
    out.insert("@type".to_owned(), format!("{TYPE_PREFIX}{message}").into());
    if let Value::Object(fields) = content {
        out.extend(fields);
    }
    out.into()
}

fn tls(message: &str, context: Value) -> Value {
    json!({"name": "envoy.transport_sockets.tls", "typed_config": typed(message, context)})
}

fn regex(text: Value) -> Value {
    json!({"regex": text})
}

fn subject_alt_name(name: &Value) -> Value {
    let uri = name.as_str().is_some_and(|name| name.contains("://"));
    json!({"san_type": if uri { "URI" } else { "DNS" }, "matcher": {"exact": name}})
}

fn cluster(object: &mut Object) {
    moved(object, "tls_context", "transport_socket", |c| {
        tls(UPSTREAM_TLS, c)
    });
    let name = object.get("name").cloned().unwrap_or_else(|| "".into());
    moved(object, "hosts", "load_assignment", |hosts| {
        let hosts = hosts.as_array().cloned().unwrap_or_default();
        let endpoints: Vec<Value> = hosts
            .into_iter()
            .map(|address| json!({"endpoint": {"address": address}}))
            .collect();
        json!({"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]})
    });
    for key in ["lb_policy", "lbPolicy"] {
        if object.get(key).and_then(Value::as_str) == Some("ORIGINAL_DST_LB") {
            object.insert(key.to_owned(), "CLUSTER_PROVIDED".into());
        }
    }
    protocol_options(object);
}

/// Protocol options of the cluster itself lose against the typed ones, which Pilot writes: say them there.
fn protocol_options(object: &mut Object) {
    let mut options = Object::new();
    if let Some(common) = take(object, "common_http_protocol_options") {
        options.insert("common_http_protocol_options".to_owned(), common);
    }
    if let Some(most) = take(object, "max_requests_per_connection") {
        within(&mut options, "common_http_protocol_options", |common| {
            common.insert("max_requests_per_connection".to_owned(), most);
        });
    }
    if let Some(upstream) = take(object, "upstream_http_protocol_options") {
        options.insert("upstream_http_protocol_options".to_owned(), upstream);
    }
    let http1 = take(object, "http_protocol_options");
    let http2 = take(object, "http2_protocol_options");
    let selection = take(object, "protocol_selection");
    let downstream = selection.as_ref().and_then(Value::as_str) == Some("USE_DOWNSTREAM_PROTOCOL");
    if downstream {
        let mut both = Object::new();
        both.extend(http1.map(|v| ("http_protocol_options".to_owned(), v)));
        both.extend(http2.map(|v| ("http2_protocol_options".to_owned(), v)));
        options.insert("use_downstream_protocol_config".to_owned(), both.into());
    } else if let Some(http2) = http2 {
        options.insert(
            "explicit_http_config".to_owned(),
            json!({"http2_protocol_options": http2}),
        );
    } else if let Some(http1) = http1 {
        options.insert(
            "explicit_http_config".to_owned(),
            json!({"http_protocol_options": http1}),
        );
    }
    if options.is_empty() {
        return;
    }
    within(
        object,
        "typed_extension_protocol_options",
        |typed_options| {
            typed_options
                .entry(PROTOCOL_OPTIONS)
                .or_insert_with(|| typed(PROTOCOL_OPTIONS, options.into()));
        },
    );
}

fn query_parameter(object: &mut Object) {
    let is_regex = take(object, "regex").is_some_and(|v| v == Value::Bool(true));
    match take(object, "value") {
        Some(value) if is_regex => {
            object.insert(
                "string_match".to_owned(),
                json!({"safe_regex": regex(value)}),
            );
        }
        Some(value) if value != "" => {
            object.insert("string_match".to_owned(), json!({"exact": value}));
        }
        Some(_) => {
            object.insert("present_match".to_owned(), true.into());
        }
        None => {}
    }
}

fn cors(object: &mut Object) {
    let mut matchers: Vec<Value> = Vec::new();
    let mut add = |value: Option<Value>, matcher: fn(Value) -> Value| {
        let list = value.as_ref().and_then(Value::as_array).cloned();
        matchers.extend(list.unwrap_or_default().into_iter().map(matcher));
    };
    add(take(object, "allow_origin"), |v| json!({"exact": v}));
    add(
        take(object, "allow_origin_regex"),
        |v| json!({"safe_regex": regex(v)}),
    );
    if !matchers.is_empty() {
        let key = "allow_origin_string_match";
        if let Value::Array(list) = object.entry(key).or_insert_with(|| json!([])) {
            list.extend(matchers);
        }
    }
    if let Some(enabled) = take(object, "enabled") {
        let numerator = if enabled == Value::Bool(false) {
            0
        } else {
            100
        };
        object
            .entry("filter_enabled")
            .or_insert_with(|| json!({"default_value": {"numerator": numerator}}));
    }
}
