//! Configuration for gRPC clients that route by themselves, without a proxy.
//!
//! A client that dials `xds:///HOST:PORT` asks for the listener of that name and follows it: listener → route
//! configuration → clusters → endpoints, each by name. What each function makes is what the same service looks like to a
//! sidecar, less what gRPC cannot do. gRPC refuses a whole resource for a thing that Envoy ignores, and has no word for
//! others; so the rules here are:
//!
//! - A listener holds one connection manager with its routes by name, and the filters that gRPC knows: fault, router.
//! - Routes: header matchers in the form that every gRPC reads; timeouts where gRPC looks for them; options of filters that
//!   it does not know left out. A redirect or a direct answer stays, and fails the call.
//! - Clusters: EDS, or one DNS name; round robin or ring hash; no transport socket, since the channel's credentials decide
//!   about TLS.
//! - Endpoints: addresses only, each once, every locality named.
//!
//! EnvoyFilters do not apply: they speak of what Envoy has. What a rule asks for and a gRPC client does not get is counted
//! in `pilot_grpc_unsupported_config`.
//!
//! Cost: by name, so a client costs what it uses, however large the mesh.

use std::{collections::BTreeSet, sync::Arc};

use ahash::AHashSet;
use envoy_types::pb::envoy::{
    config::{core::v3::ApiVersion, listener::v3::ApiListener},
    extensions::filters::{
        http::{fault::v3::HttpFault, router::v3::Router},
        network::http_connection_manager::v3::{
            HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier,
        },
    },
};

use super::{cluster, endpoint, placement, route};
use crate::{
    compile::{LoadBalancer, MESH, Policy, TlsPolicyMode},
    envoy::{
        self,
        cluster::{
            Cluster,
            cluster::{DiscoveryType, EdsClusterConfig},
        },
        core, endpoint as pb_endpoint,
        endpoint::ClusterLoadAssignment,
        listener::Listener,
        matcher::string_matcher::MatchPattern,
        route::{
            HeaderMatcher, Route, RouteAction, RouteConfiguration, VirtualHost,
            header_matcher::HeaderMatchSpecifier,
            route::Action,
            route_action::{ClusterSpecifier, MaxStreamDuration},
        },
    },
    model::{Resolution, Service, ServicePort, host},
    names,
    report::{Report, metric},
    snapshot::Scope,
};

const FAULT: &str = "envoy.filters.http.fault";
const ROUTER: &str = "envoy.filters.http.router";
/// gRPC refuses a larger ring.
const MAX_RING: u64 = 8 * 1024 * 1024;

/// The listener of a target, if there is such a service. `name` is `HOST:PORT`; a host may be as short as the client's
/// DNS domain allows.
pub fn api_listener(scope: &Scope, name: &str) -> Option<Listener> {
    let (host, port) = target(scope, name)?;
    let hcm = HttpConnectionManager {
        stat_prefix: names::host_port(&host, port),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(aggregated()),
            route_config_name: names::outbound(port, "", &host),
        })),
        http_filters: vec![
            envoy::typed_filter(FAULT, &HttpFault::default()),
            envoy::typed_filter(ROUTER, &Router::default()),
        ],
        ..Default::default()
    };
    Some(Listener {
        name: name.to_owned(),
        api_listener: Some(ApiListener {
            api_listener: Some(envoy::any(&hcm)),
        }),
        ..Default::default()
    })
}

/// Resources come on the same stream. Without a timeout: gRPC has its own.
fn aggregated() -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        ..envoy::ads(None)
    }
}

