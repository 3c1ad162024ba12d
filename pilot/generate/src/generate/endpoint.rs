//! Load assignments.
//!
//! Endpoints group by locality, sorted, so that the same set gives the same bytes. Where the mesh has several networks, endpoints of
//! others are replaced by the gateways of theirs, in their own locality; then locality load balancing gives weights or
//! priorities. Envoy ignores repeated addresses but refuses weights of 0, sums of weights over 32 bits, and addresses that
//! are none, which [`crate::registry`] keeps out.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    envoy::{
        self, Struct, core,
        endpoint::{
            ClusterLoadAssignment, Endpoint as PbEndpoint, LbEndpoint, LocalityLbEndpoints,
            lb_endpoint,
        },
    },
    model::{Endpoint, EndpointAddress, Locality, Resolution, Service, ServicePort, TlsMode},
    names,
    report::{Report, metric},
    snapshot::{Networks, Scope, as_they_are},
};

/// The load assignment of an EDS cluster. Never fails: a name nobody knows gets an empty assignment, for a cluster that is never answered
/// would keep Envoy from using its other clusters.
pub fn endpoints(scope: &Scope, cluster: &str, report: &mut Report) -> ClusterLoadAssignment {
    let found = names::parse_outbound(cluster)
        .and_then(|name| Some((name, scope.service_port(name.host, name.port)?)))
        .map(|(name, (service, port))| assignment(scope, cluster, service, port, name.subset));
    let assignment = found.unwrap_or_else(|| empty(cluster));
    if assignment.endpoints.is_empty() {
        report.event(metric::EDS_NO_INSTANCES, cluster, "no ready endpoint");
    }
    assignment
}

fn empty(cluster: &str) -> ClusterLoadAssignment {
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        ..Default::default()
    }
}

/// One host name, resolved by Envoy.
pub(super) fn single(cluster: &str, host: &str, port: u32) -> ClusterLoadAssignment {
    at(cluster, envoy::socket_address(host, port))
}

/// One address.
pub(super) fn at(cluster: &str, address: core::Address) -> ClusterLoadAssignment {
    let mut group = Group::default();
    group.add(address, None, 1);
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![group.finish(&Locality::default(), 1, 0, 1)],
        ..Default::default()
    }
}

/// Endpoints of one locality.
#[derive(Debug, Default)]
struct Group {
    endpoints: Vec<(LbEndpoint, u64)>,
    /// Weight of the endpoints in other networks, and whether any of them takes mesh mTLS: only that passes a gateway.
    remote: BTreeMap<Arc<str>, (u64, TlsMode)>,
}

impl Group {
    fn add(&mut self, address: core::Address, metadata: Option<core::Metadata>, weight: u64) {
        let endpoint = LbEndpoint {
            host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(PbEndpoint {
                address: Some(address),
                ..Default::default()
            })),
            metadata,
            ..Default::default()
        };
        self.endpoints.push((endpoint, weight));
    }

    /// Puts the gateways of other networks in place of the endpoints there.
    fn add_gateways(&mut self, networks: &Networks) {
        for (network, (weight, tls_mode)) in std::mem::take(&mut self.remote) {
            let gateways = networks.gateways(&network);
            for (ip, port) in gateways {
                let share = weight * (networks.multiple() / gateways.len() as u64).max(1);
                let address = envoy::socket_address(ip.to_string(), *port);
                self.add(address, metadata("", &network, tls_mode), share);
            }
        }
    }

    fn weight(&self) -> u64 {
        self.endpoints.iter().map(|(_, weight)| weight).sum()
    }

    /// `scale` divides the weights of endpoints.
    fn finish(
        self,
        locality: &Locality,
        weight: u32,
        priority: u32,
        scale: u64,
    ) -> LocalityLbEndpoints {
        let endpoint = |(mut endpoint, weight): (LbEndpoint, u64)| {
            let weight = scaled(weight, scale);
            endpoint.load_balancing_weight = (weight > 1).then_some(weight).and_then(envoy::uint);
            endpoint
        };
        LocalityLbEndpoints {
            locality: (!locality.is_empty()).then(|| core::Locality {
                region: locality.region.to_string(),
                zone: locality.zone.to_string(),
                sub_zone: locality.subzone.to_string(),
            }),
            lb_endpoints: self.endpoints.into_iter().map(endpoint).collect(),
            load_balancing_weight: envoy::uint(weight),
            priority,
            ..Default::default()
        }
    }
}

fn scaled(weight: u64, scale: u64) -> u32 {
    u32::try_from(weight / scale).unwrap_or(u32::MAX).max(1)
}

/// Endpoints of a service port that carry a subset's labels.
pub(super) fn assignment(
    scope: &Scope,
    cluster: &str,
    service: &Arc<Service>,
    port: &ServicePort,
    subset: &str,
) -> ClusterLoadAssignment {
    let rule = scope.rule(service);
    let labels = if subset.is_empty() {
        None
    } else {
        match rule.and_then(|r| r.subset_labels(subset)) {
            Some(labels) => Some(labels.clone()),
            None => return empty(cluster),
        }
    };
    let wanted = |endpoint: &Endpoint| {
        endpoint.service_port == port.name
            && labels
                .as_ref()
                .is_none_or(|labels| crate::model::selects(labels, &endpoint.labels))
    };
    let groups = groups(scope, service, wanted);
    let detects = rule.is_some_and(|r| r.policy(subset, port.number).outlier.is_some());
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: arrange(scope, groups, detects),
        ..Default::default()
    }
}

