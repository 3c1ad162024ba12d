use serde_json::{Value, json};

use super::*;
use crate::json::dynamic_to_json;
use crate::read::read;

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const CHAIN: &str = "envoy.config.listener.v3.FilterChain";
const HTTP_FILTER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";
const VIRTUAL_HOST: &str = "envoy.config.route.v3.VirtualHost";

fn url(name: &str) -> String {
    format!("{TYPE_PREFIX}envoy.extensions.{name}")
}

#[track_caller]
fn same(message: &str, v2: Value, v3: Value) {
    let read = read(message, &v2).unwrap_or_else(|error| panic!("{error}: {v2}"));
    assert_eq!(dynamic_to_json(&read).unwrap(), v3);
}

#[test]
fn an_untyped_config_gets_the_type_of_its_name() {
    let v3 = json!({"name": "envoy.filters.http.lua", "typed_config": {"@type": url("filters.http.lua.v3.Lua"), "inline_code": "x"}});
    same(
        HTTP_FILTER,
        json!({"name": "envoy.lua", "config": {"inline_code": "x"}}),
        v3.clone(),
    );
    same(
        HTTP_FILTER,
        json!({"name": "envoy.filters.http.lua", "config": {"inlineCode": "x"}}),
        v3.clone(),
    );
    let v2_type = json!({"@type": "type.googleapis.com/envoy.config.filter.http.lua.v2.Lua", "inline_code": "x"});
    same(
        HTTP_FILTER,
        json!({"name": "envoy.lua", "typed_config": v2_type}),
        v3.clone(),
    );
    for typed_struct in ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"] {
        let config = json!({
            "@type": format!("{TYPE_PREFIX}{typed_struct}"),
            "type_url": "type.googleapis.com/envoy.config.filter.http.lua.v2.Lua", "value": {"inline_code": "x"}
        });
        same(
            HTTP_FILTER,
            json!({"name": "envoy.lua", "typed_config": config}),
            v3.clone(),
        );
    }
    let as_struct = json!({"@type": "type.googleapis.com/google.protobuf.Struct", "value": {"inline_code": "x"}});
    same(
        HTTP_FILTER,
        json!({"name": "envoy.lua", "typed_config": as_struct}),
        v3.clone(),
    );
    same(HTTP_FILTER, v3.clone(), v3);
    let error = read(HTTP_FILTER, &json!({"name": "mixer", "config": {}}))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("config: is the form of Envoy's v2 API, and \"mixer\" is no extension that had it; accepted: typed_config"),
        "{error}"
    );
}

#[test]
fn a_v2_chain_is_read_all_the_way_down() {
    same(
        CHAIN,
        json!({
            "tls_context": {"common_tls_context": {"alpn_protocols": ["h2"], "validation_context": {
                "trusted_ca": {"filename": "/ca"}, "verify_subject_alt_name": ["spiffe://a", "b.c"]}}},
            "filters": [{"name": "envoy.http_connection_manager", "config": {
                "stat_prefix": "p", "idle_timeout": "3s",
                "tracing": {"operation_name": "EGRESS"},
                "access_log": [{"name": "envoy.file_access_log", "config": {"path": "/dev/stdout"}}],
                "http_filters": [{"name": "envoy.router"}],
                "route_config": {"virtual_hosts": [{"name": "a", "domains": ["*"], "routes": [
                    {"match": {"regex": "/a.*", "headers": [{"name": "h", "regex_match": "x|y"}],
                               "query_parameters": [{"name": "q", "value": "1"}]},
                     "route": {"cluster": "c", "host_rewrite": "h", "request_mirror_policy": {"cluster": "m"}},
                     "per_filter_config": {"envoy.fault": {"abort": {"http_status": 418, "percentage": {"numerator": 1}}}}}
                ]}]}
            }}]
        }),
        json!({
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": {
                "@type": url("filters.network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": "p",
                "route_config": {"virtual_hosts": [{"name": "a", "domains": ["*"], "routes": [
                    {"match": {"safe_regex": {"regex": "/a.*"},
                               "headers": [{"name": "h", "string_match": {"safe_regex": {"regex": "x|y"}}}],
                               "query_parameters": [{"name": "q", "string_match": {"exact": "1"}}]},
                     "route": {"cluster": "c", "host_rewrite_literal": "h", "request_mirror_policies": [{"cluster": "m"}]},
                     "typed_per_filter_config": {"envoy.filters.http.fault": {
                        "@type": url("filters.http.fault.v3.HTTPFault"),
                        "abort": {"http_status": 418, "percentage": {"numerator": 1}}}}}
                ]}]},
                "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": url("filters.http.router.v3.Router")}}],
                "tracing": {},
                "access_log": [{"name": "envoy.access_loggers.file", "typed_config": {
                    "@type": url("access_loggers.file.v3.FileAccessLog"), "path": "/dev/stdout"}}],
                "common_http_protocol_options": {"idle_timeout": "3s"},
            }}],
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
                "@type": url("transport_sockets.tls.v3.DownstreamTlsContext"),
                "common_tls_context": {"alpn_protocols": ["h2"], "validation_context": {
                    "trusted_ca": {"filename": "/ca"},
                    "match_typed_subject_alt_names": [
                        {"san_type": "URI", "matcher": {"exact": "spiffe://a"}}, {"san_type": "DNS", "matcher": {"exact": "b.c"}}]}}}},
        }),
    );
}

