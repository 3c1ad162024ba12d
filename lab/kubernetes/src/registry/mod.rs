//! The table of resources: built-in kinds and those of CRDs, as one immutable snapshot.
//!
//! Read on every request; rebuilt as a whole when a CRD changes (by the request that changed it, so
//! that its author can use the new kind at once).

mod builtin;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::crd;
use crate::crd::schema::Schema;
use crate::store::{Collection, Store};
use crate::typed::Check;
use arc_swap::ArcSwap;

/// A subresource as discovery shows it.
#[derive(Debug, Clone)]
pub(crate) struct Subresource {
    pub(crate) name: &'static str,
    /// Group, version and kind of the body; empty group and version mean the parent's.
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: String,
    pub(crate) verbs: &'static [&'static str],
}

/// Where a custom resource keeps what `scale` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScalePaths {
    pub(crate) spec: Vec<String>,
    pub(crate) status: Vec<String>,
    pub(crate) selector: Option<Vec<String>>,
}

/// A printer column of a CRD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) format: String,
    pub(crate) description: String,
    pub(crate) priority: i64,
    pub(crate) path: String,
}

/// One served version of a resource.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    pub(crate) name: String,
    /// Decodes through the typed form (built-in kinds).
    pub(crate) check: Option<Check>,
    /// The structural schema (CRDs).
    pub(crate) schema: Option<Arc<Schema>>,
    pub(crate) columns: Vec<Column>,
    pub(crate) status: bool,
    pub(crate) scale: Option<ScalePaths>,
    pub(crate) deprecated: Option<String>,
}

/// A resource: what is needed to serve it.
#[derive(Debug, Clone)]
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) kind: String,
    pub(crate) list_kind: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) namespaced: bool,
    /// Served versions, preferred first.
    pub(crate) versions: Vec<Version>,
    /// The version objects are stored in.
    pub(crate) storage: String,
    pub(crate) subresources: Vec<Subresource>,
    /// Whether `metadata.generation` counts changes of the spec.
    pub(crate) generation: bool,
    /// Field selectors beside name and namespace.
    pub(crate) field_labels: &'static [&'static str],
    pub(crate) custom: bool,
    pub(crate) verbs: &'static [&'static str],
    /// `None`: nothing is stored (reviews, metrics).
    pub(crate) collection: Option<Arc<Collection>>,
}

impl Resource {
    /// `plural.group`, or just the plural in the core group.
    pub(crate) fn qualified(&self) -> String {
        qualify(&self.plural, &self.group)
    }

    pub(crate) fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|v| v.name == name)
    }

    pub(crate) fn api_version(&self, version: &str) -> String {
        api_version(&self.group, version)
    }

    /// Whether this is the resource `plural` of `group`.
    pub(crate) fn is(&self, group: &str, plural: &str) -> bool {
        self.plural == plural && self.group == group
    }
}

pub(crate) fn qualify(plural: &str, group: &str) -> String {
    if group.is_empty() {
        plural.to_owned()
    } else {
        format!("{plural}.{group}")
    }
}

pub(crate) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// Verbs of an ordinary resource, in the order discovery lists them.
pub(crate) const ALL_VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
pub(crate) const STATUS_VERBS: &[&str] = &["get", "patch", "update"];

/// Group name → plural → resource.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    groups: BTreeMap<String, BTreeMap<String, Arc<Resource>>>,
    /// Groups in the order discovery lists them.
    pub(crate) order: Vec<String>,
}

/// What a path's group, version and plural lead to.
pub(crate) enum Lookup {
    Found(Arc<Resource>),
    UnknownGroup,
    UnknownResource,
}

impl Snapshot {
    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Lookup {
        let Some(resources) = self.groups.get(group) else {
            return Lookup::UnknownGroup;
        };
        if !self.versions(group).iter().any(|v| v == version) {
            return Lookup::UnknownGroup;
        }
        match resources.get(plural) {
            Some(r) if r.version(version).is_some() => Lookup::Found(r.clone()),
            _ => Lookup::UnknownResource,
        }
    }

    pub(crate) fn get(&self, group: &str, plural: &str) -> Option<Arc<Resource>> {
        self.groups.get(group)?.get(plural).cloned()
    }

