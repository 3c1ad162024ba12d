//! Hash policies of routes and connections, from the DestinationRule of their destination.

use std::time::Duration;

use crate::{
    compile::{HashKey, LoadBalancer},
    envoy::{
        self, kind,
        route::route_action::{HashPolicy, hash_policy},
    },
    model::Service,
    names,
    snapshot::Scope,
};

/// The hash policy of requests to a subset of a service, if its load balancing is by consistent hash.
pub(super) fn policy(
    scope: &Scope,
    service: &Service,
    subset: &str,
    port: u32,
) -> Option<HashPolicy> {
    let policy = scope.rule(service)?.policy(subset, port);
    let Some(LoadBalancer::RingHash { key: Some(key), .. }) = policy.lb else {
        return None;
    };
    let specifier = match key {
        HashKey::Header(header_name) => hash_policy::PolicySpecifier::Header(hash_policy::Header {
            header_name,
            ..Default::default()
        }),
        HashKey::Cookie { name, path, ttl } => {
            hash_policy::PolicySpecifier::Cookie(hash_policy::Cookie {
                name,
                path,
                // Without a lifetime Envoy only reads the cookie; with one of zero it sets a session cookie.
                ttl: envoy::duration(ttl.unwrap_or(Duration::ZERO)).filter(|_| ttl.is_some()),
                ..Default::default()
            })
        }
        HashKey::SourceIp => {
            hash_policy::PolicySpecifier::ConnectionProperties(hash_policy::ConnectionProperties {
                source_ip: true,
            })
        }
    };
    Some(HashPolicy {
        policy_specifier: Some(specifier),
        ..Default::default()
    })
}

/// The hash policy of connections to a cluster. Of bytes only the client's address is known; Istio 1.4 left it unused, so
/// that `useSourceIp` spread connections at random.
pub(super) fn of_connections(scope: &Scope, cluster: &str) -> Option<kind::HashPolicy> {
    let parts = names::parse_outbound(cluster)?;
    let (service, _) = scope.service_port(parts.host, parts.port)?;
    let policy = scope.rule(service)?.policy(parts.subset, parts.port);
    let Some(LoadBalancer::RingHash {
        key: Some(HashKey::SourceIp),
        ..
    }) = policy.lb
    else {
        return None;
    };
    let source_ip = kind::hash_policy::PolicySpecifier::SourceIp(Default::default());
    Some(kind::HashPolicy {
        policy_specifier: Some(source_ip),
    })
}
