//! What the clients of one namespace under one Sidecar may see, whoever they are: services and VirtualServices, per egress
//! listener and altogether.
//!
//! Scopes (see [`Scope`](super::Scope)) that differ only in the rest of their key share a view. A view outlives
//! snapshots: it is carried on as the same object for as long as no change touches what it holds, so that what looks at
//! it can tell from the pointer. Endpoints and DestinationRules are not in it; they are read from the snapshot.
//!
//! # Cost
//!
//! Without a Sidecar a view is two pointers to what the snapshot keeps for everybody, unless the namespace keeps services
//! or VirtualServices to itself, which makes it O(services) or O(VirtualServices) pointers. With one it is O(imported),
//! and O(services), O(VirtualServices) where something is imported from all namespaces by a wildcard
//! (`*/*.example.com`). [`View::next`] rebuilds the list that changed.

use std::{collections::BTreeSet, sync::Arc};

use ahash::AHashMap;

use super::{ChangeSet, ServiceSet, Snapshot, services::is_visible};
use crate::{
    compile::{
        EgressHost, EgressListener, EgressNamespace, SidecarConfig, SidecarId,
        VirtualServiceConfig, socket_path,
    },
    model::{Proxy, ProxyKind, Service, Visibility},
    names,
};

/// VirtualServices, the oldest first.
pub(super) type VirtualServices = Arc<[Arc<VirtualServiceConfig>]>;

/// Whose view.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ViewKey {
    /// Sidecar or router.
    pub kind: ProxyKind,
    /// Namespace whose config applies.
    pub namespace: Arc<str>,
    /// The Sidecar that restricts it.
    pub sidecar: Option<SidecarId>,
    /// The cluster from which it looks, if that is another one than the first.
    pub cluster: Arc<str>,
}

impl ViewKey {
    /// The key of a proxy: O(Sidecars of its namespace).
    pub fn of(snapshot: &Snapshot, proxy: &Proxy) -> ViewKey {
        let sidecar = match proxy.kind {
            ProxyKind::Router => None,
            ProxyKind::Sidecar => {
                let labels = snapshot.labels_of(proxy);
                let sidecars = &snapshot.config().sidecars;
                sidecars.select(&proxy.namespace, &labels)
            }
        };
        ViewKey {
            kind: proxy.kind,
            namespace: proxy.namespace.clone(),
            sidecar: sidecar.map(|s| s.id.clone()),
            cluster: snapshot.other_cluster_of(proxy),
        }
    }
}

/// Something for each egress listener, and for all of them together.
#[derive(Clone, Debug)]
struct Parts<T> {
    all: T,
    egress: Vec<T>,
}

/// An outbound listener of the Sidecar, or the catch-all one that stands for its absence, and what is seen through it.
#[derive(Clone, Copy, Debug)]
pub struct Egress<'a> {
    /// Port, bind and capture mode.
    pub listener: &'a EgressListener,
    /// Services.
    pub services: &'a ServiceSet,
    /// VirtualServices, the oldest first.
    pub virtual_services: &'a [Arc<VirtualServiceConfig>],
}

