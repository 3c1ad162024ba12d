//! Route configurations.
//!
//! A sidecar's route configuration holds one virtual host per service (and per VirtualService host without a service) of a
//! port. Names and domains are unique by construction: full names are claimed first, in order of age, then the short
//! names; what is taken is left out and counted. Cost: O(services of the port + VirtualServices × their hosts).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use ahash::{AHashMap, AHashSet};
use mesh_config::Meta;

use super::{gateway, hash, listener, placement};
use crate::{
    compile::{self, HttpRoute, MESH, VirtualServiceConfig},
    envoy::{
        self, core, kind,
        route::{
            DirectResponseAction, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
            WeightedCluster,
            route::Action,
            route_action::{ClusterSpecifier, RequestMirrorPolicy},
            route_match::PathSpecifier,
        },
    },
    model::{ProxyKind, Service, host},
    names,
    report::{Report, metric},
    snapshot::{Egress, RouteOf, Scope},
};

/// Every name that the scope's listeners ask for, sorted.
pub fn route_names(scope: &Scope) -> Vec<String> {
    if scope.key().kind == ProxyKind::Router {
        return gateway::route_names(scope);
    }
    let mut names: BTreeSet<String> = BTreeSet::new();
    for Egress {
        listener, services, ..
    } in scope.egress()
    {
        match &listener.port {
            Some(_) if services.all().is_empty() => {}
            Some(port) => names.extend(placement::own_port_route(scope, listener, port)),
            None => names.extend(services.all().iter().flat_map(|service| {
                let ports = service.proxied_ports();
                ports.filter_map(|p| placement::service_port_route(scope, listener, service, p))
            })),
        }
    }
    if scope.settings().proxy_http_port != 0 || scope.key().bound() {
        names.insert(names::HTTP_PROXY.to_owned());
    }
    names.into_iter().collect()
}

/// A route configuration by name. A name that nothing stands behind gets an empty configuration: until a listener's
/// routes are answered its port is not even bound.
pub(super) fn route(scope: &Scope, name: &str, report: &mut Report) -> RouteConfiguration {
    if scope.key().kind == ProxyKind::Router {
        return gateway::route(scope, name, report);
    }
    let last = || Some(catch_all(scope)).filter(|_| scope.settings().options.fallthrough);
    let mut hosts = Hosts::default();
    let last = match scope.view().route(name) {
        None => return configuration(name, Vec::new()),
        Some(RouteOf::Port(egress, port)) => {
            port_hosts(scope, egress, port, &mut hosts);
            last()
        }
        Some(RouteOf::Everything(egress)) => {
            for port in ports(scope, egress) {
                let from = hosts.0.len();
                port_hosts(scope, egress, port, &mut hosts);
                if port != 80 {
                    hosts.0[from..].iter_mut().for_each(Host::only_with_port);
                }
            }
            last()
        }
        Some(RouteOf::Host(egress, _, port)) => {
            port_hosts(scope, egress, port, &mut hosts);
            if hosts.0.iter().any(|h| h.is_named(name)) {
                hosts.0.retain(|h| h.is_named(name));
            }
            None
        }
    };
    configuration(name, finish(hosts, name, last, report))
}

pub(super) fn configuration(name: &str, virtual_hosts: Vec<VirtualHost>) -> RouteConfiguration {
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts,
        validate_clusters: envoy::boolean(false),
        ..Default::default()
    }
}

/// Ports with routed services, and 80, where hosts without a service are.
fn ports(scope: &Scope, egress: Egress<'_>) -> BTreeSet<u32> {
    let all = egress.services.all().iter().flat_map(|s| s.proxied_ports());
    all.filter(|p| placement::is_routed(scope, p.protocol))
        .map(|p| p.number)
        .chain([80])
        .collect()
}

/// A virtual host before its domains are settled.
#[derive(Debug, Default)]
struct Host {
    host: VirtualHost,
    /// Full names: nobody else's short name may take them.
    primary: Vec<String>,
    /// Short names and addresses.
    alternates: Vec<String>,
    /// The VirtualService that routes it, if one does.
    claimant: Option<Arc<str>>,
}

