//! Envoy configuration from a scope: pure functions, linear in what they return.
//!
//! Shared parts (`outbound_*`, [`route`], [`endpoints`]) depend on the [`Scope`] alone; the others on the one
//! proxy. Findings that exist only in the eyes of a scope or proxy (collisions) go into the [`Report`] passed along.

mod cluster;
mod endpoint;
mod gateway;
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
    envoy::{cluster::Cluster, listener::Listener},
    model::{Proxy, ProxyKind},
    report::Report,
    snapshot::Scope,
};

pub use cluster::{outbound_clusters, service_clusters};
pub use endpoint::endpoints;
pub use inbound::{inbound_clusters, inbound_listeners};
pub use instance::{Instance, instances};
pub use listener::{OwnChain, outbound_listeners, own_address_chain};
pub use route::{route, route_names};
pub use tls::secret;

/// All clusters of a proxy: outbound, black hole, and for sidecars passthrough and the inbound ones. Names are unique.
pub fn clusters(scope: &Scope, proxy: &Proxy, report: &mut Report) -> Vec<Cluster> {
    let mut all = outbound_clusters(scope, report);
    if proxy.kind == ProxyKind::Sidecar {
        all.extend(inbound_clusters(scope, proxy, report));
    }
    all
}

/// All listeners of a proxy. Names and addresses are unique.
pub fn listeners(scope: &Scope, proxy: &Proxy, report: &mut Report) -> Vec<Listener> {
    if proxy.kind == ProxyKind::Router {
        return outbound_listeners(scope, report);
    }
    let own = own_address_chain(scope, proxy);
    let inbound = inbound_listeners(scope, proxy, report);
    let taken = |l: &Listener| inbound.iter().any(|i| i.address == l.address);
    // A headless service of the proxy itself must not shadow its inbound side.
    let mut outbound: Vec<Listener> = outbound_listeners(scope, report)
        .into_iter()
        .filter(|l| !is_own(l, proxy) && !taken(l))
        .collect();
    if let Some(chain) = own {
        for listener in &mut outbound {
            if OwnChain::of(listener).takes(proxy) {
                listener.filter_chains.insert(0, chain.clone());
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