    /// Resources of a group, by plural.
    pub(crate) fn group(&self, group: &str) -> impl Iterator<Item = &Arc<Resource>> {
        self.groups
            .get(group)
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.groups.values().flat_map(BTreeMap::values)
    }

    /// Versions of a group, preferred first.
    pub(crate) fn versions(&self, group: &str) -> Vec<String> {
        let mut versions: Vec<String> = Vec::new();
        for resource in self.group(group) {
            for version in &resource.versions {
                if !versions.contains(&version.name) {
                    versions.push(version.name.clone());
                }
            }
        }
        versions.sort_by_key(|v| std::cmp::Reverse(version_rank(v)));
        versions
    }
}

/// Kubernetes' order of versions: stable before beta before alpha, then by number.
pub(crate) fn version_rank(version: &str) -> (u8, u64, u64, std::cmp::Reverse<String>) {
    let other = (0, 0, 0, std::cmp::Reverse(version.to_owned()));
    let Some(rest) = version.strip_prefix('v') else {
        return other;
    };
    let digits = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let Ok(major) = rest[..digits].parse() else {
        return other;
    };
    let stable = |class, minor| (class, major, minor, std::cmp::Reverse(String::new()));
    match &rest[digits..] {
        "" => stable(3, 0),
        tail => {
            let (class, number) = match (tail.strip_prefix("beta"), tail.strip_prefix("alpha")) {
                (Some(n), _) => (2, n),
                (_, Some(n)) => (1, n),
                _ => return other,
            };
            match number.parse() {
                Ok(minor) => stable(class, minor),
                Err(_) if number.is_empty() => stable(class, 0),
                Err(_) => other,
            }
        }
    }
}

/// The current table.
pub(crate) struct Registry {
    current: ArcSwap<Snapshot>,
    rebuild: parking_lot::Mutex<()>,
}

impl Registry {
    pub(crate) fn new(store: &Store) -> Self {
        let registry = Self {
            current: ArcSwap::default(),
            rebuild: parking_lot::Mutex::default(),
        };
        registry.rebuild(store);
        registry
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Reads all CRDs and publishes a new table.
    pub(crate) fn rebuild(&self, store: &Store) {
        let _one_at_a_time = self.rebuild.lock();
        let mut snapshot = Snapshot::default();
        for resource in builtin::all(store) {
            add(&mut snapshot, resource);
        }
        let builtin: HashSet<String> = snapshot.order.iter().cloned().collect();
        let definitions = store.collection(crd::COLLECTION).list(None, 0).0;
        let mut custom_groups = Vec::new();
        for definition in definitions {
            match crd::resource(&definition.value, store) {
                Ok(Some(resource))
                    if builtin.contains(&resource.group)
                        && snapshot.get(&resource.group, &resource.plural).is_some() =>
                {
                    tracing::warn!(
                        crd = definition.name,
                        "a CRD names a built-in resource; the built-in one is served"
                    );
                }
                Ok(Some(resource)) => {
                    if !snapshot.order.contains(&resource.group) {
                        custom_groups.push(resource.group.clone());
                    }
                    add(&mut snapshot, resource);
                }
                Ok(None) => {}
                Err(why) => {
                    tracing::warn!(crd = definition.name, why, "a stored CRD cannot be served")
                }
            }
        }
        self.current.store(Arc::new(snapshot));
    }
}

fn add(snapshot: &mut Snapshot, resource: Resource) {
    if !snapshot.order.contains(&resource.group) {
        snapshot.order.push(resource.group.clone());
    }
    snapshot
        .groups
        .entry(resource.group.clone())
        .or_default()
        .insert(resource.plural.clone(), Arc::new(resource));
}

/// `Foo` of `{apiVersion: G/V, kind: Foo}`: group and version apart.
pub(crate) fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_kubernetes_does() {
        let mut v = vec!["v1alpha3", "foo", "v2", "v1", "v1beta1", "v10", "v2beta1"];
        v.sort_by_key(|v| std::cmp::Reverse(version_rank(v)));
        assert_eq!(
            v,
            ["v10", "v2", "v1", "v2beta1", "v1beta1", "v1alpha3", "foo"]
        );
    }
}
