//! Lists and watches: what happens to objects of the kinds that make up a registry, as one stream.
//!
//! kube-rs' watchers list in pages, watch with bookmarks, list again after 410 and back off with jitter for ever.

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
use serde::de::DeserializeOwned;

/// The longest wait after a failure, before jitter of up to as much again as the first.
pub(super) const RETRY_MAX: Duration = Duration::from_secs(5);

pub(super) enum Object {
    Service(Box<Service>),
    Slice(Box<EndpointSlice>),
    Endpoints(Box<Endpoints>),
    Pod(Box<Pod>),
    Node(Box<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Service,
    Endpoints,
    Pod,
    Node,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Service, Self::Endpoints, Self::Pod, Self::Node];

    /// As metrics and messages call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Service => "Services",
            Self::Endpoints => "Endpoints",
            Self::Pod => "Pods",
            Self::Node => "Nodes",
        }
    }
}

pub(super) enum Change {
    /// A list begins.
    Init,
    /// One object of the list.
    Listed(Object),
    /// The list is complete.
    Done,
    Apply(Object),
    Delete(Object),
}

pub(super) type Event = (Kind, Result<Change, watcher::Error>);

/// Everything that happens in a cluster, or in one namespace of it. Does not end.
pub(super) fn watch(
    client: &Client,
    namespace: &str,
    slices: bool,
) -> stream::SelectAll<BoxStream<'static, Event>> {
    let endpoints = if slices {
        namespaced::<EndpointSlice>(client, namespace, Kind::Endpoints, Object::Slice)
    } else {
        namespaced::<Endpoints>(client, namespace, Kind::Endpoints, Object::Endpoints)
    };
    stream::select_all([
        namespaced::<Service>(client, namespace, Kind::Service, Object::Service),
        endpoints,
        namespaced::<Pod>(client, namespace, Kind::Pod, Object::Pod),
        events(Api::all(client.clone()), Kind::Node, Object::Node),
    ])
}

fn namespaced<K>(
    client: &Client,
    namespace: &str,
    kind: Kind,
    wrap: fn(Box<K>) -> Object,
) -> BoxStream<'static, Event>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + DeserializeOwned
        + Clone
        + std::fmt::Debug
        + Send
        + 'static,
{
    let api: Api<K> = if namespace.is_empty() {
        Api::all(client.clone())
    } else {
        Api::namespaced(client.clone(), namespace)
    };
    events(api, kind, wrap)
}

fn events<K>(api: Api<K>, kind: Kind, wrap: fn(Box<K>) -> Object) -> BoxStream<'static, Event>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug + Send + 'static,
{
    let object = move |mut object: K| {
        object.meta_mut().managed_fields = None;
        wrap(Box::new(object))
    };
    watcher::watcher(api, watcher::Config::default().page_size(500))
        .backoff(backoff())
        .map(move |event| {
            let change = event.map(|event| match event {
                watcher::Event::Init => Change::Init,
                watcher::Event::InitApply(o) => Change::Listed(object(o)),
                watcher::Event::InitDone => Change::Done,
                watcher::Event::Apply(o) => Change::Apply(object(o)),
                watcher::Event::Delete(o) => Change::Delete(object(o)),
            });
            (kind, change)
        })
        .boxed()
}

/// The watcher says "Init" before each list, which would count as success; hence a reset by time.
pub(in crate::registry) fn backoff() -> ResetTimerBackoff<watcher::ExponentialBackoff> {
    let growing = backon::ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(RETRY_MAX)
        .with_jitter()
        .without_max_times();
    ResetTimerBackoff::new(growing.into(), RETRY_MAX * 6)
}
