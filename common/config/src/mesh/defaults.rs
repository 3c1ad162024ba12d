//! Istio 1.4's defaults of MeshConfig and ProxyConfig, and how written fields are laid over them.

use proto_networking::BoolValue;
use proto_networking::mesh::{self, mesh_config};
use proto_wellknown::Duration;
use serde_json::Value;

use super::{FieldError, FieldPath, camel, empty};

pub(super) fn mesh_message() -> mesh::MeshConfig {
    let everywhere = || vec!["*".to_owned()];
    mesh::MeshConfig {
        disable_policy_checks: true,
        proxy_listen_port: 15001,
        connect_timeout: Some(Duration::from_secs(1)),
        protocol_detection_timeout: Some(Duration::from_millis(100)),
        ingress_class: "istio".to_owned(),
        ingress_service: "istio-ingressgateway".to_owned(),
        ingress_controller_mode: mesh_config::IngressControllerMode::Off.into(),
        enable_tracing: true,
        access_log_file: "/dev/stdout".to_owned(),
        outbound_traffic_policy: Some(mesh_config::OutboundTrafficPolicy {
            mode: mesh_config::outbound_traffic_policy::Mode::AllowAny.into(),
        }),
        root_namespace: "istio-system".to_owned(),
        default_service_export_to: everywhere(),
        default_virtual_service_export_to: everywhere(),
        default_destination_rule_export_to: everywhere(),
        dns_refresh_rate: Some(Duration::from_secs(5)),
        enable_auto_mtls: Some(BoolValue { value: false }),
        default_config: Some(proxy_message()),
        ..Default::default()
    }
}

pub(super) fn proxy_message() -> mesh::ProxyConfig {
    mesh::ProxyConfig {
        config_path: "/etc/istio/proxy".to_owned(),
        binary_path: "/usr/local/bin/envoy".to_owned(),
        service_cluster: "istio-proxy".to_owned(),
        drain_duration: Some(Duration::from_secs(45)),
        parent_shutdown_duration: Some(Duration::from_secs(60)),
        discovery_address: "istio-pilot:15010".to_owned(),
        connect_timeout: Some(Duration::from_secs(1)),
        proxy_admin_port: 15000,
        control_plane_auth_policy: mesh::AuthenticationPolicy::None.into(),
        stat_name_length: 189,
        ..Default::default()
    }
}

pub(super) fn mesh() -> Value {
    serde_json::to_value(mesh_message()).unwrap_or_else(|_| empty())
}

pub(super) fn proxy() -> Value {
    serde_json::to_value(proxy_message()).unwrap_or_else(|_| empty())
}

/// `written` over `base`, field by field; the field named by `nested` likewise over its own base. Fields written as
/// null keep their default.
pub(super) fn overlay(
    mut base: Value,
    written: Value,
    nested: Option<(&str, Value)>,
) -> Result<Value, FieldError> {
    let root = FieldPath::root();
    let written = match written {
        Value::Object(written) => written,
        Value::Null => return Ok(base),
        other => {
            let message = format!("{} is not a set of fields", crate::parse::type_name(&other));
            return Err(FieldError::new(&root, message).accepted("fields and values"));
        }
    };
    for (key, mut value) in written {
        if value.is_null() {
            continue;
        }
        let key = camel(&key);
        if let Some((name, nested_base)) = nested.as_ref().filter(|(name, _)| *name == key) {
            value = overlay(nested_base.clone(), value, None).map_err(|mut problem| {
                problem.path = root.key(*name);
                problem
            })?;
        }
        base[key] = value;
    }
    Ok(base)
}
