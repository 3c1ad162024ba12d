//! The command line: Istio 1.4's flags, each also as an environment variable.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand};
use mesh_service::logging::LogArgs;

/// Istio's Pilot: discovers services, reads mesh config, and configures Envoy over xDS v3.
#[derive(Debug, Parser)]
#[command(name = "pilot-discovery", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve discovery.
    Discovery(Box<Discovery>),
    /// Print the version.
    Version,
}

/// Flags of `pilot-discovery discovery`. Flags keep Istio's spelling.
#[derive(Debug, Args)]
pub(crate) struct Discovery {
    /// Plaintext gRPC (xDS). ":15010" means every interface. [default: 127.0.0.1:15010, in a cluster :15010]
    #[arg(long = "grpcAddr", env = "PILOT_GRPC_ADDR", value_name = "HOST:PORT", value_parser = address)]
    pub(crate) grpc_addr: Option<SocketAddr>,

    /// xDS and the pages of --httpAddr over TLS, for clients with a certificate; "" for none.
    /// [default: 127.0.0.1:15012, in a cluster :15012]
    #[arg(long = "secureGrpcAddr", env = "PILOT_SECURE_GRPC_ADDR", value_name = "HOST:PORT", value_parser = optional_address)]
    pub(crate) secure_grpc_addr: Option<OptionalAddress>,

    /// Where cert-chain.pem, key.pem and root-cert.pem of --secureGrpcAddr are. They may come later, and change.
    #[arg(
        long = "certDir",
        env = "PILOT_CERT_DIR",
        default_value = "/etc/certs",
        value_name = "DIR"
    )]
    pub(crate) cert_dir: PathBuf,

    /// HTTP: /ready, /debug, /metrics, /version. [default: 127.0.0.1:8080, in a cluster :8080]
    #[arg(long = "httpAddr", env = "PILOT_HTTP_ADDR", value_name = "HOST:PORT", value_parser = address)]
    pub(crate) http_addr: Option<SocketAddr>,

    /// The same pages on the monitoring port. [default: 127.0.0.1:15014, in a cluster :15014]
    #[arg(long = "monitoringAddr", env = "PILOT_MONITORING_ADDR", value_name = "HOST:PORT", value_parser = address)]
    pub(crate) monitoring_addr: Option<SocketAddr>,

    /// Write the addresses that are listened on into this file as JSON, once all are bound: for ports chosen as 0.
    #[arg(long = "addressFile", env = "PILOT_ADDRESS_FILE", value_name = "FILE")]
    pub(crate) address_file: Option<PathBuf>,

    /// Service registries. Known: Kubernetes, Mock (none at all). ServiceEntries are always read.
    /// [default: Kubernetes, with --configDir Mock]
    #[arg(
        long,
        env = "PILOT_REGISTRIES",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    pub(crate) registries: Vec<String>,

    /// Credentials outside of a cluster.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// Read config from YAML files of this directory instead of the Kubernetes API.
    #[arg(long = "configDir", env = "PILOT_CONFIG_DIR", value_name = "DIR")]
    pub(crate) config_dir: Option<PathBuf>,

    /// Mesh settings. Empty, or no such file: ConfigMap "istio", key "mesh", of the own namespace; else defaults.
    #[arg(
        long = "meshConfig",
        env = "PILOT_MESH_CONFIG",
        default_value = "/etc/istio/config/mesh",
        value_name = "FILE",
        value_parser = path
    )]
    pub(crate) mesh_config: PathBuf,

    /// Networks of the mesh. Empty, or no such file: ConfigMap "istio", key "meshNetworks", of the own namespace; else none.
    #[arg(
        long = "networksConfig",
        env = "PILOT_NETWORKS_CONFIG",
        default_value = "/etc/istio/config/meshNetworks",
        value_name = "FILE",
        value_parser = path
    )]
    pub(crate) networks_config: PathBuf,

    /// The namespace Pilot runs in.
    #[arg(
        short = 'n',
        long,
        env = "POD_NAMESPACE",
        default_value = "istio-system",
        value_name = "NS"
    )]
    pub(crate) namespace: String,

    /// Watch only this namespace; empty means all.
    #[arg(
        short = 'a',
        long = "appNamespace",
        env = "PILOT_APP_NAMESPACE",
        default_value = "",
        value_name = "NS"
    )]
    pub(crate) app_namespace: String,

    /// DNS domain of Kubernetes services.
    #[arg(
        long,
        env = "PILOT_DOMAIN",
        default_value = "cluster.local",
        value_name = "DOMAIN"
    )]
    pub(crate) domain: String,

    /// Trust domain of SPIFFE identities. [default: the mesh's trustDomain, else the DNS domain]
    #[arg(
        long = "trust-domain",
        env = "PILOT_TRUST_DOMAIN",
        default_value = "",
        value_name = "DOMAIN"
    )]
    pub(crate) trust_domain: String,

    /// The name of this instance in responses and logs.
    #[arg(
        long = "podName",
        env = "POD_NAME",
        default_value = "pilot",
        value_name = "NAME"
    )]
    pub(crate) pod_name: String,

    /// Time between keepalive pings on xDS connections.
    #[arg(long = "keepaliveInterval", env = "PILOT_KEEPALIVE_INTERVAL", default_value = "30s", value_parser = duration)]
    pub(crate) keepalive_interval: Duration,

    /// Time for the answer to a ping.
    #[arg(long = "keepaliveTimeout", env = "PILOT_KEEPALIVE_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub(crate) keepalive_timeout: Duration,

    /// xDS connections are recycled at this age (10 s grace), so that added replicas get their share; "infinity" never.
    #[arg(long = "keepaliveMaxServerConnectionAge", env = "PILOT_KEEPALIVE_MAX_SERVER_CONNECTION_AGE", default_value = "30m", value_parser = age)]
    pub(crate) max_connection_age: Age,

    /// xDS connections at once.
    #[arg(
        long = "maxConnections",
        env = "PILOT_MAX_CONNECTIONS",
        default_value_t = 20_000
    )]
    pub(crate) max_connections: usize,

    /// Quiet time before changed config is pushed.
    #[arg(long = "debounceAfter", env = "PILOT_DEBOUNCE_AFTER", default_value = "100ms", value_parser = duration)]
    pub(crate) debounce_after: Duration,

    /// The longest that changed config waits for quiet.
    #[arg(long = "debounceMax", env = "PILOT_DEBOUNCE_MAX", default_value = "10s", value_parser = duration)]
    pub(crate) debounce_max: Duration,

    /// Let changes of endpoints alone settle for a few milliseconds; false: push each at once.
    #[arg(long = "enableEdsDebounce", env = "PILOT_ENABLE_EDS_DEBOUNCE", default_value_t = true, action = ArgAction::Set)]
    pub(crate) eds_debounce: bool,

    /// Proxies that are generated for at the same time.
    #[arg(
        long = "pushThrottle",
        env = "PILOT_PUSH_THROTTLE",
        default_value_t = 100
    )]
    pub(crate) push_throttle: usize,

    #[command(flatten)]
    pub(crate) generation: Generation,
}

