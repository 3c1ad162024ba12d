//! TCP filter chains, and keeping chains of one listener apart.

use std::{sync::Arc, time::Duration};

use ahash::AHashSet;
use envoy_types::pb::envoy::extensions::filters::network::{
    mongo_proxy::v3::MongoProxy,
    redis_proxy::v3::{
        RedisProxy,
        redis_proxy::{ConnPoolSettings, PrefixRoutes, prefix_routes},
    },
    tcp_proxy::v3::{
        TcpProxy,
        tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight},
    },
};

use super::hash;
use crate::{
    compile::{Destination, L4Match, L4Route, MESH, VirtualServiceConfig},
    envoy::{
        self, access_log,
        core::CidrRange,
        listener::{Filter, FilterChain, FilterChainMatch},
        network_filter,
    },
    model::{Address, Protocol, Service, host},
    names,
    snapshot::Scope,
};

/// How long a Redis command may take.
const REDIS_TIMEOUT: Duration = Duration::from_secs(5);

/// Network filters that carry bytes to a cluster.
pub(super) fn filters(scope: &Scope, cluster: &str, protocol: Protocol) -> Vec<Filter> {
    if protocol == Protocol::Redis && scope.settings().options.redis_filter {
        return vec![redis_proxy(cluster)];
    }
    let specifier = ClusterSpecifier::Cluster(cluster.to_owned());
    with_codec(protocol, cluster, tcp_proxy(scope, cluster, specifier))
}

fn tcp_proxy(scope: &Scope, stat_prefix: &str, specifier: ClusterSpecifier) -> Filter {
    // One policy for all of them: Envoy takes no more.
    let hash_policy = match &specifier {
        ClusterSpecifier::Cluster(cluster) => hash::of_connections(scope, cluster),
        ClusterSpecifier::WeightedClusters(all) => {
            let mut names = all.clusters.iter().map(|c| &c.name);
            names.find_map(|cluster| hash::of_connections(scope, cluster))
        }
    };
    let proxy = TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        cluster_specifier: Some(specifier),
        hash_policy: hash_policy.into_iter().collect(),
        access_log: access_log(scope.settings().access_log.as_ref()),
        idle_timeout: scope.key().idle_timeout.and_then(envoy::duration),
        ..Default::default()
    };
    network_filter("envoy.filters.network.tcp_proxy", &proxy)
}

