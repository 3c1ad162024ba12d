//! Deployment → ReplicaSets: rollouts, rollbacks, scaling, pausing, history, and the status users watch.
//!
//! One look: claim the ReplicaSets, find that of the current template, then take exactly one step (`plan`), write the
//! status (`status`) and wait for the ReplicaSets' own status to change. Every step is derived from what is stored, so
//! a restart in the middle of a rollout goes on where it was.

mod plan;
mod revision;
mod status;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use crate::context::Context;
use crate::error::{During, Error, Result, unless_gone};
use crate::owners::{claim_all, controller_key, controller_of, controller_reference};
use crate::pods;
use crate::replica_set::usable;
use crate::runtime::driver::{Again, Controller};
use crate::runtime::events::Kind;
use crate::runtime::queue::Queue;
use crate::runtime::store::Key;
pub(crate) use plan::resolve;
use plan::{Goal, Resize, Set};
use revision::{REVISION, TEMPLATE_HASH, replicas, set_replicas};
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

    /// Finds or makes the ReplicaSet of the current template and brings revision and annotations in line.
    async fn sync_new(&self, view: &mut View, create: bool) -> Result<()> {
        let newest_old = view
            .old
            .iter()
            .map(|s| revision::revision(s.annotations()))
            .max()
            .unwrap_or(0);
        let next_revision = newest_old + 1;
        match view.new.clone() {
            Some(set) => self.refresh_new(view, &set, next_revision).await?,
            None if create => self.create_new(view, next_revision).await?,
            None => return Ok(()),
        }
        let Some(number) = view
            .new
            .as_ref()
            .and_then(|s| s.annotations().get(REVISION).cloned())
        else {
            return Ok(());
        };
        if view.deployment.annotations().get(REVISION) != Some(&number) {
            let patch = json!({"metadata": {"annotations": {REVISION: number}}});
            self.patch_deployment(view, patch).await?;
        }
        Ok(())
    }

    async fn refresh_new(
        &self,
        view: &mut View,
        set: &Arc<ReplicaSet>,
        next_revision: i64,
    ) -> Result<()> {
        let wanted = revision::annotations(
            &view.deployment,
            set.annotations(),
            next_revision,
            view.max_replicas(),
        );
        let min_ready = view.min_ready();
        let same_min_ready = set
            .spec
            .as_ref()
            .and_then(|s| s.min_ready_seconds)
            .unwrap_or(0)
            == min_ready.unwrap_or(0);
        // The size annotations travel with a resize: they say what the set was last sized for.
        let mut compared = wanted.clone();
        for key in [revision::DESIRED, revision::MAX] {
            match set.annotations().get(key) {
                Some(value) => compared.insert(key.to_owned(), value.clone()),
                None => compared.remove(key),
            };
        }
        if compared != *set.annotations() || !same_min_ready {
            let patch = json!({"metadata": {"annotations": compared}, "spec": {"minReadySeconds": min_ready}});
            self.patch_set(view, set, patch).await?;
        }
        self.progressing_since(
            view,
            "FoundNewReplicaSet",
            &format!("Found new replica set \"{}\"", set.name_any()),
        )
        .await
    }

    async fn create_new(&self, view: &mut View, next_revision: i64) -> Result<()> {
        let deployment = view.deployment.clone();
        let Some(spec) = deployment.spec.as_ref() else {
            return Ok(());
        };
        let namespace = deployment.namespace().unwrap_or_default();
        let collisions = deployment
            .status
            .as_ref()
            .and_then(|s| s.collision_count)
            .unwrap_or(0);
        let hash = revision::template_hash(&spec.template, collisions);
        let name = format!("{}-{hash}", deployment.name_any());
        let mut template = spec.template.clone();
        let meta = template.metadata.get_or_insert_default();
        meta.labels
            .get_or_insert_default()
            .insert(TEMPLATE_HASH.to_owned(), hash.clone());
        let labels = meta.labels.clone();
        let mut selector = spec.selector.clone();
        selector
            .match_labels
            .get_or_insert_default()
            .insert(TEMPLATE_HASH.to_owned(), hash);
        let size = plan::new_set_size(&view.goal, 0, &all_sized(&view.old));
        let empty = std::collections::BTreeMap::new();
        let set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.clone()),
                labels,
                annotations: Some(revision::annotations(
                    &deployment,
                    &empty,
                    next_revision,
                    view.max_replicas(),
                )),
                owner_references: Some(vec![controller_reference(deployment.as_ref())]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                min_ready_seconds: spec.min_ready_seconds,
                replicas: Some(size),
                selector,
                template: Some(template),
            }),
            status: None,
        };
        let api = self.context.api::<ReplicaSet>(&namespace);
        let created = api.create(&PostParams::default(), &set).await.during(|| {
            format!(
                "create ReplicaSet {namespace}/{name} for Deployment {}",
                deployment.name_any()
            )
        });
        match created {
            Ok(created) => {
                self.context.stores.replica_sets.wrote(created.clone());
                view.new = Some(Arc::new(created));
                if size > 0 {
                    self.scaling_event(&deployment, "up", &name, 0, size);
                }
                let message = format!("Created new replica set \"{name}\"");
                self.progress(view, "True", "NewReplicaSetCreated", &message)
                    .await
            }
            Err(error) if error.already_exists() => self.collide(view, &name, error).await,
            Err(error) if error.namespace_is_terminating() => Ok(()),
            Err(error) => {
                let message = format!(
                    "Failed to create new replica set \"{name}\": {}",
                    error.cause()
                );
                self.progress(view, "False", "ReplicaSetCreateError", &message)
                    .await?;
                Err(error)
            }
        }
    }

    /// The name is taken: by our own set that the store does not show yet, or by another template with the same hash.
    async fn collide(&self, view: &mut View, name: &str, error: Error) -> Result<()> {
        let namespace = view.deployment.namespace().unwrap_or_default();
        let api = self.context.api::<ReplicaSet>(&namespace);
        let existing = api
            .get(name)
            .await
            .during(|| format!("read ReplicaSet {namespace}/{name}"))?;
        let ours = controller_of(&existing)
            .is_some_and(|o| Some(&o.uid) == view.deployment.metadata.uid.as_ref());
        let same = existing
            .spec
            .as_ref()
            .and_then(|s| s.template.as_ref())
            .zip(view.deployment.spec.as_ref())
            .is_some_and(|(template, spec)| revision::same_template(template, &spec.template));
        if ours && same {
            self.context.stores.replica_sets.wrote(existing.clone());
            view.new = Some(Arc::new(existing));
            return Ok(());
        }
        let mut status = view.deployment.status.clone().unwrap_or_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        self.write_status(view, status).await?;
        // The next try uses another hash.
        Err(error)
    }

    async fn resize(&self, view: &mut View, resize: &Resize) -> Result<()> {
        let Some(set) = view.set_named(&resize.name).cloned() else {
            return Ok(());
        };
        let from = set_replicas(&set);
        let mut annotations = set.annotations().clone();
        revision::size_annotations(&mut annotations, view.goal.replicas, view.max_replicas());
        if from == resize.to && annotations == *set.annotations() {
            return Ok(());
        }
        let patch =
            json!({"metadata": {"annotations": annotations}, "spec": {"replicas": resize.to}});
        self.patch_set(view, &set, patch).await?;
        if from != resize.to {
            let direction = if resize.to > from { "up" } else { "down" };
            self.scaling_event(&view.deployment, direction, &resize.name, from, resize.to);
        }
        Ok(())
    }

    fn scaling_event(
        &self,
        deployment: &Deployment,
        direction: &str,
        set: &str,
        from: i32,
        to: i32,
    ) {
        let message = format!("Scaled {direction} replica set {set} from {from} to {to}");
        self.context.recorder.record(
            deployment,
            COMPONENT,
            Kind::Normal,
            "ScalingReplicaSet",
            message,
        );
    }

    async fn patch_set(
        &self,
        view: &mut View,
        set: &Arc<ReplicaSet>,
        mut patch: serde_json::Value,
    ) -> Result<()> {
        // Decided on this version; if it is no longer the newest, decide again.
        patch["metadata"]["resourceVersion"] = json!(set.resource_version());
        let key = Key::of(set.as_ref());
        let api = self.context.api::<ReplicaSet>(&key.namespace);
        let written = api
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .during(|| format!("change ReplicaSet {key}"))?;
        self.context.stores.replica_sets.wrote(written.clone());
        let written = Arc::new(written);
        for slot in view.old.iter_mut().chain(&mut view.new) {
            if slot.name_any() == key.name {
                *slot = written.clone();
            }
        }
        Ok(())
    }

    async fn patch_deployment(&self, view: &mut View, patch: serde_json::Value) -> Result<()> {
        let key = Key::of(view.deployment.as_ref());
        let written = self
            .context
            .api::<Deployment>(&key.namespace)
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .during(|| format!("annotate Deployment {key}"))?;
        self.context.stores.deployments.wrote(written.clone());
        view.deployment = Arc::new(written);
        Ok(())
    }

    /// A Deployment without a Progressing condition gets one: the deadline needs a start.
    async fn progressing_since(&self, view: &mut View, reason: &str, message: &str) -> Result<()> {
        let conditions = view
            .deployment
            .status
            .as_ref()
            .and_then(|s| s.conditions.as_deref())
            .unwrap_or_default();
        if status::find(conditions, PROGRESSING).is_some() {
            return Ok(());
        }
        self.progress(view, "True", reason, message).await
    }

    async fn progress(
        &self,
        view: &mut View,
        value: &str,
        reason: &str,
        message: &str,
    ) -> Result<()> {
        if status::deadline(&view.deployment).is_none() {
            return Ok(());
        }
        let mut status = view.deployment.status.clone().unwrap_or_default();
        let conditions = status.conditions.get_or_insert_default();
        status::set(
            conditions,
            status::condition(PROGRESSING, value, reason, message, Timestamp::now()),
        );
        let changed = self.put_status(&view.deployment, status).await?;
        if let Some(changed) = changed {
            view.deployment = changed;
        }
        Ok(())
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

    async fn write_status(&self, view: &View, status: DeploymentStatus) -> Result<()> {
        self.put_status(&view.deployment, status).await.map(|_| ())
    }

    async fn put_status(
        &self,
        deployment: &Deployment,
        status: DeploymentStatus,
    ) -> Result<Option<Arc<Deployment>>> {
        if deployment.status.as_ref() == Some(&status) {
            return Ok(None);
        }
        let key = Key::of(deployment);
        let mut changed = deployment.clone();
        changed.status = Some(status);
        let written = unless_gone(
            self.context
                .api::<Deployment>(&key.namespace)
                .replace_status(&key.name, &PostParams::default(), &changed)
                .await
                .during(|| format!("write the status of Deployment {key}")),
        )?;
        if let Some(written) = &written {
            self.context.stores.deployments.wrote(written.clone());
        }
        Ok(written.map(Arc::new))
    }

    async fn clean_up(&self, view: &View) -> Result<()> {
        for set in revision::expired(&view.deployment, &view.old) {
            let key = Key::of(set.as_ref());
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: set.uid(),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            let api = self.context.api::<ReplicaSet>(&key.namespace);
            unless_gone(
                api.delete(&key.name, &params)
                    .await
                    .during(|| format!("delete old ReplicaSet {key}")),
            )?;
        }
        Ok(())
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
