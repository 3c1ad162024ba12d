//! Workloads: what is known of the pod (or machine) behind an address.

use std::{net::IpAddr, sync::Arc};

use super::{Labels, Locality, TlsMode};

/// A named container port.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ContainerPort {
    pub name: Arc<str>,
    pub number: u32,
}

/// A port that the kubelet probes: it must answer without a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Container port.
    pub port: u32,
    /// Path of an HTTP probe.
    pub path: Option<Arc<str>>,
}

/// What Pilot knows of a running workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Pod name.
    pub name: Arc<str>,
    /// Pod namespace.
    pub namespace: Arc<str>,
    /// Pod labels.
    pub labels: Arc<Labels>,
    /// SPIFFE URI of its service account.
    pub service_account: Arc<str>,
    /// Where it runs; empty if unknown.
    pub locality: Locality,
    /// Ports by name, for named target ports.
    pub ports: Vec<ContainerPort>,
    /// Liveness and readiness probes.
    pub probes: Vec<Probe>,
    /// Whether it carries a sidecar that takes mTLS.
    pub tls_mode: TlsMode,
}

/// Workloads by each of their addresses. Cloned and replaced like [`super::EndpointMap`].
pub type WorkloadMap = ahash::AHashMap<IpAddr, Arc<Workload>>;
