//! Deployment → ReplicaSets: rollouts, rollbacks, scaling, pausing, history, and the status users watch.
//!
//! One look: claim the ReplicaSets, find that of the current template, then take exactly one step (`plan`), write the
//! status (`status`) and wait for the ReplicaSets' own status to change. Every step is derived from what is stored, so
//! a restart in the middle of a rollout goes on where it was.

mod apply;
mod plan;
mod revision;
mod status;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::context::Context;
use crate::error::Result;
use crate::owners::{claim_all, controller_key, controller_of};
use crate::pod_control::usable;
use crate::pods;
use crate::runtime::driver::{Again, Controller};
use crate::runtime::queue::Queue;
use crate::runtime::store::Key;
use plan::{Goal, Resize, Set};
pub(crate) use plan::{fence_posts, resolve};
pub(crate) use revision::template_hash;
use revision::{replicas, set_replicas};
use status::PROGRESSING;

const COMPONENT: &str = "deployment-controller";

pub(crate) struct Deployments {
    context: Arc<Context>,
    queue: Arc<Queue<Key>>,
}

/// A Deployment with its ReplicaSets at one look.
struct View {
    deployment: Arc<Deployment>,
    goal: Goal,
    new: Option<Arc<ReplicaSet>>,
    old: Vec<Arc<ReplicaSet>>,
}

impl View {
    fn all(&self) -> Vec<Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new).cloned().collect()
    }

    fn max_replicas(&self) -> i32 {
        self.goal.replicas + self.goal.max_surge
    }

    fn paused(&self) -> bool {
        self.deployment
            .spec
            .as_ref()
            .and_then(|s| s.paused)
            .unwrap_or(false)
    }

    fn min_ready(&self) -> Option<i32> {
        self.deployment
            .spec
            .as_ref()
            .and_then(|s| s.min_ready_seconds)
    }

    fn set_named(&self, name: &str) -> Option<&Arc<ReplicaSet>> {
        self.old
            .iter()
            .chain(&self.new)
            .find(|s| s.name_any() == name)
    }
}

fn goal(deployment: &Deployment) -> Goal {
    let replicas = replicas(deployment);
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    let rolling = strategy
        .and_then(|s| s.type_.as_deref())
        .unwrap_or("RollingUpdate")
        == "RollingUpdate";
    let (max_surge, max_unavailable) = if rolling {
        let fences = strategy.and_then(|s| s.rolling_update.as_ref());
        plan::fence_posts(
            fences.and_then(|f| f.max_surge.as_ref()),
            fences.and_then(|f| f.max_unavailable.as_ref()),
            replicas,
        )
    } else {
        (0, 0)
    };
    let status_replicas = deployment
        .status
        .as_ref()
        .and_then(|s| s.replicas)
        .unwrap_or(0);
    Goal {
        replicas,
        max_surge,
        max_unavailable,
        rolling,
        status_replicas,
    }
}

fn sized(set: &ReplicaSet) -> Set {
    let annotation = |key: &str| set.annotations().get(key).and_then(|v| v.parse().ok());
    Set {
        name: set.name_any(),
        created: set
            .creation_timestamp()
            .map_or(Timestamp::UNIX_EPOCH, |t| t.0),
        wanted: set_replicas(set),
        available: set
            .status
            .as_ref()
            .and_then(|s| s.available_replicas)
            .unwrap_or(0),
        desired_annotation: annotation(revision::DESIRED),
        max_annotation: annotation(revision::MAX),
    }
}

fn all_sized(sets: &[Arc<ReplicaSet>]) -> Vec<Set> {
    sets.iter().map(|s| sized(s)).collect()
}

