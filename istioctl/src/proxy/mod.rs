//! `proxy-status` and `proxy-config`: Pilot's view of every proxy, and each Envoy's own.
//!
//! Both ask through the API server's port-forward: Pilot on 8080, Envoy's admin interface on 15000. Columns, order and
//! cell words are those of Istio 1.4 (istioctl/pkg/writer), because scripts read them.

use anyhow::{Context as _, bail};
use kube::ResourceExt as _;
use lab_chaos::cluster::{Cluster, is_running};

mod config;
mod dump;
mod status;

pub(crate) use config::{ConfigCommand, config};
pub(crate) use status::{StatusArgs, status};

/// The pod that an argument means: `POD`, `POD.NAMESPACE`, or `deploy/NAME` for any running pod of a Deployment.
pub(crate) async fn resolve(argument: &str, cluster: &Cluster) -> anyhow::Result<(String, String)> {
    let Some((kind, name)) = argument.split_once('/') else {
        return Ok(pod_and_namespace(argument, &cluster.namespace));
    };
    let (name, namespace) = pod_and_namespace(name, &cluster.namespace);
    match kind {
        "pod" | "pods" | "po" => return Ok((name, namespace)),
        "deploy" | "deployment" | "deployments" => {}
        other => bail!("{argument}: pods and deployments have proxies, {other:?} is neither"),
    }
    let spec = cluster.deployment(&namespace, &name).await?.spec;
    let labels = spec
        .and_then(|s| s.selector.match_labels)
        .unwrap_or_default();
    let selector: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let pods = cluster.pods(&namespace, &selector.join(",")).await?;
    let running = pods.iter().find(|pod| is_running(pod));
    let pod =
        running.with_context(|| format!("Deployment {namespace}/{name} has no running pod"))?;
    Ok((pod.name_any(), namespace))
}

/// `name.namespace` splits at the last dot; without one the given namespace is meant.
fn pod_and_namespace(argument: &str, namespace: &str) -> (String, String) {
    match argument.rsplit_once('.') {
        Some((pod, namespace)) => (pod.to_owned(), namespace.to_owned()),
        None => (argument.to_owned(), namespace.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_last_dot_splits() {
        let split = |a| super::pod_and_namespace(a, "default");
        assert_eq!(split("a"), ("a".into(), "default".into()));
        assert_eq!(split("a.b"), ("a".into(), "b".into()));
        assert_eq!(split("a.b.c"), ("a.b".into(), "c".into()));
    }
}
