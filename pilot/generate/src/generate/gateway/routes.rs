//! Route configurations of gateways: `http.PORT` for all plain HTTP servers of a port, one each for servers that end TLS.

use std::{collections::BTreeMap, sync::Arc};

use ahash::AHashSet;

use super::{Port, Served, bound, by_port};
use crate::{
    compile::{ServerClass, ServerKind},
    envoy::route::{
        DirectResponseAction, Route, RouteConfiguration, VirtualHost, route::Action,
        route_match::PathSpecifier, virtual_host::TlsRequirementType,
    },
    generate::route::{configuration, prefix_match, routes},
    names,
    report::{Report, metric},
    snapshot::Scope,
};

/// The port whose routes a name stands for, and which of its servers (`None`: all).
fn owner<'a>(scope: &'a Scope, name: &str) -> Option<(u32, Port<'a>, Option<usize>)> {
    let mut ports = by_port(scope, &mut Report::default());
    let number = name.split('.').nth(1)?.parse::<u32>().ok()?;
    let port = ports.remove(&number)?;
    if name == names::gateway_http(number) {
        return (port.class() == Some(ServerClass::Http)).then_some((number, port, None));
    }
    let own = |s: &Served<'_>| s.https_route().as_deref() == Some(name);
    let at = port.servers.iter().position(own)?;
    Some((number, port, Some(at)))
}

/// A route configuration by name. A listener that drains may still ask for one that nobody owns any more.
pub(in crate::generate) fn route(
    scope: &Scope,
    name: &str,
    report: &mut Report,
) -> RouteConfiguration {
    let Some((number, port, single)) = owner(scope, name) else {
        return configuration(name, Vec::new());
    };
    let servers = match single {
        Some(at) => &port.servers[at..=at],
        None => &port.servers,
    };

    let mut hosts: BTreeMap<Arc<str>, VirtualHost> = BTreeMap::new();
    // One VirtualService may reach one host through several Gateways; its routes count once.
    let mut joined: AHashSet<(Arc<str>, usize)> = AHashSet::new();
    for served in servers {
        for (config, admitted) in bound(scope, served) {
            let routes = routes(scope, config, &served.gateway.full_name, number);
            if routes.is_empty() {
                continue;
            }
            for host in admitted {
                let entry = hosts.entry(host.clone()).or_insert_with(|| VirtualHost {
                    name: names::host_port(&host, number),
                    domains: vec![host.to_string(), names::host_port(&host, number)],
                    ..Default::default()
                });
                if joined.insert((host, Arc::as_ptr(config) as usize)) {
                    entry.routes.extend(routes.iter().cloned());
                }
                if served.server.https_redirect && served.server.kind == ServerKind::Http {
                    entry.require_tls = TlsRequirementType::All.into();
                }
            }
        }
    }
    if let [served] = servers
        && single.is_some()
    {
        for host in port.misdirected(served, hosts.keys()) {
            let domains = vec![host.to_string(), names::host_port(&host, number)];
            let refusing = answering(names::host_port(&host, number), domains, 421);
            hosts.insert(host, refusing);
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
        virtual_hosts.push(black_hole(number));
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
    answering(format!("blackhole:{port}"), vec!["*".to_owned()], 404)
}

/// A virtual host that answers every request with this status.
fn answering(name: String, domains: Vec<String>, status: u32) -> VirtualHost {
    VirtualHost {
        name,
        domains,
        routes: vec![Route {
            r#match: Some(prefix_match()),
            action: Some(Action::DirectResponse(DirectResponseAction {
                status,
                ..Default::default()
            })),
            ..Default::default()
        }],
        ..Default::default()
    }
}
