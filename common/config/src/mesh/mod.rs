//! Settings of the whole mesh: the `mesh` key of the ConfigMap `istio`, with Istio 1.4's defaults filled in.
//!
//! Protobuf cannot tell "false" from "not written", so defaults go in before the user's fields: [`MeshConfig::from_yaml`]
//! lays the written fields over the default settings (those of `defaultConfig` over the default `defaultConfig`; any
//! other message is replaced whole, as in Istio), reads the result strictly, validates it, and turns it into Rust types.
//! A reader that gets an error keeps the settings it has.

mod defaults;
mod validate;

use std::sync::Arc;
use std::time::Duration;

use proto_networking::mesh::{self, mesh_config as pb, proxy_config};
use proto_networking::networking::connection_pool_settings::tcp_settings::TcpKeepalive;
use serde_json::Value;

use crate::error::{ConfigError, Place};
use crate::path::{FieldPath, camel};
use crate::validate::FieldError;
use crate::yaml::{self, Node};

pub use proto_networking::mesh::mesh_config::{
    AccessLogEncoding, H2UpgradePolicy, IngressControllerMode,
};
pub use proto_networking::mesh::proxy_config::InboundInterceptionMode;
pub use proto_networking::mesh::{
    AuthenticationPolicy, LocalityLoadBalancerSetting, MeshNetworks, Tracing, network,
};

/// What happens to traffic for hosts that are not in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutboundTrafficPolicy {
    /// It passes through to where it was going.
    AllowAny,
    /// It is dropped.
    RegistryOnly,
}

/// Settings of the mesh. Fields are those of `istio.mesh.v1alpha1.MeshConfig`; zero durations of optional settings are
/// `None`.
#[derive(Debug, Clone, PartialEq)]
pub struct MeshConfig {
    /// `host:port` of the policy service; empty together with the next one means no Mixer at all.
    pub mixer_check_server: String,
    /// `host:port` of the telemetry service.
    pub mixer_report_server: String,
    /// No Check calls.
    pub disable_policy_checks: bool,
    /// Requests pass when the policy service does not answer.
    pub policy_check_fail_open: bool,
    /// Each sidecar reports to one telemetry replica.
    pub sidecar_to_telemetry_session_affinity: bool,
    /// Client sidecars check too.
    pub enable_client_side_policy_check: bool,
    /// No HTTP reports.
    pub disable_mixer_http_reports: bool,
    /// Reports are sent one by one.
    pub disable_report_batch: bool,
    /// Records of a report batch; 0 is the client's own default.
    pub report_batch_max_entries: u32,
    /// Longest wait of a report batch.
    pub report_batch_max_time: Option<Duration>,
    /// Port that captured outbound traffic arrives at.
    pub proxy_listen_port: u16,
    /// Port of the explicit HTTP proxy; 0 for none.
    pub proxy_http_port: u16,
    /// Time to connect to an upstream.
    pub connect_timeout: Duration,
    /// Time to wait for the first bytes when sniffing a protocol.
    pub protocol_detection_timeout: Duration,
    /// Keepalive of outbound connections.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Class of Ingress objects that are ours.
    pub ingress_class: String,
    /// Service of the ingress gateway.
    pub ingress_service: String,
    /// Which Ingress objects are converted.
    pub ingress_controller_mode: IngressControllerMode,
    /// Proxies make trace spans.
    pub enable_tracing: bool,
    /// Path of the access log; empty for none.
    pub access_log_file: String,
    /// Format of the access log; empty for the built-in one.
    pub access_log_format: String,
    /// Text or JSON.
    pub access_log_encoding: AccessLogEncoding,
    /// Access logs over gRPC.
    pub enable_envoy_access_log_service: bool,
    /// What happens to traffic for unknown hosts.
    pub outbound_traffic_policy: OutboundTrafficPolicy,
    /// Namespace whose config applies to all.
    pub root_namespace: String,
    /// Visibility of services that do not say.
    pub default_service_export_to: Vec<String>,
    /// Visibility of VirtualServices that do not say.
    pub default_virtual_service_export_to: Vec<String>,
    /// Visibility of DestinationRules that do not say.
    pub default_destination_rule_export_to: Vec<String>,
    /// How often DNS names of upstreams are resolved.
    pub dns_refresh_rate: Duration,
    /// Distribution and failover between localities.
    pub locality_lb_setting: Option<LocalityLoadBalancerSetting>,
    /// Upgrade HTTP/1.1 to HTTP/2 between sidecars.
    pub h2_upgrade_policy: H2UpgradePolicy,
    /// Trust domain of SPIFFE names; empty: the process's flag decides.
    pub trust_domain: String,
    /// Further trust domains accepted.
    pub trust_domain_aliases: Vec<String>,
    /// Socket of the secret discovery service; empty for certificates in files.
    pub sds_uds_path: String,
    /// Kubernetes service-account tokens authenticate SDS.
    pub sds_use_k8s_sa_jwt: bool,
    /// The injector mounts the SDS token.
    pub enable_sds_token_mount: bool,
    /// Sidecars use mutual TLS among each other without being told.
    pub enable_auto_mtls: bool,
    /// Pattern of inbound clusters' names in statistics; empty: the cluster name.
    pub inbound_cluster_stat_name: String,
    /// Pattern of outbound clusters' names in statistics.
    pub outbound_cluster_stat_name: String,
    /// Settings of proxies that carry none of their own.
    pub default_config: ProxyConfig,
    /// Where config comes from, if not from Kubernetes.
    pub config_sources: Vec<mesh::ConfigSource>,
    /// DNS certificates that Pilot provisions.
    pub certificates: Vec<mesh::Certificate>,
    /// The message all this was read from, defaults included.
    pub proto: Arc<mesh::MeshConfig>,
}