/// The service behind a target: the host as it stands, or completed by the tail of the client's DNS domain.
fn target(scope: &Scope, name: &str) -> Option<(Arc<str>, u32)> {
    let (text, port) = name.rsplit_once(':')?;
    let port: u32 = port.parse().ok().filter(|port| *port != 0)?;
    let text = text.trim_end_matches('.').to_ascii_lowercase();
    let serves = |candidate: &str| {
        let (service, port) = scope.service_port(candidate, port)?;
        service
            .proxied_ports()
            .any(|p| p.number == port.number)
            .then(|| service.hostname.clone())
    };
    if let Some(host) = serves(&text) {
        return Some((host, port));
    }
    let domain = &scope.key().dns_domain;
    let mut tails = domain.match_indices('.').map(|(at, _)| &domain[at + 1..]);
    let candidates = std::iter::once(&**domain).chain(&mut tails);
    for tail in candidates.filter(|tail| !tail.is_empty()) {
        let candidate = format!("{text}.{tail}");
        if let Some(host) = serves(&candidate)
            && host::alternates(&host, domain).contains(&text)
        {
            return Some((host, port));
        }
    }
    // As sidecars have it: a host that only a VirtualService knows is there on port 80.
    let orphan = port == 80 && scope.by_host(&text).next().is_none() && host::is_valid(&text);
    let claimed = || {
        scope
            .virtual_services()
            .iter()
            .any(|v| v.hosts.iter().any(|h| **h == *text))
    };
    (orphan && !host::is_wildcard(&text) && claimed()).then(|| (text.into(), port))
}

/// The routes of a target, by the name that [`api_listener`] gave them. A name that nothing stands behind gets an
/// empty configuration, which fails calls at once instead of after gRPC's patience.
pub fn api_route(scope: &Scope, name: &str, report: &mut Report) -> RouteConfiguration {
    let Some(parts) = names::parse_outbound(name).filter(|parts| parts.subset.is_empty()) else {
        return route::configuration(name, Vec::new());
    };
    let mut routes: Vec<Route> = host_routes(scope, parts.host, parts.port);
    routes.retain_mut(|route| adapt_route(route, name, report));
    if routes.is_empty() {
        return route::configuration(name, Vec::new());
    }
    let host = VirtualHost {
        name: names::host_port(parts.host, parts.port),
        // The listener is this one host's, whatever authority its calls bear.
        domains: vec!["*".to_owned()],
        routes,
        ..Default::default()
    };
    route::configuration(name, vec![host])
}

/// What a sidecar would do with requests to this host: the oldest VirtualService that has routes for it, or the default.
fn host_routes(scope: &Scope, hostname: &str, port: u32) -> Vec<Route> {
    let service = scope.service_port(hostname, port);
    let routed = service.is_none_or(|(_, port)| placement::is_routed(scope, port.protocol));
    let claims = |pattern: &Arc<str>| {
        **pattern == *hostname || (host::is_wildcard(pattern) && host::matches(hostname, pattern))
    };
    let claiming = scope
        .virtual_services()
        .iter()
        .filter(|config| routed && config.hosts.iter().any(claims));
    claiming
        .map(|config| route::routes(scope, config, MESH, port))
        .find(|routes| !routes.is_empty())
        .or_else(|| Some(vec![route::service_route(scope, service?.0, port)]))
        .unwrap_or_default()
}

/// Brings a route into a form that gRPC reads; `false` if no call could ever take it.
fn adapt_route(route: &mut Route, config: &str, report: &mut Report) -> bool {
    route.decorator = None;
    route
        .typed_per_filter_config
        .retain(|name, _| name == FAULT);
    let Some(matched) = &mut route.r#match else {
        return false;
    };
    let headers = std::mem::take(&mut matched.headers);
    for header in headers {
        match is_method(&header) {
            // Every call is a POST.
            Some(true) => {}
            Some(false) => return false,
            None => matched.headers.push(plain_matcher(header)),
        }
    }
    if let Some(Action::Route(action)) = &mut route.action {
        adapt_action(action, config, report);
    }
    true
}

/// Whether a matcher of the method is met by `POST`; `None` if it is one of another header, or cannot be told here.
fn is_method(header: &HeaderMatcher) -> Option<bool> {
    if header.name != ":method" {
        return None;
    }
    match header.header_match_specifier.as_ref()? {
        HeaderMatchSpecifier::PresentMatch(present) => Some(*present),
        HeaderMatchSpecifier::StringMatch(text) => match text.match_pattern.as_ref()? {
            MatchPattern::Exact(text) => Some(text == "POST"),
            MatchPattern::Prefix(text) => Some("POST".starts_with(text.as_str())),
            _ => None,
        },
        _ => None,
    }
}

