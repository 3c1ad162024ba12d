//! What is known of the cluster: plain data with apply and delete.
//!
//! Written by the registry's task alone; what others see are the immutable states that [`Index::publish`] gives out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{Endpoints, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::ResourceExt as _;
use mesh_service::Condition;
use pilot_generate::{
    model::{ServiceEndpoints, ServiceKey, Workload},
    registry::kubernetes::{self as convert, Context},
};

use super::{Change, Kind, Object};
use crate::{inputs::RegistryState, metrics::Metrics, source::Event};

/// A service's label on its slices.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Name and namespace.
type Name = (String, String);

/// Which addresses of which service: one slice, or an Endpoints object.
enum Addresses {
    Slice(Box<EndpointSlice>),
    Endpoints(Box<Endpoints>),
}

impl Addresses {
    fn ips(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Self::Slice(slice) => Box::new(
                slice
                    .endpoints
                    .iter()
                    .flat_map(|e| &e.addresses)
                    .map(String::as_str),
            ),
            Self::Endpoints(object) => Box::new(
                object
                    .subsets
                    .iter()
                    .flatten()
                    .flat_map(|subset| subset.addresses.iter().flatten())
                    .map(|address| address.ip.as_str()),
            ),
        }
    }
}

/// See the [module](self).
pub(super) struct Index {
    context: Context,
    metrics: Metrics,
    state: RegistryState,
    /// Slices (or the Endpoints object) by service, then by name.
    addresses: HashMap<Name, BTreeMap<String, Addresses>>,
    /// Services that list an address, to find what a pod's change touches.
    listed_in: HashMap<IpAddr, BTreeSet<Name>>,
    pods: HashMap<Name, (Box<Pod>, Vec<IpAddr>)>,
    nodes: HashMap<String, BTreeMap<String, String>>,
    /// Lists under way.
    lists: HashMap<Kind, Vec<Object>>,
    synced: HashSet<Kind>,
    dirty: BTreeSet<Name>,
    changed: Option<Event>,
}

impl Index {
    pub(super) fn new(context: Context, metrics: Metrics) -> Self {
        Self {
            context,
            metrics,
            state: RegistryState::default(),
            addresses: HashMap::new(),
            listed_in: HashMap::new(),
            pods: HashMap::new(),
            nodes: HashMap::new(),
            lists: HashMap::new(),
            synced: HashSet::new(),
            dirty: BTreeSet::new(),
            changed: None,
        }
    }

    pub(super) fn take(&mut self, kind: Kind, change: Change, condition: &Condition) {
        let label = match &change {
            Change::Apply(_) | Change::Listed(_) => "update",
            Change::Delete(_) => "delete",
            _ => "",
        };
        if !label.is_empty() {
            self.metrics.registry_event(kind.name(), label);
        }
        match change {
            Change::Init => {
                self.lists.insert(kind, Vec::new());
            }
            Change::Listed(object) => self.lists.entry(kind).or_default().push(object),
            Change::Done => {
                let list = self.lists.remove(&kind).unwrap_or_default();
                self.replace(kind, list);
                self.synced.insert(kind);
            }
            Change::Apply(object) => self.apply(object),
            Change::Delete(object) => self.delete(object),
            Change::Error(error) => {
                // Said by the condition until synced; afterwards the last state stays in use.
                if !self.is_synced() {
                    condition.missing(format!("{}: {error}", kind.name()));
                }
                tracing::warn!(kind = kind.name(), %error, "watch failed; what is known stays in use, trying on");
            }
        }
    }

    fn is_synced(&self) -> bool {
        self.synced.len() == 4
    }

    /// The new state, if everything was listed once and something changed.
    pub(super) fn publish(&mut self) -> Option<(RegistryState, Event)> {
        if !self.is_synced() {
            return None;
        }
        for name in std::mem::take(&mut self.dirty) {
            self.recompute(&name);
        }
        let event = self.changed.take()?;
        Some((self.state.clone(), event))
    }

