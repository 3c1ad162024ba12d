//! Services, EndpointSlices (or Endpoints), Pods and Nodes of one Kubernetes cluster.
//!
//! One task owns the index. kube-rs' watchers list in pages, watch with bookmarks, list again after 410 and back off with
//! jitter for ever; a list replaces what was known of its kind when it is complete, never before, so neither a lost API
//! server nor a slow relist empties anything. Events that are ready together become one state.
//!
//! Cost: an event costs work in its own object, plus the endpoints of the services that list a changed pod's address. A
//! state shares everything that did not change with the one before.

mod index;

use std::time::Duration;

use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use k8s_openapi::api::{
    core::v1::{Endpoints, Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Resource,
    runtime::{WatchStreamExt as _, utils::ResetTimerBackoff, watcher},
};
use mesh_service::{Condition, Drain};
use pilot_generate::registry::kubernetes::Context;
use serde::de::DeserializeOwned;

use self::index::Index;
use super::Registry;
use crate::{inputs::Intake, metrics::Metrics};

/// Events taken into one state at most.
const BATCH: usize = 1024;

/// The registry of one cluster.
pub(crate) struct Kubernetes {
    pub(crate) client: Client,
    /// Only this namespace; empty: all.
    pub(crate) namespace: String,
    pub(crate) context: Context,
    pub(crate) metrics: Metrics,
}

enum Object {
    Service(Box<Service>),
    Slice(Box<EndpointSlice>),
    Endpoints(Box<Endpoints>),
    Pod(Box<Pod>),
    Node(Box<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    Service,
    Endpoints,
    Pod,
    Node,
}

impl Kind {
    /// As metrics and messages call it.
    fn name(self) -> &'static str {
        match self {
            Self::Service => "Services",
            Self::Endpoints => "Endpoints",
            Self::Pod => "Pods",
            Self::Node => "Nodes",
        }
    }
}

enum Change {
    /// A list begins.
    Init,
    /// One object of the list.
    Listed(Object),
    /// The list is complete.
    Done,
    Apply(Object),
    Delete(Object),
    Error(watcher::Error),
}

impl Registry for Kubernetes {
    fn name(&self) -> &'static str {
        "Kubernetes"
    }

    async fn run(self, intake: Intake, condition: Condition, drain: Drain) {
        condition.missing("the API server has not answered yet");
        let Some(slices) = self.has_slices(&condition, &drain).await else {
            return;
        };
        let endpoints = if slices {
            self.watch::<EndpointSlice>(Kind::Endpoints, Object::Slice)
        } else {
            tracing::info!("the API server knows no EndpointSlices; Endpoints are used instead");
            self.watch::<Endpoints>(Kind::Endpoints, Object::Endpoints)
        };
        let all = [
            self.watch::<Service>(Kind::Service, Object::Service),
            endpoints,
            self.watch::<Pod>(Kind::Pod, Object::Pod),
            self.watch_nodes(),
        ];
        let mut events = stream::select_all(all).ready_chunks(BATCH);
        let mut index = Index::new(self.context, self.metrics);
        loop {
            let chunk = tokio::select! {
                chunk = events.next() => chunk,
                () = drain.begun() => return,
            };
            // Watchers do not end.
            let Some(chunk) = chunk else { return };
            for (kind, change) in chunk {
                index.take(kind, change, &condition);
            }
            if let Some((state, event)) = index.publish() {
                condition.met();
                intake.set_registry(state, event);
            }
        }
    }
}

impl Kubernetes {
    /// Whether the API server has `discovery.k8s.io/v1`. Asks until it answers; `None` when the drain begins.
    async fn has_slices(&self, condition: &Condition, drain: &Drain) -> Option<bool> {
        let mut wait = Duration::from_millis(200);
        let mut said = false;
        loop {
            match self
                .client
                .list_api_group_resources("discovery.k8s.io/v1")
                .await
            {
                Ok(list) => return Some(list.resources.iter().any(|r| r.name == "endpointslices")),
                Err(kube::Error::Api(status)) if status.code == 404 => return Some(false),
                Err(error) => {
                    condition.missing(format!("the API server does not answer: {error}"));
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(%error, "the API server does not answer; trying on");
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(wait.mul_f64(rand::random_range(0.8..1.2))) => {}
                () = drain.begun() => return None,
            }
            wait = (wait * 2).min(Duration::from_secs(5));
        }
    }

    fn watch<K>(&self, kind: Kind, wrap: fn(Box<K>) -> Object) -> BoxStream<'static, (Kind, Change)>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Clone
            + std::fmt::Debug
            + Send
            + 'static,
    {
        let api: Api<K> = if self.namespace.is_empty() {
            Api::all(self.client.clone())
        } else {
            Api::namespaced(self.client.clone(), &self.namespace)
        };
        events(api, kind, wrap)
    }

    fn watch_nodes(&self) -> BoxStream<'static, (Kind, Change)> {
        events(Api::all(self.client.clone()), Kind::Node, Object::Node)
    }
}

fn events<K>(
    api: Api<K>,
    kind: Kind,
    wrap: fn(Box<K>) -> Object,
) -> BoxStream<'static, (Kind, Change)>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug + Send + 'static,
{
    // The watcher says "Init" before each list, which would count as success; hence a reset by time.
    let growing = backon::ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(5))
        .with_jitter()
        .without_max_times();
    let backoff = ResetTimerBackoff::new(
        watcher::ExponentialBackoff::from(growing),
        Duration::from_secs(30),
    );
    let object = move |mut object: K| {
        object.meta_mut().managed_fields = None;
        wrap(Box::new(object))
    };
    watcher::watcher(api, watcher::Config::default().page_size(500))
        .backoff(backoff)
        .map(move |event| {
            let change = match event {
                Ok(watcher::Event::Init) => Change::Init,
                Ok(watcher::Event::InitApply(o)) => Change::Listed(object(o)),
                Ok(watcher::Event::InitDone) => Change::Done,
                Ok(watcher::Event::Apply(o)) => Change::Apply(object(o)),
                Ok(watcher::Event::Delete(o)) => Change::Delete(object(o)),
                Err(error) => Change::Error(error),
            };
            (kind, change)
        })
        .boxed()
}
