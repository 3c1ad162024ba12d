//! A snapshot with everything that was generated and encoded from it so far.
//!
//! Proxies with the same [`ScopeKey`] share one [`ScopeCache`]. When a new snapshot comes,
//! each scope in use is carried over: what the [`ChangeSet`] does not touch keeps its bytes, the rest is generated when the
//! first proxy asks. Who writes: the rebuild task makes worlds; any stream fills a cache. Who reads: streams, debug pages.
//!
//! # Cost of a new world
//!
//! For n scopes in use and a change of c objects:
//!
//! - A scope that neither sees nor saw any of them: c look-ups in its view, and the pointers to everything it has made so
//!   far. No list is walked, nothing is built, nothing generated; its proxies are not looked at either.
//! - A scope in which only endpoints differ: the same, and c removals from its load assignments. Its view, clusters,
//!   listeners and routes are the same objects.
//! - Another one: its view anew (see [`pilot_generate::View`]; scopes that differ in the rest of their key share it), one
//!   pass over the names of its load assignments and routes, and generation of what proxies then ask for.
//!
//! So with Sidecars in a hundred namespaces a VirtualService that one of them imports costs a hundred times c look-ups, and
//! the work for that one.

use std::sync::{Arc, atomic::Ordering};

use ahash::AHashMap;
use parking_lot::Mutex;
use pilot_generate::{ChangeSet, Proxy, Report, Scope, ScopeKey, Snapshot, View, ViewKey};

use crate::{introduced::Introduced, scope_cache::ScopeCache};

/// See the [module](self).
pub(crate) struct World {
    /// Distinguishes worlds of this process.
    pub(crate) number: u64,
    pub(crate) snapshot: Arc<Snapshot>,
    /// Since which world each config object is served.
    pub(crate) introduced: Arc<Introduced>,
    in_use: Mutex<InUse>,
}

#[derive(Default)]
struct InUse {
    views: AHashMap<ViewKey, Arc<View>>,
    scopes: AHashMap<Arc<ScopeKey>, Arc<ScopeCache>>,
}

/// A scope without proxies is kept during so many worlds: they may be reconnecting. (A world may live for milliseconds.)
const IDLE_WORLDS: u32 = 32;

impl World {
    /// The first world.
    pub(crate) fn first(snapshot: Arc<Snapshot>) -> Self {
        Self {
            number: 1,
            introduced: Arc::<Introduced>::default().next(&snapshot.inputs().configs, 1),
            snapshot,
            in_use: Mutex::default(),
        }
    }

    /// The world after this one.
    pub(crate) fn next(&self, snapshot: Arc<Snapshot>, change: &ChangeSet) -> Self {
        let number = self.number + 1;
        let scopes: Vec<Arc<ScopeCache>> = self.in_use.lock().scopes.values().cloned().collect();
        let mut next = InUse::default();
        for cache in scopes {
            let idle = cache.idle_worlds();
            // With an EnvoyFilter gone nobody has this scope any more.
            if idle > IDLE_WORLDS || !cache.scope.key().patches.is_current(&snapshot) {
                continue;
            }
            let former = cache.scope.view();
            let view = match next.views.get(former.key()) {
                Some(view) => Some(view.clone()),
                None => former.next(&snapshot, change),
            };
            // Without its Sidecar nobody has this scope any more.
            let Some(view) = view else { continue };
            next.views.insert(former.key().clone(), view.clone());
            let key = cache.scope.key().clone();
            let scope = Scope::new(snapshot.clone(), view, key.clone());
            let cache = cache.carry(scope, change, number, idle);
            next.scopes.insert(key, Arc::new(cache));
        }
        Self {
            number,
            introduced: self.introduced.next(&snapshot.inputs().configs, number),
            snapshot,
            in_use: Mutex::new(next),
        }
    }

    /// The scope of a proxy.
    pub(crate) fn scope(&self, proxy: &Proxy) -> Arc<ScopeCache> {
        let view_key = ViewKey::of(&self.snapshot, proxy);
        let mut in_use = self.in_use.lock();
        let InUse { views, scopes } = &mut *in_use;
        let view = views
            .entry(view_key)
            .or_insert_with_key(|key| Arc::new(View::build(&self.snapshot, key.clone())));
        let key = ScopeKey::of(&self.snapshot, view, proxy);
        if let Some(cache) = scopes.get(&key) {
            cache.asked.store(true, Ordering::Relaxed);
            return cache.clone();
        }
        let key = Arc::new(key);
        let scope = Scope::new(self.snapshot.clone(), view.clone(), key.clone());
        let cache = Arc::new(ScopeCache::new(scope, self.number));
        scopes.insert(key, cache.clone());
        cache
    }

    /// What generators found out about all scopes in use, and what is wrong in config itself.
    pub(crate) fn report(&self) -> Report {
        let mut report = self.snapshot.report().clone();
        let scopes: Vec<Arc<ScopeCache>> = self.in_use.lock().scopes.values().cloned().collect();
        for cache in scopes {
            cache.report(&mut report);
        }
        // Scopes and proxies that see the same find the same.
        report.rejections.sort();
        report.rejections.dedup();
        report
    }
}
#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use pilot_generate::{
        Inputs, Shard,
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
                shards: vec![Shard {
                    services: Arc::new(vec![Arc::new(service)]),
                    ..Shard::new("Kubernetes", Registry::Kubernetes)
                }],
                ..Inputs::default()
            },
            |world| world.snapshot.inputs().clone(),
        );
        inputs.shards[0].endpoints = Arc::new([(key, Arc::new(set))].into_iter().collect());
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