    fn note(&mut self, event: Event) {
        if self.changed != Some(Event::Config) {
            self.changed = Some(event);
        }
    }

    fn replace(&mut self, kind: Kind, list: Vec<Object>) {
        // Even an empty list is something to publish the first time.
        if !self.synced.contains(&kind) {
            self.note(Event::Config);
        }
        let listed: HashSet<Name> = list.iter().map(name_of).collect();
        let gone: Vec<Name> = match kind {
            Kind::Service => self
                .state
                .services
                .values()
                .map(|s| (s.name.to_string(), s.namespace.to_string()))
                .filter(|name| !listed.contains(name))
                .collect(),
            Kind::Pod => self
                .pods
                .keys()
                .filter(|name| !listed.contains(*name))
                .cloned()
                .collect(),
            Kind::Node => self
                .nodes
                .keys()
                .map(|name| (name.clone(), String::new()))
                .filter(|name| !listed.contains(name))
                .collect(),
            Kind::Endpoints => {
                let known = self.addresses.iter().flat_map(|((_, namespace), by_name)| {
                    by_name.keys().map(|name| (name.clone(), namespace.clone()))
                });
                known.filter(|name| !listed.contains(name)).collect()
            }
        };
        for (name, namespace) in gone {
            match kind {
                Kind::Service => self.delete_service(&name, &namespace),
                Kind::Pod => self.set_pod((name, namespace), None),
                Kind::Node => self.set_node(name, None),
                Kind::Endpoints => {
                    let services: Vec<Name> = self
                        .addresses
                        .iter()
                        .filter(|((_, ns), by_name)| {
                            *ns == namespace && by_name.contains_key(&name)
                        })
                        .map(|(service, _)| service.clone())
                        .collect();
                    for service in services {
                        self.set_addresses(service, name.clone(), None);
                    }
                }
            }
        }
        for object in list {
            self.apply(object);
        }
    }

    fn apply(&mut self, object: Object) {
        match object {
            Object::Service(service) => self.apply_service(&service),
            Object::Slice(slice) => {
                let name = slice.name_any();
                if let Some(service) = service_of(&slice) {
                    self.set_addresses(service, name, Some(Addresses::Slice(slice)));
                }
            }
            Object::Endpoints(object) => {
                let name = (object.name_any(), object.namespace().unwrap_or_default());
                let key = name.0.clone();
                self.set_addresses(name, key, Some(Addresses::Endpoints(object)));
            }
            Object::Pod(pod) => {
                let name = (pod.name_any(), pod.namespace().unwrap_or_default());
                self.set_pod(name, Some(pod));
            }
            Object::Node(node) => {
                let labels = node.metadata.labels.clone().unwrap_or_default();
                self.set_node(node.name_any(), Some(labels));
            }
        }
    }

    fn delete(&mut self, object: Object) {
        let (name, namespace) = name_of(&object);
        match object {
            Object::Service(_) => self.delete_service(&name, &namespace),
            Object::Slice(slice) => {
                if let Some(service) = service_of(&slice) {
                    self.set_addresses(service, name, None);
                }
            }
            Object::Endpoints(_) => {
                self.set_addresses((name.clone(), namespace), name, None);
            }
            Object::Pod(_) => self.set_pod((name, namespace), None),
            Object::Node(_) => self.set_node(name, None),
        }
    }

    fn apply_service(&mut self, object: &Service) {
        let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
        let Some(service) = convert::service(object, &self.context) else {
            return self.delete_service(&name, &namespace);
        };
        let key = self.context.key(&name, &namespace);
        if self
            .state
            .services
            .get(&key)
            .is_some_and(|known| **known == service)
        {
            return;
        }
        Arc::make_mut(&mut self.state.services).insert(key, Arc::new(service));
        self.note(Event::Config);
    }

