//! Endpoints and where they are.

use std::{net::IpAddr, sync::Arc};

use super::{Labels, ServiceKey};

/// `region/zone/subzone`; parts may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct Locality {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub subzone: Arc<str>,
}

impl Locality {
    /// Reads `region[/zone[/subzone]]`.
    pub fn parse(text: &str) -> Locality {
        let mut parts = text.splitn(3, '/').map(Arc::<str>::from);
        let mut next = || parts.next().unwrap_or_default();
        Locality {
            region: next(),
            zone: next(),
            subzone: next(),
        }
    }

    /// Reads the pod label `istio-locality`, in which `.` stands for `/`.
    pub fn parse_label(text: &str) -> Locality {
        if text.contains('/') {
            Locality::parse(text)
        } else {
            Locality::parse(&text.replace('.', "/"))
        }
    }

    /// Nothing known.
    pub fn is_empty(&self) -> bool {
        self.region.is_empty() && self.zone.is_empty() && self.subzone.is_empty()
    }
}

impl std::fmt::Display for Locality {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.region)?;
        for part in [&self.zone, &self.subzone] {
            if part.is_empty() {
                break;
            }
            write!(f, "/{part}")?;
        }
        Ok(())
    }
}

/// Where an endpoint is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum EndpointAddress {
    Ip(IpAddr),
    /// Resolved by Envoy (DNS services only).
    Host(Arc<str>),
    /// A Unix socket path.
    Pipe(Arc<str>),
}

/// Whether the workload behind an endpoint takes mesh mTLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum TlsMode {
    #[default]
    Disabled,
    Istio,
}

/// One address that serves one service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Address.
    pub address: EndpointAddress,
    /// Port on that address; 0 for pipes.
    pub port: u32,
    /// Name of the service port it serves.
    pub service_port: Arc<str>,
    /// Workload labels, for subsets.
    pub labels: Arc<Labels>,
    /// At least 1.
    pub weight: u32,
    /// Where it runs.
    pub locality: Locality,
    /// SPIFFE URI, empty if unknown.
    pub service_account: Arc<str>,
    /// `kubernetes://POD.NS`, empty if unknown.
    pub uid: Arc<str>,
    /// Cluster (registry) it was found in; empty for endpoints written in config.
    pub cluster: Arc<str>,
    /// Network written in config; empty: that of its cluster or address (see [`crate::snapshot::Networks::of`]).
    pub network: Arc<str>,
    /// mTLS capability.
    pub tls_mode: TlsMode,
}

impl Endpoint {
    /// An endpoint of which only address and port are known.
    pub fn at(address: EndpointAddress, port: u32, service_port: impl Into<Arc<str>>) -> Endpoint {
        Endpoint {
            address,
            port,
            service_port: service_port.into(),
            labels: Arc::default(),
            weight: 1,
            locality: Locality::default(),
            service_account: Arc::default(),
            uid: Arc::default(),
            cluster: Arc::default(),
            network: Arc::default(),
            tls_mode: TlsMode::Disabled,
        }
    }
}

/// All endpoints of one service, over all its ports, sorted. The unit of change: a new set is a new `Arc`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEndpoints {
    /// Sorted by port name, address and port, without duplicates.
    pub endpoints: Vec<Endpoint>,
    /// Those that nobody may be sent to (yet), of workloads that are known by nothing but this list. Their own proxies
    /// are configured all the same. Sorted likewise.
    pub not_ready: Vec<Endpoint>,
}

impl ServiceEndpoints {
    /// Sorts and deduplicates, so that the same set always gives the same bytes.
    pub fn new(endpoints: Vec<Endpoint>) -> ServiceEndpoints {
        ServiceEndpoints {
            endpoints: sorted(endpoints),
            not_ready: Vec::new(),
        }
    }

    /// Adds those that are not ready.
    pub fn with_not_ready(self, not_ready: Vec<Endpoint>) -> ServiceEndpoints {
        ServiceEndpoints {
            not_ready: sorted(not_ready),
            ..self
        }
    }

    /// Ready or not.
    pub fn all(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().chain(&self.not_ready)
    }

    /// Whether one of these addresses is in it, ready or not.
    pub fn lists(&self, ips: &[IpAddr]) -> bool {
        self.all()
            .any(|e| matches!(e.address, EndpointAddress::Ip(ip) if ips.contains(&ip)))
    }
}

fn sorted(mut endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
    endpoints.sort_by(|a, b| {
        (&a.service_port, &a.address, a.port).cmp(&(&b.service_port, &b.address, b.port))
    });
    endpoints.dedup_by(|a, b| {
        a.service_port == b.service_port && a.address == b.address && a.port == b.port
    });
    endpoints
}

/// Endpoints by service. Cloning costs one reference count per service, so an update clones the map, replaces one
/// entry and publishes the clone.
pub type EndpointMap = ahash::AHashMap<ServiceKey, Arc<ServiceEndpoints>>;
