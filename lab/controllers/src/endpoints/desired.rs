//! Which addresses a Service should have, from its pods. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as LegacyPort, EndpointSubset, Endpoints, ObjectReference, Pod,
    Service, ServicePort,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::pods;

/// Endpoints that share address family and resolved ports, and so share slices.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    pub(crate) address_type: &'static str,
    pub(crate) ports: Vec<EndpointPort>,
    pub(crate) endpoints: Vec<Endpoint>,
}

pub(crate) fn publishes_not_ready(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|s| s.publish_not_ready_addresses)
        .unwrap_or(false)
        || service
            .annotations()
            .get("service.alpha.kubernetes.io/tolerate-unready-endpoints")
            .is_some_and(|v| v == "true")
}

pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// The address of a pod that may serve: it has one and has not finished.
fn address(pod: &Pod) -> Option<&str> {
    if pods::is_finished(pod) {
        return None;
    }
    pod.status
        .as_ref()?
        .pod_ip
        .as_deref()
        .filter(|ip| !ip.is_empty())
}

pub(crate) fn address_type(ip: &str) -> &'static str {
    if ip.contains(':') { "IPv6" } else { "IPv4" }
}

/// The port a pod serves a Service port on. A named port the pod does not have leaves the pod out of that port.
fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|c| c.restart_policy.as_deref() == Some("Always"));
            sidecars
                .chain(&spec.containers)
                .flat_map(|c| c.ports.iter().flatten())
                .find(|p| {
                    p.name.as_deref() == Some(name)
                        && p.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|p| p.container_port)
        }
    }
}

fn resolved_ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service
        .spec
        .as_ref()
        .and_then(|s| s.ports.as_deref())
        .unwrap_or_default();
    let mut resolved: Vec<_> = ports
        .iter()
        .filter_map(|port| {
            Some(EndpointPort {
                app_protocol: port.app_protocol.clone(),
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(target_port(port, pod)?),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            })
        })
        .collect();
    resolved.sort_by(|a, b| port_key(a).cmp(&port_key(b)));
    resolved
}

pub(crate) fn port_key(
    port: &EndpointPort,
) -> (Option<&str>, Option<i32>, Option<&str>, Option<&str>) {
    (
        port.name.as_deref(),
        port.port,
        port.protocol.as_deref(),
        port.app_protocol.as_deref(),
    )
}

fn group_key(ip: &str, ports: &[EndpointPort]) -> String {
    ports.iter().fold(address_type(ip).to_owned(), |key, port| {
        format!("{key} {:?}", port_key(port))
    })
}

fn pod_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.namespace(),
        name: pod.metadata.name.clone(),
        uid: pod.uid(),
        ..ObjectReference::default()
    }
}

fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    (spec.subdomain == service.metadata.name)
        .then(|| spec.hostname.clone())
        .flatten()
}

fn node_name(pod: &Pod) -> Option<String> {
    pod.spec.as_ref().and_then(|s| s.node_name.clone())
}

/// The slices' contents for a Service with a selector. `zone` tells a node's zone.
pub(crate) fn groups(
    service: &Service,
    pods: &[Arc<Pod>],
    zone: impl Fn(&str) -> Option<String>,
) -> Vec<Group> {
    let publish = publishes_not_ready(service);
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for pod in pods {
        let Some(ip) = address(pod) else { continue };
        let ports = resolved_ports(service, pod);
        let serving = pods::is_ready(pod);
        let terminating = pods::is_terminating(pod);
        let node = node_name(pod);
        let endpoint = Endpoint {
            addresses: vec![ip.to_owned()],
            conditions: Some(EndpointConditions {
                ready: Some(publish || (serving && !terminating)),
                serving: Some(serving),
                terminating: Some(terminating),
            }),
            hostname: hostname(service, pod),
            zone: node.as_deref().and_then(&zone),
            node_name: node,
            target_ref: Some(pod_reference(pod)),
            ..Endpoint::default()
        };
        groups
            .entry(group_key(ip, &ports))
            .or_insert_with(|| Group {
                address_type: address_type(ip),
                ports,
                endpoints: Vec::new(),
            })
            .endpoints
            .push(endpoint);
    }
    groups.into_values().collect()
}

