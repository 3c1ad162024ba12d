//! What experiments and the CLI do with a cluster: Deployments, pods, and HTTP to a port inside a pod.
//!
//! HTTP to a pod goes through the API server's port-forward, so it needs no route to the pod network. Waiting is by
//! watch where the thing waited for is a Kubernetes object ([`Cluster::available`]), and by bounded polling where it is
//! the state of a process ([`eventually`]).

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, LogParams, Patch, PatchParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt};
use tokio::time::Instant;

use crate::error::{ChaosError, Result};

/// Name under which changes are recorded in managed fields.
pub const FIELD_MANAGER: &str = "istioctl-chaos";
/// Longest wait for one answer from inside a pod.
const POD_HTTP_TIMEOUT: Duration = Duration::from_secs(10);

/// A cluster, the namespace of the application, and that of the control plane.
#[derive(Clone)]
pub struct Cluster {
    /// The API.
    pub client: Client,
    /// Where the application runs.
    pub namespace: String,
    /// Where the control plane runs.
    pub istio_namespace: String,
}

/// An HTTP answer from inside a pod.
#[derive(Debug, Clone)]
pub struct PodReply {
    /// Status code.
    pub status: u16,
    /// Whole body.
    pub body: Bytes,
}

impl PodReply {
    /// Body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Cluster {
    /// Reads a Deployment.
    pub async fn deployment(&self, namespace: &str, name: &str) -> Result<Deployment> {
        Api::<Deployment>::namespaced(self.client.clone(), namespace)
            .get(name)
            .await
            .map_err(ChaosError::kube(format!(
                "reading Deployment {namespace}/{name}"
            )))
    }

