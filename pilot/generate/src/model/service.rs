//! Services as every registry gives them: a host name, an address, ports, and how their endpoints are found.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnet::IpNet;
use jiff::Timestamp;

use super::Protocol;

/// Labels of workloads and selectors, in order, so that what is built from them is stable.
pub type Labels = BTreeMap<String, String>;

/// Whether `selector` is met by `labels`. The empty selector is met by everything: callers for whom it means "nothing"
/// (Kubernetes services) ask before.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

/// Which registry a service came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Registry {
    Kubernetes,
    ServiceEntry,
    Consul,
    /// Nothing.
    Mock,
    /// ServiceEntries that a config server makes from services it knows (synthetic ones).
    Mcp,
}

/// How the endpoints behind a service are found; decides the cluster type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// Endpoints are known to Pilot: an EDS cluster.
    ClientSideLb,
    /// Envoy resolves names: a STRICT_DNS cluster.
    Dns,
    /// The client's own destination address is kept: an ORIGINAL_DST cluster.
    Passthrough,
}

/// Who may see a service, from `exportTo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Visibility {
    Public,
    /// Only its own namespace.
    Private,
}

impl Visibility {
    /// Reads an `exportTo` list: only its first element counts, `.` means private; an empty list takes the mesh's
    /// default list, whose own emptiness means public.
    pub fn of(export_to: &[String], mesh_default: &[String]) -> Visibility {
        match export_to.first().or(mesh_default.first()).map(|s| s.trim()) {
            Some(".") => Visibility::Private,
            _ => Visibility::Public,
        }
    }
}

/// The address a client connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// No address of its own: any (headless services, ServiceEntries without addresses).
    Unspecified,
    /// A virtual IP.
    Ip(IpAddr),
    /// A range of addresses.
    Cidr(IpNet),
}

impl Address {
    /// The virtual IP, if there is exactly one.
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Address::Ip(ip) => Some(ip),
            _ => None,
        }
    }

    /// Parses an address of a ServiceEntry: an IP, or a CIDR (a full-length prefix becomes the IP).
    pub fn parse(text: &str) -> Option<Address> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Some(if ip == IpAddr::V4(Ipv4Addr::UNSPECIFIED) {
                Address::Unspecified
            } else {
                Address::Ip(ip)
            });
        }
        let net: IpNet = text.parse().ok()?;
        Some(if net.prefix_len() == net.max_prefix_len() {
            Address::Ip(net.addr())
        } else {
            Address::Cidr(net.trunc())
        })
    }
}

/// Where a Kubernetes service sends a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum TargetPort {
    Number(u32),
    /// A container port by name.
    Name(Arc<str>),
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Name, unique within the service; may be empty for a single port.
    pub name: Arc<str>,
    /// The number clients use.
    pub number: u32,
    /// What it speaks.
    pub protocol: Protocol,
    /// The workload's port (Kubernetes only).
    pub target: TargetPort,
}

/// A service of any registry. Immutable: a changed service is a new value behind a new `Arc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Fully qualified, lower case; may be a wildcard for ServiceEntries.
    pub hostname: Arc<str>,
    /// Name of the declaring object.
    pub name: Arc<str>,
    /// Namespace of the declaring object.
    pub namespace: Arc<str>,
    /// Origin.
    pub registry: Registry,
    /// Services sort by this: the older one wins conflicts.
    pub creation: Timestamp,
    /// Address of the client's side.
    pub address: Address,
    /// Ports in declared order.
    pub ports: Vec<ServicePort>,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Outside the mesh: no mesh identity to expect.
    pub mesh_external: bool,
    /// Who may see it.
    pub visibility: Visibility,
    /// Pods behind it; empty selects none.
    pub selector: Labels,
    /// Declared without cluster IP: clients reach pods by their own addresses.
    pub headless: bool,
    /// `ExternalName` target.
    pub external_name: Option<Arc<str>>,
    /// Addresses of its load balancers outside of the cluster: gateways between networks are reached there.
    pub external_addresses: Vec<Arc<str>>,
    /// Extra identities (SPIFFE URIs) besides those of the endpoints.
    pub service_accounts: Vec<String>,
}

impl Service {
    /// Identity across registries and updates.
    pub fn key(&self) -> ServiceKey {
        ServiceKey {
            hostname: self.hostname.clone(),
            namespace: self.namespace.clone(),
        }
    }

    /// What services sort by: their age, then their names.
    pub fn age(&self) -> (Timestamp, &str, &str, &str) {
        (self.creation, &self.hostname, &self.namespace, &self.name)
    }

    /// A port by number; UDP ports carry no proxied traffic and are not found.
    pub fn port(&self, number: u32) -> Option<&ServicePort> {
        self.proxied_ports().find(|p| p.number == number)
    }

    /// Ports that Envoy handles: all but UDP.
    pub fn proxied_ports(&self) -> impl Iterator<Item = &ServicePort> {
        self.ports.iter().filter(|p| p.protocol != Protocol::Udp)
    }
}

/// Host name and namespace: what endpoints are filed under. Two objects of one namespace that declare the same host
/// (several ServiceEntries, say one per port) share their endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct ServiceKey {
    pub hostname: Arc<str>,
    pub namespace: Arc<str>,
}
