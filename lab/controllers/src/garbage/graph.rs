//! Who owns whom, and what follows from it. Pure.

use std::collections::{BTreeSet, HashMap};

use crate::inventory::{Item, Owner};

/// All objects by UID, with the reverse of their owner references.
#[derive(Default)]
pub(crate) struct Graph {
    items: HashMap<String, Item>,
    dependents: HashMap<String, BTreeSet<String>>,
}

/// What to do about one object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Nothing,
    /// It waits for its dependents: delete these; when none of them holds it any more, let it go.
    Foreground {
        delete: Vec<String>,
        release: bool,
    },
    /// It goes alone: take it out of these objects' owners, then let it go.
    Orphan {
        dependents: Vec<String>,
    },
    /// Its owners need a look: those not known here may be gone, those waiting for dependents want it gone.
    Judge {
        unknown: Vec<Owner>,
        waiting: Vec<String>,
        solid: bool,
    },
}

impl Graph {
    /// Takes in an object; returns which ones to look at.
    pub(crate) fn put(&mut self, item: Item) -> Vec<String> {
        let uid = item.uid.clone();
        let old = self.items.get(&uid);
        if old == Some(&item) {
            return Vec::new();
        }
        let mut look = Vec::new();
        let old_owners: Vec<String> = old
            .iter()
            .flat_map(|o| &o.owners)
            .map(|o| o.uid.clone())
            .collect();
        if old.is_none_or(|o| o.owners != item.owners) && !item.owners.is_empty() {
            look.push(uid.clone());
        }
        if item.deleting && (item.foreground || item.orphan) {
            look.push(uid.clone());
        }
        for owner in &old_owners {
            if !item.owners.iter().any(|o| o.uid == *owner) {
                self.unlink(owner, &uid);
                look.push(owner.clone());
            }
        }
        for owner in &item.owners {
            self.dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(uid.clone());
            // A late dependent of an owner that waits.
            if self
                .items
                .get(&owner.uid)
                .is_some_and(|o| o.deleting && (o.foreground || o.orphan))
            {
                look.push(owner.uid.clone());
            }
        }
        self.items.insert(uid, item);
        look
    }