impl Host {
    fn by(mut self, config: &VirtualServiceConfig) -> Host {
        let Meta {
            namespace, name, ..
        } = &*config.meta;
        self.claimant = Some(format!("VirtualService {namespace}/{name}").into());
        self
    }

    /// Whether it is the one of this name, not only called so for short.
    fn is_named(&self, domain: &str) -> bool {
        self.primary.iter().any(|d| d == domain)
    }

    fn only_with_port(&mut self) {
        self.primary.retain(|d| has_port(d));
        self.alternates.retain(|d| has_port(d));
    }
}

/// Whether a domain names a port; the colons of an IPv6 address do not count.
fn has_port(domain: &str) -> bool {
    domain
        .rsplit(']')
        .next()
        .is_some_and(|tail| tail.contains(':'))
}

#[derive(Debug, Default)]
struct Hosts(Vec<Host>);

/// The virtual hosts of one port: those of VirtualServices, then the services that none covers.
fn port_hosts(scope: &Scope, egress: Egress<'_>, port: u32, out: &mut Hosts) {
    let routed = |s: &Service| {
        s.port(port)
            .is_some_and(|p| placement::is_routed(scope, p.protocol))
    };
    let mut covered: AHashSet<&str> = AHashSet::new();
    for config in egress.virtual_services {
        let matching = |h| egress.services.matching(h);
        let services: Vec<&Arc<Service>> = config
            .hosts
            .iter()
            .flat_map(|h| matching(h).filter(|s| routed(s)))
            .collect();
        // A host without a service is called on the ports of the others, and on 80.
        if services.is_empty() && port != 80 {
            continue;
        }
        let orphans: Vec<&Arc<str>> = config
            .hosts
            .iter()
            .filter(|h| matching(h).next().is_none())
            .collect();
        if services.is_empty() && orphans.is_empty() {
            continue;
        }
        let routes = routes(scope, config, MESH, port);
        if routes.is_empty() {
            continue;
        }
        for service in services {
            // A host of several services (or of several hosts of the config) is one virtual host.
            if covered.insert(&service.hostname) || !out.has(&service.hostname, port) {
                let host = service_host(scope, egress, service, port, routes.clone());
                out.0.push(host.by(config));
            } else {
                out.note_duplicate(&service.hostname, port, config, egress);
            }
        }
        for orphan in orphans {
            let domains = vec![orphan.to_string(), names::host_port(orphan, port)];
            let host = Host {
                host: virtual_host(orphan, port, routes.clone()),
                primary: domains,
                ..Host::default()
            };
            out.0.push(host.by(config));
        }
    }
    for service in egress.services.all().iter().filter(|s| routed(s)) {
        if covered.insert(&service.hostname) {
            let route = service_route(scope, service, port);
            out.0
                .push(service_host(scope, egress, service, port, vec![route]));
        }
    }
}

impl Hosts {
    fn has(&self, hostname: &str, port: u32) -> bool {
        let name = names::host_port(hostname, port);
        self.0.iter().any(|h| h.host.name == name)
    }

    /// Keeps the later claim as a second host of the same name, which `finish` drops and counts; aliases of one
    /// service are no second claim.
    fn note_duplicate(
        &mut self,
        hostname: &str,
        port: u32,
        config: &VirtualServiceConfig,
        egress: Egress<'_>,
    ) {
        let name = names::host_port(hostname, port);
        let own = self.0.iter().any(|h| {
            h.host.name == name
                && h.host
                    .routes
                    .first()
                    .is_some_and(|r| r.metadata == config_metadata(config))
        });
        let alias = egress.services.by_host(hostname).count() > 1;
        if !(own && alias) {
            let host = Host {
                host: virtual_host(hostname, port, Vec::new()),
                ..Host::default()
            };
            self.0.push(host.by(config));
        }
    }
}

fn config_metadata(config: &VirtualServiceConfig) -> Option<core::Metadata> {
    config
        .http
        .first()
        .and_then(|r| r.template.metadata.clone())
}

fn virtual_host(hostname: &str, port: u32, routes: Vec<Route>) -> VirtualHost {
    VirtualHost {
        name: names::host_port(hostname, port),
        routes,
        ..Default::default()
    }
}

