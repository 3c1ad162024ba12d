//! Snapshots from a source to its readers.
//!
//! Written by the one task that runs a source, read by any number of subscriptions. A `watch` channel carries the
//! newest state, so a slow reader costs nothing and skips intermediate snapshots. So that it does not miss what they
//! changed, each state carries the change sets of the last [`HISTORY`] versions; a reader further behind compares
//! snapshots itself. Cost of publishing: one pointer per object and per remembered change set.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use mesh_config::{ChangeSet, ConfigError, ConfigKind, Configs, ObjectKey, Store, TypedObject};
use tokio::sync::watch;

/// Change sets kept for readers that fall behind.
const HISTORY: usize = 64;

/// Something that publishes config.
pub trait ConfigSource: Send + Sync {
    /// A new reader; its first update is the whole config once that is known.
    fn subscribe(&self) -> Subscription;

    /// How the source is doing.
    fn status(&self) -> Status;
}

/// A snapshot and how it differs from the one the reader saw before.
#[derive(Debug, Clone)]
pub struct Update {
    /// Counts snapshots of the source from 1.
    pub version: u64,
    /// The config.
    pub configs: Arc<Configs>,
    /// What changed since the reader's last update.
    pub changes: ChangeSet,
}

/// The task of the source has ended; there will be no more updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceClosed;

impl std::fmt::Display for SourceClosed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the config source has stopped; the last config stays in use")
    }
}

impl std::error::Error for SourceClosed {}

/// An object that is not used as written.
#[derive(Debug, Clone, PartialEq)]
pub struct Rejected {
    /// Why.
    pub errors: Vec<ConfigError>,
    /// Whether an earlier version of the object stays in use.
    pub previous_in_use: bool,
    /// Since when.
    pub since: Timestamp,
}

/// How the source of one kind is doing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KindStatus {
    /// Listed completely at least once.
    pub listed: bool,
    /// The API server does not know the kind; it is asked for again and again.
    pub not_installed: bool,
    /// The last error, until the next success.
    pub error: Option<String>,
    /// Errors so far.
    pub errors: u64,
    /// Events so far.
    pub events: u64,
}

/// How a source is doing, for `/ready`, metrics and debug pages.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Whether a complete config has been published.
    pub synced: bool,
    /// Version of the last snapshot; 0 before the first.
    pub version: u64,
    /// Objects in the last snapshot.
    pub objects: usize,
    /// Per kind, where a source reads by kind.
    pub kinds: BTreeMap<ConfigKind, KindStatus>,
    /// Objects that are not used as written: by name, or by place where the name is not known.
    pub rejected: BTreeMap<String, Rejected>,
    /// Rejections so far, for a counter.
    pub rejections: u64,
    /// An error of the source as a whole, until the next success.
    pub error: Option<String>,
}

impl Status {
    /// What is still missing before the source is synced, or wrong with it now; empty if all is well.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints: Vec<String> = self.error.iter().cloned().collect();
        for (kind, status) in &self.kinds {
            match &status.error {
                Some(error) => complaints.push(format!("{kind}: {error}")),
                None if !status.listed && !status.not_installed => {
                    complaints.push(format!("{kind}: not listed yet"))
                }
                None => {}
            }
        }
        complaints
    }
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    configs: Arc<Configs>,
    /// The newest change sets, oldest first; the last one led to `version`.
    history: VecDeque<Arc<ChangeSet>>,
}

impl State {
    /// What happened after `seen`.
    fn changes_since(&self, seen: &Self) -> ChangeSet {
        let missed = usize::try_from(self.version - seen.version).unwrap_or(usize::MAX);
        if missed > self.history.len() {
            return ChangeSet::between(&seen.configs, &self.configs);
        }
        let mut changes = ChangeSet::default();
        for set in self.history.iter().skip(self.history.len() - missed) {
            changes.merge((**set).clone());
        }
        changes
    }
}

/// A reader of a source.
#[derive(Debug, Clone)]
pub struct Subscription {
    receiver: watch::Receiver<Arc<State>>,
    seen: Arc<State>,
}

impl Subscription {
    /// Waits for a snapshot newer than the last one this reader got. The first is the whole config; it comes when the
    /// source has synced. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Update, SourceClosed> {
        let seen = self.seen.version;
        let state = self
            .receiver
            .wait_for(|state| state.version > seen)
            .await
            .map_err(|_| SourceClosed)?
            .clone();
        let update = Update {
            version: state.version,
            configs: Arc::clone(&state.configs),
            changes: state.changes_since(&self.seen),
        };
        self.seen = state;
        Ok(update)
    }

    /// The newest config, whether this reader got it or not; empty before the source has synced.
    pub fn latest(&self) -> Arc<Configs> {
        Arc::clone(&self.receiver.borrow().configs)
    }

    /// Whether the source has published anything.
    pub fn is_synced(&self) -> bool {
        self.receiver.borrow().version > 0
    }
}

/// The writing end: one per source.
#[derive(Debug)]
pub(crate) struct Publisher {
    sender: watch::Sender<Arc<State>>,
    status: watch::Sender<Status>,
}

impl Publisher {
    pub(crate) fn new() -> Self {
        Self {
            sender: watch::Sender::new(Arc::default()),
            status: watch::Sender::default(),
        }
    }

    pub(crate) fn subscribe(&self) -> Subscription {
        Subscription {
            receiver: self.sender.subscribe(),
            seen: Arc::default(),
        }
    }

    pub(crate) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Follows [`Publisher::status`].
    #[cfg(test)]
    pub(crate) fn follow_status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    pub(crate) fn update_status(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(change);
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.sender.borrow().version > 0
    }

