//! Kubernetes objects to the model (Istio 1.4 `pilot/pkg/serviceregistry/kube/conversion.go`).
//!
//! Written by Pilot's Kubernetes registry: one call per changed Service, EndpointSlice set (or Endpoints) and Pod. Cost is
//! proportional to the one object. Nothing here fails: an object without the fields that make it usable gives `None`.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{
            Container, EndpointAddress as SubsetAddress, Endpoints, ObjectReference, Pod,
            Service as KubeService,
        },
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use crate::model::{
    Address, ContainerPort, Endpoint, EndpointAddress, Locality, Probe, Protocol, Registry,
    Resolution, Service, ServiceEndpoints, ServiceKey, ServicePort, TargetPort, TlsMode,
    Visibility, Workload,
};

const EXPORT_TO: &str = "networking.istio.io/exportTo";
const CANONICAL_ACCOUNTS: &str = "alpha.istio.io/canonical-serviceaccounts";
const KUBERNETES_ACCOUNTS: &str = "alpha.istio.io/kubernetes-serviceaccounts";
const POD_IDENTITY: &str = "alpha.istio.io/identity";
const TLS_MODE: &str = "security.istio.io/tlsMode";
const POD_LOCALITY: &str = "istio-locality";
const REGION: [&str; 3] = [
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.kubernetes.io/region",
];
const ZONE: [&str; 3] = [
    "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.kubernetes.io/zone",
];

/// What the conversions need to know of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Name of the cluster, as proxies (`CLUSTER_ID`) and MeshNetworks (`fromRegistry`) call it.
    pub cluster: Arc<str>,
    /// DNS domain of services.
    pub domain: String,
    /// Trust domain of identities.
    pub trust_domain: String,
    /// `defaultServiceExportTo` of the mesh.
    pub default_export_to: Vec<String>,
}

impl Context {
    /// `NAME.NS.svc.DOMAIN`, in lower case.
    pub fn hostname(&self, name: &str, namespace: &str) -> Arc<str> {
        format!("{name}.{namespace}.svc.{}", self.domain)
            .to_ascii_lowercase()
            .into()
    }

    /// Key under which the endpoints of a Kubernetes service are filed.
    pub fn key(&self, name: &str, namespace: &str) -> ServiceKey {
        ServiceKey {
            hostname: self.hostname(name, namespace),
            namespace: namespace.into(),
        }
    }

    fn spiffe(&self, namespace: &str, account: &str) -> String {
        format!("spiffe://{}/ns/{namespace}/sa/{account}", self.trust_domain)
    }
}

/// A Service. `None` if it has no name.
pub fn service(object: &KubeService, context: &Context) -> Option<Service> {
    let (name, namespace) = names(&object.metadata)?;
    let spec = object.spec.as_ref()?;
    let external_name = spec
        .external_name
        .as_deref()
        .filter(|_| spec.type_.as_deref() == Some("ExternalName"));
    let ip = spec
        .cluster_ip
        .as_deref()
        .and_then(|ip| ip.parse::<IpAddr>().ok());
    let resolution = match (external_name, ip) {
        (Some(_), _) => Resolution::Dns,
        (None, Some(_)) => Resolution::ClientSideLb,
        (None, None) => Resolution::Passthrough,
    };
    let ports = spec.ports.iter().flatten().filter_map(|p| {
        let number = port(p.port)?;
        let name = p.name.as_deref().unwrap_or_default();
        Some(ServicePort {
            name: name.into(),
            number,
            protocol: Protocol::of_kubernetes_port(
                number,
                name,
                p.protocol.as_deref().unwrap_or("TCP"),
            ),
            target: match &p.target_port {
                Some(IntOrString::Int(n)) if port(*n).is_some() => TargetPort::Number(port(*n)?),
                Some(IntOrString::String(s)) if !s.is_empty() => {
                    TargetPort::Name(s.as_str().into())
                }
                _ => TargetPort::Number(number),
            },
        })
    });
    let annotation = |key: &str| {
        object
            .metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get(key))
    };
    let list = |key: &str| -> Vec<String> {
        let text = annotation(key).map(String::as_str).unwrap_or_default();
        text.split(',')
            .map(str::trim)
            .filter(|s| !s.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let kubernetes_accounts = list(KUBERNETES_ACCOUNTS)
        .into_iter()
        .map(|sa| context.spiffe(namespace, &sa));
    let canonical_accounts = list(CANONICAL_ACCOUNTS)
        .into_iter()
        .map(|sa| format!("spiffe://{sa}"));
    Some(Service {
        hostname: context.hostname(name, namespace),
        name: name.into(),
        namespace: namespace.into(),
        registry: Registry::Kubernetes,
        creation: object
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |t| t.0),
        address: ip.map_or(Address::Unspecified, Address::Ip),
        ports: ports.collect(),
        resolution,
        mesh_external: external_name.is_some(),
        visibility: Visibility::of(&list(EXPORT_TO), &context.default_export_to),
        selector: spec.selector.clone().unwrap_or_default(),
        headless: external_name.is_none() && ip.is_none(),
        external_name: external_name.map(Into::into),
        external_addresses: external_addresses(object),
        service_accounts: canonical_accounts.chain(kubernetes_accounts).collect(),
    })
}

