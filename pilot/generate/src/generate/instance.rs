//! Which services a workload belongs to: what its inbound side is made for.

use std::{net::IpAddr, sync::Arc};

use crate::{
    model::{
        EndpointAddress, Labels, Proxy, Registry, Service, ServiceEndpoints, ServicePort,
        TargetPort, Workload, selects,
    },
    report::{Report, metric},
    snapshot::{Shard, Snapshot},
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

/// The instances of a proxy, by age of their services: those of the first registry that has any, else those of
/// ServiceEntries that list one of its addresses.
///
/// In Kubernetes a workload belongs to the services of its namespace that select its labels, whether it is ready or not,
/// and to services without a selector that list one of its addresses. Labels and ports come from the registry, or from the
/// proxy itself as long as the cluster it says it is in does not know its pod. Everywhere else addresses decide. Cost:
/// O(services).
pub fn instances(snapshot: &Snapshot, proxy: &Proxy, report: &mut Report) -> Vec<Instance> {
    let mut found = snapshot
        .shards_of(proxy)
        .map(|shard| of_registry(shard, proxy))
        .find(|found| !found.is_empty())
        .unwrap_or_else(|| of_entries(snapshot, proxy));
    // Stable: ports of a service stay in their order.
    found.sort_by(|a, b| a.service.age().cmp(&b.service.age()));
    let known = || proxy.labels.is_some() || snapshot.workload_of(proxy).is_some();
    if found.is_empty() && !known() {
        report.event(
            metric::NO_IP,
            proxy.id.to_string(),
            "no pod and no endpoint has an address of this proxy (yet)",
        );
    }
    found
}

fn of_registry(shard: &Shard, proxy: &Proxy) -> Vec<Instance> {
    let workload = proxy.ips.iter().find_map(|ip| shard.workloads.get(ip));
    let told = proxy
        .labels
        .as_ref()
        .filter(|_| proxy.cluster_id.is_empty() || proxy.cluster_id == shard.cluster);
    let labels = workload.map(|w| &w.labels).or(told);
    let namespace = workload.map_or(&proxy.namespace, |w| &w.namespace);
    let mut out = Vec::new();
    for service in shard.services.iter() {
        if service.selector.is_empty() {
            let sets = shard.endpoints.get(&service.key());
            listed(sets.into_iter(), proxy, service, &mut out);
        } else if shard.registry == Registry::Kubernetes && service.namespace == *namespace {
            let labels = labels.map(|labels| &**labels);
            selected(proxy, service, labels, workload, &mut out);
        }
    }
    out
}

fn of_entries(snapshot: &Snapshot, proxy: &Proxy) -> Vec<Instance> {
    let mut out = Vec::new();
    let all = snapshot.services().all().iter();
    for service in all.filter(|s| s.registry == Registry::ServiceEntry) {
        let key = service.key();
        let sets = snapshot.endpoints(&key);
        listed(sets, proxy, service, &mut out);
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

fn listed<'a>(
    sets: impl Iterator<Item = &'a Arc<ServiceEndpoints>>,
    proxy: &Proxy,
    service: &Arc<Service>,
    out: &mut Vec<Instance>,
) {
    for endpoint in sets.flat_map(|set| set.all()) {
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
