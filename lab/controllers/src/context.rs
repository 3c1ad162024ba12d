//! What every controller is given: the client, the settings, the shared stores, the event recorder.

use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet,
};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::PostParams;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::error::{During, Result, unless_gone};
use crate::runtime::events::Recorder;
use crate::runtime::store::{Key, Store, Stored};

/// Shared by all controllers of one lab.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) config: Config,
    pub(crate) stores: Stores,
    pub(crate) recorder: Recorder,
}

/// One store, and so one watch, per kind.
pub(crate) struct Stores {
    pub(crate) pods: Arc<Store<Pod>>,
    pub(crate) services: Arc<Store<Service>>,
    pub(crate) endpoints: Arc<Store<Endpoints>>,
    pub(crate) slices: Arc<Store<EndpointSlice>>,
    pub(crate) replica_sets: Arc<Store<ReplicaSet>>,
    pub(crate) deployments: Arc<Store<Deployment>>,
    pub(crate) stateful_sets: Arc<Store<StatefulSet>>,
    pub(crate) daemon_sets: Arc<Store<DaemonSet>>,
    pub(crate) revisions: Arc<Store<ControllerRevision>>,
    pub(crate) jobs: Arc<Store<Job>>,
    pub(crate) autoscalers: Arc<Store<HorizontalPodAutoscaler>>,
    pub(crate) budgets: Arc<Store<PodDisruptionBudget>>,
    pub(crate) nodes: Arc<Store<Node>>,
    pub(crate) namespaces: Arc<Store<Namespace>>,
    pub(crate) service_accounts: Arc<Store<ServiceAccount>>,
    /// Only those named `kube-root-ca.crt`.
    pub(crate) root_cas: Arc<Store<ConfigMap>>,
    /// Only those of type `kubernetes.io/service-account-token`.
    pub(crate) token_secrets: Arc<Store<Secret>>,
}

impl Stores {
    pub(crate) fn new() -> Self {
        Self {
            pods: Store::new(),
            services: Store::new(),
            endpoints: Store::new(),
            slices: Store::new(),
            replica_sets: Store::new(),
            deployments: Store::new(),
            stateful_sets: Store::new(),
            daemon_sets: Store::new(),
            revisions: Store::new(),
            jobs: Store::new(),
            autoscalers: Store::new(),
            budgets: Store::new(),
            nodes: Store::new(),
            namespaces: Store::new(),
            service_accounts: Store::new(),
            root_cas: Store::new(),
            token_secrets: Store::new(),
        }
    }

    /// Starts all watches.
    pub(crate) fn follow(
        &self,
        tasks: &mut JoinSet<()>,
        client: &Client,
        shutdown: &CancellationToken,
    ) {
        let mut follower = Follower {
            tasks,
            client,
            shutdown,
        };
        follower.all(&self.pods);
        follower.all(&self.services);
        follower.all(&self.endpoints);
        follower.all(&self.slices);
        follower.all(&self.replica_sets);
        follower.all(&self.deployments);
        follower.all(&self.stateful_sets);
        follower.all(&self.daemon_sets);
        follower.all(&self.revisions);
        follower.all(&self.jobs);
        follower.all(&self.autoscalers);
        follower.all(&self.budgets);
        follower.all(&self.nodes);
        follower.all(&self.namespaces);
        follower.all(&self.service_accounts);
        follower.only(
            &self.root_cas,
            &format!("metadata.name={}", crate::service_accounts::ROOT_CA),
        );
        follower.only(
            &self.token_secrets,
            &format!("type={}", crate::service_accounts::TOKEN_SECRET),
        );
    }

    /// Resolves once every store holds a complete list: no controller acts on half a picture.
    pub(crate) async fn synced(&self) {
        self.pods.synced().await;
        self.services.synced().await;
        self.endpoints.synced().await;
        self.slices.synced().await;
        self.replica_sets.synced().await;
        self.deployments.synced().await;
        self.stateful_sets.synced().await;
        self.daemon_sets.synced().await;
        self.revisions.synced().await;
        self.jobs.synced().await;
        self.autoscalers.synced().await;
        self.budgets.synced().await;
        self.nodes.synced().await;
        self.namespaces.synced().await;
        self.service_accounts.synced().await;
        self.root_cas.synced().await;
        self.token_secrets.synced().await;
    }
}

struct Follower<'a> {
    tasks: &'a mut JoinSet<()>,
    client: &'a Client,
    shutdown: &'a CancellationToken,
}

impl Follower<'_> {
    fn all<K: Stored>(&mut self, store: &Arc<Store<K>>) {
        self.start(store, watcher::Config::default());
    }

    fn only<K: Stored>(&mut self, store: &Arc<Store<K>>, fields: &str) {
        self.start(store, watcher::Config::default().fields(fields));
    }

    fn start<K: Stored>(&mut self, store: &Arc<Store<K>>, config: watcher::Config) {
        self.tasks.spawn(store.clone().follow(
            Api::all(self.client.clone()),
            config,
            self.shutdown.clone(),
        ));
    }
}

impl Context {
    /// Writes the status of `changed`, a copy of the object it was decided on, if that still exists and is the newest;
    /// the answer goes into the store.
    pub(crate) async fn write_status<K>(&self, store: &Store<K>, changed: &K) -> Result<Option<K>>
    where
        K: Stored + Serialize + Resource<Scope = NamespaceResourceScope>,
    {
        let key = Key::of(changed);
        let api = self.api::<K>(&key.namespace);
        let written = unless_gone(
            api.replace_status(&key.name, &PostParams::default(), changed)
                .await
                .during(|| format!("write the status of {} {key}", K::kind(&()))),
        )?;
        if let Some(written) = &written {
            store.wrote(written.clone());
        }
        Ok(written)
    }

    /// The API of one namespace.
    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }
}