/// How an agent starts its Envoy. Fields are those of `istio.mesh.v1alpha1.ProxyConfig`.
#[derive(Debug, Clone, PartialEq)]
pub struct ProxyConfig {
    /// Folder of the generated bootstrap.
    pub config_path: String,
    /// Path of Envoy.
    pub binary_path: String,
    /// Envoy's `--service-cluster`.
    pub service_cluster: String,
    /// How long old connections drain on a restart.
    pub drain_duration: Duration,
    /// When the old process of a restart is ended; later than the drain.
    pub parent_shutdown_duration: Duration,
    /// `host:port` of Pilot.
    pub discovery_address: String,
    /// Time to connect to control-plane services.
    pub connect_timeout: Duration,
    /// `host:port` of statsd; empty for none.
    pub statsd_udp_address: String,
    /// Port of Envoy's admin interface, on loopback.
    pub proxy_admin_port: u16,
    /// mTLS to the control plane or not.
    pub control_plane_auth_policy: AuthenticationPolicy,
    /// Worker threads; 0 is one per core.
    pub concurrency: u32,
    /// Longest statistics name.
    pub stat_name_length: u32,
    /// How traffic is captured.
    pub interception_mode: InboundInterceptionMode,
    /// Where spans go.
    pub tracing: Option<Tracing>,
    /// `host:port` of the metrics service; empty for none.
    pub envoy_metrics_service: String,
    /// `host:port` of the access-log service; empty for none.
    pub envoy_access_log_service: String,
    /// Template of the bootstrap; empty for the built-in one.
    pub proxy_bootstrap_template_path: String,
    /// Bootstrap to use as it is; empty for none.
    pub custom_config_file: String,
}

impl MeshConfig {
    /// Reads the YAML of the `mesh` key. All problems at once; `name` says in messages where the text is from.
    pub fn from_yaml(text: &str, name: &str) -> Result<Self, Vec<ConfigError>> {
        let node = only_document(text, name)?;
        let value = node.as_ref().map_or_else(empty, Node::to_json);
        Self::from_json(value).map_err(|problems| placed(problems, node.as_ref(), name))
    }

    /// Reads the JSON form.
    pub fn from_json(written: Value) -> Result<Self, Vec<FieldError>> {
        let root = FieldPath::root();
        let message = defaults::overlay(
            defaults::mesh(),
            written,
            Some(("defaultConfig", defaults::proxy())),
        )
        .and_then(|merged| {
            serde_path_to_error::deserialize::<_, mesh::MeshConfig>(merged)
                .map_err(|e| unreadable(&root, &e))
        })
        .map_err(|problem| vec![problem])?;
        let problems = validate::mesh(&message);
        if problems.is_empty() {
            Ok(Self::from(message))
        } else {
            Err(problems)
        }
    }
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self::from(defaults::mesh_message())
    }
}

