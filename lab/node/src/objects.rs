//! The node's view of what pods refer to: ConfigMaps, Secrets, Services, EndpointSlices.
//!
//! Written by one watch per kind, read by everybody. `changed` counts changes of a kind group, so that readers wait for
//! "something is different" and then look at the stores; nobody queues individual events.

use std::{fmt::Debug, hash::Hash, sync::Arc};

use futures::StreamExt as _;
use k8s_openapi::api::{
    core::v1::{ConfigMap, Secret, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// Stores of the watched kinds.
#[derive(Debug)]
pub(crate) struct Objects {
    pub(crate) config_maps: Store<ConfigMap>,
    pub(crate) secrets: Store<Secret>,
    pub(crate) services: Store<Service>,
    pub(crate) slices: Store<EndpointSlice>,
    /// Bumped when a ConfigMap or Secret changed.
    pub(crate) config_changed: watch::Receiver<u64>,
    /// Bumped when a Service or EndpointSlice changed.
    pub(crate) network_changed: watch::Receiver<u64>,
}

impl Objects {
    /// Starts the watches; they end with the tracker's tasks being dropped.
    pub(crate) fn watch(
        client: &Client,
        tasks: &TaskTracker,
        stop: &tokio_util::sync::CancellationToken,
    ) -> Self {
        let (config, config_changed) = watch::channel(0);
        let (network, network_changed) = watch::channel(0);
        let (config, network) = (Arc::new(config), Arc::new(network));
        let spawner = Spawner {
            client,
            tasks,
            stop,
        };
        Self {
            config_maps: spawner.store(config.clone()),
            secrets: spawner.store(config),
            services: spawner.store(network.clone()),
            slices: spawner.store(network),
            config_changed,
            network_changed,
        }
    }

    /// A ConfigMap by name.
    pub(crate) fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>> {
        self.config_maps
            .get(&ObjectRef::new(name).within(namespace))
    }

    /// A Secret by name.
    pub(crate) fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>> {
        self.secrets.get(&ObjectRef::new(name).within(namespace))
    }

    /// Resolves when every store has been filled once.
    pub(crate) async fn ready(&self) {
        // An error means that the watch task is gone, that is, we are shutting down.
        let _ = self.config_maps.wait_until_ready().await;
        let _ = self.secrets.wait_until_ready().await;
        let _ = self.services.wait_until_ready().await;
        let _ = self.slices.wait_until_ready().await;
    }
}

struct Spawner<'a> {
    client: &'a Client,
    tasks: &'a TaskTracker,
    stop: &'a tokio_util::sync::CancellationToken,
}

impl Spawner<'_> {
    fn store<K>(&self, changed: Arc<watch::Sender<u64>>) -> Store<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        K::DynamicType: Eq + Hash + Clone,
    {
        let (reader, writer) = reflector::store();
        let events = watcher(
            Api::<K>::all(self.client.clone()),
            watcher::Config::default(),
        )
        .default_backoff();
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let stream = reflector::reflector(writer, events).take_until(stop.cancelled_owned());
            let mut stream = std::pin::pin!(stream);
            while let Some(event) = stream.next().await {
                match event {
                    Ok(watcher::Event::Apply(_) | watcher::Event::Delete(_) | watcher::Event::InitDone) => {
                        changed.send_modify(|n| *n += 1);
                    }
                    Ok(_) => {}
                    Err(error) => tracing::warn!(kind = K::kind(&()).as_ref(), %error, "watch failed, retrying"),
                }
            }
        });
        reader
    }
}
