//! Outbound listeners as slots that services claim, one per address and port.
//!
//! A slot may hold one HTTP chain (all HTTP services of the port share it, RDS tells them apart) and any number of TCP chains
//! that match different things. Services come in order of age; what a later one claims twice is left out and counted. Envoy
//! therefore never sees two listeners on one address, or two chains with one match.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    listener,
    tcp::{self, Claims},
};
use crate::{
    compile::socket_path,
    envoy::{
        self, Hcm, Routes, core,
        listener::{FilterChain, Listener},
    },
    model::{Protocol, Service},
    names,
    report::{Report, metric},
    snapshot::Scope,
};

/// Where to listen: an address (or `unix://PATH` with port 0), and whether for real.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) bind: String,
    pub(super) port: u32,
    pub(super) bound: bool,
}

/// What a service asks of a slot.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) protocol: Protocol,
    /// Route configuration, if it is or may be HTTP.
    pub(super) http: Option<String>,
    /// Chains for what is not HTTP.
    pub(super) chains: Vec<FilterChain>,
}

impl Claim {
    /// Nobody said what it speaks.
    fn sniffed(&self) -> bool {
        self.http.is_some() && !self.protocol.is_http()
    }
}

/// Slots by address and port.
#[derive(Debug, Default)]
pub(super) struct Slots(BTreeMap<(String, u32), Slot>);

impl Slots {
    /// Makes what is there final: later claims on it are ignored. Whoever gives a listener a port of its own wants just the
    /// services it names on it.
    pub(super) fn lock(&mut self) {
        for slot in self.0.values_mut() {
            slot.locked = true;
        }
    }

    /// A service claims a place.
    pub(super) fn put(
        &mut self,
        scope: &Scope,
        place: Place,
        service: &Service,
        claim: Claim,
        report: &mut Report,
    ) {
        if let Some(reason) = listener::reserved(scope, &place) {
            let message = format!("{reason}; {} gets no listener", service.hostname);
            let key = format!("{}:{}", service.hostname, place.port);
            report.event(metric::INVALID_OUT_LISTENERS, key, message);
            return;
        }
        let sniff = scope.settings().options.sniff_outbound;
        let slot = self.0.entry((place.bind, place.port)).or_default();
        if slot.locked {
            return;
        }
        slot.bound |= place.bound;
        slot.admit(claim, service, sniff);
    }

    /// The listeners: by name those for TCP, then those with HTTP.
    pub(super) fn listeners(self, scope: &Scope, report: &mut Report) -> Vec<Listener> {
        let (mut tcp, mut http) = (Vec::new(), Vec::new());
        for ((bind, port), slot) in self.0 {
            slot.tell(&bind, port, report);
            let list = match slot.http {
                Some(_) => &mut http,
                None => &mut tcp,
            };
            list.push(slot.listener(scope, &bind, port));
        }
        tcp.append(&mut http);
        tcp
    }
}