/// Where the load balancers of a service are, as its status tells.
fn external_addresses(object: &KubeService) -> Vec<Arc<str>> {
    let status = object
        .status
        .as_ref()
        .and_then(|s| s.load_balancer.as_ref());
    let mut all: Vec<Arc<str>> = status
        .into_iter()
        .flat_map(|balancer| balancer.ingress.iter().flatten())
        .filter_map(|i| i.ip.as_deref().or(i.hostname.as_deref()))
        .map(Into::into)
        .collect();
    all.sort();
    all.dedup();
    all
}

/// What a Pod amounts to.
#[derive(Clone, Debug, PartialEq)]
pub struct PodWorkload {
    /// Its addresses, at least one.
    pub ips: Vec<IpAddr>,
    /// The addresses are the node's: many workloads may have them, so none is known by them.
    pub shares_addresses: bool,
    /// The workload.
    pub workload: Arc<Workload>,
}

/// A Pod. `None` unless it is pending or running and has an address: a finished pod's address may already belong to
/// another one.
pub fn workload(
    pod: &Pod,
    node_labels: Option<&BTreeMap<String, String>>,
    context: &Context,
) -> Option<PodWorkload> {
    let (name, namespace) = names(&pod.metadata)?;
    let status = pod.status.as_ref()?;
    if !matches!(
        status.phase.as_deref(),
        None | Some("" | "Pending" | "Running")
    ) {
        return None;
    }
    let spec = pod.spec.as_ref()?;
    let all = status
        .pod_ips
        .iter()
        .flatten()
        .map(|ip| ip.ip.as_str())
        .chain(status.pod_ip.as_deref());
    let mut ips: Vec<IpAddr> = Vec::new();
    for ip in all.filter_map(|ip| ip.parse().ok()) {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    if ips.is_empty() {
        return None;
    }
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let account = match pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(POD_IDENTITY))
    {
        Some(identity) => format!("spiffe://{identity}"),
        None => context.spiffe(
            namespace,
            spec.service_account_name.as_deref().unwrap_or("default"),
        ),
    };
    let containers = spec.containers.as_slice();
    let workload = Workload {
        name: name.into(),
        namespace: namespace.into(),
        service_account: account.into(),
        locality: locality(&labels, node_labels),
        ports: containers
            .iter()
            .flat_map(|c| c.ports.iter().flatten())
            .filter_map(|p| {
                Some(ContainerPort {
                    name: p.name.as_deref().unwrap_or_default().into(),
                    number: port(p.container_port)?,
                })
            })
            .collect(),
        probes: containers.iter().flat_map(probes).collect(),
        tls_mode: match labels.get(TLS_MODE).map(String::as_str) {
            Some("istio") => TlsMode::Istio,
            _ => TlsMode::Disabled,
        },
        labels: Arc::new(labels),
    };
    Some(PodWorkload {
        ips,
        shares_addresses: spec.host_network == Some(true),
        workload: Arc::new(workload),
    })
}

/// Name and namespace.
pub type PodName<'a> = (&'a str, &'a str);

/// Finds a pod by its address, or by its name where a list of endpoints names it.
pub type Lookup<'a> = dyn Fn(IpAddr, Option<PodName<'_>>) -> Option<Arc<Workload>> + 'a;

/// Endpoints of a service from an Endpoints object. `lookup` finds pods by address; the second result are addresses of
/// pods that it did not find, which are left out until the pod is known.
pub fn endpoints(
    object: &Endpoints,
    lookup: &Lookup<'_>,
    context: &Context,
) -> (ServiceEndpoints, Vec<IpAddr>) {
    let mut collector = Collector::new(lookup, context);
    for subset in object.subsets.iter().flatten() {
        let ports: Vec<(Arc<str>, u32)> = subset
            .ports
            .iter()
            .flatten()
            .filter_map(|p| Some((p.name.as_deref().unwrap_or_default().into(), port(p.port)?)))
            .collect();
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let not_ready = subset
            .not_ready_addresses
            .iter()
            .flatten()
            .map(|a| (a, false));
        for (address, ready) in ready.chain(not_ready) {
            let SubsetAddress { ip, target_ref, .. } = address;
            collector.add(ip, pod_name(target_ref.as_ref()), ready, &ports);
        }
    }
    collector.finish()
}

