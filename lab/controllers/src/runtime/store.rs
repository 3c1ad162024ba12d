//! The shared view of one kind: what the API server last said, and what this process wrote since.
//!
//! Written by: one watch per kind (`follow`) and by controllers that hand in the answers to their own writes (`wrote`,
//! `removed`), so that a controller always reads its own writes and never creates a pod twice because its watch lags.
//! Read by: every controller. Change handlers run synchronously with the change and only put keys into queues.
//! Resource versions of one API server grow strictly, which is what lets a late watch event lose against a newer write.
//! Cost: one `Arc` per object, lookups O(log n), a namespace is one range of the map.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Namespace and name; the namespace of cluster-scoped objects is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    pub(crate) fn of<K: Resource>(object: &K) -> Self {
        Self::new(object.namespace().unwrap_or_default(), object.name_any())
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// What a store can hold.
pub(crate) trait Stored:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}
impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static>
    Stored for K
{
}

type Handler<K> = Box<dyn Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync>;

pub(crate) struct Store<K> {
    inner: RwLock<Inner<K>>,
    /// Held from a change to the end of its handlers: they hear of changes in the order in which these happened.
    order: Mutex<()>,
    handlers: RwLock<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

/// Where an object comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Watch,
    /// The answer to a write of ours, which may arrive after the watch has told what followed.
    Answer,
}

struct Inner<K> {
    objects: BTreeMap<Key, Arc<K>>,
    /// The list that is being read; it replaces `objects` once it is complete.
    relist: Option<BTreeMap<Key, Arc<K>>>,
    /// The newest version the watch has brought.
    seen: u64,
    /// UIDs this process saw removed before the watch said so; late events must not bring them back.
    buried: HashSet<String>,
}

