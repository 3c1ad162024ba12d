//! What is known of the cluster: plain data with apply and delete.
//!
//! Written by the registry's task alone; what others see are the immutable shards that [`Index::publish`] gives out. One
//! file per kind of object: services, addresses (slices or Endpoints), pods and their nodes.

mod addresses;
mod pods;
mod services;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::core::v1::Pod;
use kube::Resource as _;
use pilot_generate::{
    Shard,
    model::{Service, Workload},
    registry::kubernetes::Context,
};

use self::addresses::Addresses;
use super::watch::{Change, Kind, Object};
use crate::{metrics::Metrics, source::Event};

/// Name and namespace.
type Name = (String, String);

/// A pod with what was made of it.
struct KnownPod {
    object: Box<Pod>,
    ips: Vec<IpAddr>,
    shares_addresses: bool,
    workload: Option<Arc<Workload>>,
}

/// See the [module](self).
pub(super) struct Index {
    context: Context,
    metrics: Metrics,
    /// What was given out last, with the changes since.
    shard: Shard,
    services: HashMap<Name, Arc<Service>>,
    services_changed: bool,
    /// Slices (or the Endpoints object) by service, then by name.
    addresses: HashMap<Name, BTreeMap<String, Addresses>>,
    /// Services that list an address, to find what a pod's change touches.
    listed_in: HashMap<IpAddr, BTreeSet<Name>>,
    /// Addresses that wait for their pod, by service.
    without_pod: BTreeMap<Name, Vec<IpAddr>>,
    without_pod_changed: bool,
    pods: HashMap<Name, KnownPod>,
    nodes: HashMap<String, BTreeMap<String, String>>,
    /// Lists under way.
    lists: HashMap<Kind, Vec<Object>>,
    synced: HashSet<Kind>,
    /// Services whose endpoints have to be made anew.
    dirty: BTreeSet<Name>,
    changed: Option<Event>,
}

impl Index {
    pub(super) fn new(context: Context, empty: Shard, metrics: Metrics) -> Self {
        Self {
            context: Context {
                cluster: empty.cluster.clone(),
                ..context
            },
            metrics,
            shard: empty,
            services: HashMap::new(),
            services_changed: false,
            addresses: HashMap::new(),
            listed_in: HashMap::new(),
            without_pod: BTreeMap::new(),
            without_pod_changed: false,
            pods: HashMap::new(),
            nodes: HashMap::new(),
            lists: HashMap::new(),
            synced: HashSet::new(),
            dirty: BTreeSet::new(),
            changed: None,
        }
    }

    pub(super) fn take(&mut self, kind: Kind, change: Change) {
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
            Change::Apply(object) => self.apply(kind, object),
            Change::Delete(object) => {
                let name = name_of(&object);
                self.delete(kind, name);
            }
        }
    }

    /// The new state, if everything was listed once and something changed.
    pub(super) fn publish(&mut self) -> Option<(Shard, Event)> {
        if self.synced.len() < Kind::ALL.len() {
            return None;
        }
        for name in std::mem::take(&mut self.dirty) {
            self.make_endpoints(&name);
        }
        if std::mem::take(&mut self.services_changed) {
            self.shard.services = Arc::new(self.services.values().cloned().collect());
        }
        if std::mem::take(&mut self.without_pod_changed) {
            self.shard.report = Arc::new(self.report());
        }
        let event = self.changed.take()?;
        Some((self.shard.clone(), event))
    }

    fn note(&mut self, event: Event) {
        if self.changed != Some(Event::Config) {
            self.changed = Some(event);
        }
    }

    /// A complete list of a kind.
    fn replace(&mut self, kind: Kind, list: Vec<Object>) {
        // Even an empty list is something to publish the first time.
        if !self.synced.contains(&kind) {
            self.note(Event::Config);
        }
        let listed: HashSet<Name> = list.iter().map(name_of).collect();
        let mut gone = self.known(kind);
        gone.retain(|name| !listed.contains(name));
        for name in gone {
            self.delete(kind, name);
        }
        for object in list {
            self.apply(kind, object);
        }
    }

    /// Names of the objects of a kind.
    fn known(&self, kind: Kind) -> Vec<Name> {
        match kind {
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::Pod => self.pods.keys().cloned().collect(),
            Kind::Node => self
                .nodes
                .keys()
                .map(|n| (n.clone(), String::new()))
                .collect(),
            Kind::Endpoints => self.known_addresses(),
        }
    }

    fn apply(&mut self, kind: Kind, object: Object) {
        let name = name_of(&object);
        let new = match object {
            Object::Service(service) => self.set_service(name, &service),
            Object::Slice(slice) => self.set_slice(name, slice),
            Object::Endpoints(object) => {
                let service = name.clone();
                self.set_addresses(service, name.0, Some(Addresses::Endpoints(object)))
            }
            Object::Pod(pod) => self.set_pod(name, Some(pod)),
            Object::Node(node) => {
                let labels = node.metadata.labels.unwrap_or_default();
                self.set_node(name.0, Some(labels))
            }
        };
        let event = if new { "add" } else { "update" };
        self.metrics.registry_event(kind.name(), event);
    }

    fn delete(&mut self, kind: Kind, name: Name) {
        self.metrics.registry_event(kind.name(), "delete");
        match kind {
            Kind::Service => self.delete_service(&name),
            Kind::Endpoints => self.delete_addresses(&name),
            Kind::Pod => {
                self.set_pod(name, None);
            }
            Kind::Node => {
                self.set_node(name.0, None);
            }
        }
    }
}

fn name_of(object: &Object) -> Name {
    let meta = match object {
        Object::Service(o) => o.meta(),
        Object::Slice(o) => o.meta(),
        Object::Endpoints(o) => o.meta(),
        Object::Pod(o) => o.meta(),
        Object::Node(o) => o.meta(),
    };
    (
        meta.name.clone().unwrap_or_default(),
        meta.namespace.clone().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests;
