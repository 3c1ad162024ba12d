#![allow(clippy::unwrap_used)]

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{Cluster, cluster::ClusterProtocolSelection},
            listener::v3::{Listener, filter},
            route::v3::{
                RouteAction, RouteConfiguration, header_matcher::HeaderMatchSpecifier,
                route::Action, route_action::ClusterSpecifier,
            },
        },
        extensions::filters::network::http_connection_manager::v3::{
            HttpConnectionManager, http_connection_manager::RouteSpecifier, http_filter::ConfigType,
        },
        r#type::matcher::v3::regex_matcher::EngineType,
    },
    google::protobuf::Any,
};
use prost::{Message, Name};
use serde_json::{Value as Json, json};

use super::*;
use crate::json::json_to_bytes;

/// The v2 form, read by the v3 messages: numbers agree, and old fields are still declared.
fn v2<M: Message + Name + Default>(ty: ResourceType, json: &Json) -> M {
    let body = json_to_bytes(&M::full_name(), json).unwrap();
    M::decode(&*downgrade(ty, &body).unwrap()).unwrap()
}

fn typed(full_name: &str, fields: Json) -> Json {
    let mut object = fields;
    object["@type"] = format!("{TYPE_PREFIX}{full_name}").into();
    object
}

#[test]
#[allow(deprecated)]
fn a_listener_gets_old_names_all_the_way_down() {
    let hcm = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "x",
            "rds": {"route_config_name": "80", "config_source": {"ads": {}, "resource_api_version": "V3"}},
            "http_filters": [
                {"name": "envoy.filters.http.cors",
                 "typed_config": typed("envoy.extensions.filters.http.cors.v3.Cors", json!({}))},
                {"name": "envoy.filters.http.fault",
                 "typed_config": typed("envoy.extensions.filters.http.fault.v3.HTTPFault", json!({}))},
                {"name": "envoy.filters.http.router",
                 "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({"start_child_span": true}))},
                {"name": "mine", "typed_config": typed("google.protobuf.Struct", json!({"value": {"a": 1}}))}
            ],
            "access_log": [{
                "name": "envoy.access_loggers.file",
                "typed_config": typed("envoy.extensions.access_loggers.file.v3.FileAccessLog", json!({
                    "path": "/dev/stdout", "log_format": {"text_format_source": {"inline_string": "%PROTOCOL%\n"}}
                }))
            }]
        }),
    );
    let listener: Listener = v2(
        ResourceType::Listener,
        &json!({
            "name": "0.0.0.0_80",
            "bind_to_port": false,
            "listener_filters": [{
                "name": "envoy.filters.listener.tls_inspector",
                "typed_config": typed("envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector", json!({}))
            }],
            "filter_chains": [{"filters": [
                {"name": "envoy.filters.network.http_connection_manager", "typed_config": hcm}
            ]}]
        }),
    );
    assert_eq!(listener.bind_to_port, None);
    let bound = listener.deprecated_v1.unwrap().bind_to_port.unwrap();
    assert!(!bound.value);
    let inspector = &listener.listener_filters[0];
    assert_eq!(inspector.name, "envoy.listener.tls_inspector");
    assert_eq!(inspector.config_type, None);
    let filter = &listener.filter_chains[0].filters[0];
    assert_eq!(filter.name, "envoy.http_connection_manager");
    let Some(filter::ConfigType::TypedConfig(hcm)) = &filter.config_type else {
        panic!("{filter:?}");
    };
    assert_eq!(
        hcm.type_url,
        "type.googleapis.com/envoy.config.filter.network.http_connection_manager.v2.HttpConnectionManager"
    );
    let hcm = HttpConnectionManager::decode(&*hcm.value).unwrap();
    let Some(RouteSpecifier::Rds(rds)) = hcm.route_specifier else {
        panic!("no routes by name");
    };
    assert_eq!(rds.config_source.unwrap().resource_api_version, 0);
    let filters: Vec<(&str, &str)> = hcm
        .http_filters
        .iter()
        .map(|filter| {
            let url = match &filter.config_type {
                Some(ConfigType::TypedConfig(any)) => any.type_url.as_str(),
                _ => "",
            };
            (filter.name.as_str(), url)
        })
        .collect();
    assert_eq!(
        filters,
        [
            ("envoy.cors", ""),
            (
                "envoy.fault",
                "type.googleapis.com/envoy.config.filter.http.fault.v2.HTTPFault"
            ),
            (
                "envoy.router",
                "type.googleapis.com/envoy.config.filter.http.router.v2.Router"
            ),
            ("mine", "type.googleapis.com/google.protobuf.Struct"),
        ]
    );
    let Some(envoy_types::pb::envoy::config::accesslog::v3::access_log::ConfigType::TypedConfig(
        log,
    )) = &hcm.access_log[0].config_type
    else {
        panic!("no access log");
    };
    assert_eq!(hcm.access_log[0].name, "envoy.file_access_log");
    assert_eq!(
        log.type_url,
        "type.googleapis.com/envoy.config.accesslog.v2.FileAccessLog"
    );
    // Field 2 of the old log: its format.
    assert!(
        log.value.windows(13).any(|w| w == b"\x12\x0b%PROTOCOL%\n"),
        "{:?}",
        log.value
    );
}

