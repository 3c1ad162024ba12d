//! The command line of Istio 1.4's pilot-agent.
//!
//! An old injector template must not fail on a newer agent, so flags that are not known here are taken out before the
//! parser sees them, together with the value that follows them, as Istio does. What was ignored is logged.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::duration;

/// Looks after one Envoy.
#[derive(Clone, Debug, Parser)]
#[command(name = "pilot-agent", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Logging.
    #[command(flatten)]
    pub log: mesh_service::logging::LogArgs,
}

/// Subcommands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Write Envoy's bootstrap, run Envoy, serve its readiness, drain it at the end.
    Proxy(Box<ProxyArgs>),
    /// Ask the admin interface of this pod's Envoy, e.g. `request GET /clusters`.
    Request(RequestArgs),
    /// (internal) Become Envoy, and die with the agent.
    #[command(hide = true)]
    ExecEnvoy(ExecArgs),
}

/// What the proxy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Beside an application.
    Sidecar,
    /// A gateway.
    Router,
}

impl Role {
    /// Its name in the node ID.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Router => "router",
        }
    }
}

/// Which registry the proxy belongs to; decides the form of its ID and domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Registry {
    /// POD_NAME.POD_NAMESPACE
    #[value(name = "Kubernetes")]
    Kubernetes,
    /// IP.service.consul
    #[value(name = "Consul")]
    Consul,
    /// IP
    #[value(name = "Mock")]
    Mock,
}

/// Whether the connection to Pilot is mTLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuthPolicy {
    /// Plain text.
    #[value(name = "NONE")]
    None,
    /// Certificates of the mesh.
    #[value(name = "MUTUAL_TLS")]
    MutualTls,
}

/// Flags of `pilot-agent proxy`.
#[derive(Clone, Debug, Args)]
pub struct ProxyArgs {
    /// The role.
    #[arg(value_enum, default_value = "sidecar")]
    pub role: Role,

