//! Sidecars by the workloads they are for.

use std::sync::Arc;

use ahash::AHashMap;

use crate::{
    compile::{SidecarConfig, SidecarId},
    model::{Labels, selects},
    report::{Rejection, Report},
};

/// Sidecars of one namespace.
#[derive(Clone, Debug, Default)]
struct Namespace {
    /// With a selector, the oldest first.
    selecting: Vec<Arc<SidecarConfig>>,
    /// The oldest without.
    default: Option<Arc<SidecarConfig>>,
}

/// All Sidecars. Rebuilt when one changed, in O(Sidecars).
#[derive(Clone, Debug, Default)]
pub struct SidecarIndex {
    namespaces: AHashMap<Arc<str>, Namespace>,
    root: Arc<str>,
}

impl SidecarIndex {
    /// From Sidecars in order of age.
    pub(super) fn new(all: &[Arc<SidecarConfig>], root: Arc<str>, report: &mut Report) -> Self {
        let mut namespaces: AHashMap<Arc<str>, Namespace> = AHashMap::new();
        for sidecar in all {
            let entry = namespaces.entry(sidecar.id.namespace.clone()).or_default();
            match (&sidecar.selector, &entry.default) {
                (Some(_), _) => entry.selecting.push(sidecar.clone()),
                (None, None) => entry.default = Some(sidecar.clone()),
                (None, Some(first)) => report.rejections.push(Rejection {
                    kind: "Sidecar",
                    namespace: sidecar.id.namespace.clone(),
                    name: sidecar.id.name.clone(),
                    field: "workloadSelector".to_owned(),
                    reason: format!(
                        "{} is for the whole namespace already; accepted: one Sidecar without workloadSelector",
                        first.id.name
                    ),
                    action: "the Sidecar is not used",
                }),
            }
        }
        SidecarIndex { namespaces, root }
    }

    /// The Sidecar of a workload: the oldest of its namespace that selects its labels, else the namespace's own
    /// default, else that of the root namespace.
    pub fn select(&self, namespace: &str, labels: &Labels) -> Option<&Arc<SidecarConfig>> {
        let own = self.namespaces.get(namespace);
        let selected = own.and_then(|n| {
            let matches =
                |s: &&Arc<SidecarConfig>| s.selector.as_ref().is_some_and(|s| selects(s, labels));
            n.selecting.iter().find(matches).or(n.default.as_ref())
        });
        selected.or_else(|| self.namespaces.get(&self.root)?.default.as_ref())
    }

    /// One by identity, if it is in use.
    pub fn get(&self, id: &SidecarId) -> Option<&Arc<SidecarConfig>> {
        let namespace = self.namespaces.get(&id.namespace)?;
        let mut all = namespace.selecting.iter().chain(&namespace.default);
        all.find(|s| s.id == *id)
    }

    /// Whether a (changed) Sidecar may be that of a workload.
    pub(super) fn may_select(
        &self,
        sidecar: &SidecarConfig,
        namespace: &str,
        labels: &Labels,
    ) -> bool {
        let own = *sidecar.id.namespace == *namespace;
        match &sidecar.selector {
            Some(selector) => own && selects(selector, labels),
            None => own || sidecar.id.namespace == self.root,
        }
    }
}