/// What a client of the scope may connect to, by locality.
fn groups(
    scope: &Scope,
    service: &Service,
    wanted: impl Fn(&Endpoint) -> bool,
) -> BTreeMap<Locality, Group> {
    let networks = scope.snapshot().networks();
    let key = scope.key();
    let dns = service.resolution == Resolution::Dns;
    let split = networks.is_split() && !dns;
    let multiple = if split { networks.multiple() } else { 1 };
    let mut groups: BTreeMap<Locality, Group> = BTreeMap::new();
    let service_key = service.key();
    let sets = scope.snapshot().endpoints(&service_key);
    for endpoint in sets.flat_map(|set| &set.endpoints).filter(|e| wanted(e)) {
        let Some(address) = address(endpoint, service.resolution) else {
            continue;
        };
        let network = networks.of(endpoint);
        // Clients resolve names themselves: no gateway can stand in for these.
        if dns && !key.sees_network(network) {
            continue;
        }
        let group = groups.entry(endpoint.locality.clone()).or_default();
        let weight = u64::from(endpoint.weight);
        if split && network != &*key.network {
            let (sum, tls_mode) = group.remote.entry(network.into()).or_default();
            *sum += weight;
            if endpoint.tls_mode == TlsMode::Istio {
                *tls_mode = TlsMode::Istio;
            }
        } else {
            let metadata = metadata(&endpoint.uid, network, endpoint.tls_mode);
            group.add(address, metadata, weight * multiple);
        }
    }
    for group in groups.values_mut() {
        group.add_gateways(networks);
    }
    groups.retain(|_, group| !group.endpoints.is_empty());
    groups
}

/// Locality load balancing, where the mesh asks for it.
fn arrange(
    scope: &Scope,
    groups: BTreeMap<Locality, Group>,
    detects: bool,
) -> Vec<LocalityLbEndpoints> {
    let weighted: Vec<(&Locality, u64)> = groups.iter().map(|(l, g)| (l, g.weight())).collect();
    let arranged = match &scope.settings().locality_lb {
        Some(lb) => lb.arrange(&scope.key().vantage, detects, &weighted),
        None => as_they_are(&weighted),
    };
    // Envoy adds the weights of localities, and those of the endpoints in each, in 32 bits.
    let divisor = |total: u64| total / u64::from(u32::MAX) + 1;
    let of_localities = divisor(arranged.iter().filter_map(|a| a.weight).sum());
    let of_endpoints = divisor(
        weighted
            .iter()
            .map(|(_, weight)| *weight)
            .max()
            .unwrap_or(0),
    );
    groups
        .into_iter()
        .zip(arranged)
        .filter_map(|((locality, group), arranged)| {
            let weight = scaled(arranged.weight?, of_localities);
            Some(group.finish(&locality, weight, arranged.priority, of_endpoints))
        })
        .collect()
}

/// A name can only stand in a cluster that resolves.
fn address(endpoint: &Endpoint, resolution: Resolution) -> Option<core::Address> {
    match &endpoint.address {
        EndpointAddress::Ip(_) if endpoint.port == 0 => None,
        EndpointAddress::Ip(ip) => Some(envoy::socket_address(ip.to_string(), endpoint.port)),
        EndpointAddress::Host(host) if resolution == Resolution::Dns => {
            Some(envoy::socket_address(&**host, endpoint.port))
        }
        EndpointAddress::Host(_) => None,
        EndpointAddress::Pipe(_) if resolution == Resolution::Dns => None,
        EndpointAddress::Pipe(path) => Some(envoy::pipe(&**path)),
    }
}

/// `istio: {uid, network}`, and the TLS mode that auto mTLS matches on.
fn metadata(uid: &str, network: &str, tls_mode: TlsMode) -> Option<core::Metadata> {
    let known = [("uid", uid), ("network", network)];
    let fields = known.into_iter().filter(|(_, v)| !v.is_empty());
    let istio: Vec<_> = fields
        .map(|(k, v)| (k.to_owned(), envoy::string_value(v)))
        .collect();
    let istio = (!istio.is_empty()).then(|| {
        (
            "istio".to_owned(),
            Struct {
                fields: envoy::stable_map(istio),
            },
        )
    });
    let tls = (tls_mode == TlsMode::Istio).then(|| {
        let fields = envoy::structure([("tlsMode", envoy::string_value("istio"))]);
        ("envoy.transport_socket_match".to_owned(), fields)
    });
    let filter_metadata = envoy::stable_map(tls.into_iter().chain(istio));
    (!filter_metadata.is_empty()).then(|| core::Metadata {
        filter_metadata,
        ..Default::default()
    })
}