#[test]
#[allow(deprecated)]
fn a_cluster_gets_its_protocol_options_back() {
    let options = |fields: Json| {
        json!({
            "name": "a",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions":
                    typed("envoy.extensions.upstreams.http.v3.HttpProtocolOptions", fields)
            }
        })
    };
    let cluster: Cluster = v2(
        ResourceType::Cluster,
        &options(json!({
            "common_http_protocol_options": {"max_requests_per_connection": 7, "idle_timeout": "9s"},
            "explicit_http_config": {"http2_protocol_options": {"max_concurrent_streams": 5}}
        })),
    );
    assert!(cluster.typed_extension_protocol_options.is_empty());
    let http2 = cluster.http2_protocol_options.unwrap();
    assert_eq!(http2.max_concurrent_streams.unwrap().value, 5);
    assert_eq!(cluster.max_requests_per_connection.unwrap().value, 7);
    let common = cluster.common_http_protocol_options.unwrap();
    assert_eq!(common.idle_timeout.unwrap().seconds, 9);
    let cluster: Cluster = v2(
        ResourceType::Cluster,
        &options(json!({"use_downstream_protocol_config": {"http2_protocol_options": {}}})),
    );
    assert!(cluster.http2_protocol_options.is_some());
    assert_eq!(
        cluster.protocol_selection,
        i32::from(ClusterProtocolSelection::UseDownstreamProtocol)
    );
}

#[test]
fn names_in_certificates_are_still_verified() {
    let cluster: Cluster = v2(
        ResourceType::Cluster,
        &json!({"name": "a", "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": typed("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", json!({
                "common_tls_context": {"validation_context": {"match_typed_subject_alt_names": [
                    {"san_type": "URI", "matcher": {"exact": "spiffe://td/ns/a/sa/b"}}
                ]}}
            }))
        }}),
    );
    let socket = cluster.transport_socket.unwrap();
    assert_eq!(socket.name, "tls");
    let Some(envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType::TypedConfig(
        any,
    )) = socket.config_type
    else {
        panic!("no configuration");
    };
    assert_eq!(
        any.type_url,
        "type.googleapis.com/envoy.api.v2.auth.UpstreamTlsContext"
    );
    // As text in field 4 (Envoy before 1.14), and as a matcher in field 9.
    let name = b"spiffe://td/ns/a/sa/b";
    let plain = [&[0x22, 21], &name[..]].concat();
    let matcher = [&[0x4a, 23, 0x0a, 21], &name[..]].concat();
    for wanted in [plain, matcher] {
        assert!(
            any.value.windows(wanted.len()).any(|w| w == wanted),
            "{wanted:?} in {:?}",
            any.value
        );
    }
}

