//! The revisions of a StatefulSet: each template it ever had, kept as a ControllerRevision, for pods below the partition
//! and for `kubectl rollout history|undo`.
//!
//! Written by the controller alone. Read by kubectl, which applies `data` as a strategic merge patch.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};

use super::REVISION;
use super::plan::Revisions;
use crate::context::Context;
use crate::deployment::template_hash;
use crate::error::{During, Result, unless_gone};
use crate::owners::{claim_all, controller_reference};
use crate::runtime::store::Key;

/// More collisions of a name's hash than this are no accident.
const COLLISIONS: i32 = 10;

/// What a revision keeps of a template.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The template that a revision keeps.
pub(super) fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0["spec"]["template"].clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

fn holds(revision: &ControllerRevision, wanted: &Value) -> bool {
    revision.data.as_ref().is_some_and(|data| data.0 == *wanted)
}

/// All revisions of a set, the newest last.
pub(super) async fn all(
    context: &Context,
    set: &StatefulSet,
) -> Result<Vec<Arc<ControllerRevision>>> {
    let Some(spec) = set.spec.as_ref() else {
        return Ok(Vec::new());
    };
    let store = &context.stores.revisions;
    let mut mine = claim_all(&context.client, store, set, &spec.selector, |_| true).await?;
    mine.sort_by_key(|revision| (revision.revision, revision.name_any()));
    Ok(mine)
}

/// Finds or makes the revision of the template as it is now, and says which one was before.
pub(super) async fn sync(
    context: &Context,
    set: &StatefulSet,
    all: &mut Vec<Arc<ControllerRevision>>,
) -> Result<Revisions> {
    let spec = set.spec.clone().unwrap_or_default();
    let wanted = data(&spec.template);
    let newest = all.last().map_or(0, |revision| revision.revision);
    let update = match all.iter().rposition(|revision| holds(revision, &wanted)) {
        Some(index) if all[index].revision == newest => all[index].name_any(),
        Some(index) => {
            // Back to an older template: it becomes the newest.
            let raised = raise(context, &all[index], newest + 1).await?;
            all.remove(index);
            all.push(raised.clone());
            raised.name_any()
        }
        None => {
            let made = create(context, set, &spec.template, wanted, newest + 1).await?;
            all.push(made.clone());
            made.name_any()
        }
    };
    let before = set.status.as_ref().and_then(|s| s.current_revision.clone());
    let current = before.filter(|name| all.iter().any(|revision| revision.name_any() == *name));
    Ok(Revisions {
        current: current.unwrap_or_else(|| update.clone()),
        update,
    })
}

async fn raise(
    context: &Context,
    revision: &ControllerRevision,
    number: i64,
) -> Result<Arc<ControllerRevision>> {
    let key = Key::of(revision);
    let patch = json!({"metadata": {"uid": revision.uid()}, "revision": number});
    let raised = context
        .api::<ControllerRevision>(&key.namespace)
        .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .during(|| format!("make ControllerRevision {key} the newest"))?;
    context.stores.revisions.wrote(raised.clone());
    Ok(Arc::new(raised))
}

async fn create(
    context: &Context,
    set: &StatefulSet,
    template: &PodTemplateSpec,
    data: Value,
    number: i64,
) -> Result<Arc<ControllerRevision>> {
    let key = Key::of(set);
    let api = context.api::<ControllerRevision>(&key.namespace);
    let mut collisions = 0;
    loop {
        let name = format!("{}-{}", key.name, template_hash(template, collisions));
        let mut labels = template
            .metadata
            .as_ref()
            .and_then(|meta| meta.labels.clone())
            .unwrap_or_default();
        labels.insert(REVISION.to_owned(), name.clone());
        let revision = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(key.namespace.clone()),
                labels: Some(labels),
                owner_references: Some(vec![controller_reference(set)]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(data.clone())),
            revision: number,
        };
        let made = api
            .create(&PostParams::default(), &revision)
            .await
            .during(|| format!("create ControllerRevision {}/{name}", key.namespace));
        match made {
            Ok(made) => {
                context.stores.revisions.wrote(made.clone());
                return Ok(Arc::new(made));
            }
            // Of another template, or of another set: this name is taken.
            Err(error) if error.already_exists() && collisions < COLLISIONS => collisions += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Deletes the oldest revisions beyond the history limit that no pod was made from.
pub(super) async fn prune(
    context: &Context,
    set: &StatefulSet,
    all: &[Arc<ControllerRevision>],
    in_use: impl Fn(&str) -> bool,
) -> Result<()> {
    let limit = set.spec.as_ref().and_then(|s| s.revision_history_limit);
    let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
    let idle: Vec<_> = all.iter().filter(|r| !in_use(&r.name_any())).collect();
    for revision in &idle[..idle.len().saturating_sub(limit)] {
        let key = Key::of(revision.as_ref());
        let uid = revision.uid();
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let api = context.api::<ControllerRevision>(&key.namespace);
        unless_gone(
            api.delete(&key.name, &params)
                .await
                .during(|| format!("delete old ControllerRevision {key}")),
        )?;
        let removed = uid.unwrap_or_default();
        context.stores.revisions.removed(&key, &removed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_revision_keeps_the_template() {
        let template: PodTemplateSpec = serde_json::from_value(json!({
            "metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}
        }))
        .unwrap();
        let wanted = data(&template);
        let revision = ControllerRevision {
            data: Some(RawExtension(wanted.clone())),
            ..ControllerRevision::default()
        };
        assert!(holds(&revision, &wanted));
        assert_eq!(super::template(&revision), Some(template));
    }
}
