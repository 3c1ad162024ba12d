//! Config objects made ready for use: checked once when they change, translated as far as that is possible without knowing
//! a proxy. Snapshots keep the results and take them over for objects that did not change, so the cost of a
//! config change is that of the changed objects. Whatever cannot be used is left out here and written down as a
//! [`Rejection`](crate::Rejection).

mod destination_rule;
mod gateway;
mod header_changes;
mod http_filters;
mod route_action;
mod route_match;
mod sidecar;
mod tls;
mod virtual_service;

use std::{sync::Arc, time::Duration};

pub(crate) use route_action::{default_retries, set_timeout};
pub(crate) use sidecar::socket_path;
pub(crate) use tls::MAX_SNI;

pub use destination_rule::{
    DestinationRuleConfig, HashKey, Keepalive, LoadBalancer, Policy, Pool, SubsetConfig,
};
pub use gateway::{GatewayConfig, GatewayServer, ServerClass, ServerKind};
pub use sidecar::{
    Bind, EgressHost, EgressListener, EgressNamespace, IngressEndpoint, IngressListener,
    ListenPort, SidecarConfig, SidecarId,
};
pub use tls::{Credentials, KeyPair, ServerTls, Tls, TlsPolicyMode, TlsVersion};
pub use virtual_service::{
    Destination, HttpRoute, L4Match, L4Route, Mirror, TlsRoute, VirtualServiceConfig, Weighted,
};

/// The name that stands for all sidecars in `gateways` lists.
pub const MESH: &str = "mesh";

/// What compilers need to know besides the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// DNS domain of Kubernetes services.
    pub domain: Arc<str>,
    /// `exportTo` when an object has none.
    pub virtual_service_export_to: Vec<String>,
    /// Likewise.
    pub destination_rule_export_to: Vec<String>,
    /// Likewise.
    pub service_export_to: Vec<String>,
    /// Which Ingresses are converted, and how.
    pub ingress: crate::registry::ingress::Settings,
}

/// A duration of the user, if it is one that Envoy takes: not negative, not over 10 years.
pub(crate) fn duration(value: &proto_networking::Duration) -> Result<Duration, String> {
    const MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
    let negative = value.seconds < 0 || value.nanos < 0;
    let std = value.to_std();
    if negative || std > MAX {
        return Err(format!(
            "{}s is out of range; accepted: 0s to 87600h",
            value.seconds
        ));
    }
    Ok(std)
}

/// Gateway references as `NS/NAME`: a bare or `./` name is of the object's own namespace, `mesh` stays.
pub(crate) fn gateway_name(reference: &str, namespace: &str) -> Arc<str> {
    if reference == MESH {
        return MESH.into();
    }
    match reference.split_once('/') {
        Some((".", name)) => format!("{namespace}/{name}").into(),
        Some(_) => reference.into(),
        None => match reference.split_once('.') {
            // The long form of 1.0: gw.ns.svc.domain.
            Some((name, rest)) => {
                let ns = rest.split('.').next().unwrap_or(namespace);
                format!("{ns}/{name}").into()
            }
            None => format!("{namespace}/{reference}").into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_are_named_in_full() {
        assert_eq!(&*gateway_name("gw", "shop"), "shop/gw");
        assert_eq!(&*gateway_name("./gw", "shop"), "shop/gw");
        assert_eq!(&*gateway_name("infra/gw", "shop"), "infra/gw");
        assert_eq!(
            &*gateway_name("gw.infra.svc.cluster.local", "shop"),
            "infra/gw"
        );
        assert_eq!(&*gateway_name("mesh", "shop"), "mesh");
    }
}