    fn delete_service(&mut self, name: &str, namespace: &str) {
        let key = self.context.key(name, namespace);
        if self.state.services.contains_key(&key) {
            Arc::make_mut(&mut self.state.services).remove(&key);
            self.note(Event::Config);
        }
    }

    fn set_addresses(&mut self, service: Name, name: String, addresses: Option<Addresses>) {
        let by_name = self.addresses.entry(service.clone()).or_default();
        let former = match addresses {
            Some(addresses) => {
                for ip in addresses.ips().filter_map(|ip| ip.parse().ok()) {
                    self.listed_in
                        .entry(ip)
                        .or_default()
                        .insert(service.clone());
                }
                by_name.insert(name, addresses)
            }
            None => by_name.remove(&name),
        };
        // Addresses that no slice of the service lists any more.
        for ip in former.iter().flat_map(Addresses::ips) {
            let still = by_name
                .values()
                .flat_map(Addresses::ips)
                .any(|other| other == ip);
            if !still
                && let Ok(ip) = ip.parse()
                && let Some(services) = self.listed_in.get_mut(&ip)
            {
                services.remove(&service);
                if services.is_empty() {
                    self.listed_in.remove(&ip);
                }
            }
        }
        if by_name.is_empty() {
            self.addresses.remove(&service);
        }
        self.dirty.insert(service);
    }

    fn set_pod(&mut self, name: Name, pod: Option<Box<Pod>>) {
        let former = self
            .pods
            .remove(&name)
            .map(|(_, ips)| ips)
            .unwrap_or_default();
        let converted = pod.as_ref().and_then(|pod| {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
            convert::workload(
                pod,
                node.and_then(|node| self.nodes.get(node)),
                &self.context,
            )
        });
        let (ips, workload) = converted.unzip();
        let ips: Vec<IpAddr> = ips.unwrap_or_default();
        let workload = workload.map(Arc::new);
        for ip in former.iter().filter(|ip| !ips.contains(ip)) {
            self.set_workload(*ip, &name, None);
        }
        for ip in &ips {
            self.set_workload(*ip, &name, workload.as_ref());
        }
        if let Some(pod) = pod {
            self.pods.insert(name, (pod, ips));
        }
    }

    fn set_workload(&mut self, ip: IpAddr, name: &Name, workload: Option<&Arc<Workload>>) {
        let known = self.state.workloads.get(&ip);
        match workload {
            Some(workload) if known.is_some_and(|known| **known == **workload) => return,
            Some(workload) => {
                Arc::make_mut(&mut self.state.workloads).insert(ip, workload.clone());
            }
            // The address may belong to another pod by now.
            None if known.is_none_or(|k| (&*k.name, &*k.namespace) != (&*name.0, &*name.1)) => {
                return;
            }
            None => {
                Arc::make_mut(&mut self.state.workloads).remove(&ip);
            }
        }
        self.note(Event::Endpoints);
        self.dirty
            .extend(self.listed_in.get(&ip).into_iter().flatten().cloned());
    }

