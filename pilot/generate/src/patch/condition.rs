//! What a patch asks of the resource, or the part of it, that it is for.

use proto_envoy::v2;
use proto_networking::networking::envoy_filter::{
    ClusterMatch, ListenerMatch, RouteConfigurationMatch,
    route_configuration_match::route_match::Action,
};

use super::Side;
use crate::{
    envoy::{
        cluster::Cluster,
        listener::{FilterChain, Listener},
        route::{Route, RouteConfiguration, VirtualHost, route},
    },
    names,
    snapshot::Scope,
};

fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn non_zero(number: u32) -> Option<u32> {
    (number != 0).then_some(number)
}

/// Conditions on clusters.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct ClusterCondition {
    name: Option<String>,
    service: Option<String>,
    subset: Option<String>,
    port: Option<u32>,
}

impl ClusterCondition {
    pub(super) fn compile(m: &ClusterMatch) -> Self {
        Self {
            name: non_empty(&m.name),
            service: non_empty(&m.service),
            subset: non_empty(&m.subset),
            port: non_zero(m.port_number),
        }
    }

    /// A name decides alone; else the parts of `DIRECTION|PORT|SUBSET|HOST` are compared.
    pub(super) fn holds(&self, cluster: &Cluster) -> bool {
        if let Some(name) = &self.name {
            return *name == cluster.name;
        }
        let (port, subset, host) = parts(&cluster.name).unwrap_or_default();
        self.subset.as_ref().is_none_or(|wanted| wanted == subset)
            && self.service.as_ref().is_none_or(|wanted| wanted == host)
            && self.port.is_none_or(|wanted| wanted == port)
    }
}

/// Port, subset (or port name, of inbound ones) and host of a cluster's name.
fn parts(name: &str) -> Option<(u32, &str, &str)> {
    if let Some(parts) = names::parse_outbound(name) {
        return Some((parts.port, parts.subset, parts.host));
    }
    let mut parts = name.strip_prefix("inbound|")?.splitn(3, '|');
    let port = parts.next()?.parse().ok()?;
    Some((port, parts.next()?, parts.next()?))
}

/// Conditions on listeners and what is in them. Names of filters are v3 names.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct ListenerCondition {
    name: Option<String>,
    port: Option<u32>,
    port_name: Option<String>,
    chain: ChainCondition,
    /// A network filter.
    pub(super) filter: Option<String>,
    /// An HTTP filter.
    pub(super) sub_filter: Option<String>,
    /// What the deprecated form asks for besides.
    pub(super) old: Option<super::deprecated::OldCondition>,
}

#[derive(Clone, Debug, Default, Hash)]
struct ChainCondition {
    name: Option<String>,
    sni: Option<String>,
    transport_protocol: Option<String>,
    application_protocols: Vec<String>,
}

impl ListenerCondition {
    pub(super) fn compile(m: &ListenerMatch) -> Self {
        let chain = m.filter_chain.clone().unwrap_or_default();
        let filter = chain.filter.unwrap_or_default();
        let sub_filter = filter.sub_filter.unwrap_or_default();
        let protocols = chain.application_protocols.split(',').map(str::trim);
        Self {
            name: non_empty(&m.name),
            port: non_zero(m.port_number),
            port_name: non_empty(&m.port_name),
            chain: ChainCondition {
                name: non_empty(&chain.name),
                sni: non_empty(&chain.sni),
                transport_protocol: non_empty(&chain.transport_protocol),
                application_protocols: protocols
                    .filter(|p| !p.is_empty())
                    .map(str::to_owned)
                    .collect(),
            },
            filter: non_empty(v2::network_filter_name(&filter.name)),
            sub_filter: non_empty(v2::http_filter_name(&sub_filter.name)),
            old: None,
        }
    }

    /// Whether the listener itself is meant.
    pub(super) fn holds(&self, scope: &Scope, side: Side, listener: &Listener) -> bool {
        self.holds_with(scope, side, listener, &listener.filter_chains)
    }

    fn holds_with(
        &self,
        scope: &Scope,
        side: Side,
        listener: &Listener,
        chains: &[FilterChain],
    ) -> bool {
        let port = port_of(listener);
        self.identity_holds(&listener.name, port)
            && self.port_name_holds(scope, side, port, chains)
            && self
                .old
                .as_ref()
                .is_none_or(|old| old.holds(side, listener))
    }

    fn identity_holds(&self, name: &str, port: Option<u32>) -> bool {
        self.name.as_ref().is_none_or(|wanted| wanted == name)
            && self.port.is_none_or(|wanted| port == Some(wanted))
    }