    /// Registry this proxy belongs to.
    #[arg(
        long = "serviceregistry",
        env = "PILOT_AGENT_SERVICE_REGISTRY",
        default_value = "Kubernetes",
        value_enum,
        ignore_case = true
    )]
    pub service_registry: Registry,
    /// This proxy's IP address. Absent: found among the interfaces.
    #[arg(long, env = "INSTANCE_IP", value_name = "IP")]
    pub ip: Option<String>,
    /// This proxy's ID. Absent: formed as the registry demands.
    #[arg(long, env = "PILOT_AGENT_ID")]
    pub id: Option<String>,
    /// DNS domain. Absent: formed as the registry demands.
    #[arg(long, env = "PILOT_AGENT_DOMAIN")]
    pub domain: Option<String>,
    /// SPIFFE trust domain of Pilot and Mixer.
    #[arg(
        long = "trust-domain",
        env = "PILOT_AGENT_TRUST_DOMAIN",
        default_value = ""
    )]
    pub trust_domain: String,
    /// Name that Pilot's certificate must bear.
    #[arg(
        long = "pilotIdentity",
        env = "PILOT_AGENT_PILOT_IDENTITY",
        default_value = ""
    )]
    pub pilot_identity: String,
    /// Name that Mixer's certificate must bear.
    #[arg(
        long = "mixerIdentity",
        env = "PILOT_AGENT_MIXER_IDENTITY",
        default_value = ""
    )]
    pub mixer_identity: String,
    /// Port of the status server; 0 for none.
    #[arg(
        long = "statusPort",
        env = "PILOT_AGENT_STATUS_PORT",
        default_value_t = 0
    )]
    pub status_port: u16,
    /// Ports on which a router must listen before it is ready.
    #[arg(
        long = "applicationPorts",
        env = "PILOT_AGENT_APPLICATION_PORTS",
        default_value = "",
        value_name = "PORTS"
    )]
    pub application_ports: String,
    /// Directory of the bootstrap files.
    #[arg(
        long = "configPath",
        env = "PILOT_AGENT_CONFIG_PATH",
        default_value = "/etc/istio/proxy",
        value_name = "DIR"
    )]
    pub config_path: PathBuf,
    /// Envoy.
    #[arg(
        long = "binaryPath",
        env = "PILOT_AGENT_BINARY_PATH",
        default_value = "/usr/local/bin/envoy",
        value_name = "FILE"
    )]
    pub binary_path: PathBuf,
    /// Envoy's service cluster, APP.NAMESPACE.
    #[arg(
        long = "serviceCluster",
        env = "PILOT_AGENT_SERVICE_CLUSTER",
        default_value = "istio-proxy"
    )]
    pub service_cluster: String,
    /// How long Envoy drains a listener that goes.
    #[arg(long = "drainDuration", env = "PILOT_AGENT_DRAIN_DURATION", default_value = "45s", value_parser = duration::parse)]
    pub drain_duration: Duration,
    /// After which time Envoy ends the parent of a hot restart.
    #[arg(long = "parentShutdownDuration", env = "PILOT_AGENT_PARENT_SHUTDOWN_DURATION", default_value = "1m0s", value_parser = duration::parse)]
    pub parent_shutdown_duration: Duration,
    /// Pilot.
    #[arg(
        long = "discoveryAddress",
        env = "PILOT_AGENT_DISCOVERY_ADDRESS",
        default_value = "istio-pilot:15010",
        value_name = "HOST:PORT"
    )]
    pub discovery_address: String,
    /// Zipkin's collector.
    #[arg(
        long = "zipkinAddress",
        env = "PILOT_AGENT_ZIPKIN_ADDRESS",
        default_value = "",
        value_name = "HOST:PORT"
    )]
    pub zipkin_address: String,
    /// Lightstep's collector.
    #[arg(
        long = "lightstepAddress",
        env = "PILOT_AGENT_LIGHTSTEP_ADDRESS",
        default_value = "",
        value_name = "HOST:PORT"
    )]
    pub lightstep_address: String,
    /// Lightstep's access token.
    #[arg(
        long = "lightstepAccessToken",
        env = "PILOT_AGENT_LIGHTSTEP_ACCESS_TOKEN",
        default_value = "",
        hide_env_values = true
    )]
    pub lightstep_access_token: String,
    /// Speak TLS to Lightstep.
    #[arg(long = "lightstepSecure", env = "PILOT_AGENT_LIGHTSTEP_SECURE", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set)]
    pub lightstep_secure: bool,
    /// Lightstep's CA certificate.
    #[arg(
        long = "lightstepCacertPath",
        env = "PILOT_AGENT_LIGHTSTEP_CACERT_PATH",
        default_value = ""
    )]
    pub lightstep_cacert_path: String,
    /// Datadog's agent.
    #[arg(
        long = "datadogAgentAddress",
        env = "PILOT_AGENT_DATADOG_AGENT_ADDRESS",
        default_value = "",
        value_name = "HOST:PORT"
    )]
    pub datadog_agent_address: String,
    /// Time for a connection to Pilot.
    #[arg(long = "connectTimeout", env = "PILOT_AGENT_CONNECT_TIMEOUT", default_value = "1s", value_parser = duration::parse)]
    pub connect_timeout: Duration,
    /// Where Envoy sends statsd packets.
    #[arg(
        long = "statsdUdpAddress",
        env = "PILOT_AGENT_STATSD_UDP_ADDRESS",
        default_value = "",
        value_name = "HOST:PORT"
    )]
    pub statsd_udp_address: String,
    /// Envoy's metrics service: {"address": …, "tlsSettings": …, "tcpKeepalive": …}.
    #[arg(
        long = "envoyMetricsService",
        env = "PILOT_AGENT_ENVOY_METRICS_SERVICE",
        default_value = "",
        value_name = "JSON"
    )]
    pub envoy_metrics_service: String,
    /// Envoy's access log service, in the same form.
    #[arg(
        long = "envoyAccessLogService",
        env = "PILOT_AGENT_ENVOY_ACCESS_LOG_SERVICE",
        default_value = "",
        value_name = "JSON"
    )]
    pub envoy_access_log_service: String,
    /// Envoy's admin port, on loopback.
    #[arg(
        long = "proxyAdminPort",
        env = "PILOT_AGENT_PROXY_ADMIN_PORT",
        default_value_t = 15000
    )]
    pub proxy_admin_port: u16,
    /// How to speak to Pilot.
    #[arg(
        long = "controlPlaneAuthPolicy",
        env = "PILOT_AGENT_CONTROL_PLANE_AUTH_POLICY",
        default_value = "NONE",
        value_enum
    )]
    pub control_plane_auth_policy: AuthPolicy,
    /// Take this file as Envoy's bootstrap, as it is.
    #[arg(
        long = "customConfigFile",
        env = "PILOT_AGENT_CUSTOM_CONFIG_FILE",
        default_value = "",
        value_name = "FILE"
    )]
    pub custom_config_file: String,
    /// Take this file instead of the built-in bootstrap; it may hold no template directives.
    #[arg(
        long = "templateFile",
        env = "PILOT_AGENT_TEMPLATE_FILE",
        default_value = "",
        value_name = "FILE"
    )]
    pub template_file: String,
    /// Envoy's worker threads; 0 for one per core.
    #[arg(long, env = "PILOT_AGENT_CONCURRENCY", default_value_t = 0)]
    pub concurrency: u32,
    /// Envoy's log level.
    #[arg(
        long = "proxyLogLevel",
        env = "PILOT_AGENT_PROXY_LOG_LEVEL",
        default_value = "warning",
        value_name = "LEVEL"
    )]
    pub proxy_log_level: String,
    /// Envoy's log level per component.
    #[arg(
        long = "proxyComponentLogLevel",
        env = "PILOT_AGENT_PROXY_COMPONENT_LOG_LEVEL",
        default_value = "misc:error",
        value_name = "PAIRS"
    )]
    pub proxy_component_log_level: String,
    /// How often Pilot's name is resolved again.
    #[arg(long = "dnsRefreshRate", env = "PILOT_AGENT_DNS_REFRESH_RATE", default_value = "300s", value_parser = duration::parse)]
    pub dns_refresh_rate: Duration,
    /// Send no Mixer reports from control-plane proxies; for Istio's templates, without effect here.
    #[arg(long = "disableInternalTelemetry", env = "PILOT_AGENT_DISABLE_INTERNAL_TELEMETRY", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set)]
    pub disable_internal_telemetry: bool,
    /// Whether this proxy stands before a control-plane component.
    #[arg(long = "controlPlaneBootstrap", env = "PILOT_AGENT_CONTROL_PLANE_BOOTSTRAP", default_value = "true", default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set)]
    pub control_plane_bootstrap: bool,

    // From here on: not in Istio 1.4.
    /// Port of Envoy's Prometheus listener; 0 for none.
    #[arg(
        long = "prometheusPort",
        env = "PILOT_AGENT_PROMETHEUS_PORT",
        default_value_t = 15090
    )]
    pub prometheus_port: u16,
    /// Socket on which secrets are served to Envoy. Absent: /var/run/ingress_gateway/sds for gateways with USER_SDS, else
    /// `sds` in the directory of the bootstrap.
    #[arg(
        long = "sdsSocket",
        env = "PILOT_AGENT_SDS_SOCKET",
        default_value = "",
        value_name = "PATH"
    )]
    pub sds_socket: String,
    /// Subscribe to Pilot by delta xDS, so that only what changed travels, instead of state of the world.
    #[arg(long = "deltaXds", env = "ISTIO_DELTA_XDS", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set)]
    pub delta_xds: bool,
    /// Start an Envoy that ended by itself again, so many times, after 200 ms doubling each time. 0 is the rule of
    /// Istio 1.4: the agent ends with its Envoy, and the container is started anew.
    #[arg(
        long = "envoyRestarts",
        env = "PILOT_AGENT_ENVOY_RESTARTS",
        default_value_t = 0
    )]
    pub envoy_restarts: u32,
    /// Least time between SIGTERM and the end of Envoy, in seconds.
    #[arg(
        long = "terminationDrainDuration",
        env = "TERMINATION_DRAIN_DURATION_SECONDS",
        default_value_t = 5,
        value_name = "SECONDS"
    )]
    pub termination_drain_seconds: u64,
    /// Most time between SIGTERM and the end of Envoy while requests are under way, in seconds. Keep it below the pod's
    /// terminationGracePeriodSeconds.
    #[arg(
        long = "terminationDrainMaximum",
        env = "TERMINATION_DRAIN_MAXIMUM_SECONDS",
        default_value_t = 25,
        value_name = "SECONDS"
    )]
    pub termination_drain_maximum_seconds: u64,
}