impl ProxyConfig {
    /// Reads YAML or JSON of a ProxyConfig alone, such as an annotation or an environment variable of a pod.
    pub fn from_yaml(text: &str, name: &str) -> Result<Self, Vec<ConfigError>> {
        let node = only_document(text, name)?;
        let value = node.as_ref().map_or_else(empty, Node::to_json);
        let root = FieldPath::root();
        let read = || {
            let merged = defaults::overlay(defaults::proxy(), value, None).map_err(|p| vec![p])?;
            let message: mesh::ProxyConfig = serde_path_to_error::deserialize(merged)
                .map_err(|e| vec![unreadable(&root, &e)])?;
            let problems = validate::proxy(&message, &root);
            if problems.is_empty() {
                Ok(Self::from(&message))
            } else {
                Err(problems)
            }
        };
        read().map_err(|problems: Vec<FieldError>| placed(problems, node.as_ref(), name))
    }
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self::from(&defaults::proxy_message())
    }
}

/// Reads a MeshNetworks file and validates it.
pub fn networks_from_yaml(text: &str, name: &str) -> Result<MeshNetworks, Vec<ConfigError>> {
    let node = only_document(text, name)?;
    let value = node.as_ref().map_or_else(empty, Node::to_json);
    let read = || {
        let networks: MeshNetworks = serde_path_to_error::deserialize(value)
            .map_err(|e| vec![unreadable(&FieldPath::root(), &e)])?;
        let problems = validate::networks(&networks);
        if problems.is_empty() {
            Ok(networks)
        } else {
            Err(problems)
        }
    };
    read().map_err(|problems: Vec<FieldError>| placed(problems, node.as_ref(), name))
}

fn empty() -> Value {
    Value::Object(serde_json::Map::new())
}

fn unreadable(
    root: &FieldPath,
    error: &serde_path_to_error::Error<serde_json::Error>,
) -> FieldError {
    crate::parse::unreadable(root, error)
}

fn placed(problems: Vec<FieldError>, node: Option<&Node>, name: &str) -> Vec<ConfigError> {
    let place = |p: &FieldError| Place {
        file: Some(name.to_owned()),
        line: node.map(|n| n.line_of(&p.path)),
        ..Place::default()
    };
    problems
        .into_iter()
        .map(|p| {
            let place = place(&p);
            p.into_error(place)
        })
        .collect()
}

fn only_document(text: &str, name: &str) -> Result<Option<Node>, Vec<ConfigError>> {
    let place = |line| Place {
        file: Some(name.to_owned()),
        line,
        ..Place::default()
    };
    let documents = yaml::documents(text);
    if let Some(second) = documents.get(1) {
        let message = "there is more than one YAML document; one is expected";
        return Err(vec![ConfigError::new(
            place(Some(second.offset + 1)),
            "",
            message,
        )]);
    }
    documents
        .first()
        .map(|d| Node::parse(*d))
        .transpose()
        .map_err(|e| vec![ConfigError::new(place(e.line), "", e.message)])
}

fn std(duration: Option<proto_wellknown::Duration>) -> Duration {
    duration.unwrap_or_default().to_std()
}

fn port(port: i32) -> u16 {
    // Validated before; 0 means none.
    u16::try_from(port).unwrap_or(0)
}

