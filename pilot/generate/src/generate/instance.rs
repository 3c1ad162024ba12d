//! Which services a workload belongs to: what its inbound side is made for.

use std::{net::IpAddr, sync::Arc};

use crate::{
    model::{
        EndpointAddress, Labels, Proxy, Registry, Service, ServicePort, TargetPort, Workload,
        selects,
    },
    report::{Report, metric},
    snapshot::Snapshot,
};

/// A service port that a workload serves.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// The service.
    pub service: Arc<Service>,
    /// Its port.
    pub port: ServicePort,
    /// The workload's address that clients reach.
    pub address: IpAddr,
    /// The workload's port.
    pub endpoint_port: u32,
}

/// The instances of a proxy, by age of their services.
///
/// Services of the workload's namespace that select its labels, whether it is ready or not; and services without a
/// selector that list one of its addresses. Labels and ports come from the registry, or from the proxy itself as long as the
/// registry does not know the pod. Cost: O(services).
pub fn instances(snapshot: &Snapshot, proxy: &Proxy, report: &mut Report) -> Vec<Instance> {
    let workload = snapshot.workload_of(proxy);
    let labels = workload
        .map(|w| w.labels.clone())
        .or_else(|| proxy.labels.clone());
    let namespace = workload.map_or(&proxy.namespace, |w| &w.namespace);
    let mut out = Vec::new();
    for service in snapshot.services().all() {
        if service.selector.is_empty() {
            listed(snapshot, proxy, service, &mut out);
        } else if service.registry == Registry::Kubernetes && service.namespace == *namespace {
            selected(proxy, service, labels.as_deref(), workload, &mut out);
        }
    }
    if out.is_empty() && labels.is_none() {
        report.event(
            metric::NO_IP,
            proxy.id.to_string(),
            "no pod and no endpoint has an address of this proxy (yet)",
        );
    }
    out
}

fn selected(
    proxy: &Proxy,
    service: &Arc<Service>,
    labels: Option<&Labels>,
    workload: Option<&Arc<Workload>>,
    out: &mut Vec<Instance>,
) {
    if !labels.is_some_and(|labels| selects(&service.selector, labels))
        || service.external_name.is_some()
    {
        return;
    }
    let container_ports = workload.map_or(proxy.pod_ports.as_slice(), |w| w.ports.as_slice());
    for port in service.proxied_ports() {
        let endpoint_port = match &port.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => container_ports
                .iter()
                .find(|p| p.name == *name)
                .map(|p| p.number),
        };
        if let Some(endpoint_port) = endpoint_port {
            out.push(Instance {
                service: service.clone(),
                port: port.clone(),
                address: proxy.ips[0],
                endpoint_port,
            });
        }
    }
}

fn listed(snapshot: &Snapshot, proxy: &Proxy, service: &Arc<Service>, out: &mut Vec<Instance>) {
    for endpoint in snapshot
        .endpoints(&service.key())
        .flat_map(|set| &set.endpoints)
    {
        let EndpointAddress::Ip(address) = endpoint.address else {
            continue;
        };
        if !proxy.ips.contains(&address) || endpoint.port == 0 {
            continue;
        }
        for port in service
            .proxied_ports()
            .filter(|p| p.name == endpoint.service_port)
        {
            out.push(Instance {
                service: service.clone(),
                port: port.clone(),
                address,
                endpoint_port: endpoint.port,
            });
        }
    }
}
