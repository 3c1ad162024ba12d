//! The HTTP connection manager, its filters, and access logs.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::{
    config::{
        accesslog::v3::{AccessLog, access_log::ConfigType as LogType},
        trace::v3::{ZipkinConfig, tracing as trace, zipkin_config::CollectorEndpointVersion},
    },
    extensions::{
        access_loggers::file::v3::{FileAccessLog, file_access_log::AccessLogFormat},
        filters::{
            http::{
                cors::v3::Cors, fault::v3::HttpFault, grpc_web::v3::GrpcWeb, router::v3::Router,
            },
            network::http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter, Rds,
                http_connection_manager::{
                    ForwardClientCertDetails, RouteSpecifier, SetCurrentClientCertDetails, Tracing,
                    UpgradeConfig,
                },
                http_filter::ConfigType,
            },
        },
    },
};
use prost::{Message, Name};

use super::{Any, Duration, any, boolean, core, duration, kind, listener, network_filter, route};
use crate::{
    model::ProxyKind,
    names,
    snapshot::{AccessLogSettings, Scope},
};

/// Istio 1.4's text format for clients from 1.3 on, field by field.
const TEXT_FORMAT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% ",
    "%RESPONSE_FLAGS% \"%DYNAMIC_METADATA(istio.mixer:status)%\" \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" ",
    "%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" ",
    "\"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" ",
    "%UPSTREAM_CLUSTER% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% ",
    "%DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
);

/// The same items as JSON.
const JSON_FORMAT: [(&str, &str); 22] = [
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    (
        "upstream_service_time",
        "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    ),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    (
        "istio_policy_status",
        "%DYNAMIC_METADATA(istio.mixer:status)%",
    ),
];

/// The access log of the mesh, if it has one.
pub(crate) fn access_log(settings: Option<&AccessLogSettings>) -> Vec<AccessLog> {
    let Some(settings) = settings else {
        return Vec::new();
    };
    let config = if settings.json {
        json_log(settings)
    } else {
        text_log(settings)
    };
    vec![AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        config_type: Some(LogType::TypedConfig(config)),
        ..Default::default()
    }]
}

fn text_log(settings: &AccessLogSettings) -> Any {
    let text = if settings.format.is_empty() {
        TEXT_FORMAT
    } else {
        &settings.format
    };
    let source = core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineString(text.to_owned())),
        ..Default::default()
    };
    any(&FileAccessLog {
        path: settings.path.clone(),
        access_log_format: Some(AccessLogFormat::LogFormat(core::SubstitutionFormatString {
            format: Some(core::substitution_format_string::Format::TextFormatSource(
                source,
            )),
            ..Default::default()
        })),
    })
}

/// The user's JSON object of strings, or the default one.
fn json_log(settings: &AccessLogSettings) -> Any {
    let own = serde_json::from_str::<BTreeMap<String, String>>(&settings.format)
        .ok()
        .filter(|own| !own.is_empty());
    let default = || {
        JSON_FORMAT
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    };
    let fields = own
        .unwrap_or_else(default)
        .into_iter()
        .map(|(key, text)| (key, ordered::Value { string: Some(text) }))
        .collect();
    let log = ordered::FileAccessLog {
        path: settings.path.clone(),
        log_format: Some(ordered::Format {
            json_format: Some(ordered::Struct { fields }),
        }),
    };
    Any {
        type_url: FileAccessLog::type_url(),
        value: log.encode_to_vec(),
    }
}

/// The same messages on the wire, with maps in order: see [`super::stable_map`] for why; this one has too many entries.
mod ordered {
    use std::collections::BTreeMap;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct FileAccessLog {
        #[prost(string, tag = "1")]
        pub(super) path: String,
        #[prost(message, optional, tag = "5")]
        pub(super) log_format: Option<Format>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Format {
        #[prost(message, optional, tag = "2")]
        pub(super) json_format: Option<Struct>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Struct {
        #[prost(btree_map = "string, message", tag = "1")]
        pub(super) fields: BTreeMap<String, Value>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Value {
        #[prost(string, optional, tag = "3")]
        pub(super) string: Option<String>,
    }
}

/// An HTTP filter by its Envoy name.
pub(crate) fn typed_filter<M: Message + Name>(name: &str, config: &M) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(config))),
        ..Default::default()
    }
}

