//! Outbound clusters: one per service port and subset.

use std::sync::Arc;

use ahash::AHashSet;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
        explicit_http_config::ProtocolConfig,
    },
};

use super::{endpoint, sni_dnat, tls};
use crate::{
    compile::{LoadBalancer, Policy, Pool},
    envoy::{
        self, UInt64Value,
        cluster::{
            self as pb, Cluster,
            cluster::{
                ClusterDiscoveryType, CommonLbConfig, DiscoveryType, DnsLookupFamily,
                EdsClusterConfig, LbConfig, LbPolicy, RingHashLbConfig, common_lb_config,
            },
        },
        core, kind,
    },
    model::{Protocol, ProxyKind, Registry, Resolution, Service, ServicePort},
    names,
    report::{Report, metric},
    snapshot::{MergedRule, Scope, Settings, Vantage},
};

const PROTOCOL_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// What Istio 1.4 offers upstream; 2³¹−1 is the most Envoy takes.
const MAX_CONCURRENT_STREAMS: u32 = 1_073_741_824;

/// Everything that does not depend on the single proxy: outbound clusters in service order, then the black hole, then
/// (sidecars) the passthrough.
pub(super) fn outbound_clusters(scope: &Scope, report: &mut Report) -> Vec<Cluster> {
    let mut seen: AHashSet<String> = AHashSet::new();
    let mut out = Vec::new();
    for service in scope.services() {
        for cluster in service_clusters(scope, service, report) {
            if seen.insert(cluster.name.clone()) {
                out.push(cluster);
            } else if !is_alias(scope, service) {
                report.event(
                    metric::DUPLICATE_CLUSTERS,
                    cluster.name,
                    format!(
                        "service {}/{} repeats a host and port; the older service stands",
                        service.namespace, service.name
                    ),
                );
            }
        }
    }
    out.push(black_hole(scope.settings()));
    if scope.key().kind == ProxyKind::Sidecar {
        out.push(original_dst(names::PASSTHROUGH, scope.settings()));
    }
    if scope.key().sni_dnat {
        let passing: Vec<Cluster> = out.iter().filter_map(sni_dnat::cluster).collect();
        out.extend(passing);
    }
    out
}

/// A ServiceEntry with several addresses is several services with the same clusters: that is no collision.
fn is_alias(scope: &Scope, service: &Arc<Service>) -> bool {
    scope.by_host(&service.hostname).any(|s| {
        !Arc::ptr_eq(s, service) && s.namespace == service.namespace && s.name == service.name
    })
}

/// The clusters of one service: depends on the service, the rule its clients follow, mesh settings, the kind of proxy, and
/// (STRICT_DNS only) its endpoints; for mesh mTLS also on the service accounts of its endpoints.
pub fn service_clusters(
    scope: &Scope,
    service: &Arc<Service>,
    report: &mut Report,
) -> Vec<Cluster> {
    let rule = scope.rule(service);
    let mut out = Vec::new();
    for port in service.proxied_ports() {
        out.push(outbound_cluster(scope, service, port, "", rule, report));
        for subset in rule.iter().flat_map(|r| r.subsets()) {
            out.push(outbound_cluster(
                scope,
                service,
                port,
                &subset.name,
                rule,
                report,
            ));
        }
    }
    out
}

fn outbound_cluster(
    scope: &Scope,
    service: &Arc<Service>,
    port: &ServicePort,
    subset: &str,
    rule: Option<&Arc<MergedRule>>,
    report: &mut Report,
) -> Cluster {
    let settings = scope.settings();
    let name = names::outbound(port.number, subset, &service.hostname);
    let policy = rule
        .map(|r| r.policy(subset, port.number))
        .unwrap_or_default();
    let mut cluster = Cluster {
        alt_stat_name: stat_name(&settings.outbound_stat_name, service, port, subset),
        name,
        ..Default::default()
    };
    let gateway = scope.key().kind == ProxyKind::Router;
    let keeps_destination = policy.lb == Some(LoadBalancer::Passthrough)
        || (service.resolution == Resolution::Passthrough && !gateway);
    if keeps_destination {
        cluster.cluster_discovery_type = discovery(DiscoveryType::OriginalDst);
        cluster.lb_policy = LbPolicy::ClusterProvided.into();
    } else if service.resolution == Resolution::Dns {
        strict_dns(&mut cluster, scope, service, port, subset);
    } else {
        cluster.cluster_discovery_type = discovery(DiscoveryType::Eds);
        cluster.eds_cluster_config = Some(EdsClusterConfig {
            eds_config: Some(envoy::ads(settings.options.initial_fetch_timeout)),
            service_name: cluster.name.clone(),
        });
    }
    let sharded = port.protocol == Protocol::Redis && settings.options.redis_filter;
    if !keeps_destination && sharded {
        // Each key has its endpoint, whatever the rule says.
        cluster.lb_policy = LbPolicy::Maglev.into();
    } else if !keeps_destination {
        load_balancing(&mut cluster, &policy);
    }
    connection_pool(
        &mut cluster,
        policy.pool.unwrap_or_default(),
        settings,
        true,
    );
    protocol_options(
        &mut cluster,
        port.protocol,
        policy.pool.unwrap_or_default(),
        settings.options.sniff_outbound,
    );
    outlier_detection(&mut cluster, &policy);
    locality_weights(&mut cluster, scope, &policy);
    cluster.transport_socket = tls::client(scope, service, port, subset, &policy, report);
    if let Some(rule) = rule {
        let meta = &rule.first.meta;
        cluster.metadata = Some(envoy::config_metadata(&format!(
            "/apis/networking.istio.io/v1alpha3/namespaces/{}/destination-rule/{}",
            meta.namespace, meta.name
        )));
    }
    cluster
}

