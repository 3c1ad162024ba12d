//! One proxy, asked over its own admin port: counters, what a cluster is doing, the access log.

use anyhow::{Context as _, Result};
use lab_chaos::{cluster::is_running, mesh};
use serde_json::Value;

use crate::lab::Lab;

/// The Envoy of one pod.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    pub(crate) namespace: String,
    pub(crate) pod: String,
}

/// What Envoy says about the hosts of one cluster, summed up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Upstream {
    /// Connections that are open or being opened.
    pub(crate) connections: u64,
    /// Connections ever begun.
    pub(crate) opened: u64,
    /// Requests that have a connection; the waiting ones are not in here.
    pub(crate) active: u64,
    /// The circuit breaker's limit for waiting requests.
    pub(crate) max_pending: u64,
}

impl Proxy {
    /// The only pod that a label selects; one on its way out does not count.
    pub(crate) async fn only(lab: &Lab, namespace: &str, selector: &str) -> Result<Self> {
        let mut pods = lab.cluster.pods(namespace, selector).await?;
        pods.retain(is_running);
        let [pod] = pods.as_slice() else {
            anyhow::bail!("{} pods match {selector}, one expected", pods.len());
        };
        Ok(Self {
            namespace: namespace.to_owned(),
            pod: pod.metadata.name.clone().unwrap_or_default(),
        })
    }

    /// The sum of the statistics whose name matches the regular expression `filter`; a dot in it stands for `|`, too.
    pub(crate) async fn stat(&self, lab: &Lab, filter: &str) -> Result<u64> {
        let path = format!("/stats?filter={filter}");
        let text = self.admin(lab, &path).await?;
        Ok(text
            .lines()
            .filter_map(|line| line.rsplit_once(": ")?.1.parse::<u64>().ok())
            .sum())
    }

    /// What a cluster is doing right now.
    pub(crate) async fn upstream(&self, lab: &Lab, cluster: &str) -> Result<Upstream> {
        let text = self.admin(lab, "/clusters?format=json").await?;
        let dump: Value = serde_json::from_str(&text)?;
        let found = dump["cluster_statuses"]
            .as_array()
            .and_then(|all| all.iter().find(|status| status["name"] == cluster))
            .with_context(|| format!("{} has no cluster {cluster}", self.pod))?;
        let hosts = found["host_statuses"].as_array();
        let sum = |stat: &str| {
            let of = |host: &Value| -> u64 {
                let stats = host["stats"].as_array();
                let one = stats.and_then(|all| all.iter().find(|entry| entry["name"] == stat));
                number(one.map(|entry| &entry["value"]))
            };
            hosts.into_iter().flatten().map(of).sum()
        };
        let limits = &found["circuit_breakers"]["thresholds"][0];
        Ok(Upstream {
            connections: sum("cx_active"),
            opened: sum("cx_total"),
            active: sum("rq_active"),
            max_pending: number(limits.get("max_pending_requests")),
        })
    }

    /// How many lines of the access log hold all of `parts`.
    pub(crate) fn logged(&self, lab: &Lab, parts: &[&str]) -> Result<usize> {
        let arguments = ["logs", &self.pod, "-c", "istio-proxy", "--tail=-1"];
        let log = lab.kubectl(&[&["-n", &self.namespace], &arguments[..]].concat(), "")?;
        Ok(log
            .lines()
            .filter(|line| parts.iter().all(|part| line.contains(part)))
            .count())
    }

    async fn admin(&self, lab: &Lab, path: &str) -> Result<String> {
        let cluster = &lab.cluster;
        let reply = cluster
            .pod_get(&self.namespace, &self.pod, mesh::ENVOY_ADMIN, path)
            .await?;
        Ok(reply.text())
    }
}

/// proto3 JSON writes 64-bit numbers as text, 32-bit ones as numbers, and leaves zeros out.
fn number(value: Option<&Value>) -> u64 {
    let text = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
    value
        .and_then(|value| value.as_u64().or_else(|| text(value)))
        .unwrap_or_default()
}
