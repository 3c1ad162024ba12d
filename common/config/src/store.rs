//! Where sources collect objects, and what changed between two snapshots.
//!
//! A source owns a [`Store`], applies and deletes as it learns, and takes a snapshot when it is consistent (after a
//! full list, after a settled file change, after each watch event). An update that changes nothing that config depends
//! on (a new resourceVersion, a status) leaves no trace in the [`ChangeSet`]. Cost of a snapshot: one pointer copy per
//! object.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::kind::{ConfigKind, Configs, TypedObject};
use crate::meta::ObjectKey;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// Its spec, labels or annotations are different.
    Updated,
    /// It is gone.
    Removed,
}

/// Which objects changed between two snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeSet {
    changes: BTreeMap<ObjectKey, Change>,
}

impl ChangeSet {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// How many objects changed.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// The changed objects, by kind, namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectKey, Change)> {
        self.changes.iter().map(|(key, change)| (key, *change))
    }

    /// Whether an object of this kind changed.
    pub fn has_kind(&self, kind: ConfigKind) -> bool {
        self.changes.keys().any(|key| key.kind == kind)
    }

    /// Notes a change that follows the ones noted so far.
    pub fn record(&mut self, key: ObjectKey, change: Change) {
        let merged = match (self.changes.get(&key), change) {
            (Some(Change::Added), Change::Removed) => None,
            (Some(Change::Added), _) => Some(Change::Added),
            (Some(Change::Removed), Change::Added) => Some(Change::Updated),
            _ => Some(change),
        };
        match merged {
            Some(change) => self.changes.insert(key, change),
            None => self.changes.remove(&key),
        };
    }

    /// Adds changes that came after these.
    pub fn merge(&mut self, later: Self) {
        for (key, change) in later.changes {
            self.record(key, change);
        }
    }

    /// What changed from one snapshot to the other.
    pub fn between(old: &Configs, new: &Configs) -> Self {
        let mut set = Self::default();
        let mut before: BTreeMap<ObjectKey, TypedObject> =
            old.iter().map(|o| (o.meta().key(), o)).collect();
        for object in new.iter() {
            let key = object.meta().key();
            match before.remove(&key) {
                None => set.record(key, Change::Added),
                Some(old) if !same(&old, &object) => set.record(key, Change::Updated),
                Some(_) => {}
            }
        }
        for key in before.into_keys() {
            set.record(key, Change::Removed);
        }
        set
    }
}

fn same(a: &TypedObject, b: &TypedObject) -> bool {
    a.meta().same_for_config(b.meta()) && a.same_spec(b)
}

/// A mutable collection of objects that yields snapshots.
#[derive(Debug, Default)]
pub struct Store {
    objects: BTreeMap<ObjectKey, TypedObject>,
    /// The last snapshot; its lists of kinds without changes are taken over.
    published: Configs,
    /// Kinds touched since, even if only their bookkeeping changed.
    dirty: BTreeSet<ConfigKind>,
    changes: ChangeSet,
}

impl Store {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces an object; tells whether that matters to generated config.
    pub fn apply(&mut self, object: TypedObject) -> bool {
        let key = object.meta().key();
        self.dirty.insert(key.kind);
        let change = match self.objects.get(&key) {
            None => Some(Change::Added),
            Some(old) if same(old, &object) => None,
            Some(_) => Some(Change::Updated),
        };
        if let Some(change) = change {
            self.changes.record(key.clone(), change);
        }
        self.objects.insert(key, object);
        change.is_some()
    }

    /// Removes an object; tells whether it was there.
    pub fn delete(&mut self, key: &ObjectKey) -> bool {
        let found = self.objects.remove(key).is_some();
        if found {
            self.dirty.insert(key.kind);
            self.changes.record(key.clone(), Change::Removed);
        }
        found
    }

    /// Makes `objects` the only ones of `kind`, as after a full list.
    pub fn replace_kind(
        &mut self,
        kind: ConfigKind,
        objects: impl IntoIterator<Item = TypedObject>,
    ) {
        let mut gone: BTreeSet<ObjectKey> =
            self.of_kind(kind).map(|(key, _)| key.clone()).collect();
        for object in objects {
            gone.remove(&object.meta().key());
            self.apply(object);
        }
        for key in gone {
            self.delete(&key);
        }
    }