/// String matchers in a message of their own are unknown to gRPC before 1.6x, which refuses them with everything beside.
#[allow(deprecated)]
fn plain_matcher(mut header: HeaderMatcher) -> HeaderMatcher {
    if let Some(HeaderMatchSpecifier::StringMatch(text)) = &header.header_match_specifier
        && !text.ignore_case
    {
        let plain = match text.match_pattern.clone() {
            Some(MatchPattern::Exact(text)) => HeaderMatchSpecifier::ExactMatch(text),
            Some(MatchPattern::Prefix(text)) => HeaderMatchSpecifier::PrefixMatch(text),
            Some(MatchPattern::Suffix(text)) => HeaderMatchSpecifier::SuffixMatch(text),
            Some(MatchPattern::Contains(text)) => HeaderMatchSpecifier::ContainsMatch(text),
            Some(MatchPattern::SafeRegex(regex)) => HeaderMatchSpecifier::SafeRegexMatch(regex),
            _ => return header,
        };
        header.header_match_specifier = Some(plain);
    }
    header
}

#[allow(deprecated)]
fn adapt_action(action: &mut RouteAction, config: &str, report: &mut Report) {
    let mut unsupported = |there: bool, what: &str| {
        if there {
            note(report, config, what);
        }
    };
    unsupported(!action.request_mirror_policies.is_empty(), "mirror");
    unsupported(
        !action.prefix_rewrite.is_empty() || action.host_rewrite_specifier.is_some(),
        "rewrite",
    );
    action.request_mirror_policies.clear();
    action.prefix_rewrite.clear();
    action.host_rewrite_specifier = None;
    // gRPC knows no other timeout than this one.
    action.max_grpc_timeout = None;
    let timeout = action.timeout.take();
    action.max_stream_duration = timeout
        .filter(|timeout| timeout.seconds != 0 || timeout.nanos != 0)
        .map(|timeout| MaxStreamDuration {
            max_stream_duration: Some(timeout),
            ..Default::default()
        });
    if let Some(retries) = &mut action.retry_policy {
        retries.retry_host_predicate.clear();
        retries.host_selection_retry_max_attempts = 0;
    }
    if let Some(ClusterSpecifier::WeightedClusters(clusters)) = &mut action.cluster_specifier {
        let weight = |c: &envoy::route::weighted_cluster::ClusterWeight| {
            c.weight.as_ref().map_or(0, |weight| weight.value)
        };
        // Older gRPC refuses weights that do not add up to the total, which is 100 unless said.
        clusters.total_weight = envoy::uint(clusters.clusters.iter().map(weight).sum());
    }
}

fn note(report: &mut Report, key: &str, what: &str) {
    report.event(
        metric::GRPC_UNSUPPORTED,
        format!("{key} {what}"),
        format!("gRPC clients have no {what}; they are configured without it"),
    );
}

/// A cluster by name: `None` if there is no such service, port or subset.
pub fn api_cluster(scope: &Scope, name: &str, report: &mut Report) -> Option<Cluster> {
    let parts = names::parse_outbound(name).filter(|_| name.starts_with("outbound|"))?;
    let (service, port) = scope.service_port(parts.host, parts.port)?;
    service.proxied_ports().find(|p| p.number == port.number)?;
    let rule = scope.rule(service);
    if !parts.subset.is_empty() {
        rule?.subset(parts.subset)?;
    }
    let policy = rule
        .map(|rule| rule.policy(parts.subset, port.number))
        .unwrap_or_default();
    let mut cluster = Cluster {
        name: name.to_owned(),
        ..Default::default()
    };
    let discovered = dns(&mut cluster, scope, service, port, parts.subset, report);
    if !discovered {
        cluster.cluster_discovery_type = cluster::discovery(DiscoveryType::Eds);
        cluster.eds_cluster_config = Some(EdsClusterConfig {
            eds_config: Some(aggregated()),
            service_name: name.to_owned(),
        });
    }
    balance(&mut cluster, &policy, report);
    let pool = policy.pool.unwrap_or_default();
    cluster::connection_pool(&mut cluster, pool, scope.settings(), true);
    cluster.upstream_connection_options = None;
    cluster.outlier_detection = policy.outlier.map(|(detection, _)| detection);
    if policy
        .tls
        .is_some_and(|tls| tls.mode != TlsPolicyMode::Disable)
    {
        note(report, name, "TLS from a DestinationRule");
    }
    Some(cluster)
}