    /// Sets the number of replicas through the scale subresource, as `kubectl scale` does.
    pub async fn scale(&self, namespace: &str, name: &str, replicas: i32) -> Result<()> {
        let patch = serde_json::json!({"spec": {"replicas": replicas}});
        Api::<Deployment>::namespaced(self.client.clone(), namespace)
            .patch_scale(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map_err(ChaosError::kube(format!(
                "scaling Deployment {namespace}/{name} to {replicas}"
            )))?;
        Ok(())
    }

    /// Waits until a Deployment has exactly `replicas` replicas, all of them available and of the newest template.
    pub async fn available(
        &self,
        namespace: &str,
        name: &str,
        replicas: i32,
        timeout: Duration,
    ) -> Result<()> {
        let api = Api::<Deployment>::namespaced(self.client.clone(), namespace);
        let done = await_condition(api.clone(), name, move |d: Option<&Deployment>| {
            d.is_some_and(|d| is_available(d, replicas))
        });
        let last = match tokio::time::timeout(timeout, done).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(e)) => e.to_string(),
            Err(_) => match api.get(name).await {
                Ok(deployment) => describe(&deployment),
                Err(e) => e.to_string(),
            },
        };
        Err(ChaosError::Timeout {
            what: format!("Deployment {namespace}/{name} with {replicas} available replicas"),
            waited: timeout,
            last,
        })
    }

    /// Pods that match a label selector.
    pub async fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<Pod>> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace)
            .list(&ListParams::default().labels(selector))
            .await
            .map_err(ChaosError::kube(format!(
                "listing pods {selector} in {namespace}"
            )))?;
        Ok(pods.items)
    }

    /// Waits until no pod of a namespace is on its way out.
    pub async fn nothing_terminates(&self, namespace: &str, timeout: Duration) -> Result<()> {
        eventually(
            format!("no terminating pod in namespace {namespace}"),
            timeout,
            Duration::from_millis(250),
            || async {
                let pods = self.pods(namespace, "").await?;
                let leaving: Vec<String> = pods
                    .iter()
                    .filter(|p| p.metadata.deletion_timestamp.is_some())
                    .map(ResourceExt::name_any)
                    .collect();
                Ok(match leaving.is_empty() {
                    true => Ok(()),
                    false => Err(format!("{} still terminate", leaving.join(", "))),
                })
            },
        )
        .await
    }

    /// All pods with a sidecar or gateway proxy that run and are not going away.
    pub async fn proxies(&self) -> Result<Vec<Pod>> {
        let mut found = Vec::new();
        for namespace in [&self.namespace, &self.istio_namespace] {
            let pods = self.pods(namespace, "").await?;
            found.extend(pods.into_iter().filter(|p| has_proxy(p) && is_running(p)));
            if self.namespace == self.istio_namespace {
                break;
            }
        }
        Ok(found)
    }

    /// Deletes a pod. `grace` of 0 kills its processes at once; `None` is the pod's own grace period. A pod that is
    /// already gone is fine.
    pub async fn delete_pod(&self, namespace: &str, name: &str, grace: Option<u32>) -> Result<()> {
        let params = DeleteParams {
            grace_period_seconds: grace,
            ..DeleteParams::default()
        };
        let deleted = Api::<Pod>::namespaced(self.client.clone(), namespace)
            .delete(name, &params)
            .await;
        match deleted {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(e) => Err(ChaosError::kube(format!("deleting pod {namespace}/{name}"))(e)),
        }
    }

    /// The last lines of a container's log.
    pub async fn logs(&self, namespace: &str, pod: &str, container: &str) -> Result<String> {
        let params = LogParams {
            container: Some(container.to_owned()),
            tail_lines: Some(400),
            ..LogParams::default()
        };
        Api::<Pod>::namespaced(self.client.clone(), namespace)
            .logs(pod, &params)
            .await
            .map_err(ChaosError::kube(format!(
                "reading the log of {container} in pod {namespace}/{pod}"
            )))
    }

    /// GET from a port inside a pod, through port-forward.
    pub async fn pod_get(
        &self,
        namespace: &str,
        pod: &str,
        port: u16,
        path: &str,
    ) -> Result<PodReply> {
        self.pod_request(namespace, pod, port, http::Method::GET, path)
            .await
    }

    /// Any request without a body to a port inside a pod, through port-forward.
    pub async fn pod_request(
        &self,
        namespace: &str,
        pod: &str,
        port: u16,
        method: http::Method,
        path: &str,
    ) -> Result<PodReply> {
        let failed = |message: String| ChaosError::PodHttp {
            pod: format!("{namespace}/{pod}"),
            port,
            path: path.to_owned(),
            message,
        };
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let exchange = async {
            let mut forward = api
                .portforward(pod, &[port])
                .await
                .map_err(|e| format!("port-forward: {}", crate::kube_message(&e)))?;
            let stream = forward
                .take_stream(port)
                .ok_or("port-forward gave no stream")?;
            let refused = forward.take_error(port);
            let reply = exchange(stream, method, path).await;
            match (reply, refused) {
                (Ok(reply), _) => Ok(reply),
                // The reason a stream broke comes on the error channel, if at all; do not wait long for it.
                (Err(text), Some(refused)) => {
                    let reason = tokio::time::timeout(Duration::from_millis(200), refused).await;
                    Err(match reason.ok().flatten() {
                        Some(reason) => format!("{text} ({reason})"),
                        None => text,
                    })
                }
                (Err(text), None) => Err(text),
            }
        };
        match tokio::time::timeout(POD_HTTP_TIMEOUT, exchange).await {
            Ok(reply) => reply.map_err(failed),
            Err(_) => Err(failed(format!(
                "no answer within {} s",
                POD_HTTP_TIMEOUT.as_secs()
            ))),
        }
    }
}

async fn exchange(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    method: http::Method,
    path: &str,
) -> Result<PodReply, String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let driver = tokio::spawn(connection);
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "localhost")
        .header(http::header::CONNECTION, "close")
        .body(Full::<Bytes>::default())
        .map_err(|e| e.to_string())?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|e| e.to_string())?;
    let status = response.status().as_u16();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|e| e.to_string())?
        .to_bytes();
    driver.abort();
    Ok(PodReply { status, body })
}

