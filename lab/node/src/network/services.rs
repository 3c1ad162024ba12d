//! Services with their endpoints, as VIP rules, node ports and DNS need them: one immutable table.
//!
//! Written by [`publish`] 20 ms after the last of a burst of changes, read through a `watch` channel.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::objects::Objects;

const DEBOUNCE: Duration = Duration::from_millis(20);

/// All services by namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServiceTable {
    pub(crate) services: BTreeMap<(String, String), ServiceEntry>,
}

/// One service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceEntry {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// ClusterIP and external IPs do the same; a headless service has none.
    pub(crate) cluster_ip: Option<Ipv4Addr>,
    pub(crate) ports: Vec<PortEntry>,
    /// Endpoints DNS may name: ready ones, or all with publishNotReadyAddresses.
    pub(crate) hosts: Vec<Host>,
}

/// Type of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName(String),
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortEntry {
    pub(crate) name: String,
    pub(crate) protocol: String,
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
    /// Where connections go: ready endpoints, or, if there are none, those that still serve while they terminate.
    pub(crate) targets: Vec<SocketAddrV4>,
}

/// One endpoint as DNS sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Host {
    pub(crate) ip: Ipv4Addr,
    pub(crate) hostname: Option<String>,
}

impl ServiceTable {
    /// Builds the table from the stored objects.
    pub(crate) fn build<'a>(
        services: impl Iterator<Item = &'a Service>,
        slices: impl Iterator<Item = &'a EndpointSlice>,
    ) -> Self {
        let mut by_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
        for slice in slices.filter(|slice| slice.address_type == "IPv4") {
            let name = slice
                .metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get("kubernetes.io/service-name"));
            if let (Some(namespace), Some(name)) = (slice.metadata.namespace.as_deref(), name) {
                by_service.entry((namespace, name)).or_default().push(slice);
            }
        }
        let services = services
            .filter_map(|service| {
                let namespace = service.metadata.namespace.clone()?;
                let name = service.metadata.name.clone()?;
                let slices = by_service
                    .get(&(namespace.as_str(), name.as_str()))
                    .map_or(&[][..], Vec::as_slice);
                let entry = entry(&namespace, &name, service, slices)?;
                Some(((namespace, name), entry))
            })
            .collect();
        Self { services }
    }

    /// A service by namespace and name.
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&ServiceEntry> {
        self.services.get(&(namespace.to_owned(), name.to_owned()))
    }
}

fn entry(
    namespace: &str,
    name: &str,
    service: &Service,
    slices: &[&EndpointSlice],
) -> Option<ServiceEntry> {
    let spec = service.spec.as_ref()?;
    let kind = match spec.type_.as_deref() {
        Some("NodePort") => Kind::NodePort,
        Some("LoadBalancer") => Kind::LoadBalancer,
        Some("ExternalName") => Kind::ExternalName(spec.external_name.clone().unwrap_or_default()),
        _ => Kind::ClusterIp,
    };
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        let port_name = port.name.clone().unwrap_or_default();
        Some(PortEntry {
            targets: targets(slices, &port_name, &protocol),
            name: port_name,
            protocol,
            port: u16::try_from(port.port).ok()?,
            node_port: port.node_port.and_then(|port| u16::try_from(port).ok()),
        })
    });
    let not_ready_too = spec.publish_not_ready_addresses.unwrap_or(false);
    let mut hosts: Vec<Host> = slices
        .iter()
        .flat_map(|slice| &slice.endpoints)
        .filter(|endpoint| {
            not_ready_too
                || endpoint
                    .conditions
                    .as_ref()
                    .and_then(|conditions| conditions.ready)
                    .unwrap_or(true)
        })
        .flat_map(|endpoint| {
            endpoint.addresses.iter().filter_map(|address| {
                Some(Host {
                    ip: address.parse().ok()?,
                    hostname: endpoint.hostname.clone(),
                })
            })
        })
        .collect();
    hosts.sort();
    hosts.dedup();
    Some(ServiceEntry {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        kind,
        cluster_ip: spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok()),
        ports: ports.collect(),
        hosts,
    })
}

fn targets(slices: &[&EndpointSlice], port_name: &str, protocol: &str) -> Vec<SocketAddrV4> {
    let (mut ready, mut draining) = (Vec::new(), Vec::new());
    for slice in slices {
        let ports = slice.ports.iter().flatten().filter(|port| {
            port.name.as_deref().unwrap_or("") == port_name
                && port.protocol.as_deref().unwrap_or("TCP") == protocol
        });
        for port in ports.filter_map(|port| port.port.and_then(|port| u16::try_from(port).ok())) {
            for endpoint in &slice.endpoints {
                let conditions = endpoint.conditions.clone().unwrap_or_default();
                let list = if conditions.ready.unwrap_or(true) {
                    &mut ready
                } else if conditions.serving.unwrap_or(false)
                    && conditions.terminating.unwrap_or(false)
                {
                    &mut draining
                } else {
                    continue;
                };
                list.extend(
                    endpoint
                        .addresses
                        .iter()
                        .filter_map(|ip| Some(SocketAddrV4::new(ip.parse().ok()?, port))),
                );
            }
        }
    }
    let mut targets = if ready.is_empty() { draining } else { ready };
    targets.sort();
    targets.dedup();
    targets
}

/// Publishes a new table whenever the objects have changed, until `stop`.
pub(crate) async fn publish(
    objects: Arc<Objects>,
    table: watch::Sender<Arc<ServiceTable>>,
    stop: CancellationToken,
) {
    let mut changed = objects.network_changed.clone();
    loop {
        changed.mark_unchanged();
        let services = objects.services.state();
        let slices = objects.slices.state();
        let next = ServiceTable::build(
            services.iter().map(AsRef::as_ref),
            slices.iter().map(AsRef::as_ref),
        );
        table.send_if_modified(|current| {
            let differs = **current != next;
            if differs {
                *current = Arc::new(next);
            }
            differs
        });
        tokio::select! {
            () = stop.cancelled() => return,
            result = changed.changed() => if result.is_err() { return },
        }
        // The first of a burst waits for the rest.
        tokio::time::sleep(DEBOUNCE).await;
    }
}
