//! Every object of every kind, reduced to what ownership needs: who it is, who owns it, is it going.
//!
//! Kinds come from discovery and are looked up again when a CustomResourceDefinition changes. Kinds that have a shared
//! store are fed from it; the others are watched as metadata only. Events are left out: they own nothing and nobody
//! owns them. Read by the garbage collector and the namespace controller through `on_change`.
//! Cost: one idle watch per kind, about 200 bytes per object.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::discovery::{ApiResource, Discovery, Scope, verbs};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use parking_lot::RwLock;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::{During, Result};
use crate::runtime::store::{Key, Store, Stored};

pub(crate) type Metadata = PartialObjectMeta<kube::core::DynamicObject>;

/// A kind that can be listed and deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    /// Whether a whole collection can be deleted with one request.
    pub(crate) collection: bool,
}

impl Kind {
    /// Group and plural: what stays the same across versions.
    pub(crate) fn id(&self) -> (String, String) {
        (self.resource.group.clone(), self.resource.plural.clone())
    }

    pub(crate) fn api(&self, client: &Client, namespace: &str) -> Api<Metadata> {
        if self.namespaced {
            Api::namespaced_with(client.clone(), namespace, &self.resource)
        } else {
            Api::all_with(client.clone(), &self.resource)
        }
    }
}

/// A reference to an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: String,
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) blocks: bool,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) kind: Arc<Kind>,
    pub(crate) key: Key,
    pub(crate) uid: String,
    pub(crate) owners: Vec<Owner>,
    pub(crate) deleting: bool,
    pub(crate) foreground: bool,
    pub(crate) orphan: bool,
}

pub(crate) const FOREGROUND: &str = "foregroundDeletion";
pub(crate) const ORPHAN: &str = "orphan";

impl Item {
    pub(crate) fn new(kind: &Arc<Kind>, meta: &ObjectMeta) -> Option<Self> {
        let finalizer = |name: &str| meta.finalizers.iter().flatten().any(|f| f == name);
        Some(Self {
            kind: kind.clone(),
            key: Key::new(
                meta.namespace.clone().unwrap_or_default(),
                meta.name.clone().unwrap_or_default(),
            ),
            uid: meta.uid.clone()?,
            owners: meta
                .owner_references
                .iter()
                .flatten()
                .map(|o| Owner {
                    uid: o.uid.clone(),
                    api_version: o.api_version.clone(),
                    kind: o.kind.clone(),
                    name: o.name.clone(),
                    blocks: o.block_owner_deletion == Some(true),
                })
                .collect(),
            deleting: meta.deletion_timestamp.is_some(),
            foreground: finalizer(FOREGROUND),
            orphan: finalizer(ORPHAN),
        })
    }
}

/// What listeners hear.
#[derive(Debug)]
pub(crate) enum Change<'a> {
    Present(Item),
    Gone { uid: &'a str, key: &'a Key },
}