fn service_host(
    scope: &Scope,
    egress: Egress<'_>,
    service: &Service,
    port: u32,
    routes: Vec<Route>,
) -> Host {
    let hostname = &*service.hostname;
    let both = |name: &str| [bracketed(name), names::host_port(name, port)];
    let mut primary: Vec<String> = both(hostname).to_vec();
    let mut alternates: Vec<String> = host::alternates(hostname, &scope.key().dns_domain)
        .iter()
        .flat_map(|a| both(a))
        .collect();
    if service.headless && !host::is_wildcard(hostname) {
        primary.extend(both(&format!("*.{hostname}")));
        let pods: Vec<String> = alternates.iter().map(|a| format!("*.{a}")).collect();
        alternates.extend(pods);
    }
    // All addresses that the host has on this port, not only those of the one service that gave the name.
    let aliases = egress.services.by_host(hostname);
    for alias in aliases.filter(|s| s.port(port).is_some()) {
        if let Some(ip) = alias.address.ip() {
            alternates.extend(both(&ip.to_string()));
        }
    }
    Host {
        host: virtual_host(hostname, port, routes),
        primary,
        alternates,
        claimant: None,
    }
}

/// An IPv6 address as an authority spells it.
fn bracketed(name: &str) -> String {
    if name.contains(':') {
        format!("[{name}]")
    } else {
        name.to_owned()
    }
}

/// Settles names and domains, sorts, and adds what catches the rest.
fn finish(
    hosts: Hosts,
    config: &str,
    last: Option<VirtualHost>,
    report: &mut Report,
) -> Vec<VirtualHost> {
    let mut claimed: AHashMap<String, Arc<str>> = AHashMap::new();
    let mut domains: AHashSet<String> = AHashSet::new();
    let mut kept: Vec<Host> = Vec::with_capacity(hosts.0.len());
    for mut host in hosts.0 {
        let by = host.claimant.take().unwrap_or_else(|| "a service".into());
        if let Some(stands) = claimed.get(&host.host.name) {
            let message = format!("route {config}: {stands} has the host; {by} is left out of it");
            report.event(metric::VSERVICE_DUP_DOMAIN, host.host.name, message);
            continue;
        }
        claimed.insert(host.host.name.clone(), by);
        host.primary
            .retain(|d| domains.insert(d.to_ascii_lowercase()));
        kept.push(host);
    }
    let mut out: Vec<VirtualHost> = Vec::with_capacity(kept.len() + 1);
    for mut host in kept {
        host.alternates
            .retain(|d| domains.insert(d.to_ascii_lowercase()));
        host.host.domains = host.primary;
        host.host.domains.append(&mut host.alternates);
        if host.host.domains.is_empty() {
            let message =
                format!("route {config}: every domain of the host is taken by older ones");
            report.event(metric::VSERVICE_DUP_DOMAIN, host.host.name, message);
        } else {
            out.push(host.host);
        }
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    out.extend(last.filter(|_| !domains.contains("*")));
    out
}

/// What happens to requests for hosts that nobody knows.
fn catch_all(scope: &Scope) -> VirtualHost {
    let cluster = listener::outbound_policy_cluster(scope);
    let (name, action) = if cluster == names::PASSTHROUGH {
        let mut action = to_cluster(cluster);
        action.timeout = envoy::duration(Duration::ZERO);
        ("allow_any", Action::Route(action))
    } else {
        (
            "block_all",
            Action::DirectResponse(DirectResponseAction {
                status: 502,
                ..Default::default()
            }),
        )
    };
    VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![Route {
            name: name.to_owned(),
            r#match: Some(prefix_match()),
            action: Some(action),
            ..Default::default()
        }],
        ..Default::default()
    }
}

pub(super) fn prefix_match() -> RouteMatch {
    RouteMatch {
        path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
        ..Default::default()
    }
}

/// An action that sends requests to one cluster.
pub(super) fn to_cluster(cluster: &str) -> RouteAction {
    RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    }
}