/// Reads commands and spreads them over the cluster by key. It ends the chain in place of the TCP proxy; shares among
/// several clusters are not something it knows, so a weighted route stays plain TCP.
fn redis_proxy(cluster: &str) -> Filter {
    let proxy = RedisProxy {
        stat_prefix: cluster.to_owned(),
        settings: Some(ConnPoolSettings {
            op_timeout: envoy::duration(REDIS_TIMEOUT),
            ..Default::default()
        }),
        prefix_routes: Some(PrefixRoutes {
            catch_all_route: Some(prefix_routes::Route {
                cluster: cluster.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    network_filter("envoy.filters.network.redis_proxy", &proxy)
}

/// Protocols that Envoy can read along get their codec in front.
fn with_codec(protocol: Protocol, stat_prefix: &str, proxy: Filter) -> Vec<Filter> {
    let codec = (protocol == Protocol::Mongo).then(|| {
        let mongo = MongoProxy {
            stat_prefix: stat_prefix.to_owned(),
            ..Default::default()
        };
        network_filter("envoy.filters.network.mongo_proxy", &mongo)
    });
    codec.into_iter().chain([proxy]).collect()
}

/// Filters for the destinations of a tcp or tls rule.
pub(super) fn route_filters(
    scope: &Scope,
    config: &VirtualServiceConfig,
    route: &L4Route,
    port: u32,
    protocol: Protocol,
) -> Vec<Filter> {
    let cluster = |destination: &Destination| scope.destination_cluster(destination, port);
    match route.destinations.as_slice() {
        [(only, _)] => filters(scope, &cluster(only), protocol),
        several => {
            let clusters = several
                .iter()
                .map(|(d, weight)| ClusterWeight {
                    name: cluster(d),
                    weight: *weight,
                    ..Default::default()
                })
                .collect();
            let prefix = config.full_name();
            let specifier = ClusterSpecifier::WeightedClusters(WeightedCluster { clusters });
            with_codec(protocol, &prefix, tcp_proxy(scope, &prefix, specifier))
        }
    }
}

/// A service as it is called at a listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) service: &'a Service,
    /// The listener's port; 0: a socket.
    pub(super) port: u32,
    /// What the listener speaks.
    pub(super) protocol: Protocol,
    /// The service's port, where no VirtualService says otherwise.
    pub(super) cluster_port: u32,
    /// The listener is for all addresses: those of the service are to be matched.
    pub(super) own_range: bool,
    /// The listener must tell TLS services apart by SNI.
    pub(super) sni: bool,
}

impl Target<'_> {
    /// The port that destinations without one are called on.
    fn called(self) -> u32 {
        match self.port {
            0 => self.cluster_port,
            port => port,
        }
    }
}

/// Chains for a service of the outbound side: those of the VirtualServices that apply, else (TCP: then) the default one.
pub(super) fn service_chains(
    scope: &Scope,
    virtual_services: &[Arc<VirtualServiceConfig>],
    target: Target<'_>,
) -> Vec<FilterChain> {
    let Target { service, .. } = target;
    let own: Vec<CidrRange> = match service.address {
        Address::Cidr(net) if target.own_range => vec![envoy::cidr(net.addr(), net.prefix_len())],
        _ => Vec::new(),
    };
    let applying = virtual_services
        .iter()
        .filter(|v| v.hosts.iter().any(|h| host::matches(h, &service.hostname)));
    let mut out = Vec::new();
    for config in applying {
        match target.protocol.is_tls() {
            true => tls_chains(scope, config, target, &own, &mut out),
            false if tcp_chains(scope, config, target, &own, &mut out) => return out,
            false => {}
        }
    }
    // Encrypted connections follow tls rules only. Where one applies, names it does not mention are nobody's.
    if target.protocol.is_tls() && !out.is_empty() {
        return out;
    }
    // A rule may say for the whole range of the service what the default would.
    let is_own = |m: &FilterChainMatch| m.server_names.is_empty() && m.prefix_ranges == own;
    let mut matches = out.iter().filter_map(|c| c.filter_chain_match.as_ref());
    if matches.any(is_own) {
        return out;
    }
    let cluster = names::outbound(target.cluster_port, "", &service.hostname);
    let by_sni = target.protocol.is_tls() && target.sni && &*service.hostname != "*";
    let server_names = match by_sni {
        true => vec![service.hostname.to_string()],
        false => Vec::new(),
    };
    let filters = filters(scope, &cluster, target.protocol);
    out.push(chain(server_names, own, filters));
    out
}

fn tls_chains(
    scope: &Scope,
    config: &VirtualServiceConfig,
    target: Target<'_>,
    own: &[CidrRange],
    out: &mut Vec<FilterChain>,
) {
    for route in &config.tls {
        let matching = route.matches.iter().filter(|m| holds_at(scope, m, target));
        for m in matching {
            let names = m.sni_hosts.iter().filter(|n| {
                host::subset_of(n, &target.service.hostname)
                    || config.hosts.iter().any(|h| host::subset_of(n, h))
            });
            let server_names: Vec<String> = names.cloned().collect();
            if server_names.is_empty() {
                continue;
            }
            let filters = route_filters(scope, config, route, target.called(), target.protocol);
            out.push(chain(server_names, ranges(m, target, own), filters));
        }
    }
}

/// Returns whether the rules leave nothing to the ones after them.
fn tcp_chains(
    scope: &Scope,
    config: &VirtualServiceConfig,
    target: Target<'_>,
    own: &[CidrRange],
    out: &mut Vec<FilterChain>,
) -> bool {
    for route in &config.tcp {
        let matching = route.matches.iter().filter(|m| holds_at(scope, m, target));
        for m in matching {
            let filters = route_filters(scope, config, route, target.called(), target.protocol);
            let ranges = ranges(m, target, own);
            out.push(chain(Vec::new(), ranges, filters));
            if m.subnets.is_empty() || target.port == 0 {
                return true;
            }
        }
    }
    false
}

/// Whether a match holds for the mesh at a listener.
fn holds_at(scope: &Scope, m: &L4Match, target: Target<'_>) -> bool {
    holds(scope, m, MESH, Some(target.port))
}

/// Whether a match holds for a gateway (or the mesh) and a port.
pub(super) fn holds(scope: &Scope, m: &L4Match, gateway: &str, port: Option<u32>) -> bool {
    let gateway_holds = m.gateways.is_empty() || m.gateways.iter().any(|g| &**g == gateway);
    let labels_hold =
        !m.gateways.is_empty() || gateway != MESH || scope.has_labels(&m.source_labels);
    gateway_holds && labels_hold && (m.port.is_none() || m.port == port)
}

/// The addresses of a match, or those of the service. Connections to a socket have none.
fn ranges(m: &L4Match, target: Target<'_>, own: &[CidrRange]) -> Vec<CidrRange> {
    if m.subnets.is_empty() || target.port == 0 {
        return own.to_vec();
    }
    m.subnets
        .iter()
        .map(|n| envoy::cidr(n.addr(), n.prefix_len()))
        .collect()
}

/// A chain; without conditions it has no match at all.
pub(super) fn chain(
    server_names: Vec<String>,
    prefix_ranges: Vec<CidrRange>,
    filters: Vec<Filter>,
) -> FilterChain {
    let filter_chain_match =
        (!server_names.is_empty() || !prefix_ranges.is_empty()).then(|| FilterChainMatch {
            server_names,
            prefix_ranges,
            ..Default::default()
        });
    FilterChain {
        filter_chain_match,
        filters,
        ..Default::default()
    }
}

/// What the chains of a listener already match. Envoy refuses a listener in which two chains could match the same
/// connection equally well; it compares every combination of the lists in a match.
#[derive(Debug, Default)]
pub(super) struct Claims(AHashSet<(Option<u32>, String, String, String, String)>);

impl Claims {
    /// Takes a chain in, without those of its server names (or else prefixes) that are claimed; `false`: nothing is left of it.
    pub(super) fn admit(&mut self, chain: &mut FilterChain) -> bool {
        let mut m = chain.filter_chain_match.clone().unwrap_or_default();
        if self.free(&m) {
            self.claim(&m);
            return true;
        }
        if !m.server_names.is_empty() {
            let all = std::mem::take(&mut m.server_names);
            m.server_names = all
                .into_iter()
                .filter(|n| self.free(&narrowed_name(&m, n)))
                .collect();
            if m.server_names.is_empty() {
                return false;
            }
        } else if !m.prefix_ranges.is_empty() {
            let all = std::mem::take(&mut m.prefix_ranges);
            m.prefix_ranges = all
                .into_iter()
                .filter(|r| self.free(&narrowed_range(&m, r)))
                .collect();
            if m.prefix_ranges.is_empty() {
                return false;
            }
        } else {
            return false;
        }
        self.claim(&m);
        chain.filter_chain_match = Some(m);
        true
    }

    /// Whether some chain matches every connection.
    pub(super) fn matches_all(&self) -> bool {
        self.0.contains(&Default::default())
    }

    fn free(&self, m: &FilterChainMatch) -> bool {
        tuples(m).iter().all(|t| !self.0.contains(t))
    }

    fn claim(&mut self, m: &FilterChainMatch) {
        self.0.extend(tuples(m));
    }
}

fn narrowed_name(m: &FilterChainMatch, name: &str) -> FilterChainMatch {
    FilterChainMatch {
        server_names: vec![name.to_owned()],
        ..m.clone()
    }
}

fn narrowed_range(m: &FilterChainMatch, range: &CidrRange) -> FilterChainMatch {
    FilterChainMatch {
        prefix_ranges: vec![range.clone()],
        ..m.clone()
    }
}

/// Every combination that a match stands for.
fn tuples(m: &FilterChainMatch) -> Vec<(Option<u32>, String, String, String, String)> {
    let port = m.destination_port.as_ref().map(|p| p.value);
    let ranges: Vec<String> = m.prefix_ranges.iter().map(canonical).collect();
    let or_any = |list: &[String]| {
        if list.is_empty() {
            vec![String::new()]
        } else {
            list.to_vec()
        }
    };
    let mut out = Vec::new();
    for range in or_any(&ranges) {
        for name in or_any(&m.server_names) {
            for alpn in or_any(&m.application_protocols) {
                out.push((
                    port,
                    range.clone(),
                    name.clone(),
                    m.transport_protocol.clone(),
                    alpn,
                ));
            }
        }
    }
    out
}

/// Two ranges that reduce to one prefix count as equal.
fn canonical(range: &CidrRange) -> String {
    let length = range.prefix_len.as_ref().map_or(0, |l| l.value);
    let address = range.address_prefix.parse::<std::net::IpAddr>().ok();
    let net = address.and_then(|a| ipnet::IpNet::new(a, u8::try_from(length).ok()?).ok());
    net.map_or_else(
        || format!("{}/{length}", range.address_prefix),
        |n| n.trunc().to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(names: &[&str], ranges: &[(&str, u8)]) -> FilterChain {
        let ranges = ranges
            .iter()
            .filter_map(|(a, l)| Some(envoy::cidr(a.parse().ok()?, *l)))
            .collect();
        chain(
            names.iter().map(|n| (*n).to_owned()).collect(),
            ranges,
            Vec::new(),
        )
    }

    fn match_of(chain: &FilterChain) -> FilterChainMatch {
        chain.filter_chain_match.clone().unwrap_or_default()
    }

    #[test]
    fn a_chain_keeps_what_is_not_claimed() {
        let mut claims = Claims::default();
        assert!(claims.admit(&mut with(&["a", "b"], &[])));
        let mut second = with(&["b", "c"], &[]);
        assert!(claims.admit(&mut second));
        assert_eq!(match_of(&second).server_names, ["c"]);
        assert!(!claims.admit(&mut with(&["a"], &[])));
        assert!(!claims.matches_all());
        assert!(claims.admit(&mut with(&[], &[])) && claims.matches_all());
        assert!(!claims.admit(&mut with(&[], &[])));
    }

    #[test]
    fn ranges_are_compared_as_prefixes() {
        let mut claims = Claims::default();
        assert!(claims.admit(&mut with(&[], &[("10.0.0.0", 8)])));
        let mut second = with(&[], &[("10.9.9.9", 8), ("11.0.0.0", 8)]);
        assert!(claims.admit(&mut second));
        assert_eq!(match_of(&second).prefix_ranges.len(), 1);
        // A longer prefix inside is another match: the more specific one wins.
        assert!(claims.admit(&mut with(&[], &[("10.1.0.0", 16)])));
    }
}
