//! Outbound listeners of sidecars (`ADDR_PORT`, `virtualOutbound`, the HTTP proxy), and the shared pieces of all listeners.
//!
//! Services are placed in order of age into slots, one per address and port. A slot may hold one HTTP chain (all HTTP services of the
//! port share it, RDS tells them apart) and any number of TCP chains that match different things. What a later service
//! claims twice is left out and counted. Envoy therefore never sees two listeners on one address, or two chains with one match.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use envoy_types::pb::envoy::extensions::filters::listener::{
    http_inspector::v3::HttpInspector, tls_inspector::v3::TlsInspector,
};

use super::{
    gateway,
    tcp::{self, Claims},
};
use crate::{
    envoy::{
        self, Hcm, Routes, core,
        listener::{FilterChain, FilterChainMatch, Listener},
    },
    model::{Address, EndpointAddress, Protocol, Proxy, ProxyKind, Service, ServicePort},
    names,
    report::{Report, metric},
    snapshot::Scope,
};

/// Application protocols that the inspectors report for HTTP. Prior-knowledge HTTP/2 in clear text is `h2c`.
const HTTP_ALPN: [&str; 4] = ["http/1.0", "http/1.1", "h2", "h2c"];
/// Envoy has listeners of its own there (bootstrap), so a second one on the wildcard address would be refused.
const RESERVED: [u32; 2] = [names::VIRTUAL_INBOUND_PORT, 15090];
/// Marks the chain that catches what no service claims.
const FALLTHROUGH: &str = "fallthrough";

/// Outbound listeners that depend on the scope alone: by name TCP ones first, then those with HTTP, then the HTTP proxy, then
/// `virtualOutbound`. Routers: the listeners of their Gateways.
pub fn outbound_listeners(scope: &Scope, report: &mut Report) -> Vec<Listener> {
    if scope.key().kind == ProxyKind::Router {
        return gateway::listeners(scope, report);
    }
    let mut slots: BTreeMap<(String, u32), Slot> = BTreeMap::new();
    for service in scope.services() {
        for port in service.proxied_ports() {
            place(scope, service, port, &mut slots, report);
        }
    }
    let (mut tcp, mut http) = (Vec::new(), Vec::new());
    for ((bind, port), slot) in slots {
        let list = if slot.http.is_some() {
            &mut http
        } else {
            &mut tcp
        };
        list.push(slot.listener(scope, &bind, port));
    }
    tcp.append(&mut http);
    tcp.extend(http_proxy(scope));
    tcp.push(virtual_outbound(scope));
    tcp
}

/// What lives on one address and port.
#[derive(Debug, Default)]
struct Slot {
    /// Route configuration of the HTTP chain.
    http: Option<String>,
    grpc_web: bool,
    chains: Vec<FilterChain>,
    claims: Claims,
    /// Some service did not say what it speaks.
    sniffed: bool,
    /// A protocol that cannot share a port.
    exclusive: Option<Protocol>,
    /// Host of the first service: named in conflicts.
    first: String,
}

