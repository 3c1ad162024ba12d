//! Clusters of routers that pass mesh mTLS of other clusters on by its SNI (`ROUTER_MODE: sni-dnat`).
//!
//! `sni_cluster` takes the client's SNI as the name of a cluster, and clients of mesh mTLS send
//! `outbound_.PORT_.SUBSET_.HOST`. Each outbound cluster therefore has a twin of that name which carries bytes: the TLS
//! inside ends at the workload, so neither TLS nor HTTP settings apply.

use crate::{envoy::cluster::Cluster, names};

/// The twin of an outbound cluster.
pub(super) fn cluster(outbound: &Cluster) -> Option<Cluster> {
    let parts = names::parse_outbound(&outbound.name)?;
    let name = names::outbound_sni(parts.port, parts.subset, parts.host);
    let mut twin = Cluster {
        transport_socket: None,
        transport_socket_matches: Vec::new(),
        typed_extension_protocol_options: Default::default(),
        name,
        ..outbound.clone()
    };
    if let Some(eds) = &mut twin.eds_cluster_config {
        eds.service_name.clone_from(&twin.name);
    }
    if let Some(assignment) = &mut twin.load_assignment {
        assignment.cluster_name.clone_from(&twin.name);
    }
    Some(twin)
}