/// What a conflict counts as: the gauge, and the classes of the services that stand and of those left out.
type Conflict = (&'static str, &'static str, &'static str);

/// What lives on one address and port.
#[derive(Debug, Default)]
struct Slot {
    bound: bool,
    locked: bool,
    /// Route configuration of the HTTP chain.
    http: Option<String>,
    grpc_web: bool,
    chains: Vec<FilterChain>,
    claims: Claims,
    /// Some service did not say what it speaks.
    sniffed: bool,
    /// A protocol that cannot share a port.
    exclusive: Option<Protocol>,
    accepted: Vec<Arc<str>>,
    rejected: BTreeMap<Conflict, Vec<Arc<str>>>,
}

impl Slot {
    /// Takes in what a service asks for. On a conflict, what does not collide is taken in all the same where it can be told apart.
    fn admit(&mut self, claim: Claim, service: &Service, sniff: bool) {
        // Neither can be told apart from other bytes: the server speaks first.
        let exclusive =
            matches!(claim.protocol, Protocol::Mongo | Protocol::Mysql).then_some(claim.protocol);
        if self.accepted.is_empty() {
            self.exclusive = exclusive;
        } else if self.exclusive != exclusive
            // Without sniffing HTTP and TCP cannot share either.
            || (!sniff && claim.http.is_some() != self.http.is_some())
        {
            self.reject(&claim, service);
            return;
        }
        let asked = claim.chains.len();
        let sniffed = claim.sniffed();
        let conflict = self.conflict(&claim);
        let claims = &mut self.claims;
        let admitted: Vec<FilterChain> = claim
            .chains
            .into_iter()
            .filter_map(|mut chain| claims.admit(&mut chain).then_some(chain))
            .collect();
        let lost = admitted.len() < asked;
        self.chains.extend(admitted);
        // Sniffed services share the HTTP chain of the port; what is lost is only their fate as TCP.
        let tolerable = sniffed && self.sniffed;
        self.sniffed |= sniffed;
        self.grpc_web |= claim.protocol == Protocol::GrpcWeb;
        self.http = self.http.take().or(claim.http);
        if lost && !tolerable {
            let list = self.rejected.entry(conflict).or_default();
            list.push(service.hostname.clone());
        } else if self.accepted.last() != Some(&service.hostname) {
            self.accepted.push(service.hostname.clone());
        }
    }

    fn reject(&mut self, claim: &Claim, service: &Service) {
        let conflict = self.conflict(claim);
        let list = self.rejected.entry(conflict).or_default();
        list.push(service.hostname.clone());
    }

    /// What the claim would be counted as. The names of the metrics read backwards, as upstream.
    fn conflict(&self, claim: &Claim) -> Conflict {
        let existing = match &self.http {
            None => "TCP",
            Some(_) if self.sniffed || !self.chains.is_empty() => "UNKNOWN",
            Some(_) => "HTTP",
        };
        let incoming = match &claim.http {
            None => "TCP",
            Some(_) if claim.sniffed() => "UNKNOWN",
            Some(_) => "HTTP",
        };
        let metric = match (existing, incoming) {
            ("TCP", "HTTP") => metric::CONFLICT_TCP_OVER_HTTP,
            ("HTTP", "TCP") => metric::CONFLICT_HTTP_OVER_TCP,
            _ => metric::CONFLICT_TCP_OVER_TCP,
        };
        (metric, existing, incoming)
    }

    fn tell(&self, bind: &str, port: u32, report: &mut Report) {
        for ((metric, existing, incoming), rejected) in &self.rejected {
            let name = format!("{bind}:{port}");
            let message = format!(
                "Listener={name} Accepted{existing}={} Rejected{incoming}={} {existing}Services={}",
                self.accepted.join(","),
                rejected.join(","),
                self.accepted.len()
            );
            report.event(metric, name, message);
        }
    }

    fn listener(mut self, scope: &Scope, bind: &str, port: u32) -> Listener {
        let settings = scope.settings();
        let name = names::listener(bind, port);
        let mut chains = Vec::new();
        let mixed = self.sniffed || !self.chains.is_empty();
        if let Some(route) = self.http.take() {
            chains.push(FilterChain {
                filter_chain_match: mixed.then(listener::http_match),
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
        // HTTP alone matches everything, and its routes know what to do with the rest.
        if mixed && !self.claims.matches_all() && settings.options.fallthrough {
            self.chains.push(listener::fallthrough(scope));
        }
        chains.append(&mut self.chains);
        let address = match socket_path(bind) {
            Some(path) => envoy::pipe(path),
            None => envoy::socket_address(bind, port),
        };
        let mut listener = Listener {
            name,
            address: Some(address),
            filter_chains: chains,
            bind_to_port: envoy::boolean(self.bound),
            traffic_direction: core::TrafficDirection::Outbound.into(),
            ..Default::default()
        };
        listener::inspectors(&mut listener, settings.protocol_detection_timeout);
        listener
    }
}

impl Claim {
    /// Chains of a service without HTTP.
    pub(super) fn tcp(protocol: Protocol, chains: Vec<FilterChain>) -> Claim {
        Claim {
            protocol,
            http: None,
            chains,
        }
    }

    /// Routes alone.
    pub(super) fn http(protocol: Protocol, route: String) -> Claim {
        Claim {
            protocol,
            http: Some(route),
            chains: Vec::new(),
        }
    }
}

/// A chain for everything, where the mesh sends unknown traffic.
pub(super) fn policy_chain(scope: &Scope) -> FilterChain {
    let cluster = listener::outbound_policy_cluster(scope);
    tcp::chain(
        Vec::new(),
        Vec::new(),
        tcp::filters(scope, cluster, Protocol::Tcp),
    )
}
