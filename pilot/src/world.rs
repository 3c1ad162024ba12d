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

use ahash::{AHashMap, HashSet, RandomState};
use bytes::Bytes;
use parking_lot::Mutex;
use pilot_generate::{
    ChangeSet, Proxy, Report, Scope, ScopeKey, Snapshot,
    envoy::{core::Address, listener::Listener},
    generate,
};
use pilot_xds::{Collection, Resource};
use prost::Message as _;

/// See the [module](self).
pub(crate) struct World {
    /// Distinguishes worlds of this process.
    pub(crate) number: u64,
    pub(crate) snapshot: Arc<Snapshot>,
    scopes: Mutex<AHashMap<ScopeKey, Arc<ScopeCache>>>,
}

impl World {
    /// The first world.
    pub(crate) fn first(snapshot: Arc<Snapshot>) -> Self {
        Self {
            number: 1,
            snapshot,
            scopes: Mutex::default(),
        }
    }

    /// The world after this one. The second result names the load assignments that may differ.
    pub(crate) fn next(
        &self,
        snapshot: Arc<Snapshot>,
        change: &ChangeSet,
    ) -> (Self, HashSet<Arc<str>>) {
        let mut touched = HashSet::default();
        let old = self.scopes.lock().clone();
        let scopes = old
            .into_iter()
            // A scope nobody asked for during a whole world has lost its proxies.
            .filter(|(_, cache)| cache.used.load(Ordering::Relaxed))
            .map(|(key, cache)| {
                let next = cache.carry(&snapshot, key.clone(), change, &mut touched);
                (key, Arc::new(next))
            })
            .collect();
        (
            Self {
                number: self.number + 1,
                snapshot,
                scopes: Mutex::new(scopes),
            },
            touched,
        )
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

/// An outbound listener without what the single proxy adds to it.
pub(crate) struct SharedListener {
    resource: Resource,
    takes_own_chain: bool,
    address: Option<Address>,
}

/// Everything generated for one scope.
pub(crate) struct ScopeCache {
    scope: Scope,
    used: AtomicBool,
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
    report: Mutex<Report>,
}

impl ScopeCache {
    fn new(scope: Scope) -> Self {
        Self {
            scope,
            used: AtomicBool::new(false),
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

    fn carry(
        &self,
        snapshot: &Arc<Snapshot>,
        key: ScopeKey,
        change: &ChangeSet,
        touched: &mut HashSet<Arc<str>>,
    ) -> Self {
        let mut next = Self::new(Scope::build(snapshot, key));
        let affected = change.affected();
        let clusters = self.clusters.get().or(self.former_clusters.as_ref());
        // A cluster that holds its endpoints itself (STRICT_DNS) changes with them.
        let keeps_clusters = !affected.clusters
            && !(affected.endpoints
                && clusters
                    .is_some_and(|list| list.iter().any(|r| change.touches_cluster(&r.name))));
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
            endpoints.retain(|name, _| {
                let keep = !change.touches_endpoints(name);
                if !keep {
                    touched.insert(name.clone());
                }
                keep
            });
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

    fn listeners(&self) -> &Arc<Vec<SharedListener>> {
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
    fn cluster_list(&self, own: &[Resource]) -> Arc<Collection> {
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

/// A connected proxy and what was put together for it.
pub(crate) struct PilotProxy {
    pub(crate) proxy: Proxy,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    world: u64,
    scope: Option<Arc<ScopeCache>>,
    own: Option<Arc<Own>>,
    clusters: Option<(Arc<Vec<Resource>>, Arc<Collection>)>,
    listeners: Option<(Arc<Vec<SharedListener>>, Arc<Collection>)>,
}

/// What depends on the one proxy: it holds until the proxy is attached anew.
struct Own {
    clusters: Vec<Resource>,
    listeners: Vec<(Resource, Option<Address>)>,
    chain: Option<Bytes>,
}

impl PilotProxy {
    pub(crate) fn new(proxy: Proxy) -> Self {
        Self {
            proxy,
            state: Mutex::default(),
        }
    }

    /// The proxy's scope in this world.
    pub(crate) fn scope(&self, world: &World) -> Arc<ScopeCache> {
        let mut state = self.state.lock();
        if state.world == world.number
            && let Some(scope) = &state.scope
        {
            return scope.clone();
        }
        let scope = world.scope(&self.proxy);
        state.world = world.number;
        state.scope = Some(scope.clone());
        scope
    }

    fn own(&self, scope: &ScopeCache) -> Arc<Own> {
        if let Some(own) = &self.state.lock().own {
            return own.clone();
        }
        let own = Arc::new(Own::generate(scope, &self.proxy));
        self.state.lock().own = Some(own.clone());
        own
    }

    /// All clusters of this proxy.
    pub(crate) fn clusters(&self, world: &World) -> Arc<Collection> {
        let scope = self.scope(world);
        let shared = scope.clusters();
        if let Some((from, list)) = &self.state.lock().clusters
            && Arc::ptr_eq(from, shared)
        {
            return list.clone();
        }
        let list = scope.cluster_list(&self.own(&scope).clusters);
        self.state.lock().clusters = Some((shared.clone(), list.clone()));
        list
    }

    /// All listeners of this proxy.
    pub(crate) fn listeners(&self, world: &World) -> Arc<Collection> {
        let scope = self.scope(world);
        let shared = scope.listeners();
        if let Some((from, list)) = &self.state.lock().listeners
            && Arc::ptr_eq(from, shared)
        {
            return list.clone();
        }
        let list = Arc::new(self.put_together(shared, &self.own(&scope)));
        self.state.lock().listeners = Some((shared.clone(), list.clone()));
        list
    }

    fn put_together(&self, shared: &[SharedListener], own: &Own) -> Collection {
        let outbound = shared.iter().filter(|listener| {
            let taken = own
                .listeners
                .iter()
                .any(|(_, address)| *address == listener.address);
            !taken && !self.is_own_address(listener)
        });
        let outbound = outbound.map(|listener| match &own.chain {
            Some(chain) if listener.takes_own_chain => {
                // A list may be appended to in encoded form, and filter_chains is one.
                let body = [&listener.resource.body[..], chain].concat();
                Resource::new(listener.resource.name.clone(), body)
            }
            _ => listener.resource.clone(),
        });
        Collection::new(
            own.listeners
                .iter()
                .map(|(resource, _)| resource.clone())
                .chain(outbound)
                .collect(),
        )
    }

    /// A listener on one of the proxy's own addresses, as headless services have: it would shadow the inbound side.
    fn is_own_address(&self, listener: &SharedListener) -> bool {
        use pilot_generate::envoy::core::address::Address::SocketAddress;
        match listener
            .address
            .as_ref()
            .and_then(|address| address.address.as_ref())
        {
            Some(SocketAddress(socket)) => {
                &*listener.resource.name != pilot_generate::names::VIRTUAL_OUTBOUND
                    && socket
                        .address
                        .parse()
                        .is_ok_and(|ip| self.proxy.ips.contains(&ip))
            }
            _ => false,
        }
    }
}

impl Own {
    fn generate(scope: &ScopeCache, proxy: &Proxy) -> Self {
        if proxy.kind == pilot_generate::ProxyKind::Router {
            return Self {
                clusters: Vec::new(),
                listeners: Vec::new(),
                chain: None,
            };
        }
        let mut report = Report::default();
        let clusters = generate::inbound_clusters(&scope.scope, proxy, &mut report)
            .iter()
            .map(|cluster| Resource::new(cluster.name.as_str(), cluster.encode_to_vec()))
            .collect();
        let listeners = generate::inbound_listeners(&scope.scope, proxy, &mut report)
            .into_iter()
            .map(|listener| {
                let body = listener.encode_to_vec();
                (
                    Resource::new(listener.name.as_str(), body),
                    listener.address,
                )
            })
            .collect();
        let chain = generate::own_address_chain(&scope.scope, proxy).map(|chain| {
            let listener = Listener {
                filter_chains: vec![chain],
                ..Listener::default()
            };
            Bytes::from(listener.encode_to_vec())
        });
        scope.report.lock().merge(&report);
        Self {
            clusters,
            listeners,
            chain,
        }
    }
}