impl From<mesh::MeshConfig> for MeshConfig {
    fn from(message: mesh::MeshConfig) -> Self {
        let m = message.clone();
        let mode = m.outbound_traffic_policy.map(|p| p.mode());
        Self {
            ingress_controller_mode: m.ingress_controller_mode(),
            access_log_encoding: m.access_log_encoding(),
            h2_upgrade_policy: m.h2_upgrade_policy(),
            outbound_traffic_policy: match mode {
                Some(pb::outbound_traffic_policy::Mode::RegistryOnly) => {
                    OutboundTrafficPolicy::RegistryOnly
                }
                _ => OutboundTrafficPolicy::AllowAny,
            },
            mixer_check_server: m.mixer_check_server,
            mixer_report_server: m.mixer_report_server,
            disable_policy_checks: m.disable_policy_checks,
            policy_check_fail_open: m.policy_check_fail_open,
            sidecar_to_telemetry_session_affinity: m.sidecar_to_telemetry_session_affinity,
            enable_client_side_policy_check: m.enable_client_side_policy_check,
            disable_mixer_http_reports: m.disable_mixer_http_reports,
            disable_report_batch: m.disable_report_batch,
            report_batch_max_entries: m.report_batch_max_entries,
            report_batch_max_time: m.report_batch_max_time.map(|d| d.to_std()),
            proxy_listen_port: port(m.proxy_listen_port),
            proxy_http_port: port(m.proxy_http_port),
            connect_timeout: std(m.connect_timeout),
            protocol_detection_timeout: std(m.protocol_detection_timeout),
            tcp_keepalive: m.tcp_keepalive,
            ingress_class: m.ingress_class,
            ingress_service: m.ingress_service,
            enable_tracing: m.enable_tracing,
            access_log_file: m.access_log_file,
            access_log_format: m.access_log_format,
            enable_envoy_access_log_service: m.enable_envoy_access_log_service,
            root_namespace: m.root_namespace,
            default_service_export_to: m.default_service_export_to,
            default_virtual_service_export_to: m.default_virtual_service_export_to,
            default_destination_rule_export_to: m.default_destination_rule_export_to,
            dns_refresh_rate: std(m.dns_refresh_rate),
            locality_lb_setting: m.locality_lb_setting,
            trust_domain: m.trust_domain,
            trust_domain_aliases: m.trust_domain_aliases,
            sds_uds_path: m.sds_uds_path,
            sds_use_k8s_sa_jwt: m.sds_use_k8s_sa_jwt,
            enable_sds_token_mount: m.enable_sds_token_mount,
            enable_auto_mtls: m.enable_auto_mtls.is_some_and(|b| b.value),
            inbound_cluster_stat_name: m.inbound_cluster_stat_name,
            outbound_cluster_stat_name: m.outbound_cluster_stat_name,
            default_config: ProxyConfig::from(
                &m.default_config.unwrap_or_else(defaults::proxy_message),
            ),
            config_sources: m.config_sources,
            certificates: m.certificates,
            proto: Arc::new(message),
        }
    }
}