/// What a route configuration of sidecars shows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RouteOf<'a> {
    /// All ports of the services: an egress listener with a port (or socket) of its own, and the HTTP proxy.
    Everything(Egress<'a>),
    /// One port.
    Port(Egress<'a>, u32),
    /// One host and port, where a service that has its own address does not say what it speaks.
    Host(Egress<'a>, &'a str, u32),
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct View {
    key: ViewKey,
    sidecar: Option<Arc<SidecarConfig>>,
    /// What stands for the egress listeners of a Sidecar where there is none.
    catch_all: EgressListener,
    services: Parts<Arc<ServiceSet>>,
    virtual_services: Parts<VirtualServices>,
    /// Label keys that the VirtualServices ask of their clients.
    label_keys: Arc<[String]>,
}

impl View {
    /// The view of a key. A Sidecar that is gone (or not in use) restricts nothing: ask for the key anew.
    pub fn build(snapshot: &Snapshot, key: ViewKey) -> View {
        let sidecar = key.sidecar.as_ref();
        let sidecar = sidecar
            .and_then(|id| snapshot.config().sidecars.get(id))
            .cloned();
        let services = services(snapshot, &key, sidecar.as_deref());
        let virtual_services = virtual_services(snapshot, &key, sidecar.as_deref());
        View {
            label_keys: label_keys(snapshot, &virtual_services.all),
            key,
            sidecar,
            catch_all: EgressListener::default(),
            services,
            virtual_services,
        }
    }

    /// The view of a proxy.
    pub fn of(snapshot: &Snapshot, proxy: &Proxy) -> View {
        View::build(snapshot, ViewKey::of(snapshot, proxy))
    }

    /// This view after a change: itself if nothing in it changed, `None` if its Sidecar is gone.
    pub fn next(self: &Arc<View>, snapshot: &Snapshot, change: &ChangeSet) -> Option<Arc<View>> {
        let sidecars = &snapshot.config().sidecars;
        if self
            .key
            .sidecar
            .as_ref()
            .is_some_and(|id| sidecars.get(id).is_none())
        {
            return None;
        }
        let touched = change.touches_view(self);
        if touched.everything {
            return Some(Arc::new(View::build(snapshot, self.key.clone())));
        }
        if !touched.services && !touched.virtual_services {
            return Some(self.clone());
        }
        let mut next = View::clone(self);
        let sidecar = self.sidecar.as_deref();
        if touched.services {
            next.services = services(snapshot, &self.key, sidecar);
        }
        if touched.virtual_services {
            next.virtual_services = virtual_services(snapshot, &self.key, sidecar);
            next.label_keys = label_keys(snapshot, &next.virtual_services.all);
        }
        Some(Arc::new(next))
    }

    /// Whose it is.
    pub fn key(&self) -> &ViewKey {
        &self.key
    }

    /// The Sidecar that restricts it.
    pub fn sidecar(&self) -> Option<&Arc<SidecarConfig>> {
        self.sidecar.as_ref()
    }

    /// All services.
    pub fn services(&self) -> &ServiceSet {
        &self.services.all
    }

    /// All VirtualServices, the oldest first.
    pub fn virtual_services(&self) -> &[Arc<VirtualServiceConfig>] {
        &self.virtual_services.all
    }

    /// Egress listeners in order; one without a port of its own is the last.
    pub fn egress(&self) -> impl Iterator<Item = Egress<'_>> {
        let listeners = match &self.sidecar {
            Some(sidecar) => sidecar.egress.as_slice(),
            None => std::slice::from_ref(&self.catch_all),
        };
        let seen = self
            .services
            .egress
            .iter()
            .zip(&self.virtual_services.egress);
        listeners
            .iter()
            .zip(seen)
            .map(|(listener, (services, routes))| Egress {
                listener,
                services,
                virtual_services: routes,
            })
    }

    /// What a route configuration shows, by its name; `None`: nothing stands behind the name.
    pub(crate) fn route<'a>(&'a self, name: &'a str) -> Option<RouteOf<'a>> {
        let catch_all = || self.egress().find(|e| e.listener.port.is_none());
        let with_port = |number: u32| {
            let mut all = self.egress();
            all.find(|e| e.listener.port.as_ref().is_some_and(|p| p.number == number))
        };
        if let Ok(port) = name.parse::<u32>() {
            return match with_port(port).filter(|_| port != 0) {
                Some(egress) => Some(RouteOf::Everything(egress)),
                None => Some(RouteOf::Port(catch_all()?, port)),
            };
        }
        if name == names::HTTP_PROXY {
            return catch_all().map(RouteOf::Everything);
        }
        if socket_path(name).is_some() {
            let named = |e: &Egress<'_>| e.listener.bind.as_ref().is_some_and(|b| b.text() == name);
            return self.egress().find(named).map(RouteOf::Everything);
        }
        let (host, port) = name.rsplit_once(':')?;
        let host = host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .unwrap_or(host);
        Some(RouteOf::Host(catch_all()?, host, port.parse().ok()?))
    }

    /// Label keys that the VirtualServices ask of their clients.
    pub fn label_keys(&self) -> &[String] {
        &self.label_keys
    }

    /// Whether a service, if it exists, is among those seen (or would be but for another one of the same host).
    pub(super) fn sees(&self, service: &Service) -> bool {
        let visible =
            self.key.kind == ProxyKind::Router || is_visible(service, &self.key.namespace);
        visible && self.imports(&service.namespace, [&service.hostname])
    }

    /// Whether a VirtualService, if it exists, is among those seen.
    pub(super) fn sees_routes(&self, config: &VirtualServiceConfig) -> bool {
        let namespace = config.meta.namespace.as_str();
        let visible = config.visibility == Visibility::Public || namespace == &*self.key.namespace;
        visible && applies(config, self.key.kind) && self.imports(namespace, &config.hosts)
    }

    fn imports<'a>(&self, namespace: &str, hosts: impl IntoIterator<Item = &'a Arc<str>>) -> bool {
        let Some(sidecar) = &self.sidecar else {
            return true;
        };
        let mut hosts = hosts.into_iter();
        let wanted = || sidecar.egress.iter().flat_map(|e| &e.hosts);
        hosts.any(|host| wanted().any(|w| w.imports(&self.key.namespace, namespace, host)))
    }
}

/// Whether proxies of a kind use a VirtualService at all.
pub(super) fn applies(config: &VirtualServiceConfig, kind: ProxyKind) -> bool {
    match kind {
        ProxyKind::Sidecar => config.on_mesh(),
        ProxyKind::Router => config.on_gateways(),
    }
}