/// Switches that change what is generated.
#[derive(Debug, Args)]
#[command(next_help_heading = "Generated configuration")]
pub(crate) struct Generation {
    /// Percent of requests that are traced.
    #[arg(
        long = "traceSampling",
        env = "PILOT_TRACE_SAMPLING",
        default_value_t = 100.0
    )]
    pub(crate) trace_sampling: f64,
    /// Sniff the protocol of unnamed ports of outbound traffic.
    #[arg(long = "sniffOutbound", env = "PILOT_ENABLE_PROTOCOL_SNIFFING_FOR_OUTBOUND", default_value_t = true, action = ArgAction::Set)]
    pub(crate) sniff_outbound: bool,
    /// Sniff the protocol of unnamed ports of inbound traffic.
    #[arg(long = "sniffInbound", env = "PILOT_ENABLE_PROTOCOL_SNIFFING_FOR_INBOUND", default_value_t = false, action = ArgAction::Set)]
    pub(crate) sniff_inbound: bool,
    /// Listener-filter timeout of virtualInbound.
    #[arg(long = "inboundDetectionTimeout", env = "PILOT_INBOUND_PROTOCOL_DETECTION_TIMEOUT", default_value = "1s", value_parser = duration)]
    pub(crate) inbound_detection_timeout: Duration,
    /// One TCP listener per pod of a headless service.
    #[arg(long = "headlessPodListeners", env = "PILOT_ENABLE_HEADLESS_SERVICE_POD_LISTENERS", default_value_t = true, action = ArgAction::Set)]
    pub(crate) headless_pod_listeners: bool,
    /// No outbound listener for an HTTP port 443.
    #[arg(long = "blockHttpOn443", env = "PILOT_BLOCK_HTTP_ON_443", default_value_t = true, action = ArgAction::Set)]
    pub(crate) block_http_on_443: bool,
    /// Refuse outbound connections to the pod's own addresses.
    #[arg(long = "restrictPodLoop", env = "PILOT_RESTRICT_POD_UP_TRAFFIC_LOOP", default_value_t = true, action = ArgAction::Set)]
    pub(crate) restrict_pod_loop: bool,
    /// Passthrough or black hole at the end of wildcard listeners and routes.
    #[arg(long = "fallthrough", env = "PILOT_ENABLE_FALLTHROUGH_ROUTE", default_value_t = true, action = ArgAction::Set)]
    pub(crate) fallthrough: bool,
    /// STRICT_DNS clusters respect the TTL of records.
    #[arg(long = "respectDnsTtl", env = "PILOT_RESPECT_DNS_TTL", default_value_t = true, action = ArgAction::Set)]
    pub(crate) respect_dns_ttl: bool,
    /// Emit Envoy's Redis filter.
    #[arg(long = "redisFilter", env = "PILOT_ENABLE_REDIS_FILTER", default_value_t = false, action = ArgAction::Set)]
    pub(crate) redis_filter: bool,
    /// Accept HTTP/1.0.
    #[arg(long = "http10", env = "PILOT_HTTP10", default_value_t = false, action = ArgAction::Set)]
    pub(crate) http10: bool,
    /// use_remote_address on outbound sidecar listeners.
    #[arg(long = "sidecarUseRemoteAddress", env = "PILOT_SIDECAR_USE_REMOTE_ADDRESS", default_value_t = false, action = ArgAction::Set)]
    pub(crate) sidecar_use_remote_address: bool,
    /// Gateway objects select only workloads of their own namespace.
    #[arg(long = "scopeGatewayToNamespace", env = "PILOT_SCOPE_GATEWAY_TO_NAMESPACE", default_value_t = false, action = ArgAction::Set)]
    pub(crate) scope_gateway_to_namespace: bool,
    /// How long Envoy waits for a first answer to RDS or EDS. [default: Envoy's 15 s]
    #[arg(long = "initialFetchTimeout", env = "PILOT_INITIAL_FETCH_TIMEOUT", value_parser = duration)]
    pub(crate) initial_fetch_timeout: Option<Duration>,
}