/// Arguments of `pilot-agent request`.
#[derive(Clone, Debug, Args)]
pub struct RequestArgs {
    /// GET or POST.
    pub method: String,
    /// Path with query, e.g. /stats?filter=cds
    pub path: String,
    /// Envoy's admin port.
    #[arg(
        long = "proxyAdminPort",
        env = "PILOT_AGENT_PROXY_ADMIN_PORT",
        default_value_t = 15000
    )]
    pub proxy_admin_port: u16,
}

/// Arguments of `pilot-agent exec-envoy`.
#[derive(Clone, Debug, Args)]
pub struct ExecArgs {
    /// Process ID of the agent.
    #[arg(long)]
    pub agent: i32,
    /// Envoy.
    pub program: OsString,
    /// Its arguments.
    #[arg(last = true)]
    pub args: Vec<OsString>,
}

impl Cli {
    /// Parses; exits with a message as clap does if that fails. Returns the flags that were ignored, too.
    pub fn parse_leniently(argv: Vec<OsString>) -> (Self, Vec<String>) {
        let (known, ignored) = without_unknown_flags(argv);
        (Self::parse_from(known), ignored)
    }

    /// The same for tests: an error instead of an exit.
    pub fn try_parse_leniently(argv: Vec<OsString>) -> Result<(Self, Vec<String>), clap::Error> {
        let (known, ignored) = without_unknown_flags(argv);
        Ok((Self::try_parse_from(known)?, ignored))
    }
}

