//! Services of all registries, sorted and findable.

use std::sync::Arc;

use ahash::{AHashMap, AHashSet};

use crate::model::{Service, Visibility, host};

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
}

impl ServiceIndex {
    pub(super) fn new(services: impl IntoIterator<Item = Arc<Service>>) -> ServiceIndex {
        let mut all: Vec<Arc<Service>> = services.into_iter().collect();
        all.sort_by(|a, b| {
            (a.creation, &a.hostname, &a.namespace, &a.name).cmp(&(
                b.creation,
                &b.hostname,
                &b.namespace,
                &b.name,
            ))
        });
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
        }
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
