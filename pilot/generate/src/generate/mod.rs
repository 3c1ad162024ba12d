//! Envoy configuration from a scope: pure functions, linear in what they return.
//!
//! Shared parts (`outbound_*`, [`route`], [`endpoints`]) depend on the [`Scope`] alone; the others on the one
//! proxy. Findings that exist only in the eyes of a scope or proxy (collisions) go into the [`Report`] passed along.

mod cluster;
mod endpoint;
mod gateway;
mod grpc;
mod hash;
mod inbound;
mod instance;
mod listener;
mod placement;
mod route;
mod slot;
mod sni_dnat;
mod tcp;
mod tls;

use crate::{
    envoy::{
        cluster::Cluster,
        listener::{FilterChain, Listener},
        route::RouteConfiguration,
    },
    model::{Proxy, ProxyKind},
    patch::{self, Encoded, Side},
    report::Report,
    snapshot::Scope,
};

pub use cluster::service_clusters;
pub use endpoint::endpoints;
pub use grpc::{api_cluster, api_endpoints, api_listener, api_route};
pub use instance::{Instance, instances};
pub use listener::{OwnChain, own_address_chain};
pub use route::route_names;
pub use tls::secret;

/// The side of what a scope shares.
fn shared_side(scope: &Scope) -> Side {
    match scope.key().kind {
        ProxyKind::Sidecar => Side::Outbound,
        ProxyKind::Router => Side::Gateway,
    }
}

/// Clusters that depend on the scope alone, patched and encoded.
pub fn outbound_clusters(scope: &Scope, report: &mut Report) -> Vec<Encoded<Cluster>> {
    let list = cluster::outbound_clusters(scope, report);
    patch::clusters(scope, shared_side(scope), list, report)
}

/// Listeners that depend on the scope alone, patched and encoded: of sidecars without [`own_address_chain`].
pub fn outbound_listeners(scope: &Scope, report: &mut Report) -> Vec<Encoded<Listener>> {
    let list = listener::outbound_listeners(scope, report);
    patch::listeners(scope, shared_side(scope), list, report)
}

/// A route configuration by name, patched and encoded. A name that nothing stands behind gets an empty one: until a
/// listener's routes are answered its port is not even bound.
pub fn route(scope: &Scope, name: &str, report: &mut Report) -> Encoded<RouteConfiguration> {
    let config = route::route(scope, name, report);
    patch::routes(scope, config, report)
}

/// Clusters towards the workload of a sidecar, patched and encoded.
pub fn inbound_clusters(
    scope: &Scope,
    proxy: &Proxy,
    report: &mut Report,
) -> Vec<Encoded<Cluster>> {
    let list = inbound::inbound_clusters(scope, proxy, report);
    patch::clusters(scope, Side::Inbound, list, report)
}

/// Listeners towards the workload of a sidecar, patched and encoded.
pub fn inbound_listeners(
    scope: &Scope,
    proxy: &Proxy,
    report: &mut Report,
) -> Vec<Encoded<Listener>> {
    let list = inbound::inbound_listeners(scope, proxy, report);
    patch::listeners(scope, Side::Inbound, list, report)
}

/// All clusters of a proxy: outbound, black hole, and for sidecars passthrough and the inbound ones. Names are unique.
pub fn clusters(scope: &Scope, proxy: &Proxy, report: &mut Report) -> Vec<Encoded<Cluster>> {
    let mut all = outbound_clusters(scope, report);
    if proxy.kind == ProxyKind::Sidecar {
        all.extend(inbound_clusters(scope, proxy, report));
    }
    all
}

/// The encoded form of a chain that is to be the first of an encoded listener: encoded messages may be joined, and lists
/// then are.
pub fn encoded_chain(chain: FilterChain) -> Vec<u8> {
    use prost::Message as _;
    let listener = Listener {
        filter_chains: vec![chain],
        ..Listener::default()
    };
    listener.encode_to_vec()
}

/// All listeners of a proxy. Names and addresses are unique.
pub fn listeners(scope: &Scope, proxy: &Proxy, report: &mut Report) -> Vec<Encoded<Listener>> {
    if proxy.kind == ProxyKind::Router {
        return outbound_listeners(scope, report);
    }
    let own = own_address_chain(scope, proxy);
    let inbound = inbound_listeners(scope, proxy, report);
    let taken = |l: &Listener| inbound.iter().any(|i| i.address == l.address);
    // A headless service of the proxy itself must not shadow its inbound side.
    let mut outbound: Vec<Encoded<Listener>> = outbound_listeners(scope, report)
        .into_iter()
        .filter(|l| !is_own(l, proxy) && !taken(l))
        .collect();
    if let Some(chain) = own {
        let encoded = encoded_chain(chain.clone());
        for listener in &mut outbound {
            if OwnChain::of(listener).takes(proxy) {
                listener.message.filter_chains.insert(0, chain.clone());
                listener.body.splice(0..0, encoded.iter().copied());
            }
        }
    }
    let mut all = inbound;
    let at = all
        .iter()
        .position(|l| l.name == crate::names::VIRTUAL_INBOUND)
        .unwrap_or(all.len());
    all.splice(at..at, outbound);
    all
}

/// A listener on one of the proxy's own addresses, as headless services have.
fn is_own(listener: &Listener, proxy: &Proxy) -> bool {
    use crate::envoy::core::address::Address::SocketAddress;
    match listener.address.as_ref().and_then(|a| a.address.as_ref()) {
        Some(SocketAddress(socket)) => {
            listener.name != crate::names::VIRTUAL_OUTBOUND
                && socket
                    .address
                    .parse()
                    .is_ok_and(|ip| proxy.ips.contains(&ip))
        }
        _ => false,
    }
}
