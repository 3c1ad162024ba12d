//! Services of all registries, sorted and findable.
//!
//! Registries are asked in their order. A host of Kubernetes that other clusters have too is one service: the first
//! cluster's, with a [`ClusterForm`] for each of the others, whose proxies know it by another address. Any other host
//! belongs to the registry that has it first; the others' services of that name are left out and reported.
//! ServiceEntries are config, not a registry: they stand beside what the registries have.

use std::sync::Arc;

use ahash::{AHashMap, AHashSet};

use super::Shard;
use crate::{
    model::{Registry, Service, Visibility, host},
    report::{Report, metric},
};

/// Services, the oldest first, findable by host.
#[derive(Clone, Debug, Default)]
pub struct ServiceSet {
    all: Vec<Arc<Service>>,
    by_host: AHashMap<Arc<str>, Vec<u32>>,
}

impl ServiceSet {
    /// From services in order of age.
    pub(super) fn new(all: Vec<Arc<Service>>) -> ServiceSet {
        let mut by_host: AHashMap<Arc<str>, Vec<u32>> = AHashMap::with_capacity(all.len());
        for (i, service) in (0..).zip(&all) {
            by_host.entry(service.hostname.clone()).or_default().push(i);
        }
        ServiceSet { all, by_host }
    }

    /// Every service.
    pub fn all(&self) -> &[Arc<Service>] {
        &self.all
    }

    /// Whether some service has exactly this host name.
    pub fn has_host(&self, hostname: &str) -> bool {
        self.by_host.contains_key(hostname)
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
}

/// A service as it is in a cluster that is not the one it was taken from.
#[derive(Clone, Debug)]
pub struct ClusterForm {
    /// The cluster's own object.
    pub own: Arc<Service>,
    /// The merged service under the address that it has in this cluster: what clients there use.
    pub outbound: Arc<Service>,
}

impl ClusterForm {
    /// Keeps the identity of what is as it was before.
    fn new(merged: &Arc<Service>, own: &Arc<Service>, before: Option<&ClusterForm>) -> ClusterForm {
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
        ClusterForm {
            own: own.clone(),
            outbound,
        }
    }
}

/// What shards amount to.
#[derive(Default)]
struct Merged {
    all: Vec<Arc<Service>>,
    /// By cluster and host.
    forms: AHashMap<Arc<str>, AHashMap<Arc<str>, ClusterForm>>,
    report: Report,
}

impl Merged {
    fn new(shards: &[Shard], previous: Option<&ServiceIndex>) -> Merged {
        let mut merged = Merged::default();
        if let [only] = shards {
            merged.all.extend(only.services.iter().cloned());
            return merged;
        }
        // The registry that has a host, and its service.
        let mut owners: AHashMap<Arc<str>, (usize, Arc<Service>)> = AHashMap::new();
        for (i, shard) in shards.iter().enumerate() {
            for service in shard.services.iter() {
                let owner = owners
                    .entry(service.hostname.clone())
                    .or_insert_with(|| (i, service.clone()));
                let of = &shards[owner.0];
                let kubernetes = [of.registry, shard.registry] == [Registry::Kubernetes; 2];
                if owner.0 == i {
                    merged.all.push(service.clone());
                } else if kubernetes {
                    let before = previous.and_then(|p| p.form(&shard.cluster, &service.hostname));
                    let form = ClusterForm::new(&owner.1, service, before);
                    let forms = merged.forms.entry(shard.cluster.clone()).or_default();
                    forms.insert(service.hostname.clone(), form);
                } else {
                    merged.report.event(
                        metric::DUPLICATE_HOSTS,
                        format!("{} of {}", service.hostname, shard.cluster),
                        format!("{} has this host first; it stays in use", of.cluster),
                    );
                }
            }
        }
        merged
    }
}

/// All services. Rebuilt when a service changed: O(S log S) on pointers.
#[derive(Clone, Debug, Default)]
pub struct ServiceIndex {
    all: Arc<ServiceSet>,
    /// The public ones: what most namespaces see, so they share it.
    public: Arc<ServiceSet>,
    /// Namespaces that see more than that.
    with_private: AHashSet<Arc<str>>,
    by_namespace: AHashMap<Arc<str>, Vec<u32>>,
    wildcards: Vec<u32>,
    /// By cluster and host.
    forms: AHashMap<Arc<str>, AHashMap<Arc<str>, ClusterForm>>,
    pub(super) report: Report,
}

impl ServiceIndex {
    pub(super) fn new(
        shards: &[Shard],
        external: impl Iterator<Item = Arc<Service>>,
        previous: Option<&ServiceIndex>,
    ) -> ServiceIndex {
        let Merged {
            mut all,
            forms,
            report,
        } = Merged::new(shards, previous);
        all.extend(external);
        all.sort_by(|a, b| a.age().cmp(&b.age()));
        let mut by_namespace: AHashMap<Arc<str>, Vec<u32>> = AHashMap::new();
        let mut with_private: AHashSet<Arc<str>> = AHashSet::new();
        let mut wildcards = Vec::new();
        for (i, service) in (0..).zip(&all) {
            match by_namespace.get_mut(&service.namespace) {
                Some(list) => list.push(i),
                None => {
                    by_namespace.insert(service.namespace.clone(), vec![i]);
                }
            }
            if service.visibility == Visibility::Private {
                with_private.insert(service.namespace.clone());
            }
            if host::is_wildcard(&service.hostname) {
                wildcards.push(i);
            }
        }
        let all = Arc::new(ServiceSet::new(all));
        let public = if with_private.is_empty() {
            all.clone()
        } else {
            let public = all
                .all
                .iter()
                .filter(|s| s.visibility == Visibility::Public);
            Arc::new(ServiceSet::new(public.cloned().collect()))
        };
        ServiceIndex {
            all,
            public,
            with_private,
            by_namespace,
            wildcards,
            forms,
            report,
        }
    }

