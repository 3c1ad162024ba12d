//! Listeners and routes of routers, from the Gateways that select them.
//!
//! Servers of all selected Gateways join by port. All servers of a port must be of one class (plain HTTP, TLS, TCP); the
//! oldest decides. Plain HTTP servers share one chain and one route configuration; servers that end TLS have a chain and
//! (HTTPS) a route configuration each, told apart by SNI. What a later server claims twice is left out and counted.
//!
//! SNI and the host of a request may differ. Whoever connects by the name of one server must not get past the client
//! verification of another: where a server would route to a host whose own server asks for client certificates, it answers 421,
//! upon which browsers, which reuse connections, make a new one. (Istio 1.4 routed.)

mod chains;
mod routes;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ahash::AHashSet;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;

use super::tls;
use crate::{
    compile::{GatewayConfig, GatewayServer, ServerClass, ServerKind, VirtualServiceConfig},
    envoy::{self, core, listener::Listener},
    model::host,
    names,
    report::{Report, metric},
    snapshot::Scope,
};

pub(super) use routes::route;

/// A server that is served, and what of it.
#[derive(Debug)]
struct Served<'a> {
    gateway: &'a Arc<GatewayConfig>,
    server: &'a GatewayServer,
    /// The server's hosts, but for those that an older one has.
    hosts: Vec<&'a (Option<Arc<str>>, Arc<str>)>,
    /// SNI names whose TLS ends here or is passed on by SNI; empty: every name.
    sni: Vec<Arc<str>>,
}

impl Served<'_> {
    /// Name of the server's own route configuration, if it has one.
    fn https_route(&self) -> Option<String> {
        matches!(self.server.kind, ServerKind::Https(_)).then(|| {
            let meta = &self.gateway.meta;
            names::gateway_https(
                self.server.port,
                &self.server.name,
                &meta.name,
                &meta.namespace,
            )
        })
    }
}

/// The servers of one port.
#[derive(Debug, Default)]
struct Port<'a> {
    servers: Vec<Served<'a>>,
    /// SNI names that are taken; `*` for every other name.
    taken: AHashSet<Arc<str>>,
}

impl<'a> Port<'a> {
    fn class(&self) -> Option<ServerClass> {
        self.servers.first().map(|s| s.server.kind.class())
    }

    /// Takes a server in, as far as it can be served; says what of it cannot.
    fn admit(
        &mut self,
        scope: &Scope,
        gateway: &'a Arc<GatewayConfig>,
        server: &'a GatewayServer,
    ) -> Result<(), String> {
        let class = server.kind.class();
        if let Some(first) = self.servers.first()
            && first.server.kind.class() != class
        {
            let (stands, owner) = (first.server.kind.class(), &first.gateway.full_name);
            return Err(format!(
                "is {class}, but the port is {stands} by Gateway {owner}; it is left out"
            ));
        }
        if let Some(reason) = server
            .kind
            .tls()
            .and_then(|tls| tls::unavailable(scope, tls))
        {
            return Err(format!("{reason}; it is left out"));
        }
        let mut served = Served {
            gateway,
            server,
            hosts: server.hosts.iter().collect(),
            sni: Vec::new(),
        };
        if let Some(name) = served.https_route()
            && let Some(other) = self
                .servers
                .iter()
                .find(|s| s.https_route().as_ref() == Some(&name))
        {
            let owner = &other.gateway.full_name;
            return Err(format!(
                "has the port name of another server of Gateway {owner}; it is left out"
            ));
        }
        let mut lost: Vec<&str> = Vec::new();
        if class == ServerClass::Tls && server.kind != ServerKind::Passthrough {
            lost = self.claim(&mut served)?;
        }
        self.servers.push(served);
        match lost.as_slice() {
            [] => Ok(()),
            names => Err(format!(
                "claims {}, which an older server of the port has; those hosts are left out",
                names.join(", ")
            )),
        }
    }

    /// Claims the server's SNI names. Gives those that are taken; an error if that is all.
    fn claim(&mut self, served: &mut Served<'a>) -> Result<Vec<&'a str>, String> {
        let server = served.server;
        let hosts = || server.hosts.iter().map(|(_, host)| host);
        let every = hosts().any(|h| &**h == "*");
        let (mut own, mut lost) = (Vec::new(), Vec::new());
        let wanted: Vec<&'a Arc<str>> = if every {
            hosts().filter(|h| &***h == "*").take(1).collect()
        } else {
            hosts().collect()
        };
        for name in wanted {
            if self.taken.insert(name.clone()) {
                own.push(name.clone());
            } else if !own.contains(name) {
                lost.push(&**name);
            }
        }
        if own.is_empty() {
            return Err(format!(
                "claims {}, which an older server of the port has; it is left out",
                lost.join(", ")
            ));
        }
        served.hosts.retain(|(_, host)| !lost.contains(&&**host));
        served.sni = if every { Vec::new() } else { own };
        Ok(lost)
    }