/// Round robin or ring hash: gRPC refuses clusters with another balancer.
fn balance(cluster: &mut Cluster, policy: &Policy, report: &mut Report) {
    let mut known = policy.clone();
    match &mut known.lb {
        Some(LoadBalancer::RingHash {
            minimum_ring_size, ..
        }) => *minimum_ring_size = (*minimum_ring_size).min(MAX_RING),
        Some(LoadBalancer::LeastRequest) => note(report, &cluster.name, "LEAST_CONN"),
        Some(LoadBalancer::Random) => note(report, &cluster.name, "RANDOM"),
        _ => {}
    }
    if !matches!(known.lb, Some(LoadBalancer::RingHash { .. })) {
        known.lb = Some(LoadBalancer::RoundRobin);
    }
    cluster::load_balancing(cluster, &known);
}

/// A name for gRPC to resolve: it can do one per cluster.
fn dns(
    cluster: &mut Cluster,
    scope: &Scope,
    service: &Arc<Service>,
    port: &ServicePort,
    subset: &str,
    report: &mut Report,
) -> bool {
    if service.resolution != Resolution::Dns {
        return false;
    }
    let mut assignment = match &service.external_name {
        Some(name) => endpoint::single(&cluster.name, name, port.number),
        None => endpoint::assignment(scope, &cluster.name, service, port, subset),
    };
    let count: usize = assignment
        .endpoints
        .iter()
        .map(|e| e.lb_endpoints.len())
        .sum();
    if count == 0 {
        return false;
    }
    if count > 1 {
        note(report, &cluster.name, "more than one DNS name");
    }
    assignment.endpoints.truncate(1);
    for group in &mut assignment.endpoints {
        group.lb_endpoints.truncate(1);
        group.locality.get_or_insert_default();
    }
    cluster.cluster_discovery_type = cluster::discovery(DiscoveryType::LogicalDns);
    cluster.load_assignment = Some(assignment);
    true
}

/// The endpoints of a cluster. gRPC refuses an assignment with a repeated or unusable address, and skips localities that
/// it is not told the name of.
pub fn api_endpoints(scope: &Scope, name: &str, report: &mut Report) -> ClusterLoadAssignment {
    let mut assignment = endpoint::endpoints(scope, name, report);
    let mut seen: AHashSet<(String, u32)> = AHashSet::new();
    for group in &mut assignment.endpoints {
        group.locality.get_or_insert_default();
        group
            .lb_endpoints
            .retain(|endpoint| socket(endpoint).is_some_and(|address| seen.insert(address)));
    }
    assignment
        .endpoints
        .retain(|group| !group.lb_endpoints.is_empty());
    // What lost all its endpoints may have left a gap.
    let used: BTreeSet<u32> = assignment.endpoints.iter().map(|g| g.priority).collect();
    for group in &mut assignment.endpoints {
        let rank = used.range(..group.priority).count();
        group.priority = u32::try_from(rank).unwrap_or(group.priority);
    }
    assignment
}

/// The address of an endpoint, if it is an IP address with a port.
fn socket(endpoint: &pb_endpoint::LbEndpoint) -> Option<(String, u32)> {
    use core::{address::Address, socket_address::PortSpecifier};
    use pb_endpoint::lb_endpoint::HostIdentifier;
    let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else {
        return None;
    };
    match endpoint.address.as_ref()?.address.as_ref()? {
        Address::SocketAddress(socket) if socket.address.parse::<std::net::IpAddr>().is_ok() => {
            match socket.port_specifier {
                Some(PortSpecifier::PortValue(port)) => Some((socket.address.clone(), port)),
                _ => None,
            }
        }
        _ => None,
    }
}
