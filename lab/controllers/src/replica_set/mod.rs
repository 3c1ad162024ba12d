//! ReplicaSet → Pods: as many pods as asked for, made through the API so that admission webhooks see every one.
//!
//! Reads pods and ReplicaSets from the shared stores; its own writes go back into them at once, so the count it acts on
//! is never behind what it did itself. Creation starts with one pod and doubles, so that a refusing webhook costs one
//! call per try and not one per replica.

mod rank;
mod status;

use std::sync::Arc;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::owners::{claim_all, controller_key, controller_of, controller_reference};
use crate::pod_control::{PodControl, pod_from, usable};
use crate::pods;
use crate::runtime::driver::{Again, Controller};
use crate::runtime::queue::Queue;
use crate::runtime::store::Key;
use status::Failure;

const COMPONENT: &str = "replicaset-controller";
/// At most this many pods are created or deleted per look.
const BURST: usize = 500;

pub(crate) struct ReplicaSets {
    context: Arc<Context>,
    queue: Arc<Queue<Key>>,
}

impl ReplicaSets {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        let queue = Arc::new(Queue::new());
        let wake = queue.clone();
        context.stores.replica_sets.on_change(move |old, new| {
            if let Some(set) = new.or(old) {
                wake.add(Key::of(set.as_ref()));
            }
        });
        let wake = queue.clone();
        let sets = context.stores.replica_sets.clone();
        context.stores.pods.on_change(move |old, new| {
            for pod in [old, new].into_iter().flatten() {
                if let Some(owner) = controller_key::<Pod, ReplicaSet>(pod) {
                    wake.add(owner);
                }
            }
            // An orphan may be adopted by whoever selects it.
            if let Some(orphan) =
                new.filter(|pod| controller_of(pod.as_ref()).is_none() && pods::is_active(pod))
            {
                for set in sets.in_namespace(&orphan.namespace().unwrap_or_default()) {
                    if set.spec.as_ref().is_some_and(|s| {
                        pods::selects(&s.selector, orphan.metadata.labels.as_ref())
                    }) {
                        wake.add(Key::of(set.as_ref()));
                    }
                }
            }
        });
        Self { context, queue }
    }

    /// Brings the number of pods to what is asked; returns the pods there are then and what went wrong.
    async fn manage(
        &self,
        set: &ReplicaSet,
        active: Vec<Arc<Pod>>,
    ) -> (Vec<Arc<Pod>>, Option<Error>, Option<Failure>) {
        let wanted =
            usize::try_from(set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)).unwrap_or(0);
        if active.len() < wanted {
            let (created, error) = self.create(set, (wanted - active.len()).min(BURST)).await;
            let failure = error.as_ref().map(|e| Failure {
                reason: "FailedCreate",
                message: e.cause(),
            });
            (active.into_iter().chain(created).collect(), error, failure)
        } else if active.len() > wanted {
            let surplus = (active.len() - wanted).min(BURST);
            let doomed = rank::to_delete(active.clone(), surplus, Timestamp::now());
            let error = self.control(set).delete_all(&doomed).await.err();
            let failure = error.as_ref().map(|e| Failure {
                reason: "FailedDelete",
                message: e.cause(),
            });
            let left = active
                .into_iter()
                .filter_map(|pod| self.context.stores.pods.get(&Key::of(pod.as_ref())))
                .filter(|pod| pods::is_active(pod))
                .collect();
            (left, error, failure)
        } else {
            (active, None, None)
        }
    }

    async fn create(&self, set: &ReplicaSet, missing: usize) -> (Vec<Arc<Pod>>, Option<Error>) {
        let namespace = set.namespace().unwrap_or_default();
        let Some(template) = set.spec.as_ref().and_then(|s| s.template.as_ref()) else {
            return (Vec::new(), None);
        };
        let pod = pod_from(
            template,
            &format!("{}-", set.name_any()),
            &namespace,
            controller_reference(set),
        );
        let control = self.control(set);
        let mut created = Vec::new();
        let mut batch = 1;
        while created.len() < missing {
            let size = batch.min(missing - created.len());
            let results = join_all((0..size).map(|_| control.create(&pod))).await;
            let (mut failure, mut terminating) = (None, false);
            for result in results {
                match result {
                    Ok(Some(pod)) => created.push(Arc::new(pod)),
                    Ok(None) => terminating = true,
                    Err(error) => failure = Some(error),
                }
            }
            if terminating || failure.is_some() {
                return (created, failure);
            }
            batch *= 2;
        }
        (created, None)
    }

    fn control<'a>(&'a self, set: &'a ReplicaSet) -> PodControl<'a, ReplicaSet> {
        PodControl {
            context: &self.context,
            component: COMPONENT,
            owner: set,
        }
    }
}

impl Controller for ReplicaSets {
    const NAME: &'static str = "replicaset";
    const WORKERS: usize = 4;
    type Key = Key;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> Result<Again> {
        let Some(set) = self.context.stores.replica_sets.get(key) else {
            return Ok(Again::Never);
        };
        let Some(spec) = set.spec.as_ref() else {
            return Ok(Again::Never);
        };
        usable(&spec.selector, || format!("ReplicaSet {key}"))?;
        let pods = &self.context.stores.pods;
        let mine = claim_all(
            &self.context.client,
            pods,
            set.as_ref(),
            &spec.selector,
            |pod| !pods::is_finished(pod),
        )
        .await?;
        let mut active: Vec<_> = mine
            .into_iter()
            .filter(|pod| pods::is_active(pod))
            .collect();
        let (mut error, mut failure) = (None, None);
        if set.metadata.deletion_timestamp.is_none() {
            (active, error, failure) = self.manage(&set, active).await;
        }
        let (status, next) = status::status(&set, &active, failure.as_ref(), Timestamp::now());
        if set.status.as_ref() != Some(&status) {
            let mut changed = ReplicaSet::clone(&set);
            changed.status = Some(status);
            let stores = &self.context.stores;
            let written = self.context.write_status(&stores.replica_sets, &changed);
            written.await?;
        }
        match error {
            Some(error) => Err(error),
            None => Ok(Again::after(next)),
        }
    }
}
