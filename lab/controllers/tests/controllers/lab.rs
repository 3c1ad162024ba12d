//! One lab per test: API server, controllers, a node object and a kubelet that reports pods as running.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use lab_controllers::Config;
use lab_kubernetes::{
    ApiServer, AsyncReadWrite, ContainerUsage, ExecOptions, ExecSession, Kubelet, KubeletError,
    LogOptions, PodUsage,
};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Generous, because the test machine may be busy; every wait ends as soon as its condition holds.
const PATIENCE: Duration = Duration::from_secs(180);
/// Pods with this annotation stay not ready until the annotation is gone.
pub(crate) const HOLD: &str = "test/hold";
/// Pods with this annotation end at once: `0` well, anything else badly.
pub(crate) const EXIT: &str = "test/exit";

pub(crate) struct Lab {
    pub(crate) server: ApiServer,
    pub(crate) client: Client,
    pub(crate) usage: Usage,
    pub(crate) dir: tempfile::TempDir,
    stop: CancellationToken,
    controllers: Mutex<Option<Running>>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Lab {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Another test may have installed it already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let server = ApiServer::open(lab_kubernetes::Config::new(dir.path()))
            .await
            .unwrap();
        let client = server.client("system:admin");
        let usage = Usage::default();
        server.set_kubelet(Arc::new(usage.clone()));
        let stop = CancellationToken::new();
        let controllers = Mutex::new(Some(controllers(&server, &stop)));
        let node = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "node0", "labels": {"kubernetes.io/hostname": "node0", "topology.kubernetes.io/zone": "z1"}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let nodes: Api<Node> = Api::all(client.clone());
        nodes
            .create(
                &PostParams::default(),
                &serde_json::from_value(node).unwrap(),
            )
            .await
            .unwrap();
        tokio::spawn(kubelet(server.client("system:node:node0"), stop.clone()));
        Self {
            server,
            client,
            usage,
            dir,
            stop,
            controllers,
        }
    }

    /// Ends the controllers; what happens meanwhile they learn at their next start.
    pub(crate) async fn stop_controllers(&self) {
        let (stop, task) = self.controllers.lock().take().unwrap();
        stop.cancel();
        task.await.unwrap().unwrap();
    }

    pub(crate) fn start_controllers(&self) {
        *self.controllers.lock() = Some(controllers(&self.server, &self.stop));
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    pub(crate) async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + serde::Serialize
            + DeserializeOwned
            + Clone
            + Debug,
    {
        let object: K = serde_json::from_value(object).unwrap();
        let namespace = object.namespace().unwrap_or_else(|| "default".to_owned());
        let api: Api<K> = Api::namespaced(self.client.clone(), &namespace);
        api.create(&PostParams::default(), &object).await.unwrap()
    }

    /// Follows all objects of a kind in namespace `default` until `done` says so; returns them.
    pub(crate) async fn until<K>(&self, what: &str, done: impl Fn(&[K]) -> bool) -> Vec<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + DeserializeOwned
            + Clone
            + Debug
            + Send
            + 'static,
    {
        until(self.api(), what, done).await
    }

    /// Waits until the Deployment's rollout is over, as `kubectl rollout status` decides it.
    pub(crate) async fn rolled_out(&self, name: &str) -> Deployment {
        let what = format!("{name} is rolled out");
        let all = self.until::<Deployment>(&what, |all| {
            all.iter().any(|d| d.name_any() == name && is_rolled_out(d))
        });
        all.await
            .into_iter()
            .find(|d| d.name_any() == name)
            .unwrap()
    }

    pub(crate) async fn list<K>(&self) -> Vec<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + DeserializeOwned
            + Clone
            + Debug,
    {
        self.api::<K>()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
    }

    pub(crate) async fn merge<K>(&self, name: &str, patch: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + DeserializeOwned
            + Clone
            + Debug,
    {
        self.api::<K>()
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap()
    }

    /// Waits for an event about `object` and returns its message.
    pub(crate) async fn event(&self, object: &str, reason: &str, text: &str) -> Event {
        let matches = |e: &Event| {
            e.involved_object
                .name
                .as_deref()
                .is_some_and(|n| n.starts_with(object))
                && e.reason.as_deref() == Some(reason)
                && e.message.as_deref().is_some_and(|m| m.contains(text))
        };
        let what = format!("event {reason} {text:?} about {object}");
        let all = self.until::<Event>(&what, |all| all.iter().any(matches));
        all.await.into_iter().find(|e| matches(e)).unwrap()
    }
}

type Running = (CancellationToken, JoinHandle<lab_controllers::Result<()>>);

fn controllers(server: &ApiServer, stop: &CancellationToken) -> Running {
    let config = Config {
        cluster_ca_pem: server.ca_certificate().to_owned(),
        hpa_sync_period: Duration::from_millis(200),
        ..Config::default()
    };
    let stop = stop.child_token();
    let client = server.client("system:kube-controller-manager");
    (
        stop.clone(),
        tokio::spawn(lab_controllers::run(client, config, stop)),
    )
}

fn is_rolled_out(deployment: &Deployment) -> bool {
    let wanted = deployment
        .spec
        .as_ref()
        .and_then(|s| s.replicas)
        .unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    status.observed_generation >= deployment.metadata.generation
        && status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
}

pub(crate) async fn until<K>(api: Api<K>, what: &str, done: impl Fn(&[K]) -> bool) -> Vec<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static,
{
    let mut objects: BTreeMap<String, K> = BTreeMap::new();
    let follow = async {
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        let mut complete = false;
        while let Some(event) = events.next().await {
            let key = |o: &K| format!("{}/{}", o.namespace().unwrap_or_default(), o.name_any());
            match event {
                Ok(watcher::Event::Init) => objects.clear(),
                Ok(watcher::Event::InitApply(o) | watcher::Event::Apply(o)) => {
                    drop(objects.insert(key(&o), o))
                }
                Ok(watcher::Event::Delete(o)) => drop(objects.remove(&key(&o))),
                Ok(watcher::Event::InitDone) => complete = true,
                Err(_) => {}
            }
            let all: Vec<K> = objects.values().cloned().collect();
            if complete && done(&all) {
                return all;
            }
        }
        Vec::new()
    };
    let found = tokio::time::timeout(PATIENCE, follow).await;
    found.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}; last seen: {objects:#?}"))
}

/// Deployment `name` of `replicas` pods labelled `app=name`.
pub(crate) fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": name}},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{
                "name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}],
                "resources": {"requests": {"cpu": "100m"}}}]}}}})
}