    fn set_node(&mut self, name: String, labels: Option<BTreeMap<String, String>>) {
        let changed = match labels {
            Some(labels) if self.nodes.get(&name) == Some(&labels) => false,
            Some(labels) => {
                self.nodes.insert(name.clone(), labels);
                true
            }
            None => self.nodes.remove(&name).is_some(),
        };
        if !changed {
            return;
        }
        let on_it: Vec<Name> = self
            .pods
            .iter()
            .filter(|(_, (pod, _))| {
                pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) == Some(&name)
            })
            .map(|(pod, _)| pod.clone())
            .collect();
        for pod in on_it {
            let object = self.pods.get(&pod).map(|(object, _)| object.clone());
            self.set_pod(pod, object);
        }
    }

    fn recompute(&mut self, service: &Name) {
        let key: ServiceKey = self.context.key(&service.0, &service.1);
        let workloads = self.state.workloads.clone();
        let lookup = |ip: IpAddr| workloads.get(&ip).cloned();
        let computed = self.addresses.get(service).map(|by_name| {
            let slices = by_name.values().filter_map(|addresses| match addresses {
                Addresses::Slice(slice) => Some(&**slice),
                Addresses::Endpoints(_) => None,
            });
            let from_slices = convert::endpoint_slices(slices, &lookup, &self.context);
            by_name
                .values()
                .find_map(|addresses| match addresses {
                    Addresses::Endpoints(object) => {
                        Some(convert::endpoints(object, &lookup, &self.context))
                    }
                    Addresses::Slice(_) => None,
                })
                .unwrap_or(from_slices)
        });
        let (endpoints, without_pod) = match computed {
            Some((endpoints, without_pod)) => (Some(endpoints), without_pod),
            None => (None, 0),
        };
        if without_pod > 0 {
            self.metrics
                .endpoints_without_pod
                .inc_by(without_pod as u64);
        }
        let known = self.state.endpoints.get(&key);
        match endpoints {
            Some(endpoints) if known.is_some_and(|known| **known == endpoints) => return,
            // Nothing listed and nothing known is the same.
            Some(endpoints) if known.is_none() && endpoints == ServiceEndpoints::default() => {
                return;
            }
            Some(endpoints) => {
                Arc::make_mut(&mut self.state.endpoints).insert(key, Arc::new(endpoints));
            }
            None if known.is_none() => return,
            None => {
                Arc::make_mut(&mut self.state.endpoints).remove(&key);
            }
        }
        self.note(Event::Endpoints);
    }
}

fn service_of(slice: &EndpointSlice) -> Option<Name> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some((service.clone(), slice.namespace().unwrap_or_default()))
}