impl Deployments {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        let queue = Arc::new(Queue::new());
        let wake = queue.clone();
        context.stores.deployments.on_change(move |old, new| {
            if let Some(deployment) = new.or(old) {
                wake.add(Key::of(deployment.as_ref()));
            }
        });
        let wake = queue.clone();
        let deployments = context.stores.deployments.clone();
        context.stores.replica_sets.on_change(move |old, new| {
            for set in [old, new].into_iter().flatten() {
                if let Some(owner) = controller_key::<ReplicaSet, Deployment>(set) {
                    wake.add(owner);
                }
            }
            if let Some(orphan) = new.filter(|set| controller_of(set.as_ref()).is_none()) {
                for deployment in deployments.in_namespace(&orphan.namespace().unwrap_or_default())
                {
                    if deployment.spec.as_ref().is_some_and(|s| {
                        pods::selects(&s.selector, orphan.metadata.labels.as_ref())
                    }) {
                        wake.add(Key::of(deployment.as_ref()));
                    }
                }
            }
        });
        // Strategy Recreate waits for the last old pod: its end must wake the Deployment.
        let wake = queue.clone();
        let sets = context.stores.replica_sets.clone();
        let deployments = context.stores.deployments.clone();
        context.stores.pods.on_change(move |old, new| {
            let ended = new.is_none_or(|pod| pods::is_finished(pod));
            let Some(pod) = old.or(new).filter(|_| ended) else {
                return;
            };
            let owner = controller_key::<Pod, ReplicaSet>(pod)
                .and_then(|key| sets.get(&key))
                .and_then(|set| controller_key::<ReplicaSet, Deployment>(set.as_ref()));
            if let Some(key) = owner
                && deployments.get(&key).is_some_and(|d| !goal(&d).rolling)
            {
                wake.add(key);
            }
        });
        Self { context, queue }
    }

    async fn view(&self, deployment: Arc<Deployment>) -> Result<View> {
        let selector = deployment
            .spec
            .as_ref()
            .map(|s| s.selector.clone())
            .unwrap_or_default();
        let store = &self.context.stores.replica_sets;
        let sets = claim_all(
            &self.context.client,
            store,
            deployment.as_ref(),
            &selector,
            |_| true,
        )
        .await?;
        let (new, old) = revision::split(&deployment, sets);
        Ok(View {
            goal: goal(&deployment),
            deployment,
            new,
            old,
        })
    }

    /// One step of whatever is due.
    async fn advance(&self, mut view: View) -> Result<Again> {
        if view.deployment.metadata.deletion_timestamp.is_some() {
            return self
                .write_status(&view, Self::still(&view))
                .await
                .map(|()| Again::Never);
        }
        self.note_pause(&mut view).await?;
        let resized = view.all().iter().any(|s| {
            set_replicas(s) > 0
                && sized(s)
                    .desired_annotation
                    .is_some_and(|d| d != view.goal.replicas)
        });
        if view.paused() || resized {
            // Only the size may change; the template waits for the resume.
            self.sync_new(&mut view, false).await?;
            for resize in plan::scale(
                &view.goal,
                view.new.as_deref().map(sized).as_ref(),
                &all_sized(&view.old),
            ) {
                self.resize(&mut view, &resize).await?;
            }
            if view.paused() {
                self.clean_up(&view).await?;
                self.write_status(&view, Self::still(&view)).await?;
                return Ok(Again::Never);
            }
        }
        if view.goal.rolling {
            self.roll(&mut view).await?;
        } else {
            self.recreate(&mut view).await?;
        }
        self.finish(&view).await
    }

    /// Pausing stops the deadline's clock, resuming starts it again.
    async fn note_pause(&self, view: &mut View) -> Result<()> {
        let conditions = view
            .deployment
            .status
            .as_ref()
            .and_then(|s| s.conditions.as_deref())
            .unwrap_or_default();
        let reason = status::find(conditions, PROGRESSING).and_then(|c| c.reason.as_deref());
        match (view.paused(), reason) {
            (_, Some("ProgressDeadlineExceeded")) => Ok(()),
            (true, Some("DeploymentPaused")) => Ok(()),
            (true, _) => {
                self.progress(view, "Unknown", "DeploymentPaused", "Deployment is paused")
                    .await
            }
            (false, Some("DeploymentPaused")) => {
                self.progress(
                    view,
                    "Unknown",
                    "DeploymentResumed",
                    "Deployment is resumed",
                )
                .await
            }
            (false, _) => Ok(()),
        }
    }

    async fn roll(&self, view: &mut View) -> Result<()> {
        self.sync_new(view, true).await?;
        let Some(new) = view.new.clone() else {
            return Ok(());
        };
        let wanted = plan::new_set_size(&view.goal, set_replicas(&new), &all_sized(&view.old));
        if wanted != set_replicas(&new) {
            return self
                .resize(
                    view,
                    &Resize {
                        name: new.name_any(),
                        to: wanted,
                    },
                )
                .await;
        }
        for resize in plan::shrink_old(&view.goal, &sized(&new), &all_sized(&view.old)) {
            self.resize(view, &resize).await?;
        }
        Ok(())
    }

    /// Everything old goes before anything new comes.
    async fn recreate(&self, view: &mut View) -> Result<()> {
        self.sync_new(view, false).await?;
        let olds: Vec<_> = view
            .old
            .iter()
            .filter(|s| set_replicas(s) > 0)
            .map(|s| s.name_any())
            .collect();
        for name in &olds {
            self.resize(
                view,
                &Resize {
                    name: name.clone(),
                    to: 0,
                },
            )
            .await?;
        }
        if !olds.is_empty() || self.old_pods_run(view) {
            return Ok(());
        }
        self.sync_new(view, true).await?;
        if let Some(new) = view.new.clone()
            && set_replicas(&new) != view.goal.replicas
        {
            self.resize(
                view,
                &Resize {
                    name: new.name_any(),
                    to: view.goal.replicas,
                },
            )
            .await?;
        }
        Ok(())
    }

    /// Old pods count until they are gone: a pod that is still stopping holds its ports and volumes.
    fn old_pods_run(&self, view: &View) -> bool {
        let uids: Vec<_> = view.old.iter().filter_map(|s| s.uid()).collect();
        let namespace = view.deployment.namespace().unwrap_or_default();
        self.context
            .stores
            .pods
            .in_namespace(&namespace)
            .iter()
            .any(|pod| {
                !pods::is_finished(pod)
                    && controller_of(pod.as_ref()).is_some_and(|owner| uids.contains(&owner.uid))
            })
    }

    async fn finish(&self, view: &View) -> Result<Again> {
        let (status, next) = status::rollout(
            &view.deployment,
            view.new.as_deref(),
            &view.all(),
            view.goal.max_unavailable,
            Timestamp::now(),
        );
        if status::is_complete(&view.deployment, &status) {
            self.clean_up(view).await?;
        }
        self.write_status(view, status).await?;
        Ok(Again::after(next))
    }

    fn still(view: &View) -> DeploymentStatus {
        let now = Timestamp::now();
        status::still(
            &view.deployment,
            view.new.as_deref(),
            &view.all(),
            view.goal.max_unavailable,
            now,
        )
    }
}

impl Controller for Deployments {
    const NAME: &'static str = "deployment";
    const WORKERS: usize = 4;
    type Key = Key;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> Result<Again> {
        let Some(deployment) = self.context.stores.deployments.get(key) else {
            return Ok(Again::Never);
        };
        let Some(spec) = deployment.spec.as_ref() else {
            return Ok(Again::Never);
        };
        usable(&spec.selector, || format!("Deployment {key}"))?;
        let view = self.view(deployment.clone()).await?;
        self.advance(view).await
    }
}
