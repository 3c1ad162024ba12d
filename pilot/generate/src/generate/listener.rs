//! Outbound listeners of sidecars (`ADDR_PORT`, `virtualOutbound`, the HTTP proxy), and the shared pieces of all listeners.
//!
//! Services are placed egress listener by egress listener, in order of age (`placement.rs`), into slots, one per address and port
//! (`slot.rs`).

use std::{net::IpAddr, time::Duration};

use envoy_types::pb::envoy::extensions::filters::listener::{
    http_inspector::v3::HttpInspector, tls_inspector::v3::TlsInspector,
};

use super::{
    gateway, placement,
    slot::{self, Place},
    tcp,
};
use crate::{
    envoy::{
        self, Hcm, Routes, core,
        listener::{FilterChain, FilterChainMatch, Listener},
    },
    model::{InterceptionMode, Protocol, Proxy, ProxyKind},
    names,
    report::Report,
    snapshot::Scope,
};

/// Application protocols that the inspectors report for HTTP. Prior-knowledge HTTP/2 in clear text is `h2c`.
const HTTP_ALPN: [&str; 4] = ["http/1.0", "http/1.1", "h2", "h2c"];
/// Envoy has listeners of its own there (bootstrap), so a second one on the wildcard address would be refused.
const RESERVED: [u32; 2] = [names::VIRTUAL_INBOUND_PORT, 15090];
/// The same for the loopback address: Envoy's admin and pilot-agent.
const RESERVED_LOCALLY: [u32; 2] = [15000, 15020];
/// Marks the chain that catches what no service claims.
const FALLTHROUGH: &str = "fallthrough";

/// Outbound listeners that depend on the scope alone: by name TCP ones first, then those with HTTP, then the HTTP proxy, then
/// `virtualOutbound`. Routers: the listeners of their Gateways.
pub(super) fn outbound_listeners(scope: &Scope, report: &mut Report) -> Vec<Listener> {
    if scope.key().kind == ProxyKind::Router {
        return gateway::listeners(scope, report);
    }
    let mut out = placement::place_all(scope, report).listeners(scope, report);
    out.extend(http_proxy(scope));
    out.push(virtual_outbound(scope));
    out
}

/// Why an address cannot have a listener for services: another listener of ours, or of the bootstrap, is there.
pub(super) fn reserved(scope: &Scope, place: &Place) -> Option<String> {
    let settings = scope.settings();
    let Place { bind, port, bound } = place;
    let local = *bound && bind == scope.localhost();
    let envoys = *port == settings.proxy_listen_port || RESERVED.contains(port);
    if (envoys && (bind == scope.wildcard() || local)) || (local && RESERVED_LOCALLY.contains(port))
    {
        return Some(format!("port {port} is Envoy's own"));
    }
    let proxy = http_proxy_address(scope);
    (proxy.is_some_and(|(ip, number)| ip == bind && number == *port))
        .then(|| format!("{bind}:{port} is the HTTP proxy"))
}

/// Sends what no chain claims where the mesh wants unknown traffic.
pub(super) fn fallthrough(scope: &Scope) -> FilterChain {
    let mark = envoy::Value {
        kind: Some(envoy::Kind::BoolValue(true)),
    };
    FilterChain {
        metadata: Some(envoy::metadata(
            "pilot_meta",
            envoy::structure([(FALLTHROUGH, mark)]),
        )),
        ..slot::policy_chain(scope)
    }
}

/// Where traffic goes that no service claims.
pub(super) fn outbound_policy_cluster(scope: &Scope) -> &'static str {
    if scope.allow_any() {
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
    let bind = scope.localhost();
    match scope.settings().proxy_http_port {
        0 if scope.key().bound() => Some((bind, 15002)),
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
    let transparent = scope.key().interception == InterceptionMode::Tproxy;
    Listener {
        name: names::VIRTUAL_OUTBOUND.to_owned(),
        address: Some(envoy::socket_address(
            scope.wildcard(),
            scope.settings().proxy_listen_port,
        )),
        filter_chains: vec![slot::policy_chain(scope)],
        use_original_dst: envoy::boolean(true),
        transparent: transparent.then_some(true).and_then(envoy::boolean),
        traffic_direction: core::TrafficDirection::Outbound.into(),
        ..Default::default()
    }
}

/// The chain that refuses connections to the proxy's own addresses, which would come back for ever. It depends on the proxy, so
/// shared listeners do not have it; it is put before the chains of each where [`OwnChain`] says so. (An encoded list may
/// be put before an encoded message that has more of it.)
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

/// Which proxies' [`own_address_chain`] a shared outbound listener takes: `virtualOutbound` and wildcard ones take that of every
/// proxy but those whose own address some service claims as a single address in them.
#[derive(Clone, Debug)]
pub struct OwnChain(Option<Vec<IpAddr>>);

impl OwnChain {
    /// Of a listener.
    pub fn of(listener: &Listener) -> OwnChain {
        use core::address::Address::SocketAddress;
        let address = listener.address.as_ref().and_then(|a| a.address.as_ref());
        let wildcard = matches!(
            address,
            Some(SocketAddress(socket)) if matches!(socket.address.as_str(), "0.0.0.0" | "::")
        );
        let matches = listener
            .filter_chains
            .iter()
            .filter_map(|c| c.filter_chain_match.as_ref());
        let claimed = matches.flat_map(|m| &m.prefix_ranges).filter_map(|range| {
            let ip: IpAddr = range.address_prefix.parse().ok()?;
            let length = range.prefix_len.as_ref().map_or(0, |l| l.value);
            let full = if ip.is_ipv4() { 32 } else { 128 };
            (length >= full).then_some(ip)
        });
        OwnChain(wildcard.then(|| claimed.collect()))
    }

    /// Whether the listener takes that of a proxy.
    pub fn takes(&self, proxy: &Proxy) -> bool {
        let claimed = self.0.as_ref();
        claimed.is_some_and(|claimed| !proxy.ips.iter().any(|ip| claimed.contains(ip)))
    }
}
