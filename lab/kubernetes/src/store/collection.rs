//! All objects of one resource, and the recent events about them.
//!
//! Written by the store's writer only; read by everybody. A watcher is a cursor (the last resource
//! version it saw) into the ring of events plus a wake-up channel, so that slow watchers cost nothing:
//! once the ring has moved past their cursor they are told 410 and list again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;
use tokio::sync::watch;

use super::object::Object;

/// Namespace (empty for cluster scope) and name.
pub(crate) type Key = (String, String);

/// One change. Exactly one of `old` and `new` may be absent.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) rv: u64,
    pub(crate) old: Option<Arc<Object>>,
    /// `None`: deleted; then `last` is the final state.
    pub(crate) new: Option<Arc<Object>>,
    /// The new state, or the last state stamped with the version of the deletion.
    pub(crate) last: Arc<Object>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<Key, Arc<Object>>,
    ring: VecDeque<Arc<Event>>,
    /// Events up to this version are no longer (or were never) in the ring.
    compacted: u64,
    last: u64,
}

/// The objects and events of one resource.
#[derive(Debug)]
pub(crate) struct Collection {
    /// `plural.group`, the name in the log.
    pub(crate) id: String,
    state: RwLock<State>,
    changed: watch::Sender<u64>,
    capacity: usize,
    watchers: AtomicUsize,
}

/// A watcher asked for events that are gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TooOld {
    pub(crate) oldest: u64,
}

impl Collection {
    pub(crate) fn new(id: &str, start: u64, capacity: usize) -> Self {
        Self {
            id: id.to_owned(),
            state: RwLock::new(State {
                compacted: start,
                last: start,
                ..State::default()
            }),
            changed: watch::channel(start).0,
            capacity,
            watchers: AtomicUsize::new(0),
        }
    }

    /// Fills in an object read from the log at start.
    pub(crate) fn load(&self, object: Object) {
        let key = (object.namespace.clone(), object.name.clone());
        self.state.write().objects.insert(key, Arc::new(object));
    }

    /// Publishes one change and drops what falls out of the window.
    pub(crate) fn apply(&self, event: Event) {
        let mut state = self.state.write();
        let key = (event.last.namespace.clone(), event.last.name.clone());
        match &event.new {
            Some(object) => state.objects.insert(key, object.clone()),
            None => state.objects.remove(&key),
        };
        state.last = event.rv;
        state.ring.push_back(Arc::new(event));
        while state.ring.len() > self.capacity {
            if let Some(gone) = state.ring.pop_front() {
                state.compacted = gone.rv;
            }
        }
    }

    /// Wakes watchers; called once per batch.
    pub(crate) fn wake(&self) {
        let last = self.state.read().last;
        self.changed.send_replace(last);
    }

    /// Forgets the history: every watcher that is behind must list again. Used by tests and `lab` chaos.
    pub(crate) fn compact(&self) {
        let mut state = self.state.write();
        state.compacted = state.last;
        state.ring.clear();
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.state
            .read()
            .objects
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
    }

    /// All objects of a namespace (all namespaces if `None`) in key order, with the version of the view.
    /// `published` is the store's version, which a quiet collection has also seen.
    pub(crate) fn list(&self, namespace: Option<&str>, published: u64) -> (Vec<Arc<Object>>, u64) {
        let state = self.state.read();
        (select(&state.objects, namespace), state.last.max(published))
    }

    pub(crate) fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    /// The objects as they were at `rv`, found by undoing later events.
    pub(crate) fn list_at(
        &self,
        namespace: Option<&str>,
        rv: u64,
    ) -> Result<Vec<Arc<Object>>, TooOld> {
        let state = self.state.read();
        if rv < state.compacted {
            return Err(TooOld {
                oldest: state.compacted,
            });
        }
        if rv >= state.last {
            return Ok(select(&state.objects, namespace));
        }
        let mut objects = state.objects.clone();
        for event in state.ring.iter().rev().take_while(|e| e.rv > rv) {
            let key = (event.last.namespace.clone(), event.last.name.clone());
            match &event.old {
                Some(old) => objects.insert(key, old.clone()),
                None => objects.remove(&key),
            };
        }
        Ok(select(&objects, namespace))
    }

    /// At most `max` events after `rv`.
    pub(crate) fn events_after(&self, rv: u64, max: usize) -> Result<Vec<Arc<Event>>, TooOld> {
        let state = self.state.read();
        if rv < state.compacted {
            return Err(TooOld {
                oldest: state.compacted,
            });
        }
        let start = state.ring.partition_point(|e| e.rv <= rv);
        Ok(state.ring.iter().skip(start).take(max).cloned().collect())
    }

    pub(crate) fn watcher(self: &Arc<Self>) -> WatcherGuard {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        WatcherGuard(self.clone())
    }
}

fn select(objects: &BTreeMap<Key, Arc<Object>>, namespace: Option<&str>) -> Vec<Arc<Object>> {
    match namespace {
        None => objects.values().cloned().collect(),
        Some(ns) => objects
            .range((ns.to_owned(), String::new())..)
            .take_while(|((n, _), _)| n == ns)
            .map(|(_, o)| o.clone())
            .collect(),
    }
}

/// Counts an open watch while it lives.
#[derive(Debug)]
pub(crate) struct WatcherGuard(Arc<Collection>);

impl Drop for WatcherGuard {
    fn drop(&mut self) {
        self.0.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(name: &str, rv: u64) -> Arc<Object> {
        Arc::new(Object::new(
            json!({"kind": "K", "apiVersion": "v1", "metadata": {"name": name}}),
            rv,
        ))
    }

    fn put(c: &Collection, old: Option<Arc<Object>>, new: Arc<Object>) {
        c.apply(Event {
            rv: new.rv,
            old,
            last: new.clone(),
            new: Some(new),
        });
    }

    #[test]
    fn a_past_view_is_rebuilt_from_events() {
        let c = Collection::new("x", 0, 10);
        let a1 = object("a", 1);
        put(&c, None, a1.clone());
        put(&c, Some(a1), object("a", 2));
        put(&c, None, object("b", 3));
        let last = object("a", 4);
        c.apply(Event {
            rv: 4,
            old: c.get("", "a"),
            new: None,
            last,
        });
        let versions = |rv| {
            c.list_at(None, rv)
                .map(|l| l.iter().map(|o| o.rv).collect::<Vec<_>>())
        };
        assert_eq!(versions(1).unwrap(), [1]);
        assert_eq!(versions(2).unwrap(), [2]);
        assert_eq!(versions(3).unwrap(), [2, 3]);
        assert_eq!(versions(4).unwrap(), [3]);
    }

    #[test]
    fn the_window_moves_and_says_so() {
        let c = Collection::new("x", 5, 2);
        assert!(c.events_after(4, 9).is_err());
        assert!(c.events_after(5, 9).unwrap().is_empty());
        for rv in 6..10 {
            put(&c, None, object(&format!("o{rv}"), rv));
        }
        assert_eq!(c.events_after(6, 9).unwrap_err().oldest, 7);
        let got: Vec<u64> = c.events_after(7, 9).unwrap().iter().map(|e| e.rv).collect();
        assert_eq!(got, [8, 9]);
    }
}