fn label_keys(snapshot: &Snapshot, list: &VirtualServices) -> Arc<[String]> {
    let index = &snapshot.config().virtual_service_index;
    index.known_label_keys(list).unwrap_or_else(|| {
        let keys: BTreeSet<&String> = list.iter().flat_map(|v| v.source_label_keys()).collect();
        keys.into_iter().cloned().collect()
    })
}

fn services(
    snapshot: &Snapshot,
    key: &ViewKey,
    sidecar: Option<&SidecarConfig>,
) -> Parts<Arc<ServiceSet>> {
    let parts = imported_services(snapshot, key, sidecar);
    if key.cluster.is_empty() {
        return parts;
    }
    let seen = |set| snapshot.services().set_seen_from(&key.cluster, set);
    Parts {
        all: seen(&parts.all),
        egress: parts.egress.iter().map(seen).collect(),
    }
}

fn imported_services(
    snapshot: &Snapshot,
    key: &ViewKey,
    sidecar: Option<&SidecarConfig>,
) -> Parts<Arc<ServiceSet>> {
    let index = snapshot.services();
    let Some(sidecar) = sidecar else {
        let all = match key.kind {
            ProxyKind::Router => index.everything().clone(),
            ProxyKind::Sidecar => index.visible_to(&key.namespace),
        };
        return Parts {
            egress: vec![all.clone()],
            all,
        };
    };
    // One namespace per host: names of clusters do not carry it. The first listener that imports the host decides,
    // preferring the client's own namespace to the oldest service.
    let mut chosen: AHashMap<&Arc<str>, &Arc<str>> = AHashMap::new();
    let mut imported: Vec<BTreeSet<u32>> = Vec::with_capacity(sidecar.egress.len());
    for listener in &sidecar.egress {
        let found = import(snapshot, key, &listener.hosts);
        let mut of_listener: AHashMap<&Arc<str>, &Arc<str>> = AHashMap::new();
        for service in found.iter().filter_map(|i| index.at(*i)) {
            let own = service.namespace == key.namespace;
            let entry = of_listener
                .entry(&service.hostname)
                .or_insert(&service.namespace);
            if own {
                *entry = &service.namespace;
            }
        }
        for (host, namespace) in of_listener {
            chosen.entry(host).or_insert(namespace);
        }
        imported.push(found);
    }
    let mut union: BTreeSet<u32> = BTreeSet::new();
    for found in &mut imported {
        found.retain(|i| {
            index
                .at(*i)
                .is_some_and(|s| chosen.get(&s.hostname) == Some(&&s.namespace))
        });
        union.extend(found.iter());
    }
    let set = |indices: &BTreeSet<u32>| {
        let list = indices
            .iter()
            .filter_map(|i| index.at(*i))
            .cloned()
            .collect();
        Arc::new(ServiceSet::new(list))
    };
    let all = set(&union);
    let egress = match imported.as_slice() {
        [_] => vec![all.clone()],
        several => several.iter().map(set).collect(),
    };
    Parts { all, egress }
}

/// Places of the imported services in the index: in order of age.
fn import(snapshot: &Snapshot, key: &ViewKey, hosts: &[EgressHost]) -> BTreeSet<u32> {
    let index = snapshot.services();
    let mut out = BTreeSet::new();
    for wanted in hosts {
        let namespace = match &wanted.namespace {
            EgressNamespace::Any => None,
            EgressNamespace::Own => Some(&*key.namespace),
            EgressNamespace::Named(name) => Some(&**name),
        };
        let candidates = index.candidates(namespace, &wanted.host);
        out.extend(candidates.into_iter().filter(|i| {
            index.at(*i).is_some_and(|s| {
                is_visible(s, &key.namespace)
                    && wanted.imports(&key.namespace, &s.namespace, &s.hostname)
            })
        }));
    }
    out
}

fn virtual_services(
    snapshot: &Snapshot,
    key: &ViewKey,
    sidecar: Option<&SidecarConfig>,
) -> Parts<VirtualServices> {
    let index = &snapshot.config().virtual_service_index;
    let Some(sidecar) = sidecar else {
        let all = index.visible_to(key.kind, &key.namespace);
        return Parts {
            egress: vec![all.clone()],
            all,
        };
    };
    let imported: Vec<BTreeSet<u32>> = sidecar
        .egress
        .iter()
        .map(|listener| index.import(&key.namespace, &listener.hosts))
        .collect();
    let list = |indices: &BTreeSet<u32>| -> VirtualServices {
        indices
            .iter()
            .filter_map(|i| index.at(*i))
            .cloned()
            .collect()
    };
    let all = list(&imported.iter().flatten().copied().collect());
    let egress = match imported.as_slice() {
        [_] => vec![all.clone()],
        several => several.iter().map(list).collect(),
    };
    Parts { all, egress }
}