/// The route `default`.
pub(super) fn default_route(action: RouteAction, operation: String) -> Route {
    Route {
        name: "default".to_owned(),
        r#match: Some(prefix_match()),
        decorator: Some(envoy::route::Decorator {
            operation,
            ..Default::default()
        }),
        action: Some(Action::Route(action)),
        ..Default::default()
    }
}

/// The route of a service that no VirtualService covers.
pub(super) fn service_route(scope: &Scope, service: &Service, port: u32) -> Route {
    let mut action = to_cluster(&names::outbound(port, "", &service.hostname));
    compile::set_timeout(&mut action, Duration::ZERO);
    action.retry_policy = Some(compile::default_retries());
    action.hash_policy = hash::policy(scope, service, "", port).into_iter().collect();
    default_route(action, format!("{}:{port}/*", service.hostname))
}

/// The routes of a VirtualService for one gateway (or the mesh) and port, in order, up to the first that matches all.
pub(super) fn routes(
    scope: &Scope,
    config: &VirtualServiceConfig,
    gateway: &str,
    port: u32,
) -> Vec<Route> {
    let mut out = Vec::new();
    for route in &config.http {
        let applies = if route.gateways.is_empty() {
            gateway != MESH || scope.has_labels(&route.source_labels)
        } else {
            route.gateways.iter().any(|g| &**g == gateway)
        };
        if !applies || route.port.is_some_and(|p| p != port) {
            continue;
        }
        out.push(instantiate(scope, config, route, port));
        if route.catch_all {
            break;
        }
    }
    out
}

/// Fills the clusters into a template.
fn instantiate(
    scope: &Scope,
    config: &VirtualServiceConfig,
    template: &HttpRoute,
    port: u32,
) -> Route {
    let mut route = template.template.clone();
    if let Some(Action::Route(action)) = &mut route.action {
        action.cluster_specifier = Some(match template.destinations.as_slice() {
            [only] => ClusterSpecifier::Cluster(scope.destination_cluster(&only.destination, port)),
            several => ClusterSpecifier::WeightedClusters(WeightedCluster {
                clusters: several
                    .iter()
                    .map(|w| {
                        let mut cluster = w.template.clone();
                        cluster.name = scope.destination_cluster(&w.destination, port);
                        cluster.weight = envoy::uint(w.weight);
                        cluster
                    })
                    .collect(),
                ..Default::default()
            }),
        });
        action.request_mirror_policies = template
            .mirror
            .iter()
            .map(|mirror| RequestMirrorPolicy {
                cluster: scope.destination_cluster(&mirror.destination, port),
                runtime_fraction: Some(core::RuntimeFractionalPercent {
                    default_value: Some(kind::FractionalPercent {
                        numerator: mirror.percent,
                        denominator: kind::fractional_percent::DenominatorType::Hundred.into(),
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            })
            .collect();
        for weighted in &template.destinations {
            let destination = &weighted.destination;
            let number = scope.destination_port(destination, port);
            let service = scope
                .service_port(&destination.host, number)
                .map(|(s, _)| s);
            let policy = service.and_then(|s| hash::policy(scope, s, &destination.subset, number));
            if let Some(policy) = policy.filter(|p| !action.hash_policy.contains(p)) {
                action.hash_policy.push(policy);
            }
        }
    }
    route.decorator = Some(envoy::route::Decorator {
        operation: operation(&route, config, port),
        ..Default::default()
    });
    route
}

/// The name of the operation in traces: `HOST:PORT/PATH`, or the VirtualService's name where there is no single host.
fn operation(route: &Route, config: &VirtualServiceConfig, port: u32) -> String {
    let path = match route
        .r#match
        .as_ref()
        .and_then(|m| m.path_specifier.as_ref())
    {
        Some(PathSpecifier::Prefix(prefix)) => format!("{prefix}*"),
        Some(PathSpecifier::Path(path)) => path.clone(),
        Some(PathSpecifier::SafeRegex(regex)) => regex.regex.clone(),
        _ => "/*".to_owned(),
    };
    if let Some(Action::Route(RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
        ..
    })) = &route.action
        && let Some(parts) = names::parse_outbound(cluster)
    {
        return format!("{}:{}{path}", parts.host, parts.port);
    }
    format!("{}:{port}{path}", config.meta.name)
}