    /// Publishes the store if anything changed, and in any case the first time.
    pub(crate) fn publish(&self, store: &mut Store) {
        let current = Arc::clone(&self.sender.borrow());
        if current.version > 0 && !store.has_changes() {
            return;
        }
        let (configs, changes) = store.snapshot();
        let mut history = current.history.clone();
        if history.len() == HISTORY {
            history.pop_front();
        }
        let (version, objects) = (current.version + 1, configs.len());
        tracing::debug!(version, objects, changed = changes.len(), "config snapshot");
        history.push_back(Arc::new(changes));
        self.update_status(|status| {
            status.synced = true;
            status.version = version;
            status.objects = objects;
        });
        self.sender.send_replace(Arc::new(State {
            version,
            configs,
            history,
        }));
    }

    /// Takes in what a source read of one object: the object, or why it is refused.
    pub(crate) fn accept(
        &self,
        store: &mut Store,
        key: &ObjectKey,
        read: Result<TypedObject, Vec<ConfigError>>,
    ) {
        match read {
            Ok(object) => {
                let mended =
                    |status: &mut Status| status.rejected.remove(&key.to_string()).is_some();
                if self.status.send_if_modified(mended) {
                    tracing::info!(object = %key, "config object is valid again");
                }
                store.apply(object);
            }
            Err(errors) => self.reject(key.to_string(), errors, store.get(key).is_some()),
        }
    }

    /// Notes that something is not used as written.
    pub(crate) fn reject(&self, what: String, errors: Vec<ConfigError>, previous_in_use: bool) {
        self.status.send_if_modified(|status| {
            let known = status.rejected.get(&what);
            // The same rejection again, as after a relist, is no news.
            if known.is_some_and(|rejected| rejected.errors == errors) {
                return false;
            }
            status.rejections += 1;
            let reasons = errors
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" | ");
            let meanwhile = if previous_in_use {
                "its last good version stays in use"
            } else {
                "it is left out"
            };
            tracing::warn!(object = %what, %reasons, meanwhile, "config object rejected");
            let rejected = Rejected {
                errors,
                previous_in_use,
                since: Timestamp::now(),
            };
            status.rejected.insert(what, rejected);
            true
        });
    }

    /// Forgets rejections that no longer hold.
    pub(crate) fn retain_rejected(&self, keep: impl Fn(&str) -> bool) {
        self.update_status(|status| status.rejected.retain(|what, _| keep(what)));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use mesh_config::{Change, Meta, Object};

    use super::*;

    fn object(name: &str, label: &str) -> TypedObject {
        let mut meta = Meta::new(ConfigKind::Gateway, "ns", name);
        meta.labels.insert("l".to_owned(), label.to_owned());
        TypedObject::Gateway(Object::new(meta, Default::default()))
    }

    #[tokio::test]
    async fn a_slow_reader_learns_everything_that_changed() {
        let (publisher, mut store) = (Publisher::new(), Store::new());
        let mut fast = publisher.subscribe();
        let mut slow = publisher.subscribe();
        assert!(!fast.is_synced());
        publisher.publish(&mut store);
        assert_eq!(
            fast.next().await.unwrap().version,
            1,
            "an empty config is a config"
        );
        assert_eq!(slow.next().await.unwrap().version, 1);

        for i in 0..HISTORY * 3 {
            store.apply(object(&format!("g{i}"), "1"));
            publisher.publish(&mut store);
            let update = fast.next().await.unwrap();
            assert_eq!((update.changes.len(), update.configs.len()), (1, i + 1));
        }
        let update = slow.next().await.unwrap();
        assert_eq!(
            update.changes.len(),
            HISTORY * 3,
            "beyond the history, snapshots are compared"
        );

        store.apply(object("g0", "2"));
        publisher.publish(&mut store);
        store.delete(&object("g1", "1").meta().key());
        publisher.publish(&mut store);
        let update = slow.next().await.unwrap();
        let changes: Vec<_> = update
            .changes
            .iter()
            .map(|(k, c)| (k.name.as_str(), c))
            .collect();
        assert_eq!(changes, [("g0", Change::Updated), ("g1", Change::Removed)]);

        // Nothing changed: nothing is published.
        store.apply(object("g0", "2"));
        let version = publisher.status().version;
        publisher.publish(&mut store);
        assert_eq!(publisher.status().version, version);
        drop(publisher);
        assert_eq!(slow.next().await.unwrap_err(), SourceClosed);
        assert_eq!(
            slow.latest().len(),
            HISTORY * 3 - 1,
            "the last config stays"
        );
    }

    #[test]
    fn rejections_are_counted_once_and_forgotten_when_mended() {
        let (publisher, mut store) = (Publisher::new(), Store::new());
        let key = object("g", "").meta().key();
        let error = || {
            vec![
                mesh_config::parse::from_json(serde_json::json!({}))
                    .unwrap_err()
                    .remove(0),
            ]
        };
        publisher.accept(&mut store, &key, Err(error()));
        publisher.accept(&mut store, &key, Err(error()));
        let status = publisher.status();
        assert_eq!((status.rejections, status.rejected.len()), (1, 1));
        assert!(!status.rejected["Gateway ns/g"].previous_in_use);
        publisher.accept(&mut store, &key, Ok(object("g", "")));
        assert!(publisher.status().rejected.is_empty());
        publisher.accept(&mut store, &key, Err(error()));
        let status = publisher.status();
        assert_eq!(status.rejections, 2);
        assert!(status.rejected["Gateway ns/g"].previous_in_use);
        assert_eq!(store.len(), 1);
    }
}
