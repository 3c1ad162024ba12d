//! A snapshot with everything that was generated and encoded from it so far.
//!
//! Proxies with the same [`ScopeKey`] share one [`ScopeCache`]: outbound clusters and listeners, load assignments and
//! routes are generated and encoded once, on first use, and handed out as pointers. When a new snapshot comes, each scope
//! in use is carried over: what the [`ChangeSet`] does not touch keeps its bytes, the rest is generated when the first
//! proxy asks. What is generated again and comes out equal keeps its old pointers too, so that a client's list can be
//! told to be unchanged by comparing one pointer.
//!
//! Who writes: the rebuild task makes worlds; any stream fills a cache. Who reads: streams, debug pages.
//!
//! Cost of a new world: per scope in use, one scope build (pointers) and one pass over its load-assignment and route
//! names; no generation.

use std::{
    hash::{BuildHasher as _, Hash as _, Hasher as _},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use ahash::{AHashMap, RandomState};
use parking_lot::Mutex;
use pilot_generate::{
    ChangeSet, Proxy, Report, Scope, ScopeKey, Snapshot, envoy::core::Address, generate,
};
use pilot_xds::{Collection, Resource};
use prost::Message as _;

use crate::introduced::Introduced;

/// See the [module](self).
pub(crate) struct World {
    /// Distinguishes worlds of this process.
    pub(crate) number: u64,
    pub(crate) snapshot: Arc<Snapshot>,
    /// Since which world each config object is served.
    pub(crate) introduced: Arc<Introduced>,
    scopes: Mutex<AHashMap<ScopeKey, Arc<ScopeCache>>>,
}

impl World {
    /// The first world.
    pub(crate) fn first(snapshot: Arc<Snapshot>) -> Self {
        Self {
            number: 1,
            introduced: Arc::<Introduced>::default().next(&snapshot.inputs().configs, 1),
            snapshot,
            scopes: Mutex::default(),
        }
    }

    /// The world after this one.
    pub(crate) fn next(&self, snapshot: Arc<Snapshot>, change: &ChangeSet) -> Self {
        let old = self.scopes.lock().clone();
        let scopes = old
            .into_iter()
            .filter(|(_, cache)| cache.idle() <= IDLE_WORLDS)
            .map(|(key, cache)| {
                let next = cache.carry(&snapshot, key.clone(), change);
                (key, Arc::new(next))
            })
            .collect();
        let number = self.number + 1;
        Self {
            number,
            introduced: self.introduced.next(&snapshot.inputs().configs, number),
            snapshot,
            scopes: Mutex::new(scopes),
        }
    }

    /// The scope of a proxy.
    pub(crate) fn scope(&self, proxy: &Proxy) -> Arc<ScopeCache> {
        let key = ScopeKey::of(&self.snapshot, proxy);
        let mut scopes = self.scopes.lock();
        let cache = scopes.entry(key).or_insert_with_key(|key| {
            Arc::new(ScopeCache::new(Scope::build(&self.snapshot, key.clone())))
        });
        cache.used.store(true, Ordering::Relaxed);
        cache.clone()
    }

    /// What generators found out about all scopes in use, and what is wrong in config itself.
    pub(crate) fn report(&self) -> Report {
        let mut report = self.snapshot.report().clone();
        for cache in self.scopes.lock().values() {
            report.merge(&cache.report.lock());
        }
        report
    }
}

/// A scope nobody asked for during so many worlds has lost its proxies. (A single world may live for milliseconds.)
const IDLE_WORLDS: u32 = 32;

/// An outbound listener without what the single proxy adds to it.
pub(crate) struct SharedListener {
    pub(crate) resource: Resource,
    pub(crate) takes_own_chain: bool,
    pub(crate) address: Option<Address>,
}

/// Everything generated for one scope.
pub(crate) struct ScopeCache {
    pub(crate) scope: Scope,
    used: AtomicBool,
    /// Worlds before this one in which nobody asked.
    idle_before: u32,
    clusters: OnceLock<Arc<Vec<Resource>>>,
    listeners: OnceLock<Arc<Vec<SharedListener>>>,
    /// What a regeneration may find itself equal to.
    former_clusters: Option<Arc<Vec<Resource>>>,
    former_listeners: Option<Arc<Vec<SharedListener>>>,
    endpoints: Mutex<AHashMap<Arc<str>, Resource>>,
    routes: Mutex<AHashMap<Arc<str>, Resource>>,
    /// Cluster lists by the clusters that proxies add: pods of one Deployment share theirs.
    lists: Mutex<AHashMap<u64, Weak<Collection>>>,
    hasher: RandomState,
    pub(crate) report: Mutex<Report>,
}

impl ScopeCache {
    fn new(scope: Scope) -> Self {
        Self {
            scope,
            used: AtomicBool::new(false),
            idle_before: 0,
            clusters: OnceLock::new(),
            listeners: OnceLock::new(),
            former_clusters: None,
            former_listeners: None,
            endpoints: Mutex::default(),
            routes: Mutex::default(),
            lists: Mutex::default(),
            hasher: RandomState::new(),
            report: Mutex::default(),
        }
    }

    fn idle(&self) -> u32 {
        if self.used.load(Ordering::Relaxed) {
            0
        } else {
            self.idle_before + 1
        }
    }

    fn carry(&self, snapshot: &Arc<Snapshot>, key: ScopeKey, change: &ChangeSet) -> Self {
        let mut next = Self::new(Scope::build(snapshot, key));
        next.idle_before = self.idle();
        let affected = change.affected();
        let clusters = self.clusters.get().or(self.former_clusters.as_ref());
        // A cluster that holds its endpoints itself (STRICT_DNS) changes with them.
        let holds_touched = || {
            let mut names = clusters
                .iter()
                .flat_map(|list| list.iter())
                .map(|r| &r.name);
            names.any(|name| change.touches_cluster(name))
        };
        let keeps_clusters = !affected.clusters && (!affected.endpoints || !holds_touched());
        if keeps_clusters && let Some(clusters) = self.clusters.get() {
            let _ = next.clusters.set(clusters.clone());
            next.lists = Mutex::new(self.lists.lock().clone());
            next.hasher = self.hasher.clone();
        } else {
            next.former_clusters = clusters.cloned();
        }
        let listeners = self.listeners.get().or(self.former_listeners.as_ref());
        if !affected.listeners
            && let Some(listeners) = self.listeners.get()
        {
            let _ = next.listeners.set(listeners.clone());
        } else {
            next.former_listeners = listeners.cloned();
        }
        let mut endpoints = self.endpoints.lock().clone();
        if affected.endpoints {
            endpoints.retain(|name, _| !change.touches_endpoints(name));
        }
        next.endpoints = Mutex::new(endpoints);
        let mut routes = self.routes.lock().clone();
        if affected.routes {
            routes.retain(|name, _| !change.touches_route(&next.scope, name));
        }
        next.routes = Mutex::new(routes);
        // Collisions are found by generating; what is not generated again keeps its findings.
        *next.report.lock() = self.report.lock().clone();
        next
    }

    /// Outbound clusters, sorted by name.
    pub(crate) fn clusters(&self) -> &Arc<Vec<Resource>> {
        self.clusters.get_or_init(|| {
            let mut report = Report::default();
            let clusters = generate::outbound_clusters(&self.scope, &mut report);
            self.report.lock().merge(&report);
            let mut list: Vec<Resource> = clusters
                .iter()
                .map(|cluster| Resource::new(cluster.name.as_str(), cluster.encode_to_vec()))
                .collect();
            list.sort_by(|a, b| a.name.cmp(&b.name));
            list.dedup_by(|later, first| later.name == first.name);
            if let Some(former) = &self.former_clusters {
                reuse(&mut list, former);
                if same(&list, former) {
                    return former.clone();
                }
            }
            Arc::new(list)
        })
    }

    /// Outbound listeners without what single proxies add.
    pub(crate) fn listeners(&self) -> &Arc<Vec<SharedListener>> {
        self.listeners.get_or_init(|| {
            let mut report = Report::default();
            let listeners = generate::outbound_listeners(&self.scope, &mut report);
            self.report.lock().merge(&report);
            let list: Vec<SharedListener> = listeners
                .into_iter()
                .map(|listener| SharedListener {
                    resource: Resource::new(listener.name.as_str(), listener.encode_to_vec()),
                    takes_own_chain: generate::takes_own_address_chain(&listener),
                    address: listener.address,
                })
                .collect();
            if let Some(former) = &self.former_listeners
                && former.len() == list.len()
                && former.iter().zip(&list).all(|(a, b)| {
                    (&a.resource.name, a.resource.version) == (&b.resource.name, b.resource.version)
                })
            {
                return former.clone();
            }
            Arc::new(list)
        })
    }

    /// All clusters of a proxy that adds these to the shared ones.
    pub(crate) fn cluster_list(&self, own: &[Resource]) -> Arc<Collection> {
        let mut hasher = self.hasher.build_hasher();
        for resource in own {
            (&resource.name, resource.version).hash(&mut hasher);
        }
        let key = hasher.finish();
        let mut lists = self.lists.lock();
        if let Some(list) = lists.get(&key).and_then(Weak::upgrade) {
            return list;
        }
        let all = self.clusters().iter().chain(own).cloned().collect();
        let list = Arc::new(Collection::new(all));
        lists.retain(|_, list| list.strong_count() > 0);
        lists.insert(key, Arc::downgrade(&list));
        list
    }

    /// Load assignments by cluster name, empty ones included: a cluster that is never answered keeps Envoy waiting.
    pub(crate) fn endpoints(&self, names: &[Arc<str>]) -> Vec<Option<Resource>> {
        self.cached(&self.endpoints, names, |name, report| {
            generate::endpoints(&self.scope, name, report).encode_to_vec()
        })
    }

    /// Route configurations by name, empty ones included.
    pub(crate) fn routes(&self, names: &[Arc<str>]) -> Vec<Option<Resource>> {
        self.cached(&self.routes, names, |name, report| {
            generate::route(&self.scope, name, report).encode_to_vec()
        })
    }

    fn cached(
        &self,
        cache: &Mutex<AHashMap<Arc<str>, Resource>>,
        names: &[Arc<str>],
        make: impl Fn(&str, &mut Report) -> Vec<u8>,
    ) -> Vec<Option<Resource>> {
        let mut found: Vec<Option<Resource>> = {
            let cache = cache.lock();
            names.iter().map(|name| cache.get(name).cloned()).collect()
        };
        if found.iter().all(Option::is_some) {
            return found;
        }
        let mut report = Report::default();
        let mut made = Vec::new();
        for (name, slot) in names
            .iter()
            .zip(&mut found)
            .filter(|(_, slot)| slot.is_none())
        {
            let resource = Resource::new(name.clone(), make(name, &mut report));
            made.push(resource.clone());
            *slot = Some(resource);
        }
        self.report.lock().merge(&report);
        let mut cache = cache.lock();
        // Names that a client makes up are answered, and not remembered without bound.
        let room = (self.clusters.get().map_or(0, |list| list.len()) * 2 + 4096)
            .saturating_sub(cache.len());
        cache.extend(made.into_iter().take(room).map(|r| (r.name.clone(), r)));
        found
    }
}

fn same(a: &[Resource], b: &[Resource]) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|(a, b)| (&a.name, a.version) == (&b.name, b.version))
}

