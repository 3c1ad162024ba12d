//! The writes of the Deployment controller: ReplicaSets, annotations, status.
//!
//! Every write is decided on a version and refused by the API server if that is no longer the newest; its answer goes
//! into the shared store and into the view, so that the next step of the same look builds on it.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use super::plan::{self, Resize};
use super::revision::{self, REVISION, TEMPLATE_HASH, set_replicas};
use super::status::{self, PROGRESSING};
use super::{COMPONENT, Deployments, View, all_sized};
use crate::error::{During, Error, Result, unless_gone};
use crate::owners::{controller_of, controller_reference};
use crate::runtime::events::Kind;
use crate::runtime::store::Key;

impl Deployments {
    /// Finds or makes the ReplicaSet of the current template and brings revision and annotations in line.
    pub(super) async fn sync_new(&self, view: &mut View, create: bool) -> Result<()> {
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

    pub(super) async fn resize(&self, view: &mut View, resize: &Resize) -> Result<()> {
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

    pub(super) async fn progress(
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

    pub(super) async fn write_status(&self, view: &View, status: DeploymentStatus) -> Result<()> {
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
        let mut changed = deployment.clone();
        changed.status = Some(status);
        let stores = &self.context.stores;
        let written = self.context.write_status(&stores.deployments, &changed);
        Ok(written.await?.map(Arc::new))
    }

    pub(super) async fn clean_up(&self, view: &View) -> Result<()> {
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