/// The same for a Service without a selector, from the Endpoints object somebody wrote by hand.
pub(crate) fn mirrored(endpoints: &Endpoints) -> Vec<Group> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let mut ports: Vec<_> = subset
            .ports
            .iter()
            .flatten()
            .map(|p| EndpointPort {
                app_protocol: p.app_protocol.clone(),
                name: Some(p.name.clone().unwrap_or_default()),
                port: Some(p.port),
                protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            })
            .collect();
        ports.sort_by(|a, b| port_key(a).cmp(&port_key(b)));
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        for (address, ready) in ready.chain(
            subset
                .not_ready_addresses
                .iter()
                .flatten()
                .map(|a| (a, false)),
        ) {
            groups
                .entry(group_key(&address.ip, &ports))
                .or_insert_with(|| Group {
                    address_type: address_type(&address.ip),
                    ports: ports.clone(),
                    endpoints: Vec::new(),
                })
                .endpoints
                .push(Endpoint {
                    addresses: vec![address.ip.clone()],
                    conditions: Some(EndpointConditions {
                        ready: Some(ready),
                        ..EndpointConditions::default()
                    }),
                    hostname: address.hostname.clone(),
                    node_name: address.node_name.clone(),
                    target_ref: address.target_ref.clone(),
                    ..Endpoint::default()
                });
        }
    }
    groups.into_values().collect()
}

/// The subsets of the older Endpoints object: terminating pods are left out at once, addresses are sorted.
pub(crate) fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Option<Vec<EndpointSubset>> {
    let publish = publishes_not_ready(service);
    let mut subsets: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    for pod in pods
        .iter()
        .filter(|pod| publish || !pods::is_terminating(pod))
    {
        let Some(ip) = address(pod) else { continue };
        let ports = resolved_ports(service, pod);
        if ports.is_empty() && !is_headless(service) {
            continue;
        }
        let address = EndpointAddress {
            hostname: hostname(service, pod),
            ip: ip.to_owned(),
            node_name: node_name(pod),
            target_ref: Some(pod_reference(pod)),
        };
        let subset = subsets
            .entry(group_key(ip, &ports))
            .or_insert_with(|| EndpointSubset {
                ports: (!ports.is_empty()).then(|| ports.iter().map(legacy_port).collect()),
                ..EndpointSubset::default()
            });
        let list = if publish || pods::is_ready(pod) {
            &mut subset.addresses
        } else {
            &mut subset.not_ready_addresses
        };
        list.get_or_insert_default().push(address);
    }
    for subset in subsets.values_mut() {
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses]
            .into_iter()
            .flatten()
        {
            list.sort_by(|a, b| a.ip.cmp(&b.ip));
        }
    }
    (!subsets.is_empty()).then(|| subsets.into_values().collect())
}