/// Endpoints of a service from all of its EndpointSlices. A slice of names (FQDN) is skipped.
pub fn endpoint_slices<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    lookup: &Lookup<'_>,
    context: &Context,
) -> (ServiceEndpoints, Vec<IpAddr>) {
    let mut collector = Collector::new(lookup, context);
    for slice in slices {
        let ports: Vec<(Arc<str>, u32)> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|p| Some((p.name.as_deref().unwrap_or_default().into(), port(p.port?)?)))
            .collect();
        for endpoint in &slice.endpoints {
            let ready = endpoint
                .conditions
                .as_ref()
                .and_then(|c| c.ready)
                .unwrap_or(true);
            // Consumers of a slice use the first address; the others are the same backend.
            if let Some(ip) = endpoint.addresses.first() {
                collector.add(ip, pod_name(endpoint.target_ref.as_ref()), ready, &ports);
            }
        }
    }
    collector.finish()
}

fn pod_name(target: Option<&ObjectReference>) -> Option<PodName<'_>> {
    let target = target.filter(|t| t.kind.as_deref() == Some("Pod"))?;
    Some((
        target.name.as_deref().unwrap_or_default(),
        target.namespace.as_deref().unwrap_or_default(),
    ))
}

struct Collector<'a> {
    lookup: &'a Lookup<'a>,
    cluster: &'a Arc<str>,
    found: Vec<Endpoint>,
    not_ready: Vec<Endpoint>,
    without_pod: Vec<IpAddr>,
}

impl<'a> Collector<'a> {
    fn new(lookup: &'a Lookup<'a>, context: &'a Context) -> Self {
        Self {
            lookup,
            cluster: &context.cluster,
            found: Vec::new(),
            not_ready: Vec::new(),
            without_pod: Vec::new(),
        }
    }

    fn finish(self) -> (ServiceEndpoints, Vec<IpAddr>) {
        let set = ServiceEndpoints::new(self.found).with_not_ready(self.not_ready);
        (set, self.without_pod)
    }

    /// A pod that is not ready is known from elsewhere; of other backends only this list tells.
    fn add(&mut self, ip: &str, pod: Option<PodName<'_>>, ready: bool, ports: &[(Arc<str>, u32)]) {
        let Ok(ip) = ip.parse::<IpAddr>() else { return };
        if pod.is_some() && !ready {
            return;
        }
        let workload = (self.lookup)(ip, pod);
        if workload.is_none() && pod.is_some() {
            self.without_pod.push(ip);
            return;
        }
        let workload = workload.unwrap_or_default();
        let uid: Arc<str> = if workload.name.is_empty() {
            Arc::default()
        } else {
            format!("kubernetes://{}.{}", workload.name, workload.namespace).into()
        };
        let list = match ready {
            true => &mut self.found,
            false => &mut self.not_ready,
        };
        list.extend(ports.iter().map(|(name, number)| Endpoint {
            address: EndpointAddress::Ip(ip),
            port: *number,
            service_port: name.clone(),
            labels: workload.labels.clone(),
            weight: 1,
            locality: workload.locality.clone(),
            service_account: workload.service_account.clone(),
            uid: uid.clone(),
            cluster: self.cluster.clone(),
            network: Arc::default(),
            tls_mode: workload.tls_mode,
        }));
    }
}

fn names(meta: &ObjectMeta) -> Option<(&str, &str)> {
    let name = meta.name.as_deref().filter(|n| !n.is_empty())?;
    Some((name, meta.namespace.as_deref().unwrap_or("default")))
}

fn port(number: i32) -> Option<u32> {
    u32::try_from(number)
        .ok()
        .filter(|n| (1..=65535).contains(n))
}

fn probes(container: &Container) -> impl Iterator<Item = Probe> + '_ {
    [&container.liveness_probe, &container.readiness_probe]
        .into_iter()
        .flatten()
        .filter_map(|probe| {
            let (target, path) = match (&probe.http_get, &probe.tcp_socket) {
                (Some(http), _) => (&http.port, Some(http.path.as_deref().unwrap_or("/"))),
                (None, Some(tcp)) => (&tcp.port, None),
                (None, None) => return None,
            };
            let number = match target {
                IntOrString::Int(n) => port(*n)?,
                IntOrString::String(name) => {
                    let ports = container.ports.iter().flatten();
                    port(
                        ports
                            .filter(|p| p.name.as_deref() == Some(name))
                            .map(|p| p.container_port)
                            .next()?,
                    )?
                }
            };
            Some(Probe {
                port: number,
                path: path.map(Into::into),
            })
        })
}