/// Asks again every `every` until the answer is `Ok(value)`; `Err` holds what was seen instead. Errors of the cluster
/// count as "not yet", because the very thing that is broken may be what answers.
pub async fn eventually<T, F>(
    what: impl Into<String>,
    timeout: Duration,
    every: Duration,
    mut ask: impl FnMut() -> F,
) -> Result<T>
where
    F: Future<Output = Result<std::result::Result<T, String>>>,
{
    let began = Instant::now();
    let mut last = "nothing".to_owned();
    loop {
        let left = timeout.saturating_sub(began.elapsed());
        match tokio::time::timeout(left, ask()).await {
            Ok(Ok(Ok(value))) => return Ok(value),
            Ok(Ok(Err(seen))) => last = seen,
            Ok(Err(e)) => last = e.to_string(),
            Err(_) => {}
        }
        if began.elapsed() + every >= timeout {
            return Err(ChaosError::Timeout {
                what: what.into(),
                waited: timeout,
                last,
            });
        }
        tokio::time::sleep(every).await;
    }
}

/// Whether a pod carries Envoy.
pub fn has_proxy(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .is_some_and(|spec| spec.containers.iter().any(|c| c.name == "istio-proxy"))
}

/// Whether a pod runs and is not being deleted.
pub fn is_running(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
}

/// Whether a pod has the condition Ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

fn is_available(deployment: &Deployment, replicas: i32) -> bool {
    let Some(status) = &deployment.status else {
        return false;
    };
    status.observed_generation >= deployment.metadata.generation
        && status.updated_replicas.unwrap_or(0) == replicas
        && status.available_replicas.unwrap_or(0) == replicas
        && status.replicas.unwrap_or(0) == replicas
}

fn describe(deployment: &Deployment) -> String {
    let Some(status) = &deployment.status else {
        return "no status yet".to_owned();
    };
    let conditions = status
        .conditions
        .iter()
        .flatten()
        .filter(|c| c.status != "True")
        .filter_map(|c| c.message.as_deref());
    let numbers = format!(
        "{} replicas, {} updated, {} available",
        status.replicas.unwrap_or(0),
        status.updated_replicas.unwrap_or(0),
        status.available_replicas.unwrap_or(0)
    );
    std::iter::once(numbers.as_str())
        .chain(conditions)
        .collect::<Vec<_>>()
        .join("; ")
}

/// `namespace/name` of a pod.
pub fn pod_id(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(status: serde_json::Value) -> Deployment {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "d", "generation": 3}, "status": status
        }))
        .expect("a Deployment")
    }

    #[test]
    fn an_old_status_or_a_pod_too_many_is_not_available() {
        let status = |generation, replicas, available| {
            deployment(serde_json::json!({
                "observedGeneration": generation, "replicas": replicas,
                "updatedReplicas": 2, "availableReplicas": available
            }))
        };
        assert!(is_available(&status(3, 2, 2), 2));
        assert!(
            !is_available(&status(2, 2, 2), 2),
            "status of an older generation"
        );
        assert!(
            !is_available(&status(3, 3, 2), 2),
            "an old pod is still there"
        );
        assert!(!is_available(&status(3, 2, 1), 2));
        let none = deployment(serde_json::json!({"observedGeneration": 3}));
        assert!(is_available(&none, 0), "absent numbers are zero");
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_with_what_was_last_seen() {
        let mut asked = 0;
        let error = eventually::<(), _>(
            "the moon",
            Duration::from_secs(5),
            Duration::from_secs(1),
            || {
                asked += 1;
                let seen = format!("phase {asked}");
                async move { Ok(Err(seen)) }
            },
        )
        .await
        .expect_err("it never comes");
        assert_eq!(
            error.to_string(),
            "the moon: not within 5 s; last seen: phase 5"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_survives_errors_of_the_cluster() {
        let mut asked = 0;
        let value = eventually(
            "it",
            Duration::from_secs(5),
            Duration::from_millis(100),
            || {
                asked += 1;
                let now = asked;
                async move {
                    match now {
                        1 => Err(ChaosError::Precondition("API away".into())),
                        2 => Ok(Err("not yet".into())),
                        _ => Ok(Ok(now)),
                    }
                }
            },
        )
        .await
        .expect("comes at the third time");
        assert_eq!(value, 3);
    }
}
