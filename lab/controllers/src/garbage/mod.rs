//! Collects what has lost its owner, and carries out foreground and orphan deletion.
//!
//! The graph comes from the inventory. An owner that is not in it is looked up before anything is deleted: the watch of
//! its kind may merely be late. Every delete names the UID, so that a namesake made meanwhile survives.

mod graph;

use std::sync::Arc;

use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::params::PropagationPolicy;
use parking_lot::Mutex;
use serde_json::json;

use crate::context::Context;
use crate::error::{During, Error, Result, unless_gone};
use crate::inventory::{Change, FOREGROUND, Inventory, Item, ORPHAN, Owner};
use crate::runtime::driver::{Again, Controller};
use crate::runtime::queue::Queue;
use graph::{Graph, Work};

pub(crate) struct GarbageCollector {
    context: Arc<Context>,
    inventory: Arc<Inventory>,
    graph: Arc<Mutex<Graph>>,
    /// UIDs of objects to look at.
    queue: Arc<Queue<String>>,
}

impl GarbageCollector {
    pub(crate) fn new(context: Arc<Context>, inventory: Arc<Inventory>) -> Self {
        let queue = Arc::new(Queue::new());
        let graph = Arc::new(Mutex::new(Graph::default()));
        let (wake, index) = (queue.clone(), graph.clone());
        inventory.on_change(move |change| {
            let look = match change {
                Change::Present(item) => index.lock().put(item),
                Change::Gone { uid, .. } => index.lock().remove(uid),
            };
            for uid in look {
                wake.add(uid);
            }
        });
        Self {
            context,
            inventory,
            graph,
            queue,
        }
    }

    fn item(&self, uid: &str) -> Option<Item> {
        self.graph.lock().get(uid).cloned()
    }

    async fn delete(&self, item: &Item, policy: PropagationPolicy) -> Result<()> {
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions {
                uid: Some(item.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let api = item.kind.api(&self.context.client, &item.key.namespace);
        let deleted = api
            .delete(&item.key.name, &params)
            .await
            .during(|| format!("collect {} {}", item.kind.resource.kind, item.key));
        match unless_gone(deleted) {
            // The name belongs to another object by now: this one is gone.
            Err(error) if error.is_conflict() => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Changes a list in the object's metadata, on its newest version only.
    async fn edit(
        &self,
        item: &Item,
        edit: impl Fn(&crate::inventory::Metadata) -> Option<serde_json::Value>,
    ) -> Result<()> {
        let api = item.kind.api(&self.context.client, &item.key.namespace);
        let what = || format!("update {} {}", item.kind.resource.kind, item.key);
        let Some(current) = unless_gone(api.get(&item.key.name).await.during(what))? else {
            return Ok(());
        };
        if current.metadata.uid.as_deref() != Some(&item.uid) {
            return Ok(());
        }
        let Some(mut metadata) = edit(&current) else {
            return Ok(());
        };
        metadata["resourceVersion"] = json!(current.metadata.resource_version);
        let patch = Patch::Merge(json!({"metadata": metadata}));
        unless_gone(
            api.patch_metadata(&item.key.name, &PatchParams::default(), &patch)
                .await
                .during(what),
        )?;
        Ok(())
    }

    async fn drop_finalizer(&self, item: &Item, finalizer: &str) -> Result<()> {
        self.edit(item, |current| {
            let list = current.metadata.finalizers.clone().unwrap_or_default();
            let left: Vec<_> = list.iter().filter(|f| *f != finalizer).collect();
            (left.len() < list.len()).then(|| json!({"finalizers": left}))
        })
        .await
    }

    async fn drop_owners(&self, item: &Item, owners: &[String]) -> Result<()> {
        self.edit(item, |current| {
            let list = current
                .metadata
                .owner_references
                .clone()
                .unwrap_or_default();
            let left: Vec<_> = list.iter().filter(|o| !owners.contains(&o.uid)).collect();
            (left.len() < list.len()).then(|| json!({"ownerReferences": left}))
        })
        .await
    }

    /// Asks the API server whether an owner the graph does not know exists.
    async fn exists(&self, item: &Item, owner: &Owner) -> Result<bool> {
        let Some(kind) = self.inventory.kind_of(&owner.api_version, &owner.kind) else {
            // Better to keep a dependent than to delete it on a guess.
            return Err(Error::Object {
                object: format!("{} {}", item.kind.resource.kind, item.key),
                field: "metadata.ownerReferences",
                problem: format!(
                    "names kind {}, {} which is not served; the object is kept",
                    owner.kind, owner.api_version
                ),
            });
        };
        if kind.namespaced && item.key.namespace.is_empty() {
            // A cluster-scoped object cannot be owned from inside a namespace: the reference counts as absent
            // upstream too, but there deletion is withheld and so it is here.
            return Ok(true);
        }
        let api = kind.api(&self.context.client, &item.key.namespace);
        let found = unless_gone(
            api.get(&owner.name)
                .await
                .during(|| format!("look up owner {} {}", owner.kind, owner.name)),
        )?;
        Ok(found.is_some_and(|o| o.metadata.uid.as_deref() == Some(&owner.uid)))
    }

    async fn judge(
        &self,
        item: &Item,
        unknown: Vec<Owner>,
        mut waiting: Vec<String>,
        mut solid: bool,
    ) -> Result<()> {
        let mut absent = Vec::new();
        for owner in unknown {
            if self.exists(item, &owner).await? {
                solid = true;
            } else {
                absent.push(owner.uid);
            }
        }
        if solid {
            absent.append(&mut waiting);
            return if absent.is_empty() {
                Ok(())
            } else {
                self.drop_owners(item, &absent).await
            };
        }
        let has_dependents = self.graph.lock().is_owner(&item.uid);
        let policy = if !waiting.is_empty() && has_dependents {
            // The owner waits for all that is below it, so this one has to wait for its own dependents.
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        self.delete(item, policy).await
    }
}

impl Controller for GarbageCollector {
    const NAME: &'static str = "garbage-collector";
    const WORKERS: usize = 8;
    type Key = String;

    fn queue(&self) -> &Queue<String> {
        &self.queue
    }

    async fn reconcile(&self, uid: &String) -> Result<Again> {
        let Some(item) = self.item(uid) else {
            return Ok(Again::Never);
        };
        let work = self.graph.lock().decide(uid);
        match work {
            Work::Nothing => {}
            Work::Judge {
                unknown,
                waiting,
                solid,
            } => self.judge(&item, unknown, waiting, solid).await?,
            Work::Foreground { delete, release } => {
                for dependent in delete {
                    self.queue.add(dependent);
                }
                if release {
                    self.drop_finalizer(&item, FOREGROUND).await?;
                }
            }
            Work::Orphan { dependents } => {
                for dependent in dependents {
                    if let Some(dependent) = self.item(&dependent) {
                        self.drop_owners(&dependent, std::slice::from_ref(uid))
                            .await?;
                    }
                }
                self.drop_finalizer(&item, ORPHAN).await?;
            }
        }
        Ok(Again::Never)
    }
}
