//! Rules of MeshConfig and ProxyConfig (Istio 1.4 `pkg/config/validation`).

use std::collections::BTreeMap;

use proto_networking::mesh::{self, LocalityLoadBalancerSetting, tracing};
use proto_wellknown::Duration;

use crate::path::FieldPath;
use crate::validate::{Problems, rules};

use super::FieldError;

const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(30);
const DRAIN_MAX: Duration = Duration::from_secs(3600);

pub(super) fn mesh(mesh: &mesh::MeshConfig) -> Vec<FieldError> {
    let mut p = Problems::default();
    let root = FieldPath::root();
    for (name, address) in [
        ("mixerCheckServer", &mesh.mixer_check_server),
        ("mixerReportServer", &mesh.mixer_report_server),
    ] {
        optional_address(&mut p, &root.key(name), address);
    }
    rules::port(
        &mut p,
        &root.key("proxyListenPort"),
        i64::from(mesh.proxy_listen_port),
    );
    if mesh.proxy_http_port != 0 {
        rules::port(
            &mut p,
            &root.key("proxyHttpPort"),
            i64::from(mesh.proxy_http_port),
        );
    }
    connect_timeout(&mut p, &root.key("connectTimeout"), mesh.connect_timeout);
    match &mesh.default_config {
        Some(config) => p.extend(proxy(config, &root.key("defaultConfig"))),
        None => p.add(&root.key("defaultConfig"), "is missing"),
    }
    if let Some(setting) = &mesh.locality_lb_setting {
        locality(&mut p, &root.key("localityLbSetting"), setting);
    }
    p.into_vec()
}

pub(super) fn proxy(config: &mesh::ProxyConfig, root: &FieldPath) -> Vec<FieldError> {
    let mut p = Problems::default();
    for (name, value) in [
        ("configPath", &config.config_path),
        ("binaryPath", &config.binary_path),
        ("serviceCluster", &config.service_cluster),
    ] {
        if value.is_empty() {
            p.add(&root.key(name), "is empty");
        }
    }
    drain(&mut p, config, root);
    if config.discovery_address.is_empty() {
        p.add_accepting(
            &root.key("discoveryAddress"),
            "is empty",
            "host:port of Pilot",
        );
    }
    for (name, address) in [
        ("discoveryAddress", config.discovery_address.as_str()),
        ("statsdUdpAddress", &config.statsd_udp_address),
        (
            "envoyMetricsServiceAddress",
            &config.envoy_metrics_service_address,
        ),
    ] {
        optional_address(&mut p, &root.key(name), address);
    }
    for (name, service) in [
        ("envoyMetricsService", &config.envoy_metrics_service),
        ("envoyAccessLogService", &config.envoy_access_log_service),
    ] {
        if let Some(service) = service {
            optional_address(&mut p, &root.key(name).key("address"), &service.address);
        }
    }
    connect_timeout(&mut p, &root.key("connectTimeout"), config.connect_timeout);
    rules::port(
        &mut p,
        &root.key("proxyAdminPort"),
        i64::from(config.proxy_admin_port),
    );
    if !matches!(
        config.control_plane_auth_policy(),
        mesh::AuthenticationPolicy::None | mesh::AuthenticationPolicy::MutualTls
    ) {
        p.add_accepting(
            &root.key("controlPlaneAuthPolicy"),
            "has no meaning here",
            "NONE or MUTUAL_TLS",
        );
    }
    for (name, value) in [
        ("concurrency", config.concurrency),
        ("statNameLength", config.stat_name_length),
    ] {
        if value < 0 {
            p.add_accepting(&root.key(name), format!("{value} is negative"), "0 or more");
        }
    }
    if let Some(tracing) = &config.tracing {
        self::tracing(&mut p, &root.key("tracing"), tracing);
    }
    p.into_vec()
}

/// Rules of MeshNetworks. A network without gateways is one: its endpoints are only reached from inside.
pub(super) fn networks(networks: &mesh::MeshNetworks) -> Vec<FieldError> {
    use mesh::network::{istio_network_gateway::Gw, network_endpoints::Ne};
    let mut p = Problems::default();
    let root = FieldPath::root().key("networks");
    for (name, network) in &networks.networks {
        let path = root.key(name);
        if name.is_empty() {
            p.add(&path, "the name is empty");
        }
        for (i, endpoints) in network.endpoints.iter().enumerate() {
            let path = path.key("endpoints").index(i);
            match &endpoints.ne {
                Some(Ne::FromCidr(range)) if range.parse::<ipnet::IpNet>().is_err() => p
                    .add_accepting(
                        &path.key("fromCidr"),
                        format!("{range:?} is no range of addresses"),
                        "a CIDR such as 10.0.0.0/8",
                    ),
                Some(Ne::FromRegistry(name)) if name.is_empty() => {
                    p.add(&path.key("fromRegistry"), "is empty");
                }
                Some(_) => {}
                None => p.add_accepting(&path, "says nothing", "fromCidr or fromRegistry"),
            }
        }
        for (i, gateway) in network.gateways.iter().enumerate() {
            let path = path.key("gateways").index(i);
            let Some(gw) = &gateway.gw else {
                p.add_accepting(&path, "has no place", "address or registryServiceName");
                continue;
            };
            rules::port(&mut p, &path.key("port"), i64::from(gateway.port));
            let (field, host) = match gw {
                Gw::Address(address) => ("address", address),
                Gw::RegistryServiceName(name) => ("registryServiceName", name),
            };
            let by_address = field == "address" && rules::is_ip(host);
            if !by_address && !rules::is_fqdn(host) {
                p.add_accepting(
                    &path.key(field),
                    format!("{host:?} is neither a name nor an address"),
                    "a full DNS name, or for address an IP",
                );
            }
        }
    }
    p.into_vec()
}

