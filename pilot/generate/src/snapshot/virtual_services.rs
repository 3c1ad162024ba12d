//! VirtualServices by who may see them.

use std::{collections::BTreeSet, sync::Arc};

use ahash::{AHashMap, AHashSet};

use super::view::{VirtualServices, applies};
use crate::{
    compile::{EgressHost, EgressNamespace, VirtualServiceConfig},
    model::{ProxyKind, Visibility},
};

/// All VirtualServices. Rebuilt when one changed, in O(VirtualServices).
#[derive(Clone, Debug)]
pub(super) struct VirtualServiceIndex {
    all: VirtualServices,
    by_namespace: AHashMap<Arc<str>, Vec<u32>>,
    /// Namespaces that see more than the public ones.
    with_private: AHashSet<Arc<str>>,
    /// The public ones for sidecars and for routers: what most namespaces see, so they share it.
    mesh: VirtualServices,
    gateways: VirtualServices,
    /// Label keys of `mesh`.
    mesh_label_keys: Arc<[String]>,
}

impl Default for VirtualServiceIndex {
    fn default() -> Self {
        VirtualServiceIndex::new(&[])
    }
}

impl VirtualServiceIndex {
    /// From VirtualServices in order of age.
    pub(super) fn new(all: &[Arc<VirtualServiceConfig>]) -> VirtualServiceIndex {
        let mut by_namespace: AHashMap<Arc<str>, Vec<u32>> = AHashMap::new();
        let mut with_private: AHashSet<Arc<str>> = AHashSet::new();
        for (i, config) in (0..).zip(all) {
            let namespace: Arc<str> = config.meta.namespace.as_str().into();
            if config.visibility == Visibility::Private {
                with_private.insert(namespace.clone());
            }
            by_namespace.entry(namespace).or_default().push(i);
        }
        let public = |kind| -> VirtualServices {
            let list = all.iter().filter(|v| v.visibility == Visibility::Public);
            list.filter(|v| applies(v, kind)).cloned().collect()
        };
        let mesh = public(ProxyKind::Sidecar);
        let keys: BTreeSet<&String> = mesh.iter().flat_map(|v| v.source_label_keys()).collect();
        VirtualServiceIndex {
            all: all.into(),
            by_namespace,
            with_private,
            mesh_label_keys: keys.into_iter().cloned().collect(),
            mesh,
            gateways: public(ProxyKind::Router),
        }
    }

    /// One by its place in order of age.
    pub(super) fn at(&self, index: u32) -> Option<&Arc<VirtualServiceConfig>> {
        self.all.get(index as usize)
    }

    /// What clients of a namespace see without a Sidecar: O(1) unless the namespace keeps some to itself.
    pub(super) fn visible_to(&self, kind: ProxyKind, namespace: &str) -> VirtualServices {
        if !self.with_private.contains(namespace) {
            return match kind {
                ProxyKind::Sidecar => self.mesh.clone(),
                ProxyKind::Router => self.gateways.clone(),
            };
        }
        let visible = self.all.iter().filter(|v| is_visible(v, namespace));
        visible.filter(|v| applies(v, kind)).cloned().collect()
    }

    /// Label keys, where the list is one whose keys are known.
    pub(super) fn known_label_keys(&self, list: &VirtualServices) -> Option<Arc<[String]>> {
        Arc::ptr_eq(list, &self.mesh).then(|| self.mesh_label_keys.clone())
    }

    /// Places of those that sidecars of a namespace import. A VirtualService is imported whole if any of its hosts is.
    pub(super) fn import(&self, own: &str, hosts: &[EgressHost]) -> BTreeSet<u32> {
        let count = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        let mut out = BTreeSet::new();
        for wanted in hosts {
            let imported = |i: &u32| {
                self.at(*i).is_some_and(|v| {
                    let namespace = v.meta.namespace.as_str();
                    applies(v, ProxyKind::Sidecar)
                        && is_visible(v, own)
                        && v.hosts.iter().any(|h| wanted.imports(own, namespace, h))
                })
            };
            let namespace = match &wanted.namespace {
                EgressNamespace::Any => {
                    out.extend((0..count).filter(imported));
                    continue;
                }
                EgressNamespace::Own => own,
                EgressNamespace::Named(name) => name,
            };
            let candidates = self.by_namespace.get(namespace).into_iter().flatten();
            out.extend(candidates.copied().filter(imported));
        }
        out
    }
}

fn is_visible(config: &VirtualServiceConfig, namespace: &str) -> bool {
    config.visibility == Visibility::Public || config.meta.namespace.as_str() == namespace
}