fn place(
    scope: &Scope,
    service: &Arc<Service>,
    port: &ServicePort,
    slots: &mut BTreeMap<(String, u32), Slot>,
    report: &mut Report,
) {
    let options = &scope.settings().options;
    let wildcard = scope.wildcard().to_owned();
    let number = port.number;
    if port.protocol.is_http() {
        if options.block_http_on_443 && number == 443 {
            let message = format!(
                "HTTP port 443 of {} gets no listener; name the port https or tls",
                service.hostname
            );
            report.event(
                metric::CONFLICT_HTTP_OVER_HTTPS,
                format!("{}:443", service.hostname),
                message,
            );
            return;
        }
        let claim = Claim {
            http: Some(number.to_string()),
            chains: Vec::new(),
            sniffed: false,
        };
        put(
            scope,
            (wildcard, number),
            service,
            port,
            claim,
            slots,
            report,
        );
        return;
    }
    let sniffed = port.protocol == Protocol::Unsupported && options.sniff_outbound;
    match service.address {
        Address::Ip(ip) => {
            let http = sniffed.then(|| names::host_port(&service.hostname, number));
            let chains = tcp::service_chains(scope, service, port, false);
            put(
                scope,
                (ip.to_string(), number),
                service,
                port,
                Claim {
                    http,
                    chains,
                    sniffed,
                },
                slots,
                report,
            );
        }
        Address::Unspecified if service.headless && !sniffed && options.headless_pod_listeners => {
            let key = service.key();
            let pods: Vec<String> = scope
                .snapshot()
                .endpoints(&key)
                .flat_map(|set| &set.endpoints)
                .filter(|e| e.service_port == port.name)
                .filter_map(|e| match &e.address {
                    EndpointAddress::Ip(ip) => Some(ip.to_string()),
                    _ => None,
                })
                .collect();
            for pod in pods {
                let chains = tcp::service_chains(scope, service, port, false);
                put(
                    scope,
                    (pod, number),
                    service,
                    port,
                    Claim {
                        http: None,
                        chains,
                        sniffed,
                    },
                    slots,
                    report,
                );
            }
        }
        Address::Unspecified | Address::Cidr(_) => {
            let http = sniffed.then(|| number.to_string());
            let chains = tcp::service_chains(scope, service, port, true);
            put(
                scope,
                (wildcard, number),
                service,
                port,
                Claim {
                    http,
                    chains,
                    sniffed,
                },
                slots,
                report,
            );
        }
    }
}

/// What a service asks of a slot.
struct Claim {
    http: Option<String>,
    chains: Vec<FilterChain>,
    sniffed: bool,
}

fn put(
    scope: &Scope,
    at: (String, u32),
    service: &Service,
    port: &ServicePort,
    claim: Claim,
    slots: &mut BTreeMap<(String, u32), Slot>,
    report: &mut Report,
) {
    if let Some(reason) = reserved(scope, &at) {
        let message = format!("{reason}; {} gets no listener", service.hostname);
        let key = format!("{}:{}", service.hostname, at.1);
        report.event(metric::INVALID_OUT_LISTENERS, key, message);
        return;
    }
    let name = names::listener(&at.0, at.1);
    let sniff = scope.settings().options.sniff_outbound;
    let slot = slots.entry(at).or_default();
    if let Err((metric, existing, incoming)) = slot.admit(claim, service, port, sniff) {
        let first = &slot.first;
        let message = format!(
            "Listener={name} Accepted{existing}={first} Rejected{incoming}={} {existing}Services=1",
            service.hostname
        );
        report.event(metric, format!("{name}:{}", service.hostname), message);
    }
}

/// Why an address cannot have a listener for services: another listener of ours, or of the bootstrap, is there.
fn reserved(scope: &Scope, (bind, port): &(String, u32)) -> Option<String> {
    let settings = scope.settings();
    let envoys = *port == settings.proxy_listen_port || RESERVED.contains(port);
    if bind == scope.wildcard() && envoys {
        return Some(format!("port {port} is Envoy's own"));
    }
    let proxy = http_proxy_address(scope);
    (proxy.is_some_and(|(ip, number)| ip == bind && number == *port))
        .then(|| format!("{bind}:{port} is the HTTP proxy"))
}