impl Generation {
    pub(crate) fn options(self, domain: &str) -> pilot_generate::Options {
        let Self {
            trace_sampling,
            sniff_outbound,
            sniff_inbound,
            inbound_detection_timeout,
            headless_pod_listeners,
            block_http_on_443,
            restrict_pod_loop,
            fallthrough,
            respect_dns_ttl,
            redis_filter,
            http10,
            sidecar_use_remote_address,
            scope_gateway_to_namespace,
            initial_fetch_timeout,
        } = self;
        pilot_generate::Options {
            domain: domain.to_owned(),
            sniff_outbound,
            sniff_inbound,
            inbound_detection_timeout,
            headless_pod_listeners,
            block_http_on_443,
            restrict_pod_loop,
            fallthrough,
            respect_dns_ttl,
            redis_filter,
            http10,
            sidecar_use_remote_address,
            trace_sampling,
            scope_gateway_to_namespace,
            initial_fetch_timeout,
            ..pilot_generate::Options::default()
        }
    }
}

/// A path; empty means that there is no such file.
#[allow(clippy::unnecessary_wraps)] // the signature of a value parser
fn path(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(PathBuf::from(text))
}

/// A bound on age that may be infinite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Age(pub(crate) Option<Duration>);

fn age(text: &str) -> Result<Age, String> {
    match text {
        "infinity" | "" => Ok(Age(None)),
        text => duration(text).map(|duration| Age(Some(duration))),
    }
}

/// Go's durations, as Istio's users write them: `1h30m`, `100ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let refuse = || format!("{text:?} is no duration; accepted: 500ms, 10s, 30m, 1h30m");
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(refuse());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .ok_or_else(refuse)?;
        let number: f64 = rest[..digits].parse().map_err(|_| refuse())?;
        let unit_end = rest[digits..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(rest.len(), |end| digits + end);
        let scale = match &rest[digits..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(refuse()),
        };
        total += Duration::try_from_secs_f64(number * scale).map_err(|_| refuse())?;
        rest = &rest[unit_end..];
    }
    Ok(total)
}

/// An address, or none on purpose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct OptionalAddress(pub(crate) Option<SocketAddr>);

fn optional_address(text: &str) -> Result<OptionalAddress, String> {
    match text {
        "" => Ok(OptionalAddress(None)),
        text => address(text).map(|address| OptionalAddress(Some(address))),
    }
}

/// `HOST:PORT`, or `:PORT` for every interface.
fn address(text: &str) -> Result<SocketAddr, String> {
    let full = match text.strip_prefix(':') {
        Some(port) => format!("0.0.0.0:{port}"),
        None => text.replace("localhost:", "127.0.0.1:"),
    };
    full.parse().map_err(|_| {
        format!("{text:?} is no address; accepted: 127.0.0.1:15010, :15010, [::1]:15010")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_go_s() {
        assert_eq!(duration("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(duration("100ms").unwrap(), Duration::from_millis(100));
        assert_eq!(duration("0s").unwrap(), Duration::ZERO);
        for bad in ["", "5", "s", "1x", "-1s"] {
            assert!(duration(bad).unwrap_err().contains("accepted"), "{bad}");
        }
        assert_eq!(age("infinity").unwrap(), Age(None));
    }

    #[test]
    fn addresses_may_leave_out_the_host() {
        assert_eq!(address(":15010").unwrap(), "0.0.0.0:15010".parse().unwrap());
        assert_eq!(
            address("localhost:1").unwrap(),
            "127.0.0.1:1".parse().unwrap()
        );
        assert!(address("15010").is_err());
        assert_eq!(optional_address("").unwrap(), OptionalAddress(None));
    }
}