pub(super) fn discovery(kind: DiscoveryType) -> Option<ClusterDiscoveryType> {
    Some(ClusterDiscoveryType::Type(kind.into()))
}

// Of two equal ways to say how often to resolve, these fields are the one that Envoy 1.40 and older ones take.
#[allow(deprecated)]
fn strict_dns(
    cluster: &mut Cluster,
    scope: &Scope,
    service: &Arc<Service>,
    port: &ServicePort,
    subset: &str,
) {
    let settings = scope.settings();
    cluster.cluster_discovery_type = discovery(DiscoveryType::StrictDns);
    let family = match scope.key().ipv4 {
        true => DnsLookupFamily::V4Only,
        false => DnsLookupFamily::V6Only,
    };
    cluster.dns_lookup_family = family.into();
    cluster.dns_refresh_rate = envoy::duration(settings.dns_refresh_rate);
    cluster.respect_dns_ttl = settings.options.respect_dns_ttl;
    cluster.load_assignment = Some(match &service.external_name {
        Some(name) => endpoint::single(&cluster.name, name, port.number),
        None => endpoint::assignment(scope, &cluster.name, service, port, subset),
    });
}

pub(super) fn load_balancing(cluster: &mut Cluster, policy: &Policy) {
    let lb_policy = match &policy.lb {
        None | Some(LoadBalancer::RoundRobin | LoadBalancer::Passthrough) => LbPolicy::RoundRobin,
        Some(LoadBalancer::LeastRequest) => LbPolicy::LeastRequest,
        Some(LoadBalancer::Random) => LbPolicy::Random,
        Some(LoadBalancer::RingHash {
            minimum_ring_size, ..
        }) => {
            cluster.lb_config = Some(LbConfig::RingHashLbConfig(RingHashLbConfig {
                minimum_ring_size: Some(UInt64Value {
                    value: *minimum_ring_size,
                }),
                ..Default::default()
            }));
            LbPolicy::RingHash
        }
    };
    cluster.lb_policy = lb_policy.into();
}

/// Thresholds (unlimited where nobody set one), connect timeout and keepalive.
pub(super) fn connection_pool(
    cluster: &mut Cluster,
    pool: Pool,
    settings: &Settings,
    outbound: bool,
) {
    let threshold = |limit: Option<u32>| envoy::uint(limit.unwrap_or(u32::MAX));
    cluster.connect_timeout =
        envoy::duration(pool.connect_timeout.unwrap_or(settings.connect_timeout));
    cluster.circuit_breakers = Some(pb::CircuitBreakers {
        thresholds: vec![pb::circuit_breakers::Thresholds {
            max_connections: threshold(pool.max_connections),
            max_pending_requests: threshold(pool.max_pending_requests),
            max_requests: threshold(pool.max_requests),
            max_retries: threshold(pool.max_retries),
            ..Default::default()
        }],
        ..Default::default()
    });
    let mesh = settings.keepalive.filter(|_| outbound);
    let keepalive = match (mesh, pool.keepalive) {
        (None, None) => return,
        (Some(one), None) | (None, Some(one)) => one,
        (Some(mesh), Some(rule)) => rule.over(mesh),
    };
    cluster.upstream_connection_options = Some(pb::UpstreamConnectionOptions {
        tcp_keepalive: Some(core::TcpKeepalive {
            keepalive_probes: keepalive.probes.and_then(envoy::uint),
            keepalive_time: keepalive.time.and_then(envoy::uint),
            keepalive_interval: keepalive.interval.and_then(envoy::uint),
        }),
        ..Default::default()
    });
}

