//! Envoy's bootstrap, API v3, as JSON.
//!
//! A pure function of [`Inputs`]; golden files show its results and the real Envoy validates them. The names of clusters,
//! listener and stats are Istio's, since dashboards and tools look for them.
//!
//! What differs from Istio 1.4's template, and why:
//!
//! * v3 throughout; no tracer in the bootstrap (Envoy wants it in the connection manager, where Pilot puts it), only the
//!   tracer's cluster.
//! * A lost stream to Pilot is retried after a random part of 0.5 s doubling up to 5 s. Envoy's own bound is 30 s, which is
//!   how long new config would be late after Pilot's return; full jitter keeps a thousand proxies from returning at once.
//! * Pilot's name is resolved again after 1 to 10 s when that failed. Envoy's default is the refresh rate, 300 s.
//! * HTTP/2 pings find a Pilot that vanished without a word after 35 s, instead of the minutes that TCP takes.
//! * Initial fetch timeouts stay at Envoy's 15 s each for CDS and LDS: without Pilot, Envoy goes LIVE (and opens
//!   15090) after 30 s, while readiness goes on waiting for Pilot.
//! * Watchdogs look every few seconds instead of ten times a second: that alone is most of what an idle Envoy costs (0.03%
//!   of a core instead of 0.17%, measured over a minute with two workers), and the 0.2 s it can notice by default only
//!   feeds a counter.
//! * [`stats`] keeps some more of Envoy's stats than Istio's default.

pub mod clusters;
pub mod remote;
pub mod stats;

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use crate::{
    args::{AuthPolicy, ProxyArgs},
    identity::Identity,
    metadata,
};
pub use remote::RemoteService;

/// How Envoy gets its certificates for the connection to Pilot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificates {
    /// From files under /etc/certs.
    Files,
    /// From the secret discovery service at this socket.
    Sds(String),
}

/// Everything the bootstrap depends on.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// Flags.
    pub args: &'a ProxyArgs,
    /// Who this is.
    pub identity: &'a Identity,
    /// Node metadata.
    pub metadata: &'a Map<String, Value>,
    /// Name in Pilot's certificate.
    pub pilot_san: String,
    /// Where certificates come from.
    pub certificates: Certificates,
    /// statsd, resolved.
    pub statsd: Option<(IpAddr, u16)>,
    /// Metrics service.
    pub metrics_service: Option<RemoteService>,
    /// Access log service.
    pub access_log_service: Option<RemoteService>,
    /// Where the agent serves secrets.
    pub secrets: Option<PathBuf>,
}

/// An address that is not HOST:PORT.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{flag} {given:?} is not HOST:PORT, e.g. {example} or [::1]:15010")]
pub struct AddressError {
    /// The flag.
    pub flag: &'static str,
    /// Its value.
    pub given: String,
    /// What it could look like.
    pub example: &'static str,
}

/// Host and port, split at the last colon; brackets of an IPv6 address are taken off.
pub fn host_port(
    flag: &'static str,
    given: &str,
    example: &'static str,
) -> Result<(String, u16), AddressError> {
    let refuse = || AddressError {
        flag,
        given: given.to_owned(),
        example,
    };
    let (host, port) = given.rsplit_once(':').ok_or_else(refuse)?;
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    match port.parse() {
        Ok(port) if !host.is_empty() && port != 0 => Ok((host.to_owned(), port)),
        _ => Err(refuse()),
    }
}

pub(crate) fn socket_address(host: &str, port: u16) -> Value {
    json!({"socket_address": {"address": host, "port_value": port}})
}

pub(crate) fn typed(type_name: &str, fields: Value) -> Value {
    let mut message = Map::new();
    message.insert(
        "@type".into(),
        format!("type.googleapis.com/{type_name}").into(),
    );
    if let Value::Object(fields) = fields {
        message.extend(fields);
    }
    Value::Object(message)
}

/// The bootstrap.
pub fn render(inputs: &Inputs<'_>) -> Result<Value, AddressError> {
    let Inputs { args, identity, .. } = inputs;
    let localhost = identity.localhost();
    let mut bootstrap = json!({
        "node": node(inputs),
        "stats_config": stats::config(inputs.metadata, &identity.addresses),
        "admin": {"address": socket_address(localhost, args.proxy_admin_port)},
        "dynamic_resources": {
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
            "ads_config": {
                "api_type": if args.delta_xds { "DELTA_GRPC" } else { "GRPC" },
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{"envoy_grpc": {
                    "cluster_name": "xds-grpc",
                    "retry_policy": {"retry_back_off": {"base_interval": "0.5s", "max_interval": "5s"}},
                }}],
            },
        },
        "static_resources": {"clusters": clusters::all(inputs)?},
        "watchdogs": {"main_thread_watchdog": watchdog(), "worker_watchdog": watchdog()},
    });
    if args.prometheus_port != 0 {
        bootstrap["static_resources"]["listeners"] = json!([prometheus_listener(
            identity.wildcard(),
            args.prometheus_port
        )]);
    }
    let sinks = stats_sinks(inputs);
    if !sinks.is_empty() {
        bootstrap["stats_sinks"] = sinks.into();
    }
    Ok(bootstrap)
}