    /// How a host that several clusters have is in this one, if not as [`ServiceIndex::all`] has it.
    pub fn form(&self, cluster: &str, hostname: &str) -> Option<&ClusterForm> {
        self.forms.get(cluster)?.get(hostname)
    }

    /// A service as clients in this cluster know it.
    fn seen_from<'a>(&'a self, cluster: &str, service: &'a Arc<Service>) -> &'a Arc<Service> {
        let form = match service.registry {
            Registry::Kubernetes => self.form(cluster, &service.hostname),
            _ => None,
        };
        form.map_or(service, |form| &form.outbound)
    }

    /// A set as clients in this cluster know it.
    pub(super) fn set_seen_from(&self, cluster: &str, set: &Arc<ServiceSet>) -> Arc<ServiceSet> {
        if !self.forms.contains_key(cluster) {
            return set.clone();
        }
        let seen = set.all.iter().map(|s| self.seen_from(cluster, s).clone());
        Arc::new(ServiceSet::new(seen.collect()))
    }

    /// Every form of a service.
    pub(super) fn forms<'a>(
        &'a self,
        service: &'a Arc<Service>,
    ) -> impl Iterator<Item = &'a Arc<Service>> {
        let forms = self.forms.values();
        let forms = forms.filter_map(|forms| forms.get(&service.hostname));
        std::iter::once(service).chain(forms.flat_map(|form| [&form.own, &form.outbound]))
    }

    /// Every service in every form: all that some proxy's configuration may depend on.
    pub(super) fn every(&self) -> impl Iterator<Item = &Arc<Service>> {
        let forms = self.forms.values().flat_map(|forms| forms.values());
        let forms = forms.flat_map(|form| [&form.own, &form.outbound]);
        self.all.all.iter().chain(forms)
    }

    /// Every service, shared.
    pub(super) fn everything(&self) -> &Arc<ServiceSet> {
        &self.all
    }

    /// What clients of a namespace see without a Sidecar: O(1) unless the namespace keeps services to itself.
    pub(super) fn visible_to(&self, namespace: &str) -> Arc<ServiceSet> {
        if !self.with_private.contains(namespace) {
            return self.public.clone();
        }
        let visible = self.all.all.iter().filter(|s| is_visible(s, namespace));
        Arc::new(ServiceSet::new(visible.cloned().collect()))
    }

    /// Candidates for an imported host (see [`host::matches`]), all of which a caller has to look at; `None` for the
    /// namespace: any. Costs what it returns, but for a wildcard over all namespaces.
    pub(super) fn candidates(&self, namespace: Option<&str>, pattern: &str) -> Vec<u32> {
        let count = u32::try_from(self.all.all.len()).unwrap_or(u32::MAX);
        match namespace {
            _ if !host::is_wildcard(pattern) => {
                let exact = self.all.by_host.get(pattern).into_iter().flatten();
                exact.chain(&self.wildcards).copied().collect()
            }
            Some(namespace) => self
                .by_namespace
                .get(namespace)
                .cloned()
                .unwrap_or_default(),
            None => (0..count).collect(),
        }
    }

    /// A candidate.
    pub(super) fn at(&self, index: u32) -> Option<&Arc<Service>> {
        self.all.all.get(index as usize)
    }

    /// Every service, the oldest first.
    pub fn all(&self) -> &[Arc<Service>] {
        &self.all.all
    }

    /// Services of exactly this host name.
    pub fn by_host(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.all.by_host(hostname)
    }

    /// Services of a namespace, the oldest first.
    pub fn by_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Service>> {
        let indices = self.by_namespace.get(namespace).into_iter().flatten();
        indices.filter_map(|i| self.at(*i))
    }

    /// Services whose host a possibly wildcard host of some config stands for.
    pub fn matching<'a>(
        &'a self,
        pattern: &'a str,
    ) -> Box<dyn Iterator<Item = &'a Arc<Service>> + 'a> {
        self.all.matching(pattern)
    }
}

/// Whether clients of a namespace may see a service.
pub(super) fn is_visible(service: &Service, namespace: &str) -> bool {
    service.visibility == Visibility::Public || *service.namespace == *namespace
}
