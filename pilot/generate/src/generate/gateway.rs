//! Listeners and routes of routers, from the Gateways that select them.
//!
//! Servers of all selected Gateways join by port. All servers of a port must be of one class; the oldest decides, the others
//! are left out and counted. Plain HTTP, TCP, and TLS passed on by SNI are served; servers that end TLS need
//! certificates, which routers do not get yet: they are left out and counted.

use std::{collections::BTreeMap, sync::Arc};

use ahash::AHashSet;

use super::{
    listener,
    route::{configuration, prefix_match, routes},
    tcp::{self, Claims},
};
use crate::{
    compile::{GatewayConfig, GatewayServer, ServerClass, VirtualServiceConfig},
    envoy::{
        self, Hcm, Routes, core,
        listener::{FilterChain, Listener},
        route::{
            DirectResponseAction, Route, RouteConfiguration, VirtualHost, route::Action,
            route_match::PathSpecifier, virtual_host::TlsRequirementType,
        },
    },
    model::{Protocol, host},
    names,
    report::{Report, metric},
    snapshot::Scope,
};

type Server<'a> = (&'a Arc<GatewayConfig>, &'a GatewayServer);

/// Servers by port, those of one class only.
fn by_port<'a>(scope: &'a Scope, report: &mut Report) -> BTreeMap<u32, Vec<Server<'a>>> {
    let mut out: BTreeMap<u32, Vec<Server<'a>>> = BTreeMap::new();
    for gateway in scope.gateways() {
        for server in &gateway.servers {
            let key = || format!("gateway/{}", gateway.full_name);
            if server.class == ServerClass::TlsTerminated {
                let message = format!(
                    "server {} on port {} ends TLS, which is not served yet",
                    server.name, server.port
                );
                report.event(metric::REJECTED_CONFIGS, key(), message);
                continue;
            }
            let list = out.entry(server.port).or_default();
            match list.first() {
                Some((first, other)) if other.class != server.class => {
                    let message = format!(
                        "server {} on port {} is {:?}; the port is {:?} by {}",
                        server.name, server.port, server.class, other.class, first.full_name
                    );
                    report.event(metric::REJECTED_CONFIGS, key(), message);
                }
                _ => list.push((gateway, server)),
            }
        }
    }
    out
}

fn route_name(port: u32) -> String {
    format!("http.{port}")
}

/// Names of the route configurations that the listeners ask for.
pub(super) fn route_names(scope: &Scope) -> Vec<String> {
    let ports = by_port(scope, &mut Report::default());
    let http = ports
        .into_iter()
        .filter(|(_, s)| s.first().is_some_and(|(_, s)| s.class == ServerClass::Http));
    http.map(|(port, _)| route_name(port)).collect()
}

/// One bound listener per port.
pub(super) fn listeners(scope: &Scope, report: &mut Report) -> Vec<Listener> {
    let mut out = Vec::new();
    for (port, servers) in by_port(scope, report) {
        let name = names::listener(scope.wildcard(), port);
        if port == 15090 {
            report.event(
                metric::INVALID_OUT_LISTENERS,
                name,
                "port 15090 is Envoy's own",
            );
            continue;
        }
        let Some((_, first)) = servers.first() else {
            continue;
        };
        let chains = match first.class {
            ServerClass::Http => {
                let grpc_web = servers.iter().any(|(_, s)| s.protocol == Protocol::GrpcWeb);
                let hcm = Hcm {
                    listener: &name,
                    inbound: false,
                    grpc_web,
                    routes: Routes::Rds(route_name(port)),
                };
                vec![FilterChain {
                    filters: vec![envoy::http_connection_manager(scope, hcm)],
                    ..Default::default()
                }]
            }
            _ => l4_chains(scope, &servers),
        };
        if chains.is_empty() {
            continue; // no route yet: nothing to listen for
        }
        let mut listener = Listener {
            name,
            address: Some(envoy::socket_address(scope.wildcard(), port)),
            filter_chains: chains,
            traffic_direction: core::TrafficDirection::Outbound.into(),
            ..Default::default()
        };
        listener::inspectors(&mut listener, scope.settings().protocol_detection_timeout);
        // A slow client hello must not be taken for plain bytes.
        listener.listener_filters_timeout = None;
        listener.continue_on_listener_filters_timeout = false;
        out.push(listener);
    }
    out
}

/// VirtualServices bound to a server, with those of their hosts that the server admits.
fn bound<'a>(
    scope: &'a Scope,
    gateway: &GatewayConfig,
    server: &GatewayServer,
) -> Vec<(&'a Arc<VirtualServiceConfig>, Vec<Arc<str>>)> {
    let mut out = Vec::new();
    for config in scope.virtual_services() {
        if !config.gateways.contains(&gateway.full_name) {
            continue;
        }
        let mut hosts: Vec<Arc<str>> = Vec::new();
        for (namespace, admitted) in &server.hosts {
            if namespace
                .as_ref()
                .is_some_and(|n| **n != *config.meta.namespace)
            {
                continue;
            }
            for wanted in &config.hosts {
                let both = if host::subset_of(wanted, admitted) {
                    wanted
                } else if host::subset_of(admitted, wanted) {
                    admitted
                } else {
                    continue;
                };
                if !hosts.contains(both) {
                    hosts.push(both.clone());
                }
            }
        }
        if !hosts.is_empty() {
            out.push((config, hosts));
        }
    }
    out
}