fn watchdog() -> Value {
    json!({"miss_timeout": "5s", "megamiss_timeout": "10s"})
}

fn node(inputs: &Inputs<'_>) -> Value {
    let mut node = json!({
        "id": inputs.identity.node_id(),
        "cluster": inputs.args.service_cluster,
        "metadata": inputs.metadata,
    });
    if let Some([region, zone, sub_zone]) = metadata::locality(inputs.metadata) {
        node["locality"] = json!({"region": region, "zone": zone, "sub_zone": sub_zone});
    }
    node
}

fn prometheus_listener(wildcard: &str, port: u16) -> Value {
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({})),
    });
    let manager = json!({
        "codec_type": "AUTO",
        "stat_prefix": "stats",
        "route_config": {"virtual_hosts": [{
            "name": "backend",
            "domains": ["*"],
            "routes": [{"match": {"prefix": "/stats/prometheus"}, "route": {"cluster": "prometheus_stats"}}],
        }]},
        "http_filters": [router],
    });
    json!({
        "name": "prometheus_stats",
        "address": socket_address(wildcard, port),
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": typed(
                "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                manager,
            ),
        }]}],
    })
}

fn stats_sinks(inputs: &Inputs<'_>) -> Vec<Value> {
    let mut sinks = Vec::new();
    if inputs.metrics_service.is_some() {
        sinks.push(json!({
            "name": "envoy.stat_sinks.metrics_service",
            "typed_config": typed("envoy.config.metrics.v3.MetricsServiceConfig", json!({
                "transport_api_version": "V3",
                "grpc_service": {"envoy_grpc": {"cluster_name": "envoy_metrics_service"}},
            })),
        }));
    }
    if let Some((address, port)) = inputs.statsd {
        sinks.push(json!({
            "name": "envoy.stat_sinks.statsd",
            "typed_config": typed("envoy.config.metrics.v3.StatsdSink", json!({
                "address": socket_address(&address.to_string(), port),
            })),
        }));
    }
    sinks
}

/// Where Envoy's configuration comes from, in Istio's order of precedence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file taken as it is.
    File(PathBuf),
    /// Our own.
    BuiltIn,
}

/// A bootstrap file that cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot be read.
    #[error("{flag} {}: {error}", path.display())]
    Read {
        /// The flag or variable.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is a Go template.
    #[error(
        "{flag} {}: holds template directives ({{{{ … }}}}), which are not rendered here; give a finished bootstrap in JSON \
         or YAML, or change the built-in one with ISTIO_BOOTSTRAP_OVERRIDE",
        path.display()
    )]
    Template {
        /// The flag or variable.
        flag: &'static str,
        /// The file.
        path: PathBuf,
    },
}

/// Chooses the source.
pub fn source(args: &ProxyArgs, istio_bootstrap: Option<&str>) -> Result<Source, SourceError> {
    let candidates = [
        ("--customConfigFile", args.custom_config_file.as_str()),
        ("ISTIO_BOOTSTRAP", istio_bootstrap.unwrap_or_default()),
        ("--templateFile", args.template_file.as_str()),
    ];
    let Some((flag, path)) = candidates.into_iter().find(|(_, path)| !path.is_empty()) else {
        return Ok(Source::BuiltIn);
    };
    let path = PathBuf::from(path);
    match std::fs::read_to_string(&path) {
        Ok(text) if text.contains("{{") => Err(SourceError::Template { flag, path }),
        Ok(_) => Ok(Source::File(path)),
        Err(error) => Err(SourceError::Read { flag, path, error }),
    }
}

/// Writes the bootstrap of an epoch into a directory that only the proxy's user may enter.
pub fn write(directory: &Path, epoch: u32, bootstrap: &Value) -> io::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let path = directory.join(format!("envoy-rev{epoch}.json"));
    let mut text = serde_json::to_vec_pretty(bootstrap)?;
    text.push(b'\n');
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Whether the connection to Pilot is to be mTLS.
pub(crate) fn is_mutual_tls(args: &ProxyArgs) -> bool {
    args.control_plane_auth_policy == AuthPolicy::MutualTls
}