/// The filters that every chain ends with. The router is last: without it requests hang.
pub(crate) fn http_filters(grpc_web: bool) -> Vec<HttpFilter> {
    let web = grpc_web.then(|| typed_filter("envoy.filters.http.grpc_web", &GrpcWeb::default()));
    web.into_iter()
        .chain([
            typed_filter("envoy.filters.http.cors", &Cors::default()),
            typed_filter("envoy.filters.http.fault", &HttpFault::default()),
            typed_filter("envoy.filters.http.router", &Router::default()),
        ])
        .collect()
}

/// What distinguishes one connection manager from another.
#[derive(Debug)]
pub(crate) struct Hcm<'a> {
    /// Name of the listener, for statistics.
    pub(crate) listener: &'a str,
    /// Towards the workload rather than from it.
    pub(crate) inbound: bool,
    /// Some service speaks gRPC-Web.
    pub(crate) grpc_web: bool,
    /// Route configuration by name, or in place.
    pub(crate) routes: Routes,
}

/// See [`Hcm::routes`].
#[derive(Debug)]
pub(crate) enum Routes {
    Rds(String),
    Inline(Box<route::RouteConfiguration>),
}

/// Builds the network filter.
pub(crate) fn http_connection_manager(scope: &Scope, hcm: Hcm<'_>) -> listener::Filter {
    let Hcm {
        listener: name,
        inbound,
        grpc_web,
        routes,
    } = hcm;
    let settings = scope.settings();
    let options = &settings.options;
    let gateway = scope.key().kind == ProxyKind::Router;
    let zero = Some(Duration::default());
    let details = SetCurrentClientCertDetails {
        subject: boolean(true),
        cert: gateway,
        uri: true,
        dns: true,
        ..Default::default()
    };
    let forwards = inbound || gateway;
    // Clients of an explicit proxy send whole URLs.
    let proxy = matches!(&routes, Routes::Rds(name) if name == names::HTTP_PROXY);
    let config = HttpConnectionManager {
        stat_prefix: format!("{}_{name}", if inbound { "inbound" } else { "outbound" }),
        route_specifier: Some(match routes {
            Routes::Rds(route_config_name) => RouteSpecifier::Rds(Rds {
                config_source: Some(super::ads(options.initial_fetch_timeout)),
                route_config_name,
            }),
            Routes::Inline(config) => RouteSpecifier::RouteConfig(*config),
        }),
        http_filters: http_filters(grpc_web),
        normalize_path: boolean(true),
        use_remote_address: boolean(gateway || (!inbound && options.sidecar_use_remote_address)),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..Default::default()
        }],
        stream_idle_timeout: zero,
        common_http_protocol_options: scope.key().idle_timeout.map(|timeout| {
            core::HttpProtocolOptions {
                idle_timeout: duration(timeout),
                ..Default::default()
            }
        }),
        http_protocol_options: (proxy || scope.key().http10).then(|| core::Http1ProtocolOptions {
            allow_absolute_url: proxy.then_some(true).and_then(boolean),
            accept_http_10: scope.key().http10,
            ..Default::default()
        }),
        access_log: access_log(settings.access_log.as_ref()),
        tracing: tracing(scope),
        generate_request_id: boolean(true),
        server_name: if forwards {
            "istio-envoy".to_owned()
        } else {
            String::new()
        },
        forward_client_cert_details: if gateway {
            ForwardClientCertDetails::SanitizeSet.into()
        } else if inbound {
            ForwardClientCertDetails::AppendForward.into()
        } else {
            0
        },
        set_current_client_cert_details: forwards.then_some(details),
        ..Default::default()
    };
    network_filter("envoy.filters.network.http_connection_manager", &config)
}

fn tracing(scope: &Scope) -> Option<Tracing> {
    let settings = scope.settings();
    let collector = settings
        .options
        .zipkin_cluster
        .as_ref()
        .filter(|_| settings.tracing)?;
    let percent = |value: f64| Some(kind::Percent { value });
    let sampling = settings.options.trace_sampling;
    let zipkin = ZipkinConfig {
        collector_cluster: collector.clone(),
        collector_endpoint: "/api/v2/spans".to_owned(),
        collector_endpoint_version: CollectorEndpointVersion::HttpJson.into(),
        trace_id_128bit: true,
        shared_span_context: super::boolean(false),
        ..Default::default()
    };
    Some(Tracing {
        client_sampling: percent(100.0),
        random_sampling: percent(if (0.0..=100.0).contains(&sampling) {
            sampling
        } else {
            100.0
        }),
        overall_sampling: percent(100.0),
        provider: Some(trace::Http {
            name: "envoy.tracers.zipkin".to_owned(),
            config_type: Some(trace::http::ConfigType::TypedConfig(any(&zipkin))),
        }),
        ..Default::default()
    })
}