impl<K: Stored> Store<K> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: RwLock::new(Inner {
                objects: BTreeMap::new(),
                relist: None,
                seen: 0,
                buried: HashSet::new(),
            }),
            order: Mutex::new(()),
            handlers: RwLock::new(Vec::new()),
            synced: watch::Sender::new(false),
        })
    }

    /// Calls `handler(old, new)` on every change from now on. To be registered before `follow` starts.
    pub(crate) fn on_change(
        &self,
        handler: impl Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync + 'static,
    ) {
        self.handlers.write().push(Box::new(handler));
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.inner.read().objects.get(key).cloned()
    }

    /// All objects, ordered by namespace and name.
    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.inner.read().objects.values().cloned().collect()
    }

    /// The objects of one namespace, ordered by name.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let first = Key::new(namespace, "");
        let inner = self.inner.read();
        inner
            .objects
            .range(first..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, o)| o.clone())
            .collect()
    }

    /// Resolves once the first complete list has arrived.
    pub(crate) async fn synced(&self) {
        // The sender lives as long as the store, so the wait cannot fail.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Takes in the API server's answer to a write of ours.
    ///
    /// An answer that comes late, after the watch has passed its version, changes nothing.
    pub(crate) fn wrote(&self, object: K) {
        let _order = self.order.lock();
        self.apply(object, Source::Answer);
    }

    /// Takes in that the object with this UID is gone, as the API server answered to a delete of ours.
    pub(crate) fn removed(&self, key: &Key, uid: &str) {
        let _order = self.order.lock();
        let old = {
            let mut inner = self.inner.write();
            let old = inner.take(key, Some(uid));
            // If it is not here any more the watch has told already, and nothing late can follow.
            if old.is_some() {
                inner.buried.insert(uid.to_owned());
            }
            old
        };
        if let Some(old) = old {
            self.notify(Some(&old), None);
        }
    }

    fn apply(&self, object: K, source: Source) {
        let key = Key::of(&object);
        let object = Arc::new(object);
        let old = {
            let mut inner = self.inner.write();
            if object.uid().is_some_and(|uid| inner.buried.contains(&uid)) {
                return;
            }
            if source == Source::Answer && inner.has_passed(&key, object.as_ref()) {
                return;
            }
            if let Some(relist) = inner.relist.as_mut() {
                put_newer(relist, key.clone(), object.clone());
            }
            match put_newer(&mut inner.objects, key, object.clone()) {
                Put::Stale => return,
                Put::New => None,
                Put::Over(old) => Some(old),
            }
        };
        self.changed(old.as_ref(), &object);
    }

    fn changed(&self, old: Option<&Arc<K>>, new: &Arc<K>) {
        match old {
            // Same name, other object: handlers see the end of the one and the start of the other.
            Some(old) if old.uid() != new.uid() => {
                self.notify(Some(old), None);
                self.notify(None, Some(new));
            }
            old => self.notify(old, Some(new)),
        }
    }

    fn event(&self, event: watcher::Event<K>) {
        let _order = self.order.lock();
        if let watcher::Event::InitApply(object)
        | watcher::Event::Apply(object)
        | watcher::Event::Delete(object) = &event
        {
            let mut inner = self.inner.write();
            inner.seen = inner.seen.max(version(object).unwrap_or(0));
        }
        match event {
            watcher::Event::Init => self.inner.write().relist = Some(BTreeMap::new()),
            watcher::Event::InitApply(object) => {
                if let Some(relist) = self.inner.write().relist.as_mut() {
                    put_newer(relist, Key::of(&object), Arc::new(object));
                }
            }
            watcher::Event::InitDone => self.replace(),
            watcher::Event::Apply(object) => self.apply(object, Source::Watch),
            watcher::Event::Delete(object) => {
                let key = Key::of(&object);
                let uid = object.uid();
                let old = {
                    let mut inner = self.inner.write();
                    if let Some(uid) = &uid {
                        inner.buried.remove(uid);
                    }
                    inner.take(&key, uid.as_deref())
                };
                if let Some(old) = old {
                    self.notify(Some(&old), None);
                }
            }
        }
    }

    fn replace(&self) {
        let (gone, present) = {
            let mut inner = self.inner.write();
            let mut fresh = inner.relist.take().unwrap_or_default();
            // Objects this process saw removed after the list was read stay removed.
            fresh.retain(|_, object| !object.uid().is_some_and(|uid| inner.buried.contains(&uid)));
            let old = std::mem::take(&mut inner.objects);
            for (key, object) in &old {
                if let Some(listed) = fresh.get_mut(key)
                    && version(object.as_ref()) > version(listed.as_ref())
                {
                    *listed = object.clone();
                }
            }
            let gone: Vec<_> = old
                .iter()
                .filter(|(key, _)| !fresh.contains_key(*key))
                .map(|(_, object)| object.clone())
                .collect();
            let present: Vec<_> = fresh
                .iter()
                .map(|(key, object)| (old.get(key).cloned(), object.clone()))
                .filter(|(old, new)| {
                    old.as_ref()
                        .is_none_or(|old| old.resource_version() != new.resource_version())
                })
                .collect();
            inner.objects = fresh;
            inner.buried.clear();
            (gone, present)
        };
        for object in gone {
            self.notify(Some(&object), None);
        }
        for (old, new) in present {
            self.changed(old.as_ref(), &new);
        }
        self.synced.send_replace(true);
    }

    fn notify(&self, old: Option<&Arc<K>>, new: Option<&Arc<K>>) {
        for handler in self.handlers.read().iter() {
            handler(old, new);
        }
    }

    /// Keeps the store equal to the API server until shutdown; a lost watch is resumed with back-off, said once.
    pub(crate) async fn follow(
        self: Arc<Self>,
        api: Api<K>,
        config: watcher::Config,
        shutdown: CancellationToken,
    ) {
        let mut stream = std::pin::pin!(watcher(api, config).default_backoff());
        let mut failing = false;
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = stream.next() => event,
            };
            match event {
                Some(Ok(event)) => {
                    if failing
                        && matches!(event, watcher::Event::InitDone | watcher::Event::Apply(_))
                    {
                        tracing::info!(kind = %K::kind(&()), "watch works again");
                        failing = false;
                    }
                    self.event(event);
                }
                Some(Err(error)) => {
                    if !failing && !is_expired(&error) {
                        tracing::warn!(kind = %K::kind(&()), %error, "watch failed, retrying with back-off");
                        failing = true;
                    }
                }
                // A watcher's stream has no end; should that change, a pause keeps this from spinning.
                None => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    }
}

/// A watch that fell out of the server's window relists by itself; that is everyday life, not a failure.
fn is_expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}

impl<K: Stored> Inner<K> {
    /// The watch has brought newer things and the object is not here: it was deleted since.
    fn has_passed(&self, key: &Key, object: &K) -> bool {
        let known = self
            .objects
            .get(key)
            .is_some_and(|known| known.uid() == object.uid());
        !known && version(object).is_some_and(|version| version <= self.seen)
    }

    fn take(&mut self, key: &Key, uid: Option<&str>) -> Option<Arc<K>> {
        let same = |object: &Arc<K>| uid.is_none() || object.uid().as_deref() == uid;
        if let Some(relist) = self.relist.as_mut()
            && relist.get(key).is_some_and(same)
        {
            relist.remove(key);
        }
        if self.objects.get(key).is_some_and(same) {
            self.objects.remove(key)
        } else {
            None
        }
    }
}

enum Put<K> {
    Stale,
    New,
    Over(Arc<K>),
}