/// Takes over the bytes of equal resources; both lists are sorted.
fn reuse(list: &mut [Resource], former: &[Resource]) {
    for resource in list {
        if let Ok(at) = former.binary_search_by(|f| f.name.cmp(&resource.name))
            && former[at].version == resource.version
        {
            *resource = former[at].clone();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use pilot_generate::{
        Inputs,
        envoy::core::Node,
        model::{
            Address, Endpoint, EndpointAddress, Locality, Protocol, Registry, Resolution, Service,
            ServiceEndpoints, ServiceKey, ServicePort, TargetPort, TlsMode, Visibility,
        },
    };
    use pilot_xds::{ResourceSource as _, ResourceType, Touched};

    use super::*;
    use crate::{
        proxy::PilotProxy,
        source::{Difference, PilotSource},
    };

    const CLUSTER: &str = "outbound|80||web.shop.svc.cluster.local";

    /// A snapshot of one service with endpoints at these last octets.
    fn snapshot(endpoints: &[u8], previous: Option<&World>) -> Arc<Snapshot> {
        let hostname: Arc<str> = "web.shop.svc.cluster.local".into();
        let key = ServiceKey {
            hostname: hostname.clone(),
            namespace: "shop".into(),
        };
        let service = Service {
            hostname,
            name: "web".into(),
            namespace: "shop".into(),
            registry: Registry::Kubernetes,
            creation: jiff::Timestamp::UNIX_EPOCH,
            address: Address::Ip("10.96.0.1".parse().unwrap()),
            ports: vec![ServicePort {
                name: "http".into(),
                number: 80,
                protocol: Protocol::Http,
                target: TargetPort::Number(8080),
            }],
            resolution: Resolution::ClientSideLb,
            mesh_external: false,
            visibility: Visibility::Public,
            selector: Default::default(),
            headless: false,
            external_name: None,
            external_addresses: Vec::new(),
            service_accounts: Vec::new(),
        };
        let endpoint = |octet: &u8| Endpoint {
            address: EndpointAddress::Ip([10, 1, 0, *octet].into()),
            port: 8080,
            service_port: "http".into(),
            labels: Arc::default(),
            weight: 1,
            locality: Locality::default(),
            service_account: Arc::default(),
            uid: Arc::default(),
            cluster: Arc::default(),
            network: Arc::default(),
            tls_mode: TlsMode::Disabled,
        };
        let set = ServiceEndpoints::new(endpoints.iter().map(endpoint).collect());
        let mut inputs = previous.map_or_else(
            || Inputs {
                services: Arc::new([(key.clone(), Arc::new(service))].into_iter().collect()),
                ..Inputs::default()
            },
            |world| world.snapshot.inputs().clone(),
        );
        inputs.endpoints = Arc::new([(key, Arc::new(set))].into_iter().collect());
        Arc::new(Snapshot::build(
            &inputs,
            previous.map(|world| &*world.snapshot),
        ))
    }

    fn next(world: &World, endpoints: &[u8]) -> (World, Difference) {
        let snapshot = snapshot(endpoints, Some(world));
        let set = ChangeSet::between(&world.snapshot, &snapshot);
        (world.next(snapshot, &set), Difference::new(set))
    }

    fn proxy(world: &World) -> PilotProxy {
        let node = Node {
            id: "sidecar~10.1.0.9~client.shop~shop.svc.cluster.local".to_owned(),
            ..Node::default()
        };
        PilotSource.attach(world, &node).unwrap()
    }

    fn version(world: &World, proxy: &PilotProxy) -> pilot_xds::Version {
        let named = PilotSource.named(world, proxy, ResourceType::Endpoint, &[CLUSTER.into()]);
        named[0].as_ref().unwrap().version
    }

    fn is_told(proxy: &PilotProxy, difference: &Difference) -> bool {
        match PilotSource.touched(proxy, ResourceType::Endpoint, difference) {
            Touched::Matching(predicates) => predicates.iter().any(|touches| touches(CLUSTER)),
            Touched::Everything => true,
            Touched::Nothing => false,
        }
    }

    #[test]
    fn a_proxy_that_asks_late_still_learns_of_the_next_change() {
        let first = World::first(snapshot(&[1, 2, 3], None));
        let proxy = proxy(&first);
        let all = version(&first, &proxy);
        let (second, change) = next(&first, &[1, 2]);
        assert!(is_told(&proxy, &change));
        // The third world is made before anybody has asked the second one.
        let (third, change) = next(&second, &[1]);
        let two = version(&second, &proxy);
        assert!(is_told(&proxy, &change));
        let one = version(&third, &proxy);
        assert!(all != two && two != one && all != one);
    }

    #[test]
    fn what_did_not_change_keeps_its_bytes() {
        let first = World::first(snapshot(&[1], None));
        let proxy = proxy(&first);
        let clusters = proxy.clusters(&first);
        let listeners = proxy.listeners(&first);
        let (second, _) = next(&first, &[1, 2]);
        assert!(Arc::ptr_eq(&clusters, &proxy.clusters(&second)));
        assert!(Arc::ptr_eq(&listeners, &proxy.listeners(&second)));
    }
}
