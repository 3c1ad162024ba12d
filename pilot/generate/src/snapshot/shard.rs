//! What one registry knows.

use std::sync::Arc;

use crate::{
    model::{EndpointMap, Registry, Service, WorkloadMap},
    report::Report,
};

/// The services, endpoints and workloads of one registry: a cluster of Kubernetes, a Consul, the services that MCP
/// servers tell of. Immutable: a change is a new value that shares the parts which did not change.
///
/// Every registry has its own, so that what happens in one copies nothing of another; a [`super::Snapshot`] looks things
/// up in all of them, in their order.
#[derive(Clone, Debug)]
pub struct Shard {
    /// Name of the registry: the cluster ID that proxies tell, `Kubernetes` for the primary cluster.
    pub cluster: Arc<str>,
    /// What kind of registry it is.
    pub registry: Registry,
    /// Its services, in no particular order.
    pub services: Arc<Vec<Arc<Service>>>,
    /// Their endpoints.
    pub endpoints: Arc<EndpointMap>,
    /// Its workloads by address.
    pub workloads: Arc<WorkloadMap>,
    /// What the registry holds and could not be used.
    pub report: Arc<Report>,
}

impl Shard {
    /// A registry that knows nothing (yet).
    pub fn new(cluster: impl Into<Arc<str>>, registry: Registry) -> Shard {
        Shard {
            cluster: cluster.into(),
            registry,
            services: Arc::default(),
            endpoints: Arc::default(),
            workloads: Arc::default(),
            report: Arc::default(),
        }
    }

    /// Whether both have the very same services.
    pub(super) fn same_services(&self, other: &Shard) -> bool {
        self.cluster == other.cluster && Arc::ptr_eq(&self.services, &other.services)
    }
}