fn locality(pod: &BTreeMap<String, String>, node: Option<&BTreeMap<String, String>>) -> Locality {
    if let Some(label) = pod.get(POD_LOCALITY) {
        return Locality::parse_label(label);
    }
    let of_node = |keys: &[&str]| -> Arc<str> {
        keys.iter()
            .find_map(|k| node?.get(*k))
            .map(String::as_str)
            .unwrap_or_default()
            .into()
    };
    Locality {
        region: of_node(&REGION),
        zone: of_node(&ZONE),
        subzone: Arc::default(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn context() -> Context {
        Context {
            cluster: "Kubernetes".into(),
            domain: "cluster.local".into(),
            trust_domain: "td".into(),
            default_export_to: Vec::new(),
        }
    }

    fn of<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_kind_of_service_decides_how_it_is_resolved() {
        let make = |spec: serde_json::Value| {
            let object = json!({"metadata": {"name": "a", "namespace": "n", "annotations": {EXPORT_TO: "."}}, "spec": spec});
            service(&of(object), &context()).unwrap()
        };
        let ports = json!([{"name": "http", "port": 80, "targetPort": "web"}, {"port": 53, "protocol": "UDP"}]);
        let plain = make(json!({"clusterIP": "10.0.0.1", "ports": ports}));
        assert_eq!(
            (plain.resolution, plain.visibility),
            (Resolution::ClientSideLb, Visibility::Private)
        );
        assert_eq!(&*plain.hostname, "a.n.svc.cluster.local");
        assert_eq!(plain.ports[0].target, TargetPort::Name("web".into()));
        assert_eq!(plain.proxied_ports().count(), 1);
        let headless = make(json!({"clusterIP": "None"}));
        assert!(headless.headless && headless.resolution == Resolution::Passthrough);
        let external = make(json!({"type": "ExternalName", "externalName": "x.example.com"}));
        assert!(
            external.mesh_external && external.resolution == Resolution::Dns && !external.headless
        );
    }

    #[test]
    fn only_live_pods_with_an_address_are_workloads() {
        let make = |status: serde_json::Value| {
            let pod = json!({"metadata": {"name": "p", "namespace": "n", "labels": {"istio-locality": "eu.a"}},
                "spec": {"serviceAccountName": "sa", "containers": [{"name": "c",
                    "ports": [{"name": "web", "containerPort": 8080}],
                    "readinessProbe": {"httpGet": {"path": "/up", "port": "web"}}}]},
                "status": status});
            workload(&of(pod), None, &context())
        };
        let pod =
            make(json!({"phase": "Running", "podIP": "10.1.1.1", "podIPs": [{"ip": "10.1.1.1"}]}))
                .unwrap();
        let found = &pod.workload;
        assert_eq!((pod.ips.len(), pod.shares_addresses), (1, false));
        assert_eq!(&*found.service_account, "spiffe://td/ns/n/sa/sa");
        assert_eq!(
            (found.locality.to_string().as_str(), found.probes[0].port),
            ("eu/a", 8080)
        );
        assert!(make(json!({"phase": "Succeeded", "podIP": "10.1.1.1"})).is_none());
        assert!(make(json!({"phase": "Pending"})).is_none());
    }

    #[test]
    fn endpoints_of_unknown_pods_wait() {
        let slice: EndpointSlice = of(json!({"addressType": "IPv4", "metadata": {"name": "s"},
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [
            {"addresses": ["10.1.1.1"], "targetRef": {"kind": "Pod"}},
            {"addresses": ["10.1.1.2"], "targetRef": {"kind": "Pod"}},
            {"addresses": ["10.1.1.3"], "conditions": {"ready": false}},
            {"addresses": ["192.0.2.1"]},
        ]}));
        let known = Arc::new(Workload {
            name: "p".into(),
            namespace: "n".into(),
            ..Workload::default()
        });
        let lookup = |ip: IpAddr, _: Option<PodName<'_>>| {
            (ip.to_string() == "10.1.1.1").then(|| known.clone())
        };
        let (set, waiting) = endpoint_slices([&slice], &lookup, &context());
        assert_eq!(set.endpoints.len(), 2);
        assert_eq!(waiting, ["10.1.1.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(&*set.endpoints[0].uid, "kubernetes://p.n");
        // Nobody else tells of a backend that is no pod.
        assert!(set.lists(&["10.1.1.3".parse().unwrap()]));
    }
}
