//! Services of all registries, sorted and findable.
//!
//! Registries are asked in their order. A host of Kubernetes that other clusters have too is one service: the first
//! cluster's, with a [`ClusterView`] for each of the others, whose proxies know it by another address. Any other host
//! belongs to the registry that has it first; the others' services of that name are left out and reported.
//! ServiceEntries are config, not a registry: they stand beside what the registries have.

use std::sync::Arc;

use ahash::AHashMap;

use super::Shard;
use crate::{
    model::{Registry, Service, host},
    report::{Report, metric},
};

/// A service as it looks from a cluster that is not the one it was taken from.
#[derive(Clone, Debug)]
pub struct ClusterView {
    /// The cluster's own object.
    pub own: Arc<Service>,
    /// The merged service under the address that it has in this cluster: what clients there use.
    pub outbound: Arc<Service>,
}

/// Views by host.
type Views = AHashMap<Arc<str>, ClusterView>;

/// All services, the oldest first. Rebuilt when a service changed: O(S log S) on pointers.
#[derive(Clone, Debug, Default)]
pub struct ServiceIndex {
    all: Vec<Arc<Service>>,
    by_host: AHashMap<Arc<str>, Vec<u32>>,
    /// By cluster.
    views: AHashMap<Arc<str>, Views>,
    pub(super) report: Report,
}

impl ServiceIndex {
    pub(super) fn new(
        shards: &[Shard],
        external: impl Iterator<Item = Arc<Service>>,
        previous: Option<&ServiceIndex>,
    ) -> ServiceIndex {
        let mut index = ServiceIndex::default();
        match shards {
            [only] => index.all.extend(only.services.iter().cloned()),
            several => index.merge(several, previous),
        }
        index.all.extend(external);
        index.all.sort_by(|a, b| a.age().cmp(&b.age()));
        index.by_host.reserve(index.all.len());
        for (i, service) in (0..).zip(&index.all) {
            let host = service.hostname.clone();
            index.by_host.entry(host).or_default().push(i);
        }
        index
    }

    fn merge(&mut self, shards: &[Shard], previous: Option<&ServiceIndex>) {
        // The registry that has a host, and its service.
        let mut owners: AHashMap<Arc<str>, (usize, Arc<Service>)> = AHashMap::new();
        for (i, shard) in shards.iter().enumerate() {
            for service in shard.services.iter() {
                let owner = owners
                    .entry(service.hostname.clone())
                    .or_insert_with(|| (i, service.clone()));
                let of = &shards[owner.0];
                if owner.0 == i {
                    self.all.push(service.clone());
                } else if (of.registry, shard.registry)
                    == (Registry::Kubernetes, Registry::Kubernetes)
                {
                    let before = previous.and_then(|p| p.view(&shard.cluster, &service.hostname));
                    let view = ClusterView::new(&owner.1, service, before);
                    let views = self.views.entry(shard.cluster.clone()).or_default();
                    views.insert(service.hostname.clone(), view);
                } else {
                    self.report.event(
                        metric::DUPLICATE_HOSTS,
                        format!("{} of {}", service.hostname, shard.cluster),
                        format!("{} has this host first; it stays in use", of.cluster),
                    );
                }
            }
        }
    }

    /// Every service.
    pub fn all(&self) -> &[Arc<Service>] {
        &self.all
    }

    /// Services of exactly this host name.
    pub fn by_host(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.by_host
            .get(hostname)
            .into_iter()
            .flatten()
            .filter_map(|i| self.all.get(*i as usize))
    }

    /// Services whose host a possibly wildcard host of some config stands for.
    pub fn matching<'a>(
        &'a self,
        pattern: &'a str,
    ) -> Box<dyn Iterator<Item = &'a Arc<Service>> + 'a> {
        if host::is_wildcard(pattern) {
            Box::new(
                self.all
                    .iter()
                    .filter(move |s| host::matches(&s.hostname, pattern)),
            )
        } else {
            Box::new(self.by_host(pattern))
        }
    }

    /// How a host that several clusters have looks from this one, if not as [`ServiceIndex::all`] has it.
    pub fn view(&self, cluster: &str, hostname: &str) -> Option<&ClusterView> {
        self.views.get(cluster)?.get(hostname)
    }

    /// Whether some service looks different from this cluster.
    pub fn has_views(&self, cluster: &str) -> bool {
        self.views.contains_key(cluster)
    }

    /// A service as clients in this cluster know it.
    pub fn seen_from<'a>(&'a self, cluster: &str, service: &'a Arc<Service>) -> &'a Arc<Service> {
        let of_kubernetes = service.registry == Registry::Kubernetes && !cluster.is_empty();
        match of_kubernetes.then(|| self.view(cluster, &service.hostname)) {
            Some(Some(view)) => &view.outbound,
            _ => service,
        }
    }

    /// Every form of the services of a host.
    pub(super) fn every_of<'a>(
        &'a self,
        hostname: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Service>> {
        let views = self.views.values().filter_map(|views| views.get(hostname));
        self.by_host(hostname)
            .chain(views.flat_map(|view| [&view.own, &view.outbound]))
    }

    /// Every service and what it is in other clusters: all that some proxy's configuration may depend on.
    pub(super) fn every(&self) -> impl Iterator<Item = &Arc<Service>> {
        let views = self.views.values().flat_map(|views| views.values());
        self.all
            .iter()
            .chain(views.flat_map(|view| [&view.own, &view.outbound]))
    }
}

impl ClusterView {
    /// Keeps the identity of what is as it was before.
    fn new(merged: &Arc<Service>, own: &Arc<Service>, before: Option<&ClusterView>) -> ClusterView {
        let outbound = if merged.address == own.address {
            merged.clone()
        } else {
            let outbound = Service {
                address: own.address,
                ..(**merged).clone()
            };
            match before.filter(|before| *before.outbound == outbound) {
                Some(before) => before.outbound.clone(),
                None => Arc::new(outbound),
            }
        };
        ClusterView {
            own: own.clone(),
            outbound,
        }
    }
}
