//! Which patches apply to a proxy, and in what order.

use std::{
    cmp::Ordering,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, OnceLock},
};

use ahash::AHashMap;
use proto_networking::networking::envoy_filter::ApplyTo;

use super::{EnvoyFilterConfig, Side, compile::Patch, stage};
use crate::{
    model::{Labels, Proxy},
    snapshot::Snapshot,
};

/// All EnvoyFilters, findable by namespace.
#[derive(Clone, Debug, Default)]
pub struct FilterIndex {
    all: Vec<Arc<EnvoyFilterConfig>>,
    by_namespace: AHashMap<String, Vec<Arc<EnvoyFilterConfig>>>,
}

impl FilterIndex {
    /// An index of these, the oldest first.
    pub(crate) fn new(all: Vec<Arc<EnvoyFilterConfig>>) -> FilterIndex {
        let mut by_namespace: AHashMap<String, Vec<_>> = AHashMap::new();
        for filter in &all {
            let list = by_namespace
                .entry(filter.meta.namespace.clone())
                .or_default();
            list.push(filter.clone());
        }
        FilterIndex { all, by_namespace }
    }

    /// The oldest first.
    pub fn all(&self) -> &[Arc<EnvoyFilterConfig>] {
        &self.all
    }

    fn of(&self, namespace: &str) -> &[Arc<EnvoyFilterConfig>] {
        self.by_namespace.get(namespace).map_or(&[], Vec::as_slice)
    }
}

impl EnvoyFilterConfig {
    /// Whether some patch of it applies to a proxy with these labels.
    pub(crate) fn touches(&self, root: &str, proxy: &Proxy, labels: &Labels) -> bool {
        let namespace = self.meta.namespace.as_str();
        (namespace == root || namespace == &*proxy.namespace)
            && self.selects(labels)
            && self.patches.iter().any(|patch| patch.applies_to(proxy))
    }
}

/// A patch and the EnvoyFilter it is in.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) filter: Arc<EnvoyFilterConfig>,
    index: usize,
}

impl Step {
    pub(super) fn patch(&self) -> &Patch {
        &self.filter.patches[self.index]
    }
}

/// The patches that apply to a proxy. Equal if they are the same patches with the same content; empty for nearly everybody.
#[derive(Clone, Debug, Default)]
pub struct PatchSet {
    identity: [u64; 2],
    steps: Arc<[Step]>,
    /// Made when first asked for, by whoever has the set.
    plan: Arc<OnceLock<Plan>>,
}

impl PatchSet {
    /// The patches of a proxy. Cost: one look if there are no EnvoyFilters, else linear in those of its namespaces.
    pub fn of(snapshot: &Snapshot, proxy: &Proxy) -> PatchSet {
        let index = &snapshot.config().envoy_filters;
        if index.all.is_empty() {
            return PatchSet::default();
        }
        let root = &*snapshot.settings().root_namespace;
        let own = match &*proxy.namespace {
            namespace if namespace == root => &[],
            namespace => index.of(namespace),
        };
        let mut labels: Option<Arc<Labels>> = None;
        let mut steps = Vec::new();
        for filter in index.of(root).iter().chain(own) {
            let labels = labels.get_or_insert_with(|| snapshot.labels_of(proxy));
            if !filter.selects(labels) {
                continue;
            }
            let patches = filter.patches.iter().enumerate();
            let applying = patches.filter(|(_, patch)| patch.applies_to(proxy));
            steps.extend(applying.map(|(index, _)| Step {
                filter: filter.clone(),
                index,
            }));
        }
        if steps.is_empty() {
            return PatchSet::default();
        }
        let identity = [0, 1].map(|half: usize| {
            let mut hasher = DefaultHasher::new();
            for step in &steps {
                (step.filter.identity[half], step.index).hash(&mut hasher);
            }
            hasher.finish()
        });
        PatchSet {
            identity,
            steps: steps.into(),
            plan: Arc::default(),
        }
    }

    /// Whether no patch applies.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The patches in the order in which they are applied; nothing is made of an empty set.
    pub(super) fn plan(&self) -> Option<&Plan> {
        (!self.is_empty()).then(|| self.plan.get_or_init(|| Plan::of(self)))
    }

    /// Whether all its EnvoyFilters are still those of a snapshot: otherwise no proxy has this set any more.
    pub fn is_current(&self, snapshot: &Snapshot) -> bool {
        let index = &snapshot.config().envoy_filters;
        self.steps.iter().all(|step| {
            let list = index.of(&step.filter.meta.namespace);
            list.iter()
                .any(|filter| filter.identity == step.filter.identity)
        })
    }
}

impl PartialEq for PatchSet {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity && self.steps.len() == other.steps.len()
    }
}

impl Eq for PatchSet {}

impl Hash for PatchSet {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity.hash(state);
    }
}

impl PartialOrd for PatchSet {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PatchSet {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.identity, self.steps.len()).cmp(&(other.identity, other.steps.len()))
    }
}

/// The patches of a scope in the order in which they are applied, by the kind of resource they change.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    clusters: Vec<Step>,
    listeners: Vec<Step>,
    routes: Vec<Step>,
}

impl Plan {
    fn of(set: &PatchSet) -> Plan {
        let mut plan = Plan::default();
        for step in set.steps.iter() {
            match step.patch().apply_to {
                ApplyTo::Cluster => plan.clusters.push(step.clone()),
                ApplyTo::RouteConfiguration | ApplyTo::VirtualHost | ApplyTo::HttpRoute => {
                    plan.routes.push(step.clone());
                    // Routes may be inside listeners.
                    plan.listeners.push(step.clone());
                }
                _ => plan.listeners.push(step.clone()),
            }
        }
        for list in [&mut plan.clusters, &mut plan.listeners, &mut plan.routes] {
            // Stable: within a stage the order of the set stays.
            list.sort_by_key(|step| stage(step.patch().apply_to, step.patch().operation));
        }
        plan
    }
}

impl PatchSet {
    pub(super) fn clusters(&self, side: Side) -> Vec<&Step> {
        of_side(self.plan().map(|p| p.clusters.as_slice()), side)
    }

    pub(super) fn listeners(&self, side: Side) -> Vec<&Step> {
        of_side(self.plan().map(|p| p.listeners.as_slice()), side)
    }

    pub(super) fn routes(&self, side: Side) -> Vec<&Step> {
        of_side(self.plan().map(|p| p.routes.as_slice()), side)
    }
}

fn of_side(steps: Option<&[Step]>, side: Side) -> Vec<&Step> {
    let steps = steps.unwrap_or_default();
    steps
        .iter()
        .filter(|step| step.patch().is_for(side))
        .collect()
}