#[test]
#[allow(deprecated)]
fn routes_say_in_old_words_what_they_mean() {
    let routes: RouteConfiguration = v2(
        ResourceType::Route,
        &json!({"name": "80", "virtual_hosts": [{"name": "a", "domains": ["*"], "routes": [{
            "match": {"prefix": "/", "headers": [
                {"name": "a", "string_match": {"exact": "x"}},
                {"name": "b", "string_match": {"safe_regex": {"regex": "y.*"}}},
                {"name": "c", "present_match": true}
            ]},
            "route": {
                "weighted_clusters": {"clusters": [{"name": "v1", "weight": 30}, {"name": "v2", "weight": 60}]},
                "timeout": "0s",
                "max_stream_duration": {"grpc_timeout_header_max": "3s"}
            },
            "request_headers_to_add": [
                {"header": {"key": "k", "value": "v"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"},
                {"header": {"key": "l", "value": "v"}, "append_action": "APPEND_IF_EXISTS_OR_ADD"}
            ],
            "typed_per_filter_config": {
                "envoy.filters.http.cors": typed("envoy.extensions.filters.http.cors.v3.CorsPolicy", json!({
                    "allow_origin_string_match": [{"exact": "o"}], "allow_methods": "GET"
                })),
                "envoy.filters.http.fault": typed("envoy.extensions.filters.http.fault.v3.HTTPFault", json!({
                    "abort": {"http_status": 503}
                }))
            }
        }]}]}),
    );
    let route = &routes.virtual_hosts[0].routes[0];
    let headers = &route.r#match.as_ref().unwrap().headers;
    assert_eq!(
        headers[0].header_match_specifier,
        Some(HeaderMatchSpecifier::ExactMatch("x".to_owned()))
    );
    let Some(HeaderMatchSpecifier::SafeRegexMatch(regex)) = &headers[1].header_match_specifier
    else {
        panic!("{headers:?}");
    };
    assert!(matches!(regex.engine_type, Some(EngineType::GoogleRe2(_))));
    assert_eq!(
        headers[2].header_match_specifier,
        Some(HeaderMatchSpecifier::PresentMatch(true))
    );
    let keys: Vec<&String> = route.typed_per_filter_config.keys().collect();
    assert_eq!(keys, ["envoy.fault"]);
    let added = &route.request_headers_to_add;
    assert!(!added[0].append.unwrap().value);
    assert!(added[1].append.is_none());
    let Some(Action::Route(RouteAction {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(clusters)),
        max_grpc_timeout: Some(timeout),
        max_stream_duration: None,
        cors: Some(cors),
        ..
    })) = &route.action
    else {
        panic!("{:?}", route.action);
    };
    assert_eq!(clusters.total_weight.unwrap().value, 90);
    assert_eq!(timeout.seconds, 3);
    assert_eq!(cors.allow_methods, "GET");
    assert_eq!(cors.allow_origin_string_match.len(), 1);
}

#[test]
fn endless_nesting_ends() {
    let name = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let mut any = Any {
        type_url: format!("{TYPE_PREFIX}google.protobuf.Struct"),
        value: Vec::new(),
    };
    for _ in 0..200 {
        let filter = envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter {
            name: "x".to_owned(),
            config_type: Some(ConfigType::TypedConfig(any)),
            ..Default::default()
        };
        let hcm = HttpConnectionManager {
            http_filters: vec![filter],
            ..Default::default()
        };
        any = Any {
            type_url: format!("{TYPE_PREFIX}{name}"),
            value: hcm.encode_to_vec(),
        };
    }
    let listener = Listener {
        api_listener: Some(envoy_types::pb::envoy::config::listener::v3::ApiListener {
            api_listener: Some(any),
        }),
        ..Default::default()
    };
    assert!(downgrade(ResourceType::Listener, &listener.encode_to_vec()).is_ok());
}