/// Takes unknown flags out of `pilot-agent proxy …`. `--flag=value` goes as one; `--flag` goes with the next argument
/// unless that begins with a dash.
fn without_unknown_flags(argv: Vec<OsString>) -> (Vec<OsString>, Vec<String>) {
    let mut cli = Cli::command();
    // Fills in what `global` and `--help` add.
    cli.build();
    let Some(proxy) = cli.find_subcommand("proxy") else {
        return (argv, Vec::new());
    };
    if argv.get(1).is_none_or(|word| word != "proxy") {
        return (argv, Vec::new());
    }
    let known = |flag: &str| {
        proxy
            .get_arguments()
            .any(|arg| arg.get_long() == Some(flag))
    };
    let (mut kept, mut ignored) = (Vec::new(), Vec::new());
    let mut words = argv.into_iter().peekable();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy().into_owned();
        let Some(flag) = text.strip_prefix("--").filter(|flag| !flag.is_empty()) else {
            kept.push(word);
            continue;
        };
        let name = flag.split('=').next().unwrap_or(flag);
        if known(name) {
            // The value of a known flag may look like anything.
            let takes_next = !flag.contains('=')
                && proxy.get_arguments().any(|arg| {
                    arg.get_long() == Some(name)
                        && arg.get_action().takes_values()
                        && !arg.is_require_equals_set()
                });
            kept.push(word);
            if takes_next && let Some(value) = words.next() {
                kept.push(value);
            }
            continue;
        }
        let has_value = !flag.contains('=')
            && words
                .peek()
                .is_some_and(|next| !next.to_string_lossy().starts_with('-'));
        if has_value {
            words.next();
        }
        ignored.push(format!("--{name}"));
    }
    (kept, ignored)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> (Box<ProxyArgs>, Vec<String>) {
        let words = line.split(' ').map(OsString::from).collect();
        let (cli, ignored) = Cli::try_parse_leniently(words).unwrap();
        match cli.command {
            Command::Proxy(args) => (args, ignored),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_injectors_command_line() {
        let (args, ignored) = parse(
            "pilot-agent proxy sidecar --domain default.svc.cluster.local --configPath /etc/istio/proxy --binaryPath /usr/local/bin/envoy \
             --serviceCluster reviews.default --drainDuration 45s --parentShutdownDuration 1m0s --discoveryAddress istio-pilot.istio-system:15010 \
             --zipkinAddress zipkin.istio-system:9411 --connectTimeout 10s --proxyAdminPort 15000 --concurrency 2 --controlPlaneAuthPolicy NONE \
             --statusPort 15020 --applicationPorts 9080 --proxyLogLevel=info --controlPlaneBootstrap=false",
        );
        assert_eq!(ignored, Vec::<String>::new());
        assert_eq!(args.parent_shutdown_duration, Duration::from_secs(60));
        assert_eq!((args.status_port, args.concurrency), (15020, 2));
        assert!(!args.control_plane_bootstrap);
    }

    #[test]
    fn unknown_flags_go_with_their_values() {
        let (args, ignored) = parse(
            "pilot-agent proxy --brandNew 7 router --other=x --switch --statusPort 15020 --log_output_level default:info",
        );
        assert_eq!(args.role, Role::Router);
        assert_eq!(args.status_port, 15020);
        assert_eq!(
            ignored,
            ["--brandNew", "--other", "--switch", "--log_output_level"]
        );
    }

    #[test]
    fn a_bad_value_of_a_known_flag_is_refused() {
        let words = ["pilot-agent", "proxy", "--drainDuration", "soon"].map(OsString::from);
        let error = Cli::try_parse_leniently(words.to_vec())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("--drainDuration") && error.contains("45s"),
            "{error}"
        );
    }
}