fn name_of(object: &Object) -> Name {
    let meta = match object {
        Object::Service(o) => &o.metadata,
        Object::Slice(o) => &o.metadata,
        Object::Endpoints(o) => &o.metadata,
        Object::Pod(o) => &o.metadata,
        Object::Node(o) => &o.metadata,
    };
    (
        meta.name.clone().unwrap_or_default(),
        meta.namespace.clone().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use mesh_service::Health;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    fn index() -> (Index, Condition) {
        let context = Context {
            cluster: "Kubernetes".into(),
            domain: "cluster.local".into(),
            trust_domain: "cluster.local".into(),
            default_export_to: vec!["*".into()],
        };
        let metrics = Metrics::new(&mesh_service::Metrics::default());
        (
            Index::new(context, metrics),
            Health::default().condition("registry"),
        )
    }

    fn of<K: DeserializeOwned>(value: Value) -> Box<K> {
        Box::new(serde_json::from_value(value).unwrap())
    }

    fn service(port: u16) -> Object {
        Object::Service(of(json!({
            "metadata": {"name": "web", "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"clusterIP": "10.96.0.10", "selector": {"app": "web"},
                     "ports": [{"name": "http", "port": port, "targetPort": 8080}]}
        })))
    }

    fn pod(name: &str, ip: &str) -> Object {
        Object::Pod(of(json!({
            "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "serviceAccountName": "web", "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}
        })))
    }

    fn slice(endpoints: &[(&str, bool)]) -> Object {
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|(ip, ready)| {
                json!({
                    "addresses": [ip], "conditions": {"ready": ready},
                    "targetRef": {"kind": "Pod", "name": "p", "namespace": "shop"}
                })
            })
            .collect();
        Object::Slice(of(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]
        })))
    }

    fn synced(index: &mut Index, condition: &Condition, lists: Vec<(Kind, Vec<Object>)>) {
        for (kind, list) in lists {
            index.take(kind, Change::Init, condition);
            for object in list {
                index.take(kind, Change::Listed(object), condition);
            }
            index.take(kind, Change::Done, condition);
        }
    }

    fn shop() -> Vec<(Kind, Vec<Object>)> {
        vec![
            (
                Kind::Endpoints,
                vec![slice(&[("10.1.0.1", true), ("10.1.0.2", true)])],
            ),
            (Kind::Service, vec![service(80)]),
            (Kind::Pod, vec![pod("a", "10.1.0.1"), pod("b", "10.1.0.2")]),
            (Kind::Node, vec![]),
        ]
    }

    fn count(state: &RegistryState) -> usize {
        state
            .endpoints
            .values()
            .map(|set| set.endpoints.len())
            .sum()
    }

    #[test]
    fn nothing_is_published_before_everything_is_listed() {
        let (mut index, condition) = index();
        let mut lists = shop();
        let last = lists.pop().unwrap();
        synced(&mut index, &condition, lists);
        assert!(index.publish().is_none());
        synced(&mut index, &condition, vec![last]);
        let (state, event) = index.publish().unwrap();
        assert_eq!(
            (state.services.len(), count(&state), event),
            (1, 2, Event::Config)
        );
        assert!(index.publish().is_none(), "nothing changed since");
    }

    #[test]
    fn an_unready_endpoint_leaves_and_only_endpoints_are_said_to_change() {
        let (mut index, condition) = index();
        synced(&mut index, &condition, shop());
        let (before, _) = index.publish().unwrap();
        let change = Change::Apply(slice(&[("10.1.0.1", true), ("10.1.0.2", false)]));
        index.take(Kind::Endpoints, change, &condition);
        let (after, event) = index.publish().unwrap();
        assert_eq!((count(&after), event), (1, Event::Endpoints));
        assert!(Arc::ptr_eq(&before.services, &after.services));
        assert_eq!(count(&before), 2, "a published state does not change");
    }

    #[test]
    fn an_endpoint_waits_for_its_pod() {
        let (mut index, condition) = index();
        synced(&mut index, &condition, shop());
        index.publish().unwrap();
        index.take(
            Kind::Endpoints,
            Change::Apply(slice(&[("10.1.0.3", true)])),
            &condition,
        );
        assert_eq!(count(&index.publish().unwrap().0), 0);
        index.take(Kind::Pod, Change::Apply(pod("c", "10.1.0.3")), &condition);
        let (state, event) = index.publish().unwrap();
        assert_eq!((count(&state), event), (1, Event::Endpoints));
    }

    #[test]
    fn a_relist_replaces_when_it_is_complete_and_not_before() {
        let (mut index, condition) = index();
        synced(&mut index, &condition, shop());
        index.publish().unwrap();
        for kind in [Kind::Service, Kind::Endpoints, Kind::Pod] {
            index.take(kind, Change::Init, &condition);
        }
        assert!(index.publish().is_none());
        index.take(Kind::Service, Change::Listed(service(80)), &condition);
        index.take(Kind::Service, Change::Done, &condition);
        assert!(
            index.publish().is_none(),
            "the same service again is no change"
        );
        index.take(Kind::Endpoints, Change::Done, &condition);
        index.take(Kind::Pod, Change::Done, &condition);
        let (state, _) = index.publish().unwrap();
        assert_eq!(
            (state.services.len(), count(&state), state.workloads.len()),
            (1, 0, 0)
        );
    }

    #[test]
    fn an_address_that_moved_to_another_pod_is_not_lost_with_the_old_one() {
        let (mut index, condition) = index();
        synced(&mut index, &condition, shop());
        index.publish().unwrap();
        index.take(Kind::Pod, Change::Apply(pod("c", "10.1.0.1")), &condition);
        index.take(Kind::Pod, Change::Delete(pod("a", "10.1.0.1")), &condition);
        let (state, _) = index.publish().unwrap();
        let owner = &state.workloads[&"10.1.0.1".parse::<IpAddr>().unwrap()];
        assert_eq!(&*owner.name, "c");
        assert_eq!(count(&state), 2);
    }
}
