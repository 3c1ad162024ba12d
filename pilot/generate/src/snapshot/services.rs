//! Services of all registries, sorted and findable.

use std::sync::Arc;

use ahash::AHashMap;

use crate::model::{Service, host};

/// All services, the oldest first. Rebuilt when a service changed: O(S log S) on pointers.
#[derive(Clone, Debug, Default)]
pub struct ServiceIndex {
    all: Vec<Arc<Service>>,
    by_host: AHashMap<Arc<str>, Vec<u32>>,
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
        let mut by_host: AHashMap<Arc<str>, Vec<u32>> = AHashMap::with_capacity(all.len());
        for (i, service) in (0..).zip(&all) {
            by_host.entry(service.hostname.clone()).or_default().push(i);
        }
        ServiceIndex { all, by_host }
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
}
