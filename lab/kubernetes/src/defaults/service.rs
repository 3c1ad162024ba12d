//! Services: defaults, cluster IPs and node ports.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use rand::Rng;
use serde_json::{Value, json};

use crate::json::{self, default};
use crate::rest::Context;
use crate::status::{ApiError, FieldError, Result};

/// The lower part of the range is left to addresses that somebody asks for (DNS, for one).
const RESERVED: u32 = 256;

fn kind(value: &Value) -> &str {
    json::str_at(value, &["spec", "type"])
}

pub(super) fn defaults(value: &mut Value) {
    let spec = json::map_mut(value, &["spec"]);
    default(spec, "type", "ClusterIP");
    default(spec, "sessionAffinity", "None");
    if spec["sessionAffinity"] == "ClientIP" {
        default(
            spec,
            "sessionAffinityConfig",
            json!({"clientIP": {"timeoutSeconds": 10800}}),
        );
    }
    let external_name = spec["type"] == "ExternalName";
    let exposed = matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer"));
    if !external_name {
        default(spec, "internalTrafficPolicy", "Cluster");
        default(spec, "ipFamilies", json!(["IPv4"]));
        default(spec, "ipFamilyPolicy", "SingleStack");
    }
    if exposed {
        default(spec, "externalTrafficPolicy", "Cluster");
    }
    if spec["type"] == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
    for port in spec
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let port = json::as_map(port);
        default(port, "protocol", "TCP");
        let number = port.get("port").cloned().unwrap_or_default();
        if port.get("targetPort").is_none_or(|t| *t == 0 || *t == "") {
            port.insert("targetPort".into(), number);
        }
    }
    json::map_mut(value, &["status", "loadBalancer"]);
}

/// An update that does not mention what was allocated keeps it.
pub(super) fn keep(old: &Value, value: &mut Value) {
    if kind(value) == "ExternalName" {
        return;
    }
    for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let missing = json::at(value, &["spec", key]).is_none_or(|v| *v == "");
        if let (true, Some(v)) = (missing, json::at(old, &["spec", key])) {
            json::set(value, &["spec", key], v.clone());
        }
    }
    if !matches!(kind(value), "NodePort" | "LoadBalancer") {
        return;
    }
    let old_ports = json::list_at(old, &["spec", "ports"]).to_vec();
    for port in json::at_mut(value, &["spec", "ports"])
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let same = old_ports
            .iter()
            .find(|o| o["port"] == port["port"] && o["protocol"] == port["protocol"]);
        if let (None | Some(0), Some(node_port)) = (
            json::int_at(port, &["nodePort"]),
            same.and_then(|o| o.get("nodePort")),
        ) {
            port["nodePort"] = node_port.clone();
        }
    }
}

/// Cluster IP and node ports, unique among the stored services.
///
/// Two requests may still pick the same address before either is stored; with 2^20 addresses chosen at
/// random that does not happen in a lab, and an address asked for by name is checked again on write.
pub(super) fn allocate(context: &Context, value: &mut Value) -> Result<()> {
    let _one_at_a_time = context.server.allocation.lock();
    let name = json::str_at(value, &["metadata", "name"]).to_owned();
    let others: Vec<_> = context
        .server
        .store
        .collection("services")
        .list(None, 0)
        .0
        .into_iter()
        .filter(|s| !(s.namespace == context.namespace && s.name == name))
        .collect();
    let invalid = |error| ApiError::invalid("", "Service", &name, &[error]);
    cluster_ip(context, value, &others).map_err(invalid)?;
    node_ports(context, value, &others).map_err(invalid)
}