fn optional_address(p: &mut Problems, path: &FieldPath, address: &str) {
    if !address.is_empty() {
        rules::proxy_address(p, path, address);
    }
}

fn connect_timeout(p: &mut Problems, path: &FieldPath, timeout: Option<Duration>) {
    match timeout {
        None => p.add(path, "is missing"),
        Some(timeout) if timeout > CONNECT_TIMEOUT_MAX => {
            p.add_accepting(path, format!("{timeout} is too long"), "1ms to 30s");
        }
        Some(timeout) => rules::duration(p, path, &timeout),
    }
}

fn drain(p: &mut Problems, config: &mesh::ProxyConfig, root: &FieldPath) {
    let fields = [
        ("drainDuration", config.drain_duration),
        ("parentShutdownDuration", config.parent_shutdown_duration),
    ];
    for (name, duration) in fields {
        let path = root.key(name);
        let Some(duration) = duration else {
            p.add(&path, "is missing");
            continue;
        };
        rules::duration(p, &path, &duration);
        if duration.nanos % 1_000_000_000 != 0 {
            p.add_accepting(
                &path,
                format!("{duration} is not a whole number of seconds"),
                "whole seconds",
            );
        }
        if duration > DRAIN_MAX {
            p.add_accepting(&path, format!("{duration} is too long"), "up to 1h");
        }
    }
    if let (Some(drain), Some(parent)) = (config.drain_duration, config.parent_shutdown_duration)
        && parent <= drain
    {
        p.add_accepting(
            &root.key("drainDuration"),
            format!("{drain} is not shorter than parentShutdownDuration, {parent}"),
            "less than parentShutdownDuration",
        );
    }
}

fn tracing(p: &mut Problems, path: &FieldPath, tracing: &mesh::Tracing) {
    match &tracing.tracer {
        Some(tracing::Tracer::Zipkin(t)) => {
            rules::proxy_address(p, &path.key("zipkin").key("address"), &t.address);
        }
        Some(tracing::Tracer::Lightstep(t)) => {
            let path = path.key("lightstep");
            rules::proxy_address(p, &path.key("address"), &t.address);
            if t.access_token.is_empty() {
                p.add(&path.key("accessToken"), "is empty");
            }
            if t.secure && t.cacert_path.is_empty() {
                p.add(&path.key("cacertPath"), "is empty though secure is set");
            }
        }
        Some(tracing::Tracer::Datadog(t)) => {
            // The agent puts the node's address in at start.
            let address = t.address.replace("$(HOST_IP)", "127.0.0.1");
            rules::proxy_address(p, &path.key("datadog").key("address"), &address);
        }
        Some(tracing::Tracer::Stackdriver(_)) | None => {}
    }
}

fn locality(p: &mut Problems, path: &FieldPath, setting: &LocalityLoadBalancerSetting) {
    if !setting.distribute.is_empty() && !setting.failover.is_empty() {
        p.add_accepting(path, "has both distribute and failover", "one of them");
    }
    let mut seen = Vec::new();
    for (i, distribute) in setting.distribute.iter().enumerate() {
        let path = path.key("distribute").index(i);
        one_locality(p, &path.key("from"), &distribute.from, &mut seen);
        weights(p, &path.key("to"), &distribute.to);
    }
    for (i, failover) in setting.failover.iter().enumerate() {
        let path = path.key("failover").index(i);
        if failover.from == failover.to {
            p.add(&path, format!("from and to are both {:?}", failover.from));
        }
        if failover.to.contains('*') {
            p.add_accepting(
                &path.key("to"),
                format!("{:?} has a wildcard", failover.to),
                "a region",
            );
        }
    }
}

fn weights(p: &mut Problems, path: &FieldPath, to: &BTreeMap<String, u32>) {
    let mut seen = Vec::new();
    for (locality, weight) in to {
        one_locality(p, &path.key(locality), locality, &mut seen);
        if *weight == 0 {
            p.add_accepting(&path.key(locality), "the weight is 0", "1 to 100");
        }
    }
    let sum: u64 = to.values().map(|w| u64::from(*w)).sum();
    if sum != 100 {
        p.add_accepting(path, format!("the weights sum to {sum}"), "a sum of 100");
    }
}

/// `region/zone/subzone`, each part after a `*` left out; not overlapping one seen before.
fn one_locality(p: &mut Problems, path: &FieldPath, locality: &str, seen: &mut Vec<String>) {
    let parts: Vec<&str> = locality.split('/').collect();
    let stars = parts.iter().filter(|part| part.contains('*')).count();
    if stars > 1 || (stars == 1 && !locality.ends_with('*')) {
        p.add_accepting(
            path,
            format!("{locality:?} has a wildcard elsewhere than at the end"),
            "region/zone/*",
        );
    }
    if parts.iter().any(|part| part.is_empty()) || parts.len() > 3 {
        p.add_accepting(
            path,
            format!("{locality:?} is no locality"),
            "region, region/zone or region/zone/subzone",
        );
    }
    let stem = |l: &str| l.trim_end_matches('*').trim_end_matches('/').to_owned();
    let within = |inner: &str, outer: &str| {
        outer.is_empty()
            || inner == outer
            || inner
                .strip_prefix(outer)
                .is_some_and(|rest| rest.starts_with('/'))
    };
    let own = stem(locality);
    if let Some(other) = seen
        .iter()
        .find(|s| within(&own, &stem(s)) || within(&stem(s), &own))
    {
        p.add(path, format!("{locality:?} overlaps {other:?}"));
    }
    seen.push(locality.to_owned());
}