type Listener = Box<dyn Fn(Change<'_>) + Send + Sync>;

pub(crate) struct Inventory {
    client: Client,
    listeners: RwLock<Vec<Listener>>,
    kinds: watch::Sender<Arc<Vec<Arc<Kind>>>>,
    /// Kinds that arrive through shared stores.
    fed: RwLock<BTreeSet<(String, String)>>,
    rediscover: Notify,
}

impl Inventory {
    pub(crate) fn new(client: Client) -> Arc<Self> {
        Arc::new(Self {
            client,
            listeners: RwLock::new(Vec::new()),
            kinds: watch::Sender::new(Arc::new(Vec::new())),
            fed: RwLock::new(BTreeSet::new()),
            rediscover: Notify::new(),
        })
    }

    pub(crate) fn on_change(&self, listener: impl Fn(Change<'_>) + Send + Sync + 'static) {
        self.listeners.write().push(Box::new(listener));
    }

    /// The kinds known now; empty until the first discovery.
    pub(crate) fn kinds(&self) -> Arc<Vec<Arc<Kind>>> {
        self.kinds.borrow().clone()
    }

    /// The kind an owner reference names.
    pub(crate) fn kind_of(&self, api_version: &str, kind: &str) -> Option<Arc<Kind>> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        self.kinds()
            .iter()
            .find(|k| k.resource.group == group && k.resource.kind == kind)
            .cloned()
    }

    /// Takes the objects of a kind from its shared store instead of a watch of its own.
    pub(crate) fn feed<K: Stored>(self: &Arc<Self>, store: &Store<K>, namespaced: bool) {
        let kind = Arc::new(Kind {
            resource: ApiResource::erase::<K>(&()),
            namespaced,
            collection: true,
        });
        self.fed.write().insert(kind.id());
        let inventory = self.clone();
        store.on_change(move |old, new| match (old, new) {
            (_, Some(object)) => inventory.present(&kind, object.meta()),
            (Some(object), None) => {
                if let Some(uid) = &object.meta().uid {
                    inventory.tell(Change::Gone {
                        uid,
                        key: &Key::of(object.as_ref()),
                    });
                }
            }
            (None, None) => {}
        });
    }

    fn present(&self, kind: &Arc<Kind>, meta: &ObjectMeta) {
        if let Some(item) = Item::new(kind, meta) {
            self.tell_present(item);
        }
    }

    fn tell_present(&self, item: Item) {
        for listener in self.listeners.read().iter() {
            listener(Change::Present(item.clone()));
        }
    }

    fn tell(&self, change: Change<'_>) {
        if let Change::Gone { uid, key } = change {
            for listener in self.listeners.read().iter() {
                listener(Change::Gone { uid, key });
            }
        }
    }

    /// Discovers kinds and keeps one watch per kind until shutdown.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut watches: HashMap<(String, String), CancellationToken> = HashMap::new();
        let mut tasks = JoinSet::new();
        let mut failures = 0_u32;
        loop {
            match self.discover().await {
                Ok(kinds) => {
                    failures = 0;
                    self.adjust(&kinds, &mut watches, &mut tasks, &shutdown);
                    self.kinds.send_replace(Arc::new(kinds));
                }
                Err(error) => {
                    failures += 1;
                    if failures == 1 {
                        tracing::warn!(%error, "discovery of resource kinds failed, retrying with back-off");
                    }
                }
            }
            let retry = Duration::from_millis(100 * (1 << failures.min(8)));
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.rediscover.notified() => {}
                () = tokio::time::sleep(retry), if failures > 0 => {}
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            }
        }
        tasks.shutdown().await;
    }

    /// Asks the API server for all kinds that can be listed, watched and deleted.
    pub(crate) async fn discover(&self) -> Result<Vec<Arc<Kind>>> {
        let found = Discovery::new(self.client.clone())
            .run_aggregated()
            .await
            .during(|| "discover the kinds of objects".to_owned())?;
        let mut kinds = Vec::new();
        for group in found.groups() {
            for (resource, capabilities) in group.resources_by_stability() {
                let can = |verb: &str| capabilities.supports_operation(verb);
                if can(verbs::LIST) && can(verbs::WATCH) && can(verbs::DELETE) {
                    kinds.push(Arc::new(Kind {
                        resource,
                        namespaced: capabilities.scope == Scope::Namespaced,
                        collection: can(verbs::DELETE_COLLECTION),
                    }));
                }
            }
        }
        kinds.sort_by_key(|kind| kind.id());
        Ok(kinds)
    }

    fn adjust(
        self: &Arc<Self>,
        kinds: &[Arc<Kind>],
        watches: &mut HashMap<(String, String), CancellationToken>,
        tasks: &mut JoinSet<()>,
        shutdown: &CancellationToken,
    ) {
        watches.retain(|id, stop| {
            let served = kinds.iter().any(|kind| kind.id() == *id);
            if !served {
                stop.cancel();
            }
            served
        });
        for kind in kinds {
            // The same events are served by two groups; neither is of interest here.
            let unwatched = kind.resource.kind == "Event" || self.fed.read().contains(&kind.id());
            if unwatched || watches.contains_key(&kind.id()) {
                continue;
            }
            let stop = shutdown.child_token();
            watches.insert(kind.id(), stop.clone());
            tasks.spawn(self.clone().follow(kind.clone(), stop));
        }
    }

    async fn follow(self: Arc<Self>, kind: Arc<Kind>, stop: CancellationToken) {
        let api: Api<Metadata> = Api::all_with(self.client.clone(), &kind.resource);
        let mut stream = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        let mut known: BTreeMap<String, Key> = BTreeMap::new();
        let mut listed: Option<BTreeMap<String, Key>> = None;
        let is_crd = kind.resource.kind == "CustomResourceDefinition";
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => break,
                event = stream.next() => event,
            };
            // Errors are retried by the stream; a kind that is no longer served ends through `stop`.
            let Some(Ok(event)) = event else {
                if event.is_none() {
                    break;
                }
                continue;
            };
            match event {
                watcher::Event::Init => listed = Some(BTreeMap::new()),
                watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                    let Some(item) = Item::new(&kind, &object.metadata) else {
                        continue;
                    };
                    if let Some(listed) = &mut listed {
                        listed.insert(item.uid.clone(), item.key.clone());
                    }
                    known.insert(item.uid.clone(), item.key.clone());
                    self.tell_present(item);
                }
                watcher::Event::InitDone => {
                    if let Some(listed) = listed.take() {
                        known.retain(|uid, key| {
                            let there = listed.contains_key(uid);
                            if !there {
                                self.tell(Change::Gone { uid, key });
                            }
                            there
                        });
                    }
                }
                watcher::Event::Delete(object) => {
                    if let Some(key) = object
                        .metadata
                        .uid
                        .as_ref()
                        .and_then(|uid| known.remove(uid))
                    {
                        self.tell(Change::Gone {
                            uid: object.metadata.uid.as_deref().unwrap_or_default(),
                            key: &key,
                        });
                    }
                }
            }
            if is_crd {
                self.rediscover.notify_one();
            }
        }
        for (uid, key) in &known {
            self.tell(Change::Gone { uid, key });
        }
    }
}
