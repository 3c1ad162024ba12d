//! What generators need of mesh config and options, parsed once.

use std::{sync::Arc, time::Duration};

use mesh_config::{MeshConfig, OutboundTrafficPolicy, mesh::AccessLogEncoding};

use super::LocalityLb;
use crate::{
    Options,
    compile::{self, Keepalive},
    registry::ingress,
};

const MILLISECOND: Duration = Duration::from_millis(1);

/// Parsed settings of the mesh.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the fields are those of MeshConfig
pub struct Settings {
    pub options: Arc<Options>,
    pub root_namespace: Arc<str>,
    pub connect_timeout: Duration,
    pub dns_refresh_rate: Duration,
    pub protocol_detection_timeout: Duration,
    pub keepalive: Option<Keepalive>,
    pub locality_lb: Option<LocalityLb>,
    pub proxy_listen_port: u32,
    pub proxy_http_port: u32,
    pub allow_any: bool,
    pub access_log: Option<AccessLogSettings>,
    pub tracing: bool,
    pub auto_mtls: bool,
    pub inbound_stat_name: String,
    pub outbound_stat_name: String,
    pub sds_uds_path: String,
    pub compile: compile::Context,
}

/// Where and how requests are logged.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessLogSettings {
    /// File, `/dev/stdout` included.
    pub path: String,
    /// The user's format; empty: the default one.
    pub format: String,
    /// JSON rather than text.
    pub json: bool,
}

impl Settings {
    pub(super) fn new(mesh: &MeshConfig, options: &Arc<Options>) -> Settings {
        let root = if mesh.root_namespace.is_empty() {
            "istio-system"
        } else {
            &mesh.root_namespace
        };
        Settings {
            options: options.clone(),
            root_namespace: root.into(),
            // Envoy refuses zero and less than a millisecond here.
            connect_timeout: mesh.connect_timeout.max(MILLISECOND),
            dns_refresh_rate: mesh.dns_refresh_rate.max(Duration::from_millis(2)),
            protocol_detection_timeout: mesh.protocol_detection_timeout.max(MILLISECOND),
            keepalive: mesh.tcp_keepalive.as_ref().map(Keepalive::of),
            locality_lb: mesh.locality_lb_setting.as_ref().map(LocalityLb::new),
            proxy_listen_port: match mesh.proxy_listen_port {
                0 => 15001,
                port => port.into(),
            },
            proxy_http_port: mesh.proxy_http_port.into(),
            allow_any: mesh.outbound_traffic_policy == OutboundTrafficPolicy::AllowAny,
            access_log: (!mesh.access_log_file.is_empty()).then(|| AccessLogSettings {
                path: mesh.access_log_file.clone(),
                format: mesh.access_log_format.clone(),
                json: mesh.access_log_encoding == AccessLogEncoding::Json,
            }),
            tracing: mesh.enable_tracing && options.zipkin_cluster.is_some(),
            auto_mtls: mesh.enable_auto_mtls,
            inbound_stat_name: mesh.inbound_cluster_stat_name.clone(),
            outbound_stat_name: mesh.outbound_cluster_stat_name.clone(),
            sds_uds_path: mesh.sds_uds_path.clone(),
            compile: compile::Context {
                domain: options.domain.as_str().into(),
                virtual_service_export_to: mesh.default_virtual_service_export_to.clone(),
                destination_rule_export_to: mesh.default_destination_rule_export_to.clone(),
                service_export_to: mesh.default_service_export_to.clone(),
                ingress: ingress::Settings {
                    mode: mesh.ingress_controller_mode,
                    class: mesh.ingress_class.clone(),
                    namespace: root.to_owned(),
                    domain: options.domain.clone(),
                },
            },
        }
    }
}