fn put_newer<K: Stored>(map: &mut BTreeMap<Key, Arc<K>>, key: Key, object: Arc<K>) -> Put<K> {
    if let Some(known) = map.get(&key)
        && let (Some(known), Some(new)) = (version(known.as_ref()), version(object.as_ref()))
        && new <= known
    {
        return Put::Stale;
    }
    match map.insert(key, object) {
        Some(old) => Put::Over(old),
        None => Put::New,
    }
}

fn version<K: Resource>(object: &K) -> Option<u64> {
    object
        .meta()
        .resource_version
        .as_deref()
        .and_then(|v| v.parse().ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn object(name: &str, uid: &str, version: u32) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.name = Some(name.into());
        object.metadata.namespace = Some("n".into());
        object.metadata.uid = Some(uid.into());
        object.metadata.resource_version = Some(version.to_string());
        object
    }

    fn store() -> (Arc<Store<ConfigMap>>, Arc<Mutex<Vec<String>>>) {
        let store = Store::new();
        let log = Arc::new(Mutex::new(Vec::new()));
        let seen = log.clone();
        let show = |o: Option<&Arc<ConfigMap>>| {
            o.map_or("-".to_owned(), |o| {
                format!("{}@{}", o.uid().unwrap(), o.resource_version().unwrap())
            })
        };
        store.on_change(move |old, new| seen.lock().push(format!("{}>{}", show(old), show(new))));
        (store, log)
    }

    #[test]
    fn a_late_watch_event_loses_against_our_own_write() {
        let (store, log) = store();
        store.event(watcher::Event::Init);
        store.event(watcher::Event::InitApply(object("a", "u1", 5)));
        store.event(watcher::Event::InitDone);
        store.wrote(object("a", "u1", 9));
        store.event(watcher::Event::Apply(object("a", "u1", 7)));
        store.event(watcher::Event::Apply(object("a", "u1", 9)));
        assert_eq!(*log.lock(), ["->u1@5", "u1@5>u1@9"]);
    }

    #[test]
    fn a_removed_object_stays_removed_until_the_watch_agrees() {
        let (store, log) = store();
        store.event(watcher::Event::Apply(object("a", "u1", 5)));
        store.removed(&Key::new("n", "a"), "u1");
        store.event(watcher::Event::Apply(object("a", "u1", 6)));
        assert!(store.get(&Key::new("n", "a")).is_none());
        store.event(watcher::Event::Delete(object("a", "u1", 7)));
        store.event(watcher::Event::Apply(object("a", "u2", 8)));
        assert_eq!(*log.lock(), ["->u1@5", "u1@5>-", "->u2@8"]);
    }

    #[test]
    fn a_successor_of_the_same_name_survives_the_late_delete_of_its_predecessor() {
        let (store, log) = store();
        store.event(watcher::Event::Apply(object("a", "u1", 5)));
        store.wrote(object("a", "u2", 8));
        store.event(watcher::Event::Delete(object("a", "u1", 7)));
        assert_eq!(store.get(&Key::new("n", "a")).unwrap().uid().unwrap(), "u2");
        assert_eq!(*log.lock(), ["->u1@5", "u1@5>-", "->u2@8"]);
    }

    #[test]
    fn an_answer_that_comes_after_the_deletion_brings_nothing_back() {
        let (store, log) = store();
        store.event(watcher::Event::Apply(object("a", "u1", 5)));
        store.event(watcher::Event::Delete(object("a", "u1", 7)));
        store.wrote(object("a", "u1", 6));
        assert!(store.get(&Key::new("n", "a")).is_none());
        store.wrote(object("a", "u2", 8));
        assert_eq!(*log.lock(), ["->u1@5", "u1@5>-", "->u2@8"]);
    }

    #[test]
    fn a_relist_reports_what_vanished_and_keeps_writes_made_meanwhile() {
        let (store, log) = store();
        store.event(watcher::Event::Apply(object("a", "u1", 5)));
        store.event(watcher::Event::Apply(object("b", "u2", 6)));
        store.event(watcher::Event::Init);
        store.event(watcher::Event::InitApply(object("b", "u2", 6)));
        store.wrote(object("c", "u3", 9));
        store.event(watcher::Event::InitDone);
        assert_eq!(store.all().len(), 2);
        assert_eq!(*log.lock(), ["->u1@5", "->u2@6", "->u3@9", "u1@5>-"]);
    }

    #[test]
    fn a_namespace_is_a_range() {
        let (store, _) = store();
        for (namespace, name) in [("m", "z"), ("n", "a"), ("n", "b"), ("n-x", "a"), ("o", "a")] {
            let mut object = object(name, &format!("{namespace}{name}"), 1);
            object.metadata.namespace = Some(namespace.into());
            store.event(watcher::Event::Apply(object));
        }
        let names: Vec<_> = store
            .in_namespace("n")
            .iter()
            .map(|o| o.name_any())
            .collect();
        assert_eq!(names, ["a", "b"]);
    }
}