    /// Port names are those of services: of the workload's own on the inbound side, of servers on gateways.
    fn port_name_holds(
        &self,
        scope: &Scope,
        side: Side,
        port: Option<u32>,
        chains: &[FilterChain],
    ) -> bool {
        let (Some(wanted), Some(port)) = (&self.port_name, port) else {
            return self.port_name.is_none();
        };
        let is = |name: &str| name.eq_ignore_ascii_case(wanted);
        match side {
            Side::Inbound => chains
                .iter()
                .filter_map(served)
                .any(|service| is(&service.port_name)),
            Side::Outbound => {
                let mut ports = scope.services().iter().flat_map(|s| &s.ports);
                ports.any(|p| p.number == port && is(&p.name))
            }
            Side::Gateway => {
                let mut servers = scope.gateways().iter().flat_map(|g| &g.servers);
                servers.any(|s| s.port == port && is(&s.name))
            }
        }
    }

    /// Whether a chain of a listener is meant: by the listener, or by the one it was copied from. The listener need not
    /// hold its chains.
    pub(super) fn chain_holds(
        &self,
        scope: &Scope,
        side: Side,
        listener: &Listener,
        chain: &FilterChain,
    ) -> bool {
        let own = std::slice::from_ref(chain);
        (self.holds_with(scope, side, listener, own) || self.origin_holds(scope, side, chain))
            && self.chain.holds(chain)
            && self
                .old
                .as_ref()
                .is_none_or(|old| old.chain_holds(side, chain))
            && self.filter.as_ref().is_none_or(|wanted| {
                let mut names = chain
                    .filters
                    .iter()
                    .map(|f| v2::network_filter_name(&f.name));
                names.any(|name| name == wanted)
            })
    }

    /// Whether the listener that a chain of `virtualInbound` was copied from is meant.
    pub(super) fn origin_holds(&self, scope: &Scope, side: Side, chain: &FilterChain) -> bool {
        origin(chain).is_some_and(|(name, port)| {
            self.identity_holds(name, Some(port))
                && self.port_name_holds(scope, side, Some(port), std::slice::from_ref(chain))
                && self
                    .old
                    .as_ref()
                    .is_none_or(|old| old.origin_holds(name, port))
        })
    }

    /// Whether something is asked of the listener, rather than of its parts only.
    pub(super) fn names_listener(&self) -> bool {
        self.name.is_some() || self.port.is_some() || self.port_name.is_some()
    }

    /// Whether some chain is meant, for patches of the listener as a whole.
    pub(super) fn some_chain_holds(&self, listener: &Listener) -> bool {
        let asks = self.filter.is_some() || self.chain.asks();
        !asks
            || listener.filter_chains.iter().any(|chain| {
                let has = |wanted: &String| {
                    chain
                        .filters
                        .iter()
                        .any(|f| v2::network_filter_name(&f.name) == wanted)
                };
                self.chain.holds(chain) && self.filter.as_ref().is_none_or(has)
            })
    }
}

impl ChainCondition {
    fn asks(&self) -> bool {
        self.name.is_some()
            || self.sni.is_some()
            || self.transport_protocol.is_some()
            || !self.application_protocols.is_empty()
    }

    fn holds(&self, chain: &FilterChain) -> bool {
        let m = chain.filter_chain_match.clone().unwrap_or_default();
        self.name
            .as_ref()
            .is_none_or(|wanted| *wanted == chain.name)
            && self
                .sni
                .as_ref()
                .is_none_or(|wanted| m.server_names.contains(wanted))
            && self
                .transport_protocol
                .as_ref()
                .is_none_or(|wanted| *wanted == m.transport_protocol)
            && self
                .application_protocols
                .iter()
                .all(|p| m.application_protocols.contains(p))
    }
}

/// The port a listener listens on.
pub(super) fn port_of(listener: &Listener) -> Option<u32> {
    use crate::envoy::core::{address::Address::SocketAddress, socket_address::PortSpecifier};
    let address = listener.address.as_ref()?.address.as_ref()?;
    match address {
        SocketAddress(socket) => match socket.port_specifier {
            Some(PortSpecifier::PortValue(port)) => Some(port),
            _ => None,
        },
        _ => None,
    }
}

/// Name and port of the listener that a chain of `virtualInbound` was copied from.
pub(super) fn origin(chain: &FilterChain) -> Option<(&str, u32)> {
    use crate::envoy::Kind;
    let meta = chain.metadata.as_ref()?.filter_metadata.get("pilot_meta")?;
    let name = match meta.fields.get("original_listener_name")?.kind.as_ref()? {
        Kind::StringValue(name) => name.as_str(),
        _ => return None,
    };
    let port = chain
        .filter_chain_match
        .as_ref()?
        .destination_port
        .as_ref()?
        .value;
    Some((name, port))
}