fn legacy_port(port: &EndpointPort) -> LegacyPort {
    LegacyPort {
        app_protocol: port.app_protocol.clone(),
        name: port.name.clone().filter(|n| !n.is_empty()),
        port: port.port.unwrap_or_default(),
        protocol: port.protocol.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "n"}, "spec": spec}))
            .unwrap()
    }

    fn pod(name: &str, ip: &str, ready: bool, deleted: bool, port: i32) -> Arc<Pod> {
        let status = if ready { "True" } else { "False" };
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "n", "uid": name},
            "spec": {"nodeName": "node0", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": status}]},
        }))
        .unwrap();
        pod.metadata.deletion_timestamp = deleted.then(crate::error::now);
        Arc::new(pod)
    }

    fn flags(group: &Group) -> Vec<(String, bool, bool, bool)> {
        let flag = |b: Option<bool>| b.unwrap();
        group
            .endpoints
            .iter()
            .map(|e| {
                let c = e.conditions.as_ref().unwrap();
                (
                    e.addresses[0].clone(),
                    flag(c.ready),
                    flag(c.serving),
                    flag(c.terminating),
                )
            })
            .collect()
    }

    #[test]
    fn the_life_of_an_endpoint() {
        let web = service(json!({"ports": [{"name": "http", "port": 80, "targetPort": 8080}]}));
        let pods = [
            pod("a", "10.0.0.1", false, false, 1),
            pod("b", "10.0.0.2", true, false, 1),
            pod("c", "10.0.0.3", true, true, 1),
            pod("d", "", true, false, 1),
        ];
        let groups = groups(&web, &pods, |node| Some(format!("zone-of-{node}")));
        assert_eq!(groups.len(), 1);
        assert_eq!(
            flags(&groups[0]),
            [
                ("10.0.0.1".into(), false, false, false),
                ("10.0.0.2".into(), true, true, false),
                ("10.0.0.3".into(), false, true, true)
            ]
        );
        assert_eq!(
            serde_json::to_value(&groups[0].endpoints[1]).unwrap(),
            json!({"addresses": ["10.0.0.2"], "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": "node0", "zone": "zone-of-node0",
                "targetRef": {"kind": "Pod", "namespace": "n", "name": "b", "uid": "b"}})
        );
        assert_eq!(
            serde_json::to_value(&groups[0].ports).unwrap(),
            json!([{"name": "http", "port": 8080, "protocol": "TCP"}])
        );
        let subsets = serde_json::to_value(subsets(&web, &pods)).unwrap();
        assert_eq!(subsets[0]["addresses"][0]["ip"], "10.0.0.2");
        assert_eq!(subsets[0]["addresses"].as_array().unwrap().len(), 1);
        assert_eq!(subsets[0]["notReadyAddresses"][0]["ip"], "10.0.0.1");
    }

    #[test]
    fn publish_not_ready_and_finished() {
        let web = service(json!({"publishNotReadyAddresses": true, "clusterIP": "None"}));
        let mut done = Pod::clone(&pod("z", "10.0.0.9", true, false, 1));
        done.status.as_mut().unwrap().phase = Some("Succeeded".into());
        let pods = [pod("a", "10.0.0.1", false, true, 1), Arc::new(done)];
        let groups = groups(&web, &pods, |_| None);
        assert_eq!(flags(&groups[0]), [("10.0.0.1".into(), true, false, true)]);
        assert_eq!(groups[0].ports, []);
        let subsets = subsets(&web, &pods).unwrap();
        assert_eq!(subsets[0].addresses.as_ref().unwrap().len(), 1);
    }

    #[test]
    fn named_ports_differ_per_pod() {
        let web = service(
            json!({"ports": [{"port": 80, "targetPort": "http"}, {"name": "x", "port": 81, "targetPort": "none"}]}),
        );
        let pods = [
            pod("a", "10.0.0.1", true, false, 8080),
            pod("b", "10.0.0.2", true, false, 9090),
        ];
        let groups = groups(&web, &pods, |_| None);
        let ports: Vec<_> = groups
            .iter()
            .map(|g| g.ports.iter().map(|p| p.port.unwrap()).collect::<Vec<_>>())
            .collect();
        assert_eq!(ports, [[8080], [9090]]);
        assert_eq!(groups[0].ports[0].name.as_deref(), Some(""));
        assert_eq!(
            subsets(&web, &pods).unwrap()[0].ports.as_ref().unwrap()[0].name,
            None
        );
    }

    #[test]
    fn mirrors_what_a_user_wrote() {
        let endpoints: Endpoints = serde_json::from_value(json!({"metadata": {"name": "db"}, "subsets": [
            {"addresses": [{"ip": "192.0.2.1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 5432}]},
            {"addresses": [{"ip": "2001:db8::1"}], "ports": [{"port": 5432}]}]}))
        .unwrap();
        let groups = mirrored(&endpoints);
        let shape: Vec<_> = groups
            .iter()
            .map(|g| (g.address_type, g.endpoints.len()))
            .collect();
        assert_eq!(shape, [("IPv4", 2), ("IPv6", 1)]);
    }
}
