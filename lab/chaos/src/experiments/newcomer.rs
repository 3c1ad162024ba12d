//! A pod that is started while something is broken: a copy of a workload's pod under another name and label, so that
//! it gets no traffic.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};

use crate::cluster::{Cluster, is_ready};
use crate::engine::Context;
use crate::error::{ChaosError, Result};
use crate::mesh::AGENT_STATUS;

/// Its name.
pub(super) const NAME: &str = "chaos-newcomer";

/// Deployments of the application whose pods carry a sidecar, by name.
pub(super) async fn workloads(cluster: &Cluster) -> Result<Vec<Deployment>> {
    let namespace = &cluster.namespace;
    let all = Api::<Deployment>::namespaced(cluster.client.clone(), namespace)
        .list(&ListParams::default())
        .await
        .map_err(ChaosError::kube(format!(
            "listing Deployments in {namespace}"
        )))?;
    let mut meshed: Vec<_> = all.items.into_iter().filter(is_meshed).collect();
    meshed.sort_by_key(ResourceExt::name_any);
    if meshed.is_empty() {
        return Err(ChaosError::Precondition(format!(
            "no Deployment in namespace {namespace} has a container istio-proxy in its pod template; apply Bookinfo first"
        )));
    }
    Ok(meshed)
}

fn is_meshed(deployment: &Deployment) -> bool {
    let template = deployment.spec.as_ref().map(|s| &s.template);
    let spec = template.and_then(|t| t.spec.as_ref());
    spec.is_some_and(|s| s.containers.iter().any(|c| c.name == "istio-proxy"))
}

/// Starts it; it is deleted at the end.
pub(super) async fn start(cx: &mut Context) -> Result<()> {
    let namespace = cx.cluster.namespace.clone();
    let like = workloads(&cx.cluster).await?.swap_remove(0);
    let template = like.spec.map(|s| s.template).unwrap_or_default();
    let annotations = template.metadata.and_then(|m| m.annotations);
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {
            "name": NAME,
            "labels": {"app": NAME, "version": "v1"},
            "annotations": annotations,
        },
        "spec": template.spec,
    }))
    .map_err(|e| ChaosError::Precondition(format!("copying the pod template: {e}")))?;
    let cluster = cx.cluster.clone();
    let in_namespace = namespace.clone();
    cx.undo(format!("pod {NAME} is gone"), async move {
        cluster.delete_pod(&in_namespace, NAME, Some(0)).await
    });
    Api::<Pod>::namespaced(cx.cluster.client.clone(), &namespace)
        .create(&PostParams::default(), &pod)
        .await
        .map_err(ChaosError::kube(format!("creating pod {namespace}/{NAME}")))?;
    Ok(())
}

/// Whether it is ready.
pub(super) async fn ready(cluster: &Cluster) -> Result<std::result::Result<(), String>> {
    let pod = get(cluster).await?;
    Ok(if is_ready(&pod) {
        Ok(())
    } else {
        let phase = pod.status.and_then(|s| s.phase);
        Err(format!(
            "pod {NAME} is {} and not ready",
            phase.unwrap_or_else(|| "Unknown".into())
        ))
    })
}

/// The line in which its sidecar says `phrase`, from its readiness answer or from its log.
pub(super) async fn says(
    cluster: &Cluster,
    phrase: &str,
) -> Result<std::result::Result<String, String>> {
    let pod = get(cluster).await?;
    if is_ready(&pod) {
        return Ok(Err(format!("pod {NAME} became ready")));
    }
    let namespace = &cluster.namespace;
    let mut answered = String::new();
    if let Ok(reply) = cluster
        .pod_get(namespace, NAME, AGENT_STATUS, "/healthz/ready")
        .await
    {
        answered = format!("status {}: {}", reply.status, reply.text());
        if let Some(line) = line_with(&reply.text(), phrase) {
            return Ok(Ok(format!("readiness {}: {line}", reply.status)));
        }
    }
    let log = cluster.logs(namespace, NAME, "istio-proxy").await?;
    Ok(match line_with(&log, phrase) {
        Some(line) => Ok(format!("log: {line}")),
        None => Err(format!("its readiness answers {answered:?}")),
    })
}

fn line_with(text: &str, phrase: &str) -> Option<String> {
    let phrase = phrase.to_lowercase();
    let line = text.lines().find(|l| l.to_lowercase().contains(&phrase))?;
    Some(line.trim().chars().take(240).collect())
}

async fn get(cluster: &Cluster) -> Result<Pod> {
    let namespace = &cluster.namespace;
    Api::<Pod>::namespaced(cluster.client.clone(), namespace)
        .get(NAME)
        .await
        .map_err(ChaosError::kube(format!("reading pod {namespace}/{NAME}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phrase_is_found_whatever_its_case_and_the_line_is_bounded() {
        let log = format!(
            "start\n  Config Not Received from Pilot {}\nend",
            "x".repeat(999)
        );
        let line = line_with(&log, "config not received from Pilot").expect("said");
        assert!(line.starts_with("Config Not Received"));
        assert_eq!(line.len(), 240);
        assert_eq!(line_with("all well", "config not received"), None);
    }
}