/// The service port behind an inbound chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Served {
    pub(super) port: u32,
    pub(super) port_name: String,
}

/// The service port that an inbound chain serves, by the cluster it leads to.
pub(super) fn served(chain: &FilterChain) -> Option<Served> {
    chain.filters.iter().find_map(|filter| {
        let cluster = super::filter::leads_to(filter)?;
        let (port, port_name, _) = parts(cluster.strip_prefix("inbound|").and(Some(&*cluster))?)?;
        Some(Served {
            port,
            port_name: port_name.to_owned(),
        })
    })
}

/// Conditions on route configurations and what is in them.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct RouteCondition {
    name: Option<String>,
    port: Option<u32>,
    port_name: Option<String>,
    gateway: Option<String>,
    host: Option<String>,
    /// What is asked of the route itself.
    pub(super) route: Option<(Option<String>, i32)>,
}

impl RouteCondition {
    pub(super) fn compile(m: &RouteConfigurationMatch) -> Self {
        let host = m.vhost.clone().unwrap_or_default();
        let route = host.route.map(|r| (non_empty(&r.name), r.action));
        Self {
            name: non_empty(&m.name),
            port: non_zero(m.port_number),
            port_name: non_empty(&m.port_name),
            gateway: non_empty(&m.gateway),
            host: non_empty(&host.name),
            route: route.filter(|(name, action)| name.is_some() || *action != 0),
        }
    }

    /// Whether a route configuration is meant. Port names and gateways are asked about only where there are gateways.
    pub(super) fn holds(&self, scope: &Scope, side: Side, config: &RouteConfiguration) -> bool {
        if self
            .name
            .as_ref()
            .is_some_and(|wanted| *wanted != config.name)
        {
            return false;
        }
        if side == Side::Gateway {
            return self.gateway_holds(scope, &config.name);
        }
        let of_inbound = || parts(&config.name).map(|(port, ..)| port);
        let last = || config.name.rsplit(':').next()?.parse().ok();
        self.port
            .is_none_or(|wanted| of_inbound().or_else(last) == Some(wanted))
    }

    fn gateway_holds(&self, scope: &Scope, name: &str) -> bool {
        let wants = |port: u32, port_name: &str, gateway: &str| {
            self.port.is_none_or(|wanted| wanted == port)
                && self
                    .port_name
                    .as_ref()
                    .is_none_or(|wanted| wanted == port_name)
                && self.gateway.as_ref().is_none_or(|wanted| wanted == gateway)
        };
        // https.PORT.PORTNAME.GATEWAY.NAMESPACE belongs to one server, http.PORT to all of the port.
        if let Some(rest) = name.strip_prefix("https.") {
            let parts: Vec<&str> = rest.split('.').collect();
            return match parts[..] {
                [port, .., namespace] if parts.len() >= 4 => {
                    let gateway = format!("{namespace}/{}", parts[parts.len() - 2]);
                    let port_name = parts[1..parts.len() - 2].join(".");
                    wants(port.parse().unwrap_or(0), &port_name, &gateway)
                }
                _ => wants(0, "", ""),
            };
        }
        let port = name.strip_prefix("http.").and_then(|p| p.parse().ok());
        let Some(port) = port else {
            return wants(0, "", "");
        };
        let asks_server = self.port_name.is_some() || self.gateway.is_some();
        if !asks_server {
            return wants(port, "", "");
        }
        let servers = scope
            .gateways()
            .iter()
            .flat_map(|g| g.servers.iter().map(move |s| (g, s)));
        servers
            .filter(|(_, server)| server.port == port)
            .any(|(gateway, server)| wants(port, &server.name, &gateway.full_name))
    }

    /// Whether a virtual host is meant.
    pub(super) fn host_holds(&self, host: &VirtualHost) -> bool {
        self.host.as_ref().is_none_or(|wanted| *wanted == host.name)
    }

    /// Whether a route is meant.
    pub(super) fn route_holds(&self, route: &Route) -> bool {
        let Some((name, action)) = &self.route else {
            return true;
        };
        let does = match Action::try_from(*action).unwrap_or_default() {
            Action::Any => true,
            Action::Route => matches!(route.action, Some(route::Action::Route(_))),
            Action::Redirect => matches!(route.action, Some(route::Action::Redirect(_))),
            Action::DirectResponse => {
                matches!(route.action, Some(route::Action::DirectResponse(_)))
            }
        };
        does && name.as_ref().is_none_or(|wanted| *wanted == route.name)
    }
}