fn cluster_ip(
    context: &Context,
    value: &mut Value,
    others: &[std::sync::Arc<crate::store::Object>],
) -> std::result::Result<(), FieldError> {
    if kind(value) == "ExternalName" {
        let spec = json::map_mut(value, &["spec"]);
        for key in [
            "clusterIP",
            "clusterIPs",
            "ipFamilies",
            "ipFamilyPolicy",
            "internalTrafficPolicy",
        ] {
            spec.shift_remove(key);
        }
        return Ok(());
    }
    let asked = json::str_at(value, &["spec", "clusterIP"]).to_owned();
    let taken: HashSet<&str> = others
        .iter()
        .map(|o| json::str_at(&o.value, &["spec", "clusterIP"]))
        .collect();
    let range = context.server.config.service_cidr;
    let ip = match asked.as_str() {
        "None" => asked,
        "" => {
            let size = 1u32
                .checked_shl(u32::from(32 - range.prefix_len()))
                .unwrap_or(u32::MAX);
            let low = if size > 4 * RESERVED { RESERVED } else { 1 };
            let base = u32::from(range.network());
            let mut rng = rand::rng();
            (0..10_000)
                .map(|_| Ipv4Addr::from(base + rng.random_range(low..size - 1)).to_string())
                .find(|ip| !taken.contains(ip.as_str()))
                .ok_or_else(|| {
                    FieldError::forbidden(
                        "spec.clusterIP",
                        &format!("the service range {range} is full"),
                    )
                })?
        }
        ip => {
            let known = taken.contains(ip);
            let valid = ip.parse::<Ipv4Addr>().is_ok_and(|ip| range.contains(&ip));
            if !valid {
                let why = format!(
                    "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The range of valid IPs is {range}"
                );
                return Err(FieldError::invalid("spec.clusterIPs", &json!([ip]), &why));
            }
            if known {
                let why = format!("failed to allocate IP {ip}: provided IP is already allocated");
                return Err(FieldError::invalid("spec.clusterIPs", &json!([ip]), &why));
            }
            asked
        }
    };
    let spec = json::map_mut(value, &["spec"]);
    spec.insert("clusterIPs".into(), json!([ip]));
    spec.insert("clusterIP".into(), ip.into());
    Ok(())
}

fn node_ports(
    context: &Context,
    value: &mut Value,
    others: &[std::sync::Arc<crate::store::Object>],
) -> std::result::Result<(), FieldError> {
    let exposed = matches!(kind(value), "NodePort" | "LoadBalancer");
    let mut taken: HashSet<i64> = others
        .iter()
        .flat_map(|o| json::list_at(&o.value, &["spec", "ports"]))
        .filter_map(|p| json::int_at(p, &["nodePort"]))
        .collect();
    let (low, high) = context.server.config.node_ports;
    for (i, port) in json::at_mut(value, &["spec", "ports"])
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .enumerate()
    {
        let port = json::as_map(port);
        if !exposed {
            port.shift_remove("nodePort");
            continue;
        }
        let field = format!("spec.ports[{i}].nodePort");
        let number = match port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) {
            0 => free_port(&taken, low, high).ok_or_else(|| {
                FieldError::forbidden(field, &format!("no free port on this host in {low}-{high}"))
            })?,
            asked if asked < i64::from(low) || asked > i64::from(high) => {
                let why = format!(
                    "provided port is not in the valid range. The range of valid ports is {low}-{high}"
                );
                return Err(FieldError::invalid(field, &asked.into(), &why));
            }
            asked if taken.contains(&asked) => {
                return Err(FieldError::invalid(
                    field,
                    &asked.into(),
                    "provided port is already allocated",
                ));
            }
            asked => asked,
        };
        taken.insert(number);
        port.insert("nodePort".into(), number.into());
    }
    Ok(())
}

/// A port that no service has, chosen at random. Whether it is free on the host is the node's
/// business: it asks for another by writing `nodePort` itself.
fn free_port(taken: &HashSet<i64>, low: u16, high: u16) -> Option<i64> {
    let mut rng = rand::rng();
    (0..10_000)
        .map(|_| i64::from(rng.random_range(low..=high)))
        .find(|p| !taken.contains(p))
}
