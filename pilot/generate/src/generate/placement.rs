//! Where the services of an egress listener are listened for.

use std::sync::Arc;

use super::{
    slot::{Claim, Place, Slots},
    tcp::{self, Target},
};
use crate::{
    compile::{EgressListener, ListenPort},
    envoy::listener::FilterChain,
    model::{Address, EndpointAddress, Protocol, Service, ServicePort},
    names,
    report::{Report, metric},
    snapshot::{Egress, Scope},
};

/// Lets all services that are seen claim their places, listener by listener.
pub(super) fn place_all(scope: &Scope, report: &mut Report) -> Slots {
    let mut slots = Slots::default();
    for egress in scope.egress() {
        match &egress.listener.port {
            Some(port) => own_port(scope, egress, port, &mut slots, report),
            None => {
                slots.lock();
                for service in egress.services.all() {
                    for port in service.proxied_ports() {
                        service_port(scope, egress, service, port, &mut slots, report);
                    }
                }
            }
        }
    }
    slots
}

/// Whether a listener is bound for real.
fn is_bound(scope: &Scope, listener: &EgressListener) -> bool {
    scope.key().bound() || listener.bound
}

/// The address that a listener is to have whatever its services have: what the user wants, and else, for listeners that the
/// workload must find by itself, the loopback address.
fn fixed_bind(scope: &Scope, listener: &EgressListener) -> Option<String> {
    let bound = is_bound(scope, listener);
    let wanted = listener.bind.as_ref().map(|b| b.text());
    wanted.or_else(|| bound.then(|| scope.localhost().to_owned()))
}

/// HTTP in clear text on 443 is a misnamed port nearly always, and would break TLS of everybody else.
fn is_blocked(scope: &Scope, protocol: Protocol, number: u32) -> bool {
    scope.settings().options.block_http_on_443 && protocol == Protocol::Http && number == 443
}

fn tell_blocked(service: &Service, report: &mut Report) {
    let message = format!(
        "HTTP port 443 of {} gets no listener; name the port https or tls",
        service.hostname
    );
    let key = service.hostname.to_string();
    report.event(metric::CONFLICT_HTTP_OVER_HTTPS, key, message);
}

/// HTTP by name, or possibly HTTP.
pub(super) fn is_routed(scope: &Scope, protocol: Protocol) -> bool {
    protocol.is_http() || is_sniffed(scope, protocol)
}

fn is_sniffed(scope: &Scope, protocol: Protocol) -> bool {
    protocol == Protocol::Unsupported && scope.settings().options.sniff_outbound
}

/// The route configuration of a listener with a port of its own: its port, or its socket.
pub(super) fn own_port_route(
    scope: &Scope,
    listener: &EgressListener,
    port: &ListenPort,
) -> Option<String> {
    let routed = is_routed(scope, port.protocol) && !is_blocked(scope, port.protocol, port.number);
    routed.then(|| match (port.number, &listener.bind) {
        (0, Some(bind)) => bind.text(),
        (number, _) => number.to_string(),
    })
}

/// The route configuration of a service port in the catch-all listener: that of the port, or one of its own if it is sniffed
/// at an address of its own.
pub(super) fn service_port_route(
    scope: &Scope,
    listener: &EgressListener,
    service: &Service,
    port: &ServicePort,
) -> Option<String> {
    if !is_routed(scope, port.protocol) || is_blocked(scope, port.protocol, port.number) {
        return None;
    }
    let own_address = service.address.ip().is_some() && fixed_bind(scope, listener).is_none();
    Some(match is_sniffed(scope, port.protocol) && own_address {
        true => names::host_port(&service.hostname, port.number),
        false => port.number.to_string(),
    })
}

/// A listener with a port of its own, for all its services whatever ports they have.
fn own_port(
    scope: &Scope,
    egress: Egress<'_>,
    port: &ListenPort,
    slots: &mut Slots,
    report: &mut Report,
) {
    let listener = egress.listener;
    let bind = fixed_bind(scope, listener).unwrap_or_else(|| scope.wildcard().to_owned());
    let place = Place {
        bind,
        port: port.number,
        bound: is_bound(scope, listener),
    };
    // One service needs nothing to be told apart by.
    let sni = egress.services.all().len() > 1;
    for service in egress.services.all() {
        if is_blocked(scope, port.protocol, port.number) {
            tell_blocked(service, report);
            continue;
        }
        let chains = || -> Vec<FilterChain> {
            let target = Target {
                service,
                port: port.number,
                protocol: port.protocol,
                // A service with one port is called on it, whatever the listener's is.
                cluster_port: match service.ports.as_slice() {
                    [only] => only.number,
                    _ => port.number,
                },
                own_range: false,
                sni,
            };
            tcp::service_chains(scope, egress.virtual_services, target)
        };
        let claim = Claim {
            protocol: port.protocol,
            http: own_port_route(scope, listener, port),
            chains: match port.protocol.is_http() {
                true => Vec::new(),
                false => chains(),
            },
        };
        slots.put(scope, place.clone(), service, claim, report);
    }
}

/// A service port in the catch-all listener.
fn service_port(
    scope: &Scope,
    egress: Egress<'_>,
    service: &Arc<Service>,
    port: &ServicePort,
    slots: &mut Slots,
    report: &mut Report,
) {
    if is_blocked(scope, port.protocol, port.number) {
        tell_blocked(service, report);
        return;
    }
    let listener = egress.listener;
    let bound = is_bound(scope, listener);
    let route = service_port_route(scope, listener, service, port);
    let fixed = fixed_bind(scope, listener);
    let wildcard = || scope.wildcard().to_owned();
    let chains = |own_range: bool, sni: bool| {
        let target = Target {
            service,
            port: port.number,
            protocol: port.protocol,
            cluster_port: port.number,
            own_range,
            sni,
        };
        tcp::service_chains(scope, egress.virtual_services, target)
    };
    let mut put = |bind: String, claim: Claim| {
        let place = Place {
            bind,
            port: port.number,
            bound,
        };
        slots.put(scope, place, service, claim, report);
    };
    if port.protocol.is_http() {
        if let Some(route) = route {
            put(
                fixed.unwrap_or_else(wildcard),
                Claim::http(port.protocol, route),
            );
        }
        return;
    }
    let claim = |chains: Vec<FilterChain>| Claim {
        protocol: port.protocol,
        http: route.clone(),
        chains,
    };
    match (fixed, service.address) {
        (Some(bind), _) => put(bind, claim(chains(false, true))),
        (None, Address::Ip(ip)) => put(ip.to_string(), claim(chains(false, false))),
        (None, Address::Unspecified) if is_per_pod(scope, service, port) => {
            for pod in pods(scope, service, port) {
                put(pod, Claim::tcp(port.protocol, chains(false, false)));
            }
        }
        (None, Address::Unspecified | Address::Cidr(_)) => {
            put(wildcard(), claim(chains(true, true)));
        }
    }
}

/// Clients of a headless service call its pods by their own addresses.
fn is_per_pod(scope: &Scope, service: &Service, port: &ServicePort) -> bool {
    service.headless && port.protocol.is_tcp() && scope.settings().options.headless_pod_listeners
}

fn pods(scope: &Scope, service: &Service, port: &ServicePort) -> Vec<String> {
    let key = service.key();
    scope
        .snapshot()
        .endpoints(&key)
        .flat_map(|set| &set.endpoints)
        .filter(|e| e.service_port == port.name)
        .filter_map(|e| match &e.address {
            EndpointAddress::Ip(ip) => Some(ip.to_string()),
            _ => None,
        })
        .collect()
}
