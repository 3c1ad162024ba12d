//! What every running Pilot says of itself, through its debug pages.

use std::collections::BTreeMap;

use kube::ResourceExt as _;
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    cluster::{Cluster, is_running, pod_id},
    error::{ChaosError, Result},
    mesh::PILOT_HTTP,
};

/// A JSON page of every running Pilot, by pod name.
pub async fn pages<T: DeserializeOwned>(
    cluster: &Cluster,
    path: &str,
) -> Result<BTreeMap<String, T>> {
    let namespace = &cluster.istio_namespace;
    let mut all = BTreeMap::new();
    for pod in cluster.pods(namespace, "istio=pilot").await? {
        if !is_running(&pod) {
            continue;
        }
        let name = pod.name_any();
        let reply = cluster.pod_get(namespace, &name, PILOT_HTTP, path).await?;
        let parsed = serde_json::from_slice(&reply.body).map_err(|e| ChaosError::PodHttp {
            pod: pod_id(&pod),
            port: PILOT_HTTP,
            path: path.to_owned(),
            message: format!("status {}, not the JSON expected: {e}", reply.status),
        })?;
        all.insert(name, parsed);
    }
    if all.is_empty() {
        return Err(ChaosError::Precondition(format!(
            "no running pod with label istio=pilot in namespace {namespace}"
        )));
    }
    Ok(all)
}

/// Where one config object has arrived, among the proxies of one Pilot (`/debug/config_distribution`).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Distribution {
    /// `TYPE/NAMESPACE/NAME`.
    pub resource: String,
    /// Of the form that is served.
    pub resource_version: String,
    /// Connected proxies.
    pub proxies: usize,
    /// Those that have answered everything of a state with the object in this form.
    pub have: usize,
    /// Since when the last of them has.
    pub since: Option<String>,
    /// Node IDs of the others.
    pub waiting: Vec<String>,
    /// What proxies refused.
    pub refused: Vec<Refusal>,
}

/// A response that a proxy refused and has not accepted since.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Refusal {
    /// Node ID.
    pub proxy: String,
    /// cds, eds, lds, rds.
    pub r#type: String,
    /// The proxy's own words.
    pub error: String,
}

/// The distribution of every config object, of every running Pilot.
pub async fn distribution(cluster: &Cluster) -> Result<BTreeMap<String, Vec<Distribution>>> {
    pages(cluster, "/debug/config_distribution").await
}
