//! Everything generated and encoded for one scope.
//!
//! Outbound clusters and listeners, load assignments and routes are generated and encoded once, on first use, and handed out
//! as pointers. What is generated again and comes out equal keeps its old pointers too, so that a client's list can be told
//! to be unchanged by comparing one pointer. Findings are kept with what they were found in, and vanish with it.
//!
//! The four parts are objects of their own that successive worlds share for as long as no change touches them. They are
//! filled by whoever asks first, in whichever of these worlds: what is not touched is the same in all of them.

use std::{
    hash::{BuildHasher as _, Hash as _, Hasher as _},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use ahash::{AHashMap, RandomState};
use parking_lot::Mutex;
use pilot_generate::{
    ChangeSet, Report, Scope,
    envoy::core::Address,
    generate::{self, OwnChain},
    model::Client,
    names,
};
use pilot_xds::{Collection, Resource};
use prost::Message as _;

use crate::{api::ApiCache, named::Named};

/// An outbound listener without what the single proxy adds to it.
pub(crate) struct SharedListener {
    pub(crate) resource: Resource,
    pub(crate) own_chain: OwnChain,
    pub(crate) address: Option<Address>,
}

/// How many proxies have the scope.
#[derive(Default)]
struct Holders(AtomicUsize);

/// Keeps a scope in use while its proxy is there but not asking: most changes do not concern it.
pub(crate) struct Hold(Arc<Holders>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// See the [module](self).
pub(crate) struct ScopeCache {
    pub(crate) scope: Scope,
    /// Number of the world it is made for.
    world: u64,
    /// Whether a proxy asked in this world.
    pub(crate) asked: AtomicBool,
    /// Worlds before this one in which there was no proxy.
    idle_before: u32,
    holders: Arc<Holders>,
    clusters: Arc<Clusters>,
    listeners: Arc<Listeners>,
    endpoints: Arc<Named>,
    routes: Arc<Named>,
    /// What gRPC clients ask for beside.
    api: Arc<ApiCache>,
    /// Findings about single proxies, which keep them.
    own_reports: Arc<Mutex<Vec<Weak<Report>>>>,
}

impl ScopeCache {
    pub(crate) fn new(scope: Scope, world: u64) -> Self {
        Self {
            scope,
            world,
            asked: AtomicBool::new(true),
            idle_before: 0,
            holders: Arc::default(),
            clusters: Arc::default(),
            listeners: Arc::default(),
            endpoints: Arc::default(),
            routes: Arc::default(),
            api: Arc::default(),
            own_reports: Arc::default(),
        }
    }

    /// How many worlds ago, this one included, there was a proxy.
    pub(crate) fn idle_worlds(&self) -> u32 {
        let held = self.holders.0.load(Ordering::Relaxed) > 0;
        if held || self.asked.load(Ordering::Relaxed) {
            0
        } else {
            self.idle_before + 1
        }
    }

    /// Keeps the scope in use for as long as the answer lives.
    pub(crate) fn hold(&self) -> Hold {
        self.holders.0.fetch_add(1, Ordering::Relaxed);
        Hold(self.holders.clone())
    }

    /// The same scope in the next world.
    pub(crate) fn carry(&self, scope: Scope, change: &ChangeSet, world: u64, idle: u32) -> Self {
        // The former view knows who no longer sees something and, by its rules, who now does.
        let view = self.scope.view();
        let affected = change.affected(view);
        let all = change.touches_all(view);
        let clusters = match affected.clusters {
            false => self.clusters.clone(),
            true => Arc::new(self.clusters.former()),
        };
        let listeners = match affected.listeners {
            false => self.listeners.clone(),
            true => Arc::new(self.listeners.former()),
        };
        let endpoints = match affected.endpoints {
            false => self.endpoints.clone(),
            true if all => Arc::default(),
            true => self.carry_endpoints(change, world),
        };
        let routes = match affected.routes {
            false => self.routes.clone(),
            // gRPC's are few, and go by other names.
            true if all || scope.key().client == Client::Grpc => Arc::default(),
            true => Arc::new(
                self.routes
                    .without(|name| change.touches_route(&scope, name)),
            ),
        };
        Self {
            scope,
            world,
            asked: AtomicBool::new(false),
            idle_before: idle,
            holders: self.holders.clone(),
            clusters,
            listeners,
            endpoints,
            routes,
            api: self.api.carry(change, view),
            own_reports: self.own_reports.clone(),
        }
    }

    fn carry_endpoints(&self, change: &ChangeSet, world: u64) -> Arc<Named> {
        let Some(hosts) = change.endpoint_hosts(self.scope.view()) else {
            let kept = self
                .endpoints
                .without(|name| change.touches_endpoints(name));
            return Arc::new(kept);
        };
        for host in hosts {
            self.endpoints.touch(host, world);
        }
        self.endpoints.clone()
    }

    /// Outbound clusters, sorted by name.
    pub(crate) fn clusters(&self) -> &Arc<Vec<Resource>> {
        self.clusters.get(&self.scope)
    }

    /// Outbound listeners without what single proxies add.
    pub(crate) fn listeners(&self) -> &Arc<Vec<SharedListener>> {
        self.listeners.get(&self.scope)
    }

    /// All clusters of a proxy that adds these to the shared ones.
    pub(crate) fn cluster_list(&self, own: &[Resource]) -> Arc<Collection> {
        self.clusters.list(&self.scope, own)
    }

    /// Load assignments by cluster name, empty ones included: a cluster that is never answered keeps Envoy waiting.
    pub(crate) fn endpoints(&self, names: &[Arc<str>]) -> Vec<Option<Resource>> {
        let host = |name: &str| names::parse_outbound(name).map(|n| n.host.to_owned());
        self.endpoints
            .get(names, self.world, self.room(), host, |name, report| {
                match self.scope.key().client {
                    Client::Envoy => generate::endpoints(&self.scope, name, report),
                    Client::Grpc => generate::api_endpoints(&self.scope, name, report),
                }
                .encode_to_vec()
            })
    }

    /// Route configurations by name, empty ones included.
    pub(crate) fn routes(&self, names: &[Arc<str>]) -> Vec<Option<Resource>> {
        self.routes.get(
            names,
            self.world,
            self.room(),
            |_| None,
            |name, report| match self.scope.key().client {
                Client::Envoy => generate::route(&self.scope, name, report).body,
                Client::Grpc => generate::api_route(&self.scope, name, report).encode_to_vec(),
            },
        )
    }

    /// Listeners of targets, for gRPC clients.
    pub(crate) fn api_listeners(&self, names: &[Arc<str>]) -> Vec<Option<Resource>> {
        self.api.listeners(&self.scope, names)
    }

    /// Clusters by name, for gRPC clients.
    pub(crate) fn api_clusters(&self, names: &[Arc<str>]) -> Vec<Option<Resource>> {
        self.api.clusters(&self.scope, names)
    }

    /// Names that a client makes up are answered, and not remembered without bound.
    fn room(&self) -> usize {
        let clusters = self.clusters.made.get();
        clusters.map_or(0, |(list, _)| list.len()) * 2 + 4096
    }

    /// Takes note of what was found out about one proxy, for as long as the proxy keeps it.
    pub(crate) fn note_own(&self, report: &Arc<Report>) {
        let mut reports = self.own_reports.lock();
        reports.retain(|report| report.strong_count() > 0);
        reports.push(Arc::downgrade(report));
    }

    /// Adds everything found out.
    pub(crate) fn report(&self, out: &mut Report) {
        if let Some((_, report)) = self.clusters.made.get() {
            out.merge(report);
        }
        if let Some((_, report)) = self.listeners.made.get() {
            out.merge(report);
        }
        self.endpoints.report(out);
        self.routes.report(out);
        self.api.report(out);
        for report in self.own_reports.lock().iter().filter_map(Weak::upgrade) {
            out.merge(&report);
        }
    }
}

#[derive(Default)]
struct Clusters {
    made: OnceLock<(Arc<Vec<Resource>>, Report)>,
    /// What a regeneration may find itself equal to.
    former: Option<Arc<Vec<Resource>>>,
    /// Cluster lists by the clusters that proxies add: pods of one Deployment share theirs.
    lists: Mutex<AHashMap<u64, Weak<Collection>>>,
    hasher: RandomState,
}

impl Clusters {
    /// To be generated anew.
    fn former(&self) -> Self {
        let made = self.made.get().map(|(list, _)| list);
        Self {
            former: made.or(self.former.as_ref()).cloned(),
            ..Self::default()
        }
    }

    fn get(&self, scope: &Scope) -> &Arc<Vec<Resource>> {
        let make = || {
            let mut report = Report::default();
            let mut list: Vec<Resource> = generate::outbound_clusters(scope, &mut report)
                .into_iter()
                .map(|cluster| Resource::new(cluster.message.name, cluster.body))
                .collect();
            list.sort_by(|a, b| a.name.cmp(&b.name));
            list.dedup_by(|later, first| later.name == first.name);
            let list = match &self.former {
                Some(former) => {
                    reuse(&mut list, former);
                    match same(&list, former) {
                        true => former.clone(),
                        false => Arc::new(list),
                    }
                }
                None => Arc::new(list),
            };
            (list, report)
        };
        &self.made.get_or_init(make).0
    }

    fn list(&self, scope: &Scope, own: &[Resource]) -> Arc<Collection> {
        let mut hasher = self.hasher.build_hasher();
        for resource in own {
            (&resource.name, resource.version).hash(&mut hasher);
        }
        let key = hasher.finish();
        let shared = self.get(scope);
        let mut lists = self.lists.lock();
        if let Some(list) = lists.get(&key).and_then(Weak::upgrade) {
            return list;
        }
        let all = shared.iter().chain(own).cloned().collect();
        let list = Arc::new(Collection::new(all));
        lists.retain(|_, list| list.strong_count() > 0);
        lists.insert(key, Arc::downgrade(&list));
        list
    }
}

#[derive(Default)]
struct Listeners {
    made: OnceLock<(Arc<Vec<SharedListener>>, Report)>,
    former: Option<Arc<Vec<SharedListener>>>,
}

impl Listeners {
    fn former(&self) -> Self {
        let made = self.made.get().map(|(list, _)| list);
        Self {
            former: made.or(self.former.as_ref()).cloned(),
            ..Self::default()
        }
    }

    fn get(&self, scope: &Scope) -> &Arc<Vec<SharedListener>> {
        let make = || {
            let mut report = Report::default();
            let list: Vec<SharedListener> = generate::outbound_listeners(scope, &mut report)
                .into_iter()
                .map(|listener| SharedListener {
                    own_chain: OwnChain::of(&listener),
                    resource: Resource::new(listener.message.name, listener.body),
                    address: listener.message.address,
                })
                .collect();
            let unchanged = self.former.as_ref().filter(|former| {
                former.len() == list.len()
                    && former.iter().zip(&list).all(|(a, b)| {
                        (&a.resource.name, a.resource.version)
                            == (&b.resource.name, b.resource.version)
                    })
            });
            (unchanged.cloned().unwrap_or_else(|| Arc::new(list)), report)
        };
        &self.made.get_or_init(make).0
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
