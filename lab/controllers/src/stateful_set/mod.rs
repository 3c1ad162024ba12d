//! StatefulSet → Pods with numbers: stable names, host names under the headless service, one after another.
//!
//! Every template is kept as a ControllerRevision ([`revision`]); [`plan`] decides, this file writes. A pod is never
//! renamed nor moved: an outdated or ended one is deleted and, once it is gone, made anew under the same name.
//! Claims for volumes are not offered; a set that asks for them is refused by name.

mod plan;
mod revision;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::ResourceExt;

use crate::context::Context;
use crate::error::{Error, Result, now};
use crate::owners::{claim_all, controller_key, controller_of, controller_reference};
use crate::pod_control::{PodControl, pod_from, usable};
use crate::runtime::driver::{Again, Controller};
use crate::runtime::queue::Queue;
use crate::runtime::store::Key;
use plan::Template;

const COMPONENT: &str = "statefulset-controller";
/// Tells which template a pod was made from.
const REVISION: &str = "controller-revision-hash";
/// The pod's own name, so that a service can select a single pod.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

pub(crate) struct StatefulSets {
    context: Arc<Context>,
    queue: Arc<Queue<Key>>,
}

/// The pod with a number, from a template.
fn pod_for(set: &StatefulSet, number: i32, template: &PodTemplateSpec, revision: &str) -> Pod {
    let namespace = set.namespace().unwrap_or_default();
    let mut pod = pod_from(template, "", &namespace, controller_reference(set));
    let name = format!("{}-{number}", set.name_any());
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    let labels = pod.labels_mut();
    labels.insert(REVISION.to_owned(), revision.to_owned());
    labels.insert(POD_NAME.to_owned(), name.clone());
    labels.insert(POD_INDEX.to_owned(), number.to_string());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain = set.spec.as_ref().and_then(|s| s.service_name.clone());
    pod
}

impl StatefulSets {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        let queue = Arc::new(Queue::new());
        let stores = &context.stores;
        let wake = queue.clone();
        stores.stateful_sets.on_change(move |_, new| {
            if let Some(set) = new {
                wake.add(Key::of(set.as_ref()));
            }
        });
        let wake = queue.clone();
        let sets = stores.stateful_sets.clone();
        stores.pods.on_change(move |old, new| {
            for pod in [old, new].into_iter().flatten() {
                if let Some(owner) = controller_key::<Pod, StatefulSet>(pod) {
                    wake.add(owner);
                }
            }
            // An orphan with the name of one of a set's pods stands in its way, or comes home.
            if let Some(orphan) = new.filter(|pod| controller_of(pod.as_ref()).is_none()) {
                let name = orphan.name_any();
                for set in sets.in_namespace(&orphan.namespace().unwrap_or_default()) {
                    if plan::ordinal(&set.name_any(), &name).is_some() {
                        wake.add(Key::of(set.as_ref()));
                    }
                }
            }
        });
        Self { context, queue }
    }

    async fn carry_out(
        &self,
        set: &StatefulSet,
        plan: &plan::Plan,
        revisions: &plan::Revisions,
        known: &[Arc<ControllerRevision>],
    ) -> Result<()> {
        let control = PodControl {
            context: &self.context,
            component: COMPONENT,
            owner: set,
        };
        control.delete_all(&plan.delete).await?;
        for (number, which) in &plan.create {
            let name = match which {
                Template::Current => &revisions.current,
                Template::Update => &revisions.update,
            };
            let kept = known.iter().find(|r| r.name_any() == *name);
            let template = kept.and_then(|revision| revision::template(revision));
            let Some(template) = template else {
                return Err(Error::Object {
                    object: format!("ControllerRevision {name}"),
                    field: "data",
                    problem: "is no revision of a StatefulSet; delete it, and the template as it is now counts".into(),
                });
            };
            let pod = pod_for(set, *number, &template, name);
            match control.create(&pod).await {
                // The old pod of that name is not quite gone; its end will be told.
                Err(error) if error.already_exists() => return Ok(()),
                made => drop(made?),
            }
        }
        Ok(())
    }
}

/// What this controller cannot do is refused whole: half a database would be worse.
fn supported(set: &StatefulSet, key: &Key) -> Result<()> {
    let spec = set.spec.as_ref();
    let claims = spec.and_then(|s| s.volume_claim_templates.as_ref());
    if claims.is_some_and(|claims| !claims.is_empty()) {
        return Err(Error::Object {
            object: format!("StatefulSet {key}"),
            field: "spec.volumeClaimTemplates",
            problem: "this lab has no volume claims; use an emptyDir or hostPath volume in spec.template.spec.volumes"
                .to_owned(),
        });
    }
    Ok(())
}

impl Controller for StatefulSets {
    const NAME: &'static str = "statefulset";
    type Key = Key;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> Result<Again> {
        let stores = &self.context.stores;
        let Some(set) = stores.stateful_sets.get(key) else {
            return Ok(Again::Never);
        };
        let Some(spec) = set.spec.as_ref() else {
            return Ok(Again::Never);
        };
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Again::Never);
        }
        usable(&spec.selector, || format!("StatefulSet {key}"))?;
        supported(&set, key)?;
        let client = &self.context.client;
        let is_ours = |pod: &Pod| plan::ordinal(&key.name, &pod.name_any()).is_some();
        let mine = claim_all(client, &stores.pods, set.as_ref(), &spec.selector, is_ours).await?;
        let mut known = revision::all(&self.context, &set).await?;
        let revisions = revision::sync(&self.context, &set, &mut known).await?;
        let plan = plan::plan(&set, &mine, &revisions, now().0);
        let done = self.carry_out(&set, &plan, &revisions, &known).await;
        if set.status.as_ref() != Some(&plan.status) {
            let mut changed = StatefulSet::clone(&set);
            changed.status = Some(plan.status.clone());
            let written = self.context.write_status(&stores.stateful_sets, &changed);
            written.await?;
        }
        done?;
        let in_use = |name: &str| {
            [&revisions.current, &revisions.update]
                .iter()
                .any(|r| *r == name)
                || mine
                    .iter()
                    .any(|pod| pod.labels().get(REVISION).is_some_and(|r| r == name))
        };
        revision::prune(&self.context, &set, &known, in_use).await?;
        Ok(Again::after(plan.again))
    }
}