/// HTTP options of the upstream connection. HTTP/1.1 without further wishes needs none.
pub(super) fn protocol_options(
    cluster: &mut Cluster,
    protocol: Protocol,
    pool: Pool,
    sniffed: bool,
) {
    let http2 = || core::Http2ProtocolOptions {
        max_concurrent_streams: envoy::uint(MAX_CONCURRENT_STREAMS),
        ..Default::default()
    };
    let common = common_options(pool);
    let choice = if protocol.is_http2() {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(http2())),
        })
    } else if protocol == Protocol::Unsupported && sniffed {
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options: Some(core::Http1ProtocolOptions::default()),
            http2_protocol_options: Some(http2()),
            ..Default::default()
        })
    } else if common.is_some() {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::HttpProtocolOptions(
                core::Http1ProtocolOptions::default(),
            )),
        })
    } else {
        return;
    };
    let options = HttpProtocolOptions {
        common_http_protocol_options: common,
        upstream_protocol_options: Some(choice),
        ..Default::default()
    };
    cluster.typed_extension_protocol_options =
        envoy::stable_map([(PROTOCOL_OPTIONS.to_owned(), envoy::any(&options))]);
}

fn common_options(pool: Pool) -> Option<core::HttpProtocolOptions> {
    if pool.idle_timeout.is_none() && pool.max_requests_per_connection.is_none() {
        return None;
    }
    Some(core::HttpProtocolOptions {
        idle_timeout: pool.idle_timeout.and_then(envoy::duration),
        max_requests_per_connection: pool.max_requests_per_connection.and_then(envoy::uint),
        ..Default::default()
    })
}

fn outlier_detection(cluster: &mut Cluster, policy: &Policy) {
    let Some((detection, min_health)) = &policy.outlier else {
        return;
    };
    cluster.outlier_detection = Some(detection.clone());
    cluster.common_lb_config = Some(CommonLbConfig {
        healthy_panic_threshold: Some(kind::Percent {
            value: f64::from(*min_health),
        }),
        ..Default::default()
    });
}

/// Envoy heeds the weights of localities only if told to: with outlier detection, as in Istio 1.4, and where the mesh
/// distributes the traffic of this place, which would otherwise have no effect but for the localities left out.
fn locality_weights(cluster: &mut Cluster, scope: &Scope, policy: &Policy) {
    let original_dst = cluster.lb_policy == i32::from(LbPolicy::ClusterProvided);
    let distributes = matches!(scope.key().vantage, Vantage::Share(_));
    if original_dst || (policy.outlier.is_none() && !distributes) {
        return;
    }
    let weighted =
        common_lb_config::LocalityConfigSpecifier::LocalityWeightedLbConfig(Default::default());
    cluster
        .common_lb_config
        .get_or_insert_default()
        .locality_config_specifier = Some(weighted);
}

/// What is sent here is refused at once.
fn black_hole(settings: &Settings) -> Cluster {
    Cluster {
        name: names::BLACK_HOLE.to_owned(),
        cluster_discovery_type: discovery(DiscoveryType::Static),
        connect_timeout: envoy::duration(settings.connect_timeout),
        ..Default::default()
    }
}

/// Keeps the destination address of the connection it is used for.
pub(super) fn original_dst(name: &str, settings: &Settings) -> Cluster {
    let mut cluster = Cluster {
        name: name.to_owned(),
        cluster_discovery_type: discovery(DiscoveryType::OriginalDst),
        lb_policy: LbPolicy::ClusterProvided.into(),
        ..Default::default()
    };
    connection_pool(&mut cluster, Pool::default(), settings, false);
    cluster
}

/// The name in statistics, from the mesh's pattern; empty: the cluster's own.
pub(super) fn stat_name(
    pattern: &str,
    service: &Service,
    port: &ServicePort,
    subset: &str,
) -> String {
    if pattern.is_empty() {
        return String::new();
    }
    let short = match service.registry {
        Registry::Kubernetes => format!("{}.{}", service.name, service.namespace),
        _ => service.hostname.to_string(),
    };
    pattern
        .replace("%SERVICE_FQDN%", &service.hostname)
        .replace("%SERVICE_PORT_NAME%", &port.name)
        .replace("%SERVICE_PORT%", &port.number.to_string())
        .replace("%SUBSET_NAME%", subset)
        .replace("%SERVICE%", &short)
}

/// Used by inbound clusters.
pub(super) const INBOUND_SOURCE: [(&str, &str); 2] = [
    (names::INBOUND_PASSTHROUGH_V4, "127.0.0.6"),
    (names::INBOUND_PASSTHROUGH_V6, "::6"),
];
