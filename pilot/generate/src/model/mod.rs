//! The vocabulary: services, endpoints, workloads, proxies. Plain immutable values; registries write them, snapshots
//! index them, generators read them.

mod certificates;
mod endpoint;
pub mod host;
mod protocol;
mod proxy;
mod service;
mod workload;

pub use certificates::{CertificateFiles, CertificateSources};
pub use endpoint::{Endpoint, EndpointAddress, EndpointMap, Locality, ServiceEndpoints, TlsMode};
pub use protocol::Protocol;
pub use proxy::{Client, InterceptionMode, NodeError, Proxy, ProxyKind, RouterMode, Version};
pub use service::{
    Address, Labels, Registry, Resolution, Service, ServiceKey, ServicePort, TargetPort,
    Visibility, selects,
};
pub use workload::{ContainerPort, Probe, Workload, WorkloadMap};
