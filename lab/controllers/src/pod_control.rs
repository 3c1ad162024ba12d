//! Deleting pods on behalf of workload controllers.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, Preconditions};
use kube::core::params::PropagationPolicy;

use crate::context::Context;
use crate::error::{During, Result, unless_gone};
use crate::runtime::store::Key;

/// Deletes exactly this pod, not a namesake, and takes the answer into the store.
pub(crate) async fn delete(context: &Context, pod: &Pod) -> Result<()> {
    let key = Key::of(pod);
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: pod.uid(),
            resource_version: None,
        }),
        propagation_policy: Some(PropagationPolicy::Background),
        ..DeleteParams::default()
    };
    let api = context.api::<Pod>(&key.namespace);
    let answer = unless_gone(
        api.delete(&key.name, &params)
            .await
            .during(|| format!("delete Pod {key}")),
    )?;
    match answer {
        // Still there, with a deletion timestamp, until its node has stopped it.
        Some(either) => match either.left() {
            Some(pod) if pod.metadata.deletion_timestamp.is_some() => {
                context.stores.pods.wrote(pod)
            }
            _ => context
                .stores
                .pods
                .removed(&key, &pod.uid().unwrap_or_default()),
        },
        None => context
            .stores
            .pods
            .removed(&key, &pod.uid().unwrap_or_default()),
    }
    Ok(())
}