    /// The server whose TLS a client gets that connects by this name.
    fn by_sni(&self, name: &str) -> Option<&Served<'a>> {
        let claims = self
            .servers
            .iter()
            .filter(|s| s.server.kind.tls().is_some());
        let names = claims.flat_map(|s| {
            let every = s.sni.is_empty().then_some("*");
            s.sni.iter().map(|n| &**n).chain(every).map(move |n| (n, s))
        });
        let covering = names.filter(|(n, _)| host::subset_of(name, n));
        covering
            .min_by(|(a, _), (b, _)| host::by_specificity(a, b))
            .map(|(_, served)| served)
    }

    /// Whether a request for this host on a connection to `served` would get past the client verification of another server.
    fn is_misdirected(&self, served: &Served<'_>, name: &str) -> bool {
        let (own, owner) = (served.server, self.by_sni(name));
        owner.is_some_and(|owner| {
            !std::ptr::eq(owner.server, own)
                && owner.server.kind.tls().is_some_and(|tls| tls.mutual)
                && owner.server.kind.tls() != own.kind.tls()
        })
    }

    /// Hosts that requests on a connection to `served` must not reach: of those that it routes to, and of other servers'.
    fn misdirected<'h>(
        &'h self,
        served: &'h Served<'_>,
        routed: impl Iterator<Item = &'h Arc<str>>,
    ) -> BTreeSet<Arc<str>> {
        let within = |name: &&Arc<str>| served.hosts.iter().any(|(_, h)| host::subset_of(name, h));
        let others = self.servers.iter().flat_map(|s| &s.sni).filter(within);
        routed
            .chain(others)
            .filter(|name| self.is_misdirected(served, name))
            .cloned()
            .collect()
    }
}

/// Servers by port.
fn by_port<'a>(scope: &'a Scope, report: &mut Report) -> BTreeMap<u32, Port<'a>> {
    let mut out: BTreeMap<u32, Port<'a>> = BTreeMap::new();
    for gateway in scope.gateways() {
        for server in &gateway.servers {
            let port = out.entry(server.port).or_default();
            if let Err(problem) = port.admit(scope, gateway, server) {
                let key = format!(
                    "Gateway/{}/{}.{}",
                    gateway.full_name, server.port, server.name
                );
                let message = format!("server {} on port {} {problem}", server.name, server.port);
                report.event(metric::REJECTED_CONFIGS, key, message);
            }
        }
    }
    out.retain(|_, port| !port.servers.is_empty());
    out
}

/// Names of the route configurations that the listeners ask for.
pub(super) fn route_names(scope: &Scope) -> Vec<String> {
    let mut out = Vec::new();
    for (number, port) in by_port(scope, &mut Report::default()) {
        if port.class() == Some(ServerClass::Http) {
            out.push(names::gateway_http(number));
        }
        out.extend(port.servers.iter().filter_map(Served::https_route));
    }
    out.sort();
    out
}

/// One bound listener per port.
pub(super) fn listeners(scope: &Scope, report: &mut Report) -> Vec<Listener> {
    let mut out = Vec::new();
    for (number, port) in by_port(scope, report) {
        let name = names::listener(scope.wildcard(), number);
        if number == 15090 {
            report.event(
                metric::INVALID_OUT_LISTENERS,
                name,
                "port 15090 is Envoy's own",
            );
            continue;
        }
        let chains = chains::of(scope, &name, number, &port, report);
        if chains.is_empty() {
            continue; // no route yet: nothing to listen for
        }
        let mut listener = Listener {
            name,
            address: Some(envoy::socket_address(scope.wildcard(), number)),
            filter_chains: chains,
            traffic_direction: core::TrafficDirection::Outbound.into(),
            ..Default::default()
        };
        if port.class() == Some(ServerClass::Tls) {
            // No timeout after which to go on: a slow client hello must not be taken for plain bytes.
            listener.listener_filters.push(envoy::listener_filter(
                "envoy.filters.listener.tls_inspector",
                &TlsInspector::default(),
            ));
        }
        out.push(listener);
    }
    out
}

/// VirtualServices bound to a server, with those of their hosts that the server admits.
fn bound<'a>(
    scope: &'a Scope,
    served: &Served<'_>,
) -> Vec<(&'a Arc<VirtualServiceConfig>, Vec<Arc<str>>)> {
    let mut out = Vec::new();
    for config in scope.virtual_services() {
        if !config.gateways.contains(&served.gateway.full_name) {
            continue;
        }
        let mut hosts: Vec<Arc<str>> = Vec::new();
        for (namespace, admitted) in &served.hosts {
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
