//! One connected proxy: what it is, and the lists put together for it.
//!
//! Clusters and listeners of a proxy are the shared ones of its scope and a few of its own. A list is put together anew
//! only if the shared part is another object than before; otherwise the former list is handed out, and the engine sees
//! from the pointer that nothing changed. What is the proxy's own is generated when it is first asked for and holds until
//! the proxy is attached anew.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use pilot_generate::{Proxy, Report, View, envoy::core::Address, generate};
use pilot_xds::{Collection, Resource};

use crate::{
    scope_cache::{Hold, ScopeCache, SharedListener},
    world::World,
};

/// A connected proxy and what was put together for it.
pub(crate) struct PilotProxy {
    pub(crate) proxy: Proxy,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    world: u64,
    /// Weak: a proxy that no change concerns must not keep an old snapshot alive.
    scope: Weak<ScopeCache>,
    /// What the proxy saw when its scope was looked at last, and what keeps the scope in use.
    view: Option<(Arc<View>, Hold)>,
    own: Option<Arc<Own>>,
    clusters: Option<(Arc<Vec<Resource>>, Arc<Collection>)>,
    listeners: Option<(Arc<Vec<SharedListener>>, Arc<Collection>)>,
}

/// What depends on the one proxy: it holds until the proxy is attached anew.
struct Own {
    clusters: Vec<Resource>,
    listeners: Vec<(Resource, Option<Address>)>,
    chain: Option<Bytes>,
    /// Kept here, told by the scope.
    _report: Arc<Report>,
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
            && let Some(scope) = state.scope.upgrade()
        {
            return scope;
        }
        let scope = world.scope(&self.proxy);
        state.world = world.number;
        state.scope = Arc::downgrade(&scope);
        state.view = Some((scope.scope.view().clone(), scope.hold()));
        scope
    }

    /// What the proxy saw when its scope was looked at last; `None`: it never was.
    pub(crate) fn view(&self) -> Option<Arc<View>> {
        let state = self.state.lock();
        state.view.as_ref().map(|(view, _)| view.clone())
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
            Some(chain) if listener.own_chain.takes(&self.proxy) => {
                // Encoded messages may be joined, and lists like filter_chains then are.
                let body = [chain, &listener.resource.body[..]].concat();
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
                _report: Arc::default(),
            };
        }
        let mut report = Report::default();
        let clusters = generate::inbound_clusters(&scope.scope, proxy, &mut report)
            .into_iter()
            .map(|cluster| Resource::new(cluster.message.name, cluster.body))
            .collect();
        let listeners = generate::inbound_listeners(&scope.scope, proxy, &mut report)
            .into_iter()
            .map(|listener| {
                let resource = Resource::new(listener.message.name, listener.body);
                (resource, listener.message.address)
            })
            .collect();
        let chain = generate::own_address_chain(&scope.scope, proxy)
            .map(|chain| Bytes::from(generate::encoded_chain(chain)));
        let report = Arc::new(report);
        scope.note_own(&report);
        Self {
            clusters,
            listeners,
            chain,
            _report: report,
        }
    }
}
