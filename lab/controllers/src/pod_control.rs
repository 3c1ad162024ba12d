//! The hand of workload controllers: makes and deletes pods of one owner, says so in its events, and takes the API
//! server's answers into the store, so that the next look is never behind what this one did.

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::core::params::PropagationPolicy;
use kube::{Resource, ResourceExt};

use crate::context::Context;
use crate::error::{During, Error, Result, unless_gone};
use crate::pods;
use crate::runtime::events::Kind;
use crate::runtime::store::Key;

/// See the module's description.
pub(crate) struct PodControl<'a, K> {
    pub(crate) context: &'a Context,
    /// As events name the controller.
    pub(crate) component: &'static str,
    pub(crate) owner: &'a K,
}

impl<K: Resource<DynamicType = ()>> PodControl<'_, K> {
    /// Makes a pod. `None`: the namespace is being emptied, which is no failure and needs no retry.
    pub(crate) async fn create(&self, pod: &Pod) -> Result<Option<Pod>> {
        let owner = Key::of(self.owner);
        let api = self.context.api::<Pod>(&owner.namespace);
        let made = api
            .create(&PostParams::default(), pod)
            .await
            .during(|| format!("create a pod for {} {owner}", K::kind(&())));
        match made {
            Ok(pod) => {
                let message = format!("Created pod: {}", pod.name_any());
                self.tell(Kind::Normal, "SuccessfulCreate", message);
                self.context.stores.pods.wrote(pod.clone());
                Ok(Some(pod))
            }
            Err(error) if error.namespace_is_terminating() => Ok(None),
            Err(error) => {
                let message = format!("Error creating: {}", error.cause());
                self.tell(Kind::Warning, "FailedCreate", message);
                Err(error)
            }
        }
    }

    /// Deletes exactly this pod, not a namesake.
    pub(crate) async fn delete(&self, pod: &Pod) -> Result<()> {
        match self.try_delete(pod).await {
            Ok(()) => {
                let message = format!("Deleted pod: {}", pod.name_any());
                self.tell(Kind::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Err(error) => {
                let message = format!("Error deleting: {}", error.cause());
                self.tell(Kind::Warning, "FailedDelete", message);
                Err(error)
            }
        }
    }

    /// Deletes all of them side by side; of several failures the last one is returned.
    pub(crate) async fn delete_all<P: AsRef<Pod>>(&self, doomed: &[P]) -> Result<()> {
        let results = join_all(doomed.iter().map(|pod| self.delete(pod.as_ref()))).await;
        results.into_iter().rfind(Result::is_err).unwrap_or(Ok(()))
    }

    async fn try_delete(&self, pod: &Pod) -> Result<()> {
        let key = Key::of(pod);
        let uid = pod.uid().unwrap_or_default();
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.clone()),
                resource_version: None,
            }),
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        let api = self.context.api::<Pod>(&key.namespace);
        let answer = unless_gone(
            api.delete(&key.name, &params)
                .await
                .during(|| format!("delete Pod {key}")),
        )?;
        let stores = &self.context.stores;
        match answer.and_then(|either| either.left()) {
            // Still there, with a deletion timestamp, until its node has stopped it.
            Some(pod) if pod.metadata.deletion_timestamp.is_some() => stores.pods.wrote(pod),
            _ => stores.pods.removed(&key, &uid),
        }
        Ok(())
    }

    fn tell(&self, kind: Kind, reason: &'static str, message: String) {
        let recorder = &self.context.recorder;
        recorder.record(self.owner, self.component, kind, reason, message);
    }
}

/// The pod a template describes, for a controller that owns it.
pub(crate) fn pod_from(
    template: &PodTemplateSpec,
    name_prefix: &str,
    namespace: &str,
    owner: OwnerReference,
) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(name_prefix.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// What every workload controller refuses: a selector that would take every pod of the namespace.
pub(crate) fn usable(selector: &LabelSelector, object: impl FnOnce() -> String) -> Result<()> {
    if pods::is_empty(selector) {
        return Err(Error::Object {
            object: object(),
            field: "spec.selector",
            problem: "is empty and would select every pod of the namespace; matchLabels or matchExpressions are needed"
                .to_owned(),
        });
    }
    Ok(())
}
