//! What the autoscaler reads: pod metrics from metrics.k8s.io, and pods as samples.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{Client, ResourceExt};
use serde::Deserialize;

use super::desired::{Sample, Usage};
use super::quantity::milli;
use crate::error::{During, Result};
use crate::pods;

/// PodMetricsList of metrics.k8s.io/v1beta1, as far as it is used.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct PodMetricsList {
    #[serde(default)]
    items: Vec<PodMetrics>,
}

#[derive(Debug, Deserialize)]
struct PodMetrics {
    metadata: Named,
    timestamp: Timestamp,
    #[serde(default)]
    window: String,
    #[serde(default)]
    containers: Vec<ContainerMetrics>,
}

#[derive(Debug, Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
}

#[derive(Debug, Deserialize)]
struct ContainerMetrics {
    name: String,
    #[serde(default)]
    usage: HashMap<String, Quantity>,
}

/// Reads the metrics of the pods of `namespace` that `selector` (in text form) selects.
pub(crate) async fn read(
    client: &Client,
    namespace: &str,
    selector: &str,
) -> Result<PodMetricsList> {
    let what = || format!("read pod metrics of namespace {namespace}, selector {selector}");
    let uri = format!(
        "/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={}",
        encode(selector)
    );
    let request = http::Request::get(uri)
        .body(Vec::new())
        .map_err(kube::Error::HttpError)
        .during(what)?;
    client.request(request).await.during(what)
}

/// Percent-encodes a query value.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The pods of a target with what they request and use of `resource`, of all containers or of one.
pub(crate) fn samples(
    pods: &[Arc<Pod>],
    metrics: &PodMetricsList,
    resource: &str,
    container: Option<&str>,
) -> Vec<Sample> {
    let by_name: HashMap<&str, &PodMetrics> = metrics
        .items
        .iter()
        .map(|m| (m.metadata.name.as_str(), m))
        .collect();
    pods.iter()
        .map(|pod| {
            let name = pod.name_any();
            let usage = by_name
                .get(name.as_str())
                .and_then(|m| usage(m, resource, container));
            Sample {
                phase: pods::phase(pod).to_owned(),
                deleted: pods::is_terminating(pod),
                started: pod
                    .status
                    .as_ref()
                    .and_then(|s| s.start_time.as_ref())
                    .map(|t| t.0),
                ready: pods::condition(pod, "Ready").map(|c| {
                    (
                        c.status == "True",
                        c.last_transition_time
                            .as_ref()
                            .map_or(Timestamp::UNIX_EPOCH, |t| t.0),
                    )
                }),
                request: request(pod, resource, container),
                usage,
            }
        })
        .collect()
}

fn usage(metrics: &PodMetrics, resource: &str, container: Option<&str>) -> Option<Usage> {
    let mut total = None;
    for one in metrics
        .containers
        .iter()
        .filter(|c| container.is_none_or(|name| c.name == name))
    {
        // A container without a value makes the pod's sum meaningless.
        total = Some(total.unwrap_or(0) + milli(one.usage.get(resource)?)?);
    }
    Some(Usage {
        milli: total?,
        at: metrics.timestamp,
        window: window(&metrics.window),
    })
}

/// `15s`, `1m0s`, `15.5s`; anything else counts as no window.
fn window(text: &str) -> SignedDuration {
    text.parse().unwrap_or(SignedDuration::ZERO)
}

fn request(pod: &Pod, resource: &str, container: Option<&str>) -> Result<i64, String> {
    let Some(spec) = pod.spec.as_ref() else {
        return Ok(0);
    };
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let counted: Vec<&Container> = spec
        .containers
        .iter()
        .chain(sidecars)
        .filter(|c| container.is_none_or(|name| c.name == name))
        .collect();
    if let (Some(name), true) = (container, counted.is_empty()) {
        return Err(format!(
            "container {name} not present in metrics for pod {}/{}",
            pod.namespace().unwrap_or_default(),
            pod.name_any()
        ));
    }
    counted.into_iter().try_fold(0, |sum, one| {
        let requests = one.resources.as_ref().and_then(|r| r.requests.as_ref());
        let value = requests.and_then(|r| r.get(resource)).and_then(milli);
        value.map(|v| sum + v).ok_or_else(|| {
            format!(
                "missing request for {resource} in container {} of Pod {}",
                one.name,
                pod.name_any()
            )
        })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn sums_containers_and_names_what_is_missing() {
        let metrics: PodMetricsList = serde_json::from_value(json!({"items": [{
            "metadata": {"name": "p"}, "timestamp": "2026-01-01T00:00:00Z", "window": "15s",
            "containers": [{"name": "a", "usage": {"cpu": "100m"}}, {"name": "b", "usage": {"cpu": "25000000n"}}]}]}))
        .unwrap();
        let pod = |name: &str, b: serde_json::Value| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"containers": [
                    {"name": "a", "resources": {"requests": {"cpu": "100m"}}}, {"name": "b", "resources": b}]}}))
                .unwrap(),
            )
        };
        let pods = [
            pod("p", json!({"requests": {"cpu": "0.1"}})),
            pod("q", json!({})),
        ];
        let both = samples(&pods, &metrics, "cpu", None);
        assert_eq!(
            (both[0].request.clone(), both[0].usage.unwrap().milli),
            (Ok(200), 125)
        );
        assert_eq!(both[0].usage.unwrap().window, SignedDuration::from_secs(15));
        assert_eq!(
            both[1].request,
            Err("missing request for cpu in container b of Pod q".to_owned())
        );
        assert!(both[1].usage.is_none());
        let one = samples(&pods, &metrics, "cpu", Some("b"));
        assert_eq!(
            (one[0].request.clone(), one[0].usage.unwrap().milli),
            (Ok(100), 25)
        );
    }

    #[test]
    fn selectors_travel_encoded() {
        assert_eq!(
            encode("app=web,x in (a,b)"),
            "app%3Dweb%2Cx%20in%20%28a%2Cb%29"
        );
    }
}