fn l4_chains(scope: &Scope, servers: &[Server<'_>]) -> Vec<FilterChain> {
    let mut claims = Claims::default();
    let mut out = Vec::new();
    for (gateway, server) in servers {
        for (config, hosts) in bound(scope, gateway, server) {
            let passthrough = server.class == ServerClass::TlsPassthrough;
            let rules = if passthrough {
                &config.tls
            } else {
                &config.tcp
            };
            for (rule, m) in rules
                .iter()
                .flat_map(|r| r.matches.iter().map(move |m| (r, m)))
            {
                if !tcp::holds(scope, m, &gateway.full_name, Some(server.port)) {
                    continue;
                }
                let names: Vec<String> = m
                    .sni_hosts
                    .iter()
                    .filter(|n| hosts.iter().any(|h| host::subset_of(n, h)))
                    .cloned()
                    .collect();
                if passthrough && names.is_empty() {
                    continue;
                }
                let ranges = m
                    .subnets
                    .iter()
                    .map(|n| envoy::cidr(n.addr(), n.prefix_len()))
                    .collect();
                let filters = tcp::route_filters(scope, config, rule, server.port, server.protocol);
                let mut chain = tcp::chain(names, ranges, filters);
                if claims.admit(&mut chain) {
                    out.push(chain);
                }
            }
        }
    }
    out
}

/// The routes of `http.PORT`.
pub(super) fn route(scope: &Scope, name: &str, report: &mut Report) -> RouteConfiguration {
    let servers = name
        .strip_prefix("http.")
        .and_then(|p| p.parse::<u32>().ok())
        .and_then(|port| Some((port, by_port(scope, &mut Report::default()).remove(&port)?)))
        .filter(|(_, servers)| {
            servers
                .first()
                .is_some_and(|(_, s)| s.class == ServerClass::Http)
        });
    // A listener that drains may still ask.
    let Some((port, servers)) = servers else {
        return configuration(name, Vec::new());
    };

    let mut hosts: BTreeMap<Arc<str>, VirtualHost> = BTreeMap::new();
    // One VirtualService may reach one host through several Gateways; its routes count once.
    let mut joined: AHashSet<(Arc<str>, usize)> = AHashSet::new();
    for (gateway, server) in servers {
        for (config, admitted) in bound(scope, gateway, server) {
            let routes = routes(scope, config, &gateway.full_name, port);
            if routes.is_empty() {
                continue;
            }
            for host in admitted {
                let entry = hosts.entry(host.clone()).or_insert_with(|| VirtualHost {
                    name: names::host_port(&host, port),
                    domains: vec![host.to_string(), names::host_port(&host, port)],
                    ..Default::default()
                });
                if joined.insert((host, Arc::as_ptr(config) as usize)) {
                    entry.routes.extend(routes.iter().cloned());
                }
                if server.https_redirect {
                    entry.require_tls = TlsRequirementType::All.into();
                }
            }
        }
    }
    let mut virtual_hosts: Vec<VirtualHost> = hosts.into_values().collect();
    for host in &mut virtual_hosts {
        host.routes.sort_by_key(is_catch_all); // stable: the others keep their order
        let (_, unreachable) = host.routes.split_at(
            host.routes
                .iter()
                .position(is_catch_all)
                .map_or(host.routes.len(), |i| i + 1),
        );
        if !unreachable.is_empty() {
            let message = format!(
                "route {name}: several VirtualServices match everything; the oldest stands"
            );
            report.event(metric::VSERVICE_DUP_DOMAIN, host.name.clone(), message);
        }
    }
    if virtual_hosts.is_empty() {
        virtual_hosts.push(black_hole(port));
    }
    RouteConfiguration {
        // Clients come through node ports and port forwards: the port they write is not the server's.
        ignore_port_in_host_matching: true,
        ..configuration(name, virtual_hosts)
    }
}

fn is_catch_all(route: &Route) -> bool {
    route.r#match.as_ref().is_some_and(|m| {
        m.headers.is_empty()
            && m.query_parameters.is_empty()
            && matches!(&m.path_specifier, Some(PathSpecifier::Prefix(p)) if p == "/")
    })
}

fn black_hole(port: u32) -> VirtualHost {
    VirtualHost {
        name: format!("blackhole:{port}"),
        domains: vec!["*".to_owned()],
        routes: vec![Route {
            r#match: Some(prefix_match()),
            action: Some(Action::DirectResponse(DirectResponseAction {
                status: 404,
                ..Default::default()
            })),
            ..Default::default()
        }],
        ..Default::default()
    }
}