/// The gauge to count a conflict in, and the classes of the service that stands and of the one that is left out.
type Conflict = (&'static str, &'static str, &'static str);

impl Slot {
    /// Takes in what a service asks for. On a conflict, what does not collide is taken in all the same where it can be told apart.
    fn admit(
        &mut self,
        claim: Claim,
        service: &Service,
        port: &ServicePort,
        sniff: bool,
    ) -> Result<(), Conflict> {
        // Neither can be told apart from other bytes: the server speaks first.
        let exclusive =
            matches!(port.protocol, Protocol::Mongo | Protocol::Mysql).then_some(port.protocol);
        if self.first.is_empty() {
            self.first = service.hostname.to_string();
            self.exclusive = exclusive;
        } else if self.exclusive != exclusive {
            return Err((metric::CONFLICT_TCP_OVER_TCP, "TCP", "TCP"));
        } else if !sniff && claim.http.is_some() != self.http.is_some() {
            // Without sniffing HTTP and TCP cannot share. The names of the metrics read backwards, as upstream.
            return Err(if claim.http.is_some() {
                (metric::CONFLICT_TCP_OVER_HTTP, "TCP", "HTTP")
            } else {
                (metric::CONFLICT_HTTP_OVER_TCP, "HTTP", "TCP")
            });
        }
        let asked = claim.chains.len();
        let claims = &mut self.claims;
        let admitted: Vec<FilterChain> = claim
            .chains
            .into_iter()
            .filter_map(|mut chain| claims.admit(&mut chain).then_some(chain))
            .collect();
        let lost = admitted.len() < asked;
        self.chains.extend(admitted);
        // Sniffed services share the HTTP chain of the port; what is lost is only their fate as TCP.
        let tolerable = claim.sniffed && self.sniffed;
        self.sniffed |= claim.sniffed;
        self.grpc_web |= port.protocol == Protocol::GrpcWeb;
        self.http = self.http.take().or(claim.http);
        if lost && !tolerable {
            Err((metric::CONFLICT_TCP_OVER_TCP, "TCP", "TCP"))
        } else {
            Ok(())
        }
    }

    fn listener(mut self, scope: &Scope, bind: &str, port: u32) -> Listener {
        let settings = scope.settings();
        let name = names::listener(bind, port);
        let wildcard = bind == scope.wildcard();
        let mut chains = Vec::new();
        let mixed = self.sniffed || !self.chains.is_empty();
        if let Some(route) = self.http.take() {
            chains.push(FilterChain {
                filter_chain_match: mixed.then(http_match),
                filters: vec![envoy::http_connection_manager(
                    scope,
                    Hcm {
                        listener: &name,
                        inbound: false,
                        grpc_web: self.grpc_web,
                        routes: Routes::Rds(route),
                    },
                )],
                ..Default::default()
            });
        }
        let has_tcp = !self.chains.is_empty();
        chains.append(&mut self.chains);
        if wildcard && has_tcp && !self.claims.matches_all() && settings.options.fallthrough {
            chains.push(fallthrough(scope));
        }
        let mut listener = Listener {
            name,
            address: Some(envoy::socket_address(bind, port)),
            filter_chains: chains,
            bind_to_port: envoy::boolean(scope.key().bound),
            traffic_direction: core::TrafficDirection::Outbound.into(),
            ..Default::default()
        };
        inspectors(&mut listener, settings.protocol_detection_timeout);
        listener
    }
}

/// Sends what no chain claims where the mesh wants unknown traffic.
fn fallthrough(scope: &Scope) -> FilterChain {
    let cluster = outbound_policy_cluster(scope);
    FilterChain {
        metadata: Some(envoy::metadata(
            "pilot_meta",
            envoy::structure([(
                FALLTHROUGH,
                envoy::Value {
                    kind: Some(envoy::Kind::BoolValue(true)),
                },
            )]),
        )),
        ..tcp::chain(
            Vec::new(),
            Vec::new(),
            tcp::filters(scope, cluster, Protocol::Tcp),
        )
    }
}

/// Where traffic goes that no service claims.
pub(super) fn outbound_policy_cluster(scope: &Scope) -> &'static str {
    if scope.settings().allow_any {
        names::PASSTHROUGH
    } else {
        names::BLACK_HOLE
    }
}

/// The match of an HTTP chain that shares its listener.
pub(super) fn http_match() -> FilterChainMatch {
    FilterChainMatch {
        application_protocols: HTTP_ALPN.map(str::to_owned).to_vec(),
        ..Default::default()
    }
}

/// Adds the inspectors without which SNI and ALPN matches never hold. A protocol in which the server speaks first waits
/// out the timeout.
pub(super) fn inspectors(listener: &mut Listener, timeout: Duration) {
    let matches = || {
        listener
            .filter_chains
            .iter()
            .filter_map(|c| c.filter_chain_match.as_ref())
    };
    let http = matches().any(|m| !m.application_protocols.is_empty());
    let tls = matches().any(|m| !m.server_names.is_empty() || !m.transport_protocol.is_empty());
    if tls || http {
        let filter = envoy::listener_filter(
            "envoy.filters.listener.tls_inspector",
            &TlsInspector::default(),
        );
        listener.listener_filters.push(filter);
        listener.listener_filters_timeout = envoy::duration(timeout);
        listener.continue_on_listener_filters_timeout = true;
    }
    if http {
        let filter = envoy::listener_filter(
            "envoy.filters.listener.http_inspector",
            &HttpInspector::default(),
        );
        listener.listener_filters.push(filter);
    }
}