#[test]
fn a_v2_cluster_is_read() {
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    same(
        CLUSTER,
        json!({
            "name": "a", "hosts": [{"socket_address": {"address": "1.2.3.4", "port_value": 80}}],
            "tls_context": {"sni": "x"}, "lb_policy": "ORIGINAL_DST_LB",
            "http2_protocol_options": {}, "max_requests_per_connection": 3,
            "common_http_protocol_options": {"idle_timeout": "5s"}
        }),
        json!({
            "name": "a", "lb_policy": "CLUSTER_PROVIDED",
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
                "@type": url("transport_sockets.tls.v3.UpstreamTlsContext"), "sni": "x"}},
            "load_assignment": {"cluster_name": "a", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": "1.2.3.4", "port_value": 80}}}}]}]},
            "typed_extension_protocol_options": {options: {
                "@type": format!("{TYPE_PREFIX}{options}"),
                "common_http_protocol_options": {"idle_timeout": "5s", "max_requests_per_connection": 3},
                "explicit_http_config": {"http2_protocol_options": {}}}}
        }),
    );
    // The transport socket of a cluster is a client's.
    same(
        CLUSTER,
        json!({"transport_socket": {"name": "tls", "config": {"sni": "x"}}}),
        json!({"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": url("transport_sockets.tls.v3.UpstreamTlsContext"), "sni": "x"}}}),
    );
}

#[test]
fn cors_and_per_filter_configs_of_hosts_are_read() {
    same(
        VIRTUAL_HOST,
        json!({"cors": {"allow_origin": ["a"], "allow_origin_regex": ["b.*"], "enabled": true},
               "typed_per_filter_config": {"envoy.lua": {"disabled": true}}}),
        json!({
            "cors": {"filter_enabled": {"default_value": {"numerator": 100}},
                     "allow_origin_string_match": [{"exact": "a"}, {"safe_regex": {"regex": "b.*"}}]},
            "typed_per_filter_config": {"envoy.filters.http.lua": {"@type": url("filters.http.lua.v3.LuaPerRoute"), "disabled": true}}
        }),
    );
    let error = read(VIRTUAL_HOST, &json!({"per_filter_config": {"mixer": {}}}))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("typed_per_filter_config[\"mixer\"]: has no @type"),
        "{error}"
    );
}

#[test]
fn names_are_understood_in_both_forms() {
    assert_eq!(
        http_filter_name("envoy.router"),
        "envoy.filters.http.router"
    );
    assert_eq!(
        network_filter_name("envoy.tcp_proxy"),
        "envoy.filters.network.tcp_proxy"
    );
    assert_eq!(http_filter_name("mine"), "mine");
    assert_eq!(
        v3_message("type.googleapis.com/envoy.config.filter.network.tcp_proxy.v2.TcpProxy"),
        Some("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy")
    );
    assert_eq!(v3_message("type.googleapis.com/envoy.nothing.v2.X"), None);
}
