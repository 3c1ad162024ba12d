//! Changing the number of replicas of a Deployment, and undoing it, also where an autoscaler watches.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};

use crate::cluster::Cluster;
use crate::engine::Context;
use crate::error::{ChaosError, Result};

/// Longest wait for replicas to be there.
pub(super) const AVAILABLE_WITHIN: Duration = Duration::from_secs(60);

/// Puts "scale back to what it is now" on the undo list and returns that number.
pub(super) async fn remember(cx: &mut Context, namespace: &str, name: &str) -> Result<i32> {
    let deployment = cx.cluster.deployment(namespace, name).await?;
    let replicas = deployment.spec.and_then(|s| s.replicas).unwrap_or(1);
    let (cluster, ns, n) = (cx.cluster.clone(), namespace.to_owned(), name.to_owned());
    cx.undo(format!("{name} has {replicas} replicas"), async move {
        cluster.scale(&ns, &n, replicas).await?;
        cluster.available(&ns, &n, replicas, AVAILABLE_WITHIN).await
    });
    Ok(replicas)
}

/// Brings a Deployment to at least `wanted` available replicas for the time of the experiment; an autoscaler's minimum
/// is raised with it, else it would take the added replicas away again. Returns the number there are now.
pub(super) async fn at_least(
    cx: &mut Context,
    namespace: &str,
    name: &str,
    wanted: i32,
) -> Result<i32> {
    let now = remember(cx, namespace, name).await?;
    if now < wanted {
        raise_autoscaler(cx, namespace, name, wanted).await?;
        cx.cluster.scale(namespace, name, wanted).await?;
    }
    Ok(now.max(wanted))
}

async fn raise_autoscaler(
    cx: &mut Context,
    namespace: &str,
    deployment: &str,
    wanted: i32,
) -> Result<()> {
    let api = Api::<HorizontalPodAutoscaler>::namespaced(cx.cluster.client.clone(), namespace);
    let what = format!("listing HorizontalPodAutoscalers in {namespace}");
    let all = match api.list(&ListParams::default()).await {
        Ok(all) => all,
        // A cluster without this API has no autoscaler that could interfere.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(e) => return Err(ChaosError::kube(what)(e)),
    };
    for hpa in all {
        let Some(spec) = &hpa.spec else { continue };
        let minimum = spec.min_replicas.unwrap_or(1);
        if spec.scale_target_ref.name != deployment
            || spec.scale_target_ref.kind != "Deployment"
            || minimum >= wanted
        {
            continue;
        }
        let name = hpa.name_any();
        let (cluster, ns, n) = (cx.cluster.clone(), namespace.to_owned(), name.clone());
        cx.undo(
            format!("autoscaler {name} has minReplicas {minimum}"),
            async move { set_minimum(&cluster, &ns, &n, minimum).await },
        );
        set_minimum(&cx.cluster, namespace, &name, wanted).await?;
    }
    Ok(())
}

async fn set_minimum(cluster: &Cluster, namespace: &str, name: &str, minimum: i32) -> Result<()> {
    let patch = serde_json::json!({"spec": {"minReplicas": minimum}});
    Api::<HorizontalPodAutoscaler>::namespaced(cluster.client.clone(), namespace)
        .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map_err(ChaosError::kube(format!(
            "setting minReplicas of HorizontalPodAutoscaler {namespace}/{name} to {minimum}"
        )))?;
    Ok(())
}
