//! Load assignments.
//!
//! Endpoints group by locality, sorted, so that the same set gives the same bytes. Envoy ignores repeated addresses but refuses
//! weights of 0 and addresses that are none, which [`crate::registry`] keeps out.

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
    snapshot::Scope,
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
    let endpoint = lb_endpoint(envoy::socket_address(host, port), None, None);
    locality_group(cluster, vec![(Locality::default(), vec![(endpoint, 1)])])
}

/// Endpoints of a service port that carry a subset's labels.
pub(super) fn assignment(
    scope: &Scope,
    cluster: &str,
    service: &Arc<Service>,
    port: &ServicePort,
    subset: &str,
) -> ClusterLoadAssignment {
    let labels = if subset.is_empty() {
        None
    } else {
        match scope.rule(service).and_then(|r| r.subset_labels(subset)) {
            Some(labels) => Some(labels.clone()),
            None => return empty(cluster),
        }
    };
    let mut groups: BTreeMap<&Locality, Vec<(LbEndpoint, u32)>> = BTreeMap::new();
    let sets: Vec<_> = scope.snapshot().endpoints(&service.key()).collect();
    for endpoint in sets.iter().flat_map(|set| &set.endpoints) {
        let wanted = endpoint.service_port == port.name
            && labels
                .as_ref()
                .is_none_or(|labels| crate::model::selects(labels, &endpoint.labels));
        let Some(address) = address(endpoint, service.resolution).filter(|_| wanted) else {
            continue;
        };
        let weight = (endpoint.weight > 1).then_some(endpoint.weight);
        groups.entry(&endpoint.locality).or_default().push((
            lb_endpoint(address, weight, metadata(endpoint)),
            endpoint.weight,
        ));
    }
    locality_group(
        cluster,
        groups
            .into_iter()
            .map(|(l, list)| (l.clone(), list))
            .collect(),
    )
}

fn locality_group(
    cluster: &str,
    groups: Vec<(Locality, Vec<(LbEndpoint, u32)>)>,
) -> ClusterLoadAssignment {
    let endpoints = groups
        .into_iter()
        .map(|(locality, list)| {
            let weight = list.iter().fold(0u32, |sum, (_, w)| sum.saturating_add(*w));
            LocalityLbEndpoints {
                locality: (!locality.is_empty()).then(|| core::Locality {
                    region: locality.region.to_string(),
                    zone: locality.zone.to_string(),
                    sub_zone: locality.subzone.to_string(),
                }),
                lb_endpoints: list.into_iter().map(|(e, _)| e).collect(),
                load_balancing_weight: envoy::uint(weight.max(1)),
                ..Default::default()
            }
        })
        .collect();
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints,
        ..Default::default()
    }
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

fn lb_endpoint(
    address: core::Address,
    weight: Option<u32>,
    metadata: Option<core::Metadata>,
) -> LbEndpoint {
    LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(PbEndpoint {
            address: Some(address),
            ..Default::default()
        })),
        load_balancing_weight: weight.and_then(envoy::uint),
        metadata,
        ..Default::default()
    }
}

/// `istio: {uid, network}`, and the TLS mode that auto mTLS matches on.
fn metadata(endpoint: &Endpoint) -> Option<core::Metadata> {
    let known = [("uid", &endpoint.uid), ("network", &endpoint.network)];
    let fields = known.into_iter().filter(|(_, v)| !v.is_empty());
    let istio: Vec<_> = fields
        .map(|(k, v)| (k.to_owned(), envoy::string_value(&**v)))
        .collect();
    let istio = (!istio.is_empty()).then(|| {
        (
            "istio".to_owned(),
            Struct {
                fields: envoy::stable_map(istio),
            },
        )
    });
    let tls = (endpoint.tls_mode == TlsMode::Istio).then(|| {
        let fields = envoy::structure([("tlsMode", envoy::string_value("istio"))]);
        ("envoy.transport_socket_match".to_owned(), fields)
    });
    let filter_metadata = envoy::stable_map(tls.into_iter().chain(istio));
    (!filter_metadata.is_empty()).then(|| core::Metadata {
        filter_metadata,
        ..Default::default()
    })
}