pub(crate) fn revision(set: &ReplicaSet) -> &str {
    set.annotations()
        .get("deployment.kubernetes.io/revision")
        .map_or("", String::as_str)
}

/// Reports bound pods as running and ready, and removes deleted ones at once.
async fn kubelet(client: Client, stop: CancellationToken) {
    let mut pods = std::pin::pin!(
        watcher(Api::<Pod>::all(client.clone()), watcher::Config::default())
            .default_backoff()
            .applied_objects()
    );
    let mut next = 1_u32;
    loop {
        let pod = tokio::select! {
            () = stop.cancelled() => return,
            pod = pods.next() => pod,
        };
        let Some(Ok(pod)) = pod else { continue };
        let bound = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
        if !bound {
            continue;
        }
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap());
        let name = pod.name_any();
        if pod.metadata.deletion_timestamp.is_some() {
            if pod.annotations().contains_key("test/linger") {
                continue;
            }
            let params = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(Preconditions {
                    uid: pod.uid(),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            let _ = api.delete(&name, &params).await;
            continue;
        }
        let status = pod.status.clone().unwrap_or_default();
        let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let ready = !pod.annotations().contains_key(HOLD);
        let shown = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == "Ready")
            .map(|c| c.status == "True");
        if finished || shown == Some(ready) {
            continue;
        }
        if let Some(code) = pod.annotations().get(EXIT) {
            let phase = if code == "0" { "Succeeded" } else { "Failed" };
            let patch = Patch::Merge(json!({"status": {"phase": phase}}));
            let _ = api
                .patch_status(&name, &PatchParams::default(), &patch)
                .await;
            continue;
        }
        let ip = status.pod_ip.unwrap_or_else(|| {
            next += 1;
            format!("10.244.{}.{}", next / 250, next % 250)
        });
        let value = if ready { "True" } else { "False" };
        let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap();
        let patch = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "startTime": now,
            "conditions": [{"type": "Ready", "status": value, "lastTransitionTime": now}],
            "containerStatuses": [{"name": "c", "image": "i", "imageID": "i", "ready": ready, "started": true,
                "restartCount": 0, "state": {"running": {"startedAt": now}}}]}});
        let _ = api
            .patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch))
            .await;
    }
}

/// What the pretended node measures: CPU in nanocores per pod whose name starts with the key.
#[derive(Clone, Default)]
pub(crate) struct Usage {
    pub(crate) pods: Arc<Mutex<Vec<PodUsage>>>,
}

impl Usage {
    pub(crate) fn set(&self, pods: &[Pod], nanocores: u64) {
        let usage = pods.iter().map(|pod| PodUsage {
            namespace: pod.namespace().unwrap(),
            name: pod.name_any(),
            window_seconds: 0,
            containers: vec![ContainerUsage {
                name: "c".into(),
                cpu_nanocores: nanocores,
                memory_bytes: 1 << 20,
            }],
        });
        *self.pods.lock() = usage.collect();
    }
}

fn refused<T>() -> Result<T, KubeletError> {
    Err(KubeletError::Internal("this node only pretends".to_owned()))
}

#[async_trait]
impl Kubelet for Usage {
    async fn logs(
        &self,
        _: &str,
        _: &str,
        _: LogOptions,
    ) -> Result<BoxStream<'static, Result<Bytes, KubeletError>>, KubeletError> {
        refused()
    }

    async fn exec(&self, _: &str, _: &str, _: ExecOptions) -> Result<ExecSession, KubeletError> {
        refused()
    }

    async fn port_forward(
        &self,
        _: &str,
        _: &str,
        _: u16,
    ) -> Result<Box<dyn AsyncReadWrite>, KubeletError> {
        refused()
    }

    async fn pod_metrics(&self) -> Vec<PodUsage> {
        self.pods.lock().clone()
    }
}