    /// One object.
    pub fn get(&self, key: &ObjectKey) -> Option<&TypedObject> {
        self.objects.get(key)
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Whether a snapshot would tell of changes.
    pub fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// The current content and what changed since the last call.
    pub fn snapshot(&mut self) -> (Arc<Configs>, ChangeSet) {
        let mut configs = std::mem::take(&mut self.published);
        for kind in std::mem::take(&mut self.dirty) {
            configs.set_kind(kind, self.of_kind(kind).map(|(_, object)| object.clone()));
        }
        self.published = configs;
        (
            Arc::new(self.published.clone()),
            std::mem::take(&mut self.changes),
        )
    }

    fn of_kind(&self, kind: ConfigKind) -> impl Iterator<Item = (&ObjectKey, &TypedObject)> {
        let first = ObjectKey {
            kind,
            namespace: String::new(),
            name: String::new(),
        };
        self.objects
            .range(first..)
            .take_while(move |(key, _)| key.kind == kind)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proto_networking::networking::VirtualService;

    use super::*;
    use crate::meta::{Meta, Object};

    fn service(name: &str, host: &str, created: i64, version: &str) -> TypedObject {
        let mut meta = Meta::new(ConfigKind::VirtualService, "ns", name);
        meta.creation_timestamp = jiff::Timestamp::from_second(created).unwrap();
        version.clone_into(&mut meta.resource_version);
        TypedObject::VirtualService(Object::new(
            meta,
            VirtualService {
                hosts: vec![host.to_owned()],
                ..Default::default()
            },
        ))
    }

    fn changes(set: &ChangeSet) -> Vec<(String, Change)> {
        set.iter().map(|(k, c)| (k.to_string(), c)).collect()
    }

    #[test]
    fn snapshots_are_sorted_and_name_what_changed() {
        let mut store = Store::new();
        store.apply(service("young", "a", 20, "1"));
        store.apply(service("old", "b", 10, "2"));
        store.apply(service("also-old", "c", 10, "3"));
        let (first, set) = store.snapshot();
        let names: Vec<_> = first
            .virtual_services
            .iter()
            .map(|o| o.meta.name.as_str())
            .collect();
        assert_eq!(names, ["also-old", "old", "young"]);
        assert_eq!(set.len(), 3);

        // A new resourceVersion alone is no change; a new host is.
        assert!(!store.apply(service("old", "b", 10, "4")));
        assert!(store.apply(service("young", "z", 20, "5")));
        assert!(store.delete(&first.virtual_services[0].meta.key()));
        let (second, set) = store.snapshot();
        let expected = [
            ("VirtualService ns/also-old".to_owned(), Change::Removed),
            ("VirtualService ns/young".to_owned(), Change::Updated),
        ];
        assert_eq!(changes(&set), expected);
        assert_eq!(ChangeSet::between(&first, &second), set);
        // The earlier snapshot is untouched.
        assert_eq!(first.virtual_services.len(), 3);
        assert_eq!(second.virtual_services[0].meta.resource_version, "4");
    }

    #[test]
    fn replacing_a_kind_removes_what_is_not_listed() {
        let mut store = Store::new();
        store.apply(service("a", "a", 1, "1"));
        store.apply(service("b", "b", 1, "1"));
        store.snapshot();
        store.replace_kind(
            ConfigKind::VirtualService,
            vec![service("b", "b", 1, "9"), service("c", "c", 1, "9")],
        );
        let (now, set) = store.snapshot();
        assert_eq!(now.len(), 2);
        assert_eq!(
            changes(&set),
            [
                ("VirtualService ns/a".to_owned(), Change::Removed),
                ("VirtualService ns/c".to_owned(), Change::Added)
            ]
        );
    }

    #[test]
    fn changes_cancel_out() {
        let key = service("a", "a", 1, "1").meta().key();
        let mut set = ChangeSet::default();
        set.record(key.clone(), Change::Added);
        set.record(key.clone(), Change::Updated);
        assert_eq!(set.iter().next(), Some((&key, Change::Added)));
        set.record(key.clone(), Change::Removed);
        assert!(set.is_empty());
        set.record(key.clone(), Change::Removed);
        set.record(key.clone(), Change::Added);
        assert_eq!(set.iter().next(), Some((&key, Change::Updated)));
    }
}