/// Where the explicit HTTP proxy listens, if the mesh has one.
fn http_proxy_address(scope: &Scope) -> Option<(&'static str, u32)> {
    let bind = if scope.key().ipv4 { "127.0.0.1" } else { "::1" };
    match scope.settings().proxy_http_port {
        0 if scope.key().bound => Some((bind, 15002)),
        0 => None,
        port => Some((bind, port)),
    }
}

/// The explicit HTTP proxy.
fn http_proxy(scope: &Scope) -> Option<Listener> {
    let (bind, port) = http_proxy_address(scope)?;
    let name = names::listener(bind, port);
    let hcm = Hcm {
        listener: &name,
        inbound: false,
        grpc_web: false,
        routes: Routes::Rds(names::HTTP_PROXY.to_owned()),
    };
    Some(Listener {
        address: Some(envoy::socket_address(bind, port)),
        filter_chains: vec![FilterChain {
            filters: vec![envoy::http_connection_manager(scope, hcm)],
            ..Default::default()
        }],
        traffic_direction: core::TrafficDirection::Outbound.into(),
        name,
        ..Default::default()
    })
}

/// The listener that captured traffic arrives at. It hands connections on to the listener of their original destination, and
/// carries the rest itself.
fn virtual_outbound(scope: &Scope) -> Listener {
    let cluster = outbound_policy_cluster(scope);
    Listener {
        name: names::VIRTUAL_OUTBOUND.to_owned(),
        address: Some(envoy::socket_address(
            scope.wildcard(),
            scope.settings().proxy_listen_port,
        )),
        filter_chains: vec![tcp::chain(
            Vec::new(),
            Vec::new(),
            tcp::filters(scope, cluster, Protocol::Tcp),
        )],
        use_original_dst: envoy::boolean(true),
        traffic_direction: core::TrafficDirection::Outbound.into(),
        ..Default::default()
    }
}

/// The chain that refuses connections to the proxy's own addresses, which would come back for ever. It depends on the
/// proxy, so shared listeners do not have it; it is appended as the last chain of each that
/// [`takes_own_address_chain`]. (Protobuf lists may be appended to an encoded message.)
pub fn own_address_chain(scope: &Scope, proxy: &Proxy) -> Option<FilterChain> {
    if !scope.settings().options.restrict_pod_loop {
        return None;
    }
    let mut ips = proxy.ips.clone();
    ips.sort();
    ips.dedup();
    let ranges = ips.into_iter().map(envoy::host_cidr).collect();
    Some(tcp::chain(
        Vec::new(),
        ranges,
        tcp::filters(scope, names::BLACK_HOLE, Protocol::Tcp),
    ))
}

/// Whether a shared outbound listener gets [`own_address_chain`]: `virtualOutbound` and wildcard ones do, unless a service
/// claims single addresses in them, which could be the proxy's own.
pub fn takes_own_address_chain(listener: &Listener) -> bool {
    use core::address::Address::SocketAddress;
    let Some(SocketAddress(socket)) = listener.address.as_ref().and_then(|a| a.address.as_ref())
    else {
        return false;
    };
    let wildcard = matches!(socket.address.as_str(), "0.0.0.0" | "::");
    let host_ranges = |chain: &FilterChain| {
        let ranges = chain
            .filter_chain_match
            .iter()
            .flat_map(|m| &m.prefix_ranges);
        ranges.into_iter().any(|r| {
            r.prefix_len
                .as_ref()
                .is_some_and(|l| l.value >= 32 && !r.address_prefix.contains(':') || l.value == 128)
        })
    };
    wildcard && !listener.filter_chains.iter().any(host_ranges)
}