impl From<&mesh::ProxyConfig> for ProxyConfig {
    fn from(message: &mesh::ProxyConfig) -> Self {
        let m = message.clone();
        let address =
            |service: Option<mesh::RemoteService>| service.map(|s| s.address).unwrap_or_default();
        let metrics = address(m.envoy_metrics_service.clone());
        Self {
            control_plane_auth_policy: m.control_plane_auth_policy(),
            interception_mode: proxy_config::InboundInterceptionMode::try_from(m.interception_mode)
                .unwrap_or_default(),
            config_path: m.config_path,
            binary_path: m.binary_path,
            service_cluster: m.service_cluster,
            drain_duration: std(m.drain_duration),
            parent_shutdown_duration: std(m.parent_shutdown_duration),
            discovery_address: m.discovery_address,
            connect_timeout: std(m.connect_timeout),
            statsd_udp_address: m.statsd_udp_address,
            proxy_admin_port: port(m.proxy_admin_port),
            concurrency: u32::try_from(m.concurrency).unwrap_or(0),
            stat_name_length: u32::try_from(m.stat_name_length).unwrap_or(0),
            tracing: m.tracing,
            // The older field of the same meaning.
            envoy_metrics_service: if metrics.is_empty() {
                m.envoy_metrics_service_address
            } else {
                metrics
            },
            envoy_access_log_service: address(m.envoy_access_log_service),
            proxy_bootstrap_template_path: m.proxy_bootstrap_template_path,
            custom_config_file: m.custom_config_file,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn defaults_are_istios() {
        let mesh = MeshConfig::default();
        assert_eq!(MeshConfig::from_yaml("", "mesh").unwrap(), mesh);
        assert_eq!(
            MeshConfig::from_yaml("# only a comment\n", "mesh").unwrap(),
            mesh
        );
        assert!(mesh.disable_policy_checks && mesh.enable_tracing);
        assert_eq!(mesh.proxy_listen_port, 15001);
        assert_eq!(mesh.connect_timeout, Duration::from_secs(1));
        assert_eq!(mesh.protocol_detection_timeout, Duration::from_millis(100));
        assert_eq!(mesh.dns_refresh_rate, Duration::from_secs(5));
        assert_eq!(mesh.access_log_file, "/dev/stdout");
        assert_eq!(
            mesh.outbound_traffic_policy,
            OutboundTrafficPolicy::AllowAny
        );
        assert_eq!(mesh.root_namespace, "istio-system");
        assert_eq!(mesh.default_service_export_to, ["*"]);
        assert_eq!(mesh.default_config.discovery_address, "istio-pilot:15010");
        assert_eq!(mesh.default_config.drain_duration, Duration::from_secs(45));
        assert_eq!(
            mesh.default_config.parent_shutdown_duration,
            Duration::from_secs(60)
        );
        assert_eq!(mesh.default_config.stat_name_length, 189);
    }

    #[test]
    fn written_fields_replace_defaults() {
        let text = "disablePolicyChecks: false\naccessLogFile: ''\noutboundTrafficPolicy:\n  mode: REGISTRY_ONLY\n\
                    dns_refresh_rate: 1m\ndefaultConfig:\n  discoveryAddress: pilot:1\n  concurrency: 2\n\
                    enableAutoMtls: true\ntrustDomain:\n";
        let mesh = MeshConfig::from_yaml(text, "mesh").unwrap();
        assert!(!mesh.disable_policy_checks && mesh.enable_auto_mtls);
        assert_eq!(mesh.access_log_file, "");
        assert_eq!(
            mesh.outbound_traffic_policy,
            OutboundTrafficPolicy::RegistryOnly
        );
        assert_eq!(mesh.dns_refresh_rate, Duration::from_secs(60));
        assert_eq!(mesh.default_config.discovery_address, "pilot:1");
        assert_eq!(mesh.default_config.concurrency, 2);
        assert_eq!(
            mesh.default_config.proxy_admin_port, 15000,
            "the rest keeps its default"
        );
        // An empty message is not the default mode of the field.
        let mesh = MeshConfig::from_yaml("outboundTrafficPolicy: {}", "mesh").unwrap();
        assert_eq!(
            mesh.outbound_traffic_policy,
            OutboundTrafficPolicy::RegistryOnly
        );
    }

    #[test]
    fn errors_name_line_and_field() {
        let text = |t| {
            let errors = MeshConfig::from_yaml(t, "mesh").unwrap_err();
            errors
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n")
        };
        assert!(
            text("a: [").starts_with("mesh:1: not readable as YAML"),
            "{}",
            text("a: [")
        );
        let unknown = text("enableTracing: true\n\ndefaultConfig:\n  conurrency: 2\n");
        assert!(
            unknown.starts_with(
                "mesh:4: defaultConfig.conurrency: unknown field `conurrency`; accepted: "
            ),
            "{unknown}"
        );
        let wrong = text(
            "connectTimeout: 5m\nproxyListenPort: 70000\ndefaultConfig:\n  drainDuration: 90s\n",
        );
        assert!(wrong.contains("mesh:1: connectTimeout: "), "{wrong}");
        assert!(wrong.contains("mesh:2: proxyListenPort: "), "{wrong}");
        assert!(
            wrong.contains("mesh:4: defaultConfig.drainDuration: "),
            "{wrong}"
        );
        assert!(text("- a\n").contains("a list"), "{}", text("- a\n"));
        assert!(text("a: 1\n---\nb: 1\n").starts_with("mesh:2: there is more than one"));
        assert!(
            text("defaultConfig: 5\n").contains("defaultConfig"),
            "{}",
            text("defaultConfig: 5\n")
        );
    }

    #[test]
    fn proxy_config_alone_and_networks() {
        let proxy =
            ProxyConfig::from_yaml("{\"discoveryAddress\": \"p:2\"}", "annotation").unwrap();
        assert_eq!(
            (proxy.discovery_address.as_str(), proxy.stat_name_length),
            ("p:2", 189)
        );
        let text = "networks:\n  n1:\n    endpoints:\n    - fromRegistry: Kubernetes\n    gateways:\n    - address: 1.2.3.4\n      port: 443\n";
        let networks = networks_from_yaml(text, "meshNetworks").unwrap();
        assert_eq!(networks.networks["n1"].gateways[0].port, 443);
        let text = "networks:\n  n1:\n    endpoints:\n    - fromCidr: 10.0.0.0/33\n    gateways:\n    - address: 'a b'\n      port: 0\n    - port: 1\n";
        let errors = networks_from_yaml(text, "meshNetworks").unwrap_err();
        let lines: Vec<_> = errors.iter().map(|e| e.place.line).collect();
        assert_eq!(lines, [Some(4), Some(7), Some(6), Some(8)], "{errors:?}");
    }
}