    /// Takes out an object; returns which ones to look at: its dependents, and owners that waited for it.
    pub(crate) fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(item) = self.items.remove(uid) else {
            return Vec::new();
        };
        let mut look: Vec<String> = self
            .dependents
            .get(uid)
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        for owner in item.owners {
            self.unlink(&owner.uid, uid);
            if self.items.get(&owner.uid).is_some_and(|o| o.deleting) {
                look.push(owner.uid);
            }
        }
        look
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(set) = self.dependents.get_mut(owner) {
            set.remove(dependent);
            if set.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    pub(crate) fn get(&self, uid: &str) -> Option<&Item> {
        self.items.get(uid)
    }

    fn dependents(&self, uid: &str) -> Vec<&Item> {
        self.dependents
            .get(uid)
            .into_iter()
            .flatten()
            .filter_map(|d| self.items.get(d))
            .collect()
    }

    /// Whether anything would block the foreground deletion of `uid`.
    pub(crate) fn is_owner(&self, uid: &str) -> bool {
        !self.dependents(uid).is_empty()
    }

    pub(crate) fn decide(&self, uid: &str) -> Work {
        let Some(item) = self.items.get(uid) else {
            return Work::Nothing;
        };
        if item.deleting && item.orphan {
            return Work::Orphan {
                dependents: self.dependents(uid).iter().map(|d| d.uid.clone()).collect(),
            };
        }
        if item.deleting && item.foreground {
            let dependents = self.dependents(uid);
            let holds = |d: &Item| d.owners.iter().any(|o| o.uid == uid && o.blocks);
            let release = !dependents.iter().any(|d| holds(d));
            let delete = dependents
                .iter()
                .filter(|d| !d.deleting)
                .map(|d| d.uid.clone())
                .collect();
            return Work::Foreground { delete, release };
        }
        if item.deleting || item.owners.is_empty() {
            return Work::Nothing;
        }
        let mut unknown = Vec::new();
        let mut waiting = Vec::new();
        let mut solid = false;
        for owner in &item.owners {
            match self.items.get(&owner.uid) {
                None => unknown.push(owner.clone()),
                Some(o) if o.deleting && o.foreground => waiting.push(o.uid.clone()),
                Some(_) => solid = true,
            }
        }
        if unknown.is_empty() && waiting.is_empty() {
            Work::Nothing
        } else {
            Work::Judge {
                unknown,
                waiting,
                solid,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::inventory::Kind;
    use crate::runtime::store::Key;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::discovery::ApiResource;
    use std::sync::Arc;

    fn item(uid: &str, owners: &[&str]) -> Item {
        let kind = Kind {
            resource: ApiResource::erase::<ConfigMap>(&()),
            namespaced: true,
            collection: true,
        };
        Item {
            kind: Arc::new(kind),
            key: Key::new("n", uid),
            uid: uid.into(),
            owners: owners
                .iter()
                .map(|o| Owner {
                    uid: (*o).into(),
                    api_version: "v1".into(),
                    kind: "ConfigMap".into(),
                    name: (*o).into(),
                    blocks: true,
                })
                .collect(),
            deleting: false,
            foreground: false,
            orphan: false,
        }
    }

    #[test]
    fn dependents_of_a_removed_owner_are_looked_at() {
        let mut graph = Graph::default();
        assert!(graph.put(item("owner", &[])).is_empty());
        assert_eq!(graph.put(item("child", &["owner"])), ["child"]);
        assert!(
            graph.put(item("child", &["owner"])).is_empty(),
            "no change, no look"
        );
        assert_eq!(graph.decide("child"), Work::Nothing);
        assert_eq!(graph.remove("owner"), ["child"]);
        let Work::Judge { unknown, solid, .. } = graph.decide("child") else {
            panic!()
        };
        assert_eq!((unknown.len(), solid), (1, false));
    }

    #[test]
    fn a_second_living_owner_keeps_the_dependent() {
        let mut graph = Graph::default();
        graph.put(item("a", &[]));
        graph.put(item("child", &["a", "b"]));
        let Work::Judge { unknown, solid, .. } = graph.decide("child") else {
            panic!()
        };
        assert_eq!((unknown[0].uid.as_str(), solid), ("b", true));
    }

    #[test]
    fn foreground_waits_for_those_that_block() {
        let mut graph = Graph::default();
        graph.put(item("owner", &[]));
        graph.put(item("one", &["owner"]));
        let mut two = item("two", &["owner"]);
        two.owners[0].blocks = false;
        graph.put(two);
        let mut going = item("owner", &[]);
        (going.deleting, going.foreground) = (true, true);
        assert_eq!(graph.put(going), ["owner"]);
        let all = vec!["one".to_owned(), "two".to_owned()];
        assert_eq!(
            graph.decide("owner"),
            Work::Foreground {
                delete: all,
                release: false
            }
        );
        let mut dying = item("one", &["owner"]);
        dying.deleting = true;
        graph.put(dying);
        let rest = vec!["two".to_owned()];
        assert_eq!(
            graph.decide("owner"),
            Work::Foreground {
                delete: rest.clone(),
                release: false
            }
        );
        assert_eq!(graph.remove("one"), ["owner"]);
        assert_eq!(
            graph.decide("owner"),
            Work::Foreground {
                delete: rest,
                release: true
            }
        );
        assert_eq!(graph.put(item("late", &["owner"])), ["late", "owner"]);
    }

    #[test]
    fn orphaning_lists_the_dependents() {
        let mut graph = Graph::default();
        graph.put(item("child", &["owner"]));
        let mut going = item("owner", &[]);
        (going.deleting, going.orphan) = (true, true);
        assert_eq!(graph.put(going), ["owner"]);
        assert_eq!(
            graph.decide("owner"),
            Work::Orphan {
                dependents: vec!["child".into()]
            }
        );
        assert_eq!(graph.put(item("child", &[])), ["owner"]);
        assert_eq!(graph.decide("owner"), Work::Orphan { dependents: vec![] });
    }
}
