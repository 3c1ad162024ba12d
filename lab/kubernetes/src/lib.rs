//! The Kubernetes API server stand-in of the lab.
//!
//! One process-local server that real clients (kubectl, kube-rs) cannot tell from a small Kubernetes:
//! discovery, typed resources, watches, patches, server-side apply, CRDs, admission webhooks,
//! service-account tokens, logs, exec and port-forward.
//!
//! # Who writes, who reads
//!
//! Every write goes through one task (module `store`) that checks preconditions, assigns resource
//! versions, logs a batch to SQLite and only then publishes and acknowledges it. Readers see
//! immutable objects behind `Arc`, with their JSON bytes made once per version; a list or a watch
//! event is a concatenation of bytes. Watchers are cursors into a bounded ring of events, so that a
//! client that never reads costs nothing and is told 410 when it comes back too late.

mod admission;
mod auth;
mod bootstrap;
mod convert;
mod crd;
mod defaults;
mod discovery;
mod json;
pub mod kubelet;
mod maintenance;
mod metrics;
mod negotiate;
mod openapi;
mod patch;
mod pki;
mod protobuf;
mod registry;
mod request;
mod rest;
mod selector;
mod server;
mod status;
mod store;
mod stream;
mod table;
mod typed;
mod validate;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::Ipv4Net;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::server::Server;

pub use kubelet::{
    AsyncReadWrite, ContainerUsage, ExecOptions, ExecSession, ExitStatus, Kubelet, KubeletError,
    LogOptions, PodUsage,
};

/// Where the server keeps its state and what it hands out.
#[derive(Debug, Clone)]
pub struct Config {
    /// SQLite file holding all objects.
    pub db_path: PathBuf,
    /// Directory of the CA, the serving and admin certificates and the service-account key.
    pub pki_dir: PathBuf,
    /// Range of cluster IPs; the first address is the `kubernetes` service.
    pub service_cidr: Ipv4Net,
    /// Range of node ports, inclusive.
    pub node_ports: (u16, u16),
    /// The lab's single node; it appears in pod-bound tokens.
    pub node_name: String,
    /// Addresses the serving certificate is valid for, beside loopback and the `kubernetes` service.
    pub extra_sans: Vec<IpAddr>,
    /// Where pods reach the API server (endpoint of the `kubernetes` service).
    pub advertise: Option<SocketAddr>,
    /// Events kept per resource for watches; older ones answer 410.
    pub watch_history: usize,
    /// Connections served at the same time on all listeners; further ones wait in the backlog.
    pub max_connections: usize,
}

impl Config {
    /// Defaults of the lab below a state directory.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        let dir = state_dir.into();
        Self {
            db_path: dir.join("lab.db"),
            pki_dir: dir.join("pki"),
            service_cidr: Ipv4Net::new_assert([10, 96, 0, 0].into(), 12),
            node_ports: (30000, 32767),
            node_name: "node0".to_owned(),
            extra_sans: Vec::new(),
            advertise: None,
            watch_history: 4096,
            max_connections: 4096,
        }
    }
}

/// Why the server could not start or serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object store.
    #[error("object store: {0}")]
    Store(String),
    /// Keys and certificates.
    #[error("keys and certificates in {}: {message}", dir.display())]
    Pki {
        /// The PKI directory.
        dir: PathBuf,
        /// What is wrong.
        message: String,
    },
}

/// The running API server. Cheap to clone; the store lives as long as any clone.
#[derive(Clone)]
pub struct ApiServer {
    server: Arc<Server>,
}

impl ApiServer {
    /// Opens (or creates) the store and the PKI and starts the writer. Needs a Tokio runtime.
    pub async fn open(config: Config) -> Result<Self, Error> {
        Ok(Self {
            server: Server::open(config).await?,
        })
    }

    /// A client in this process: no socket, no TLS, same code path. `user` is the identity requests
    /// carry; it may do everything (`system:masters`), and a name of the form
    /// `system:serviceaccount:NS:NAME` also carries the service-account groups.
    pub fn client(&self, user: &str) -> kube::Client {
        let router = self.server.router();
        let identity = auth::InProcess(auth::Identity::trusted(user));
        let agent = http::HeaderValue::from_str(user.rsplit(':').next().unwrap_or(user)).ok();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let mut request = request.map(axum::body::Body::new);
            request.extensions_mut().insert(identity.clone());
            if let Some(agent) = &agent {
                request
                    .headers_mut()
                    .entry(http::header::USER_AGENT)
                    .or_insert_with(|| agent.clone());
            }
            tower::ServiceExt::oneshot(router.clone(), request)
        });
        kube::Client::new(service, "default")
    }

    /// Serves HTTPS on `listener` until `shutdown` fires; may be called for several listeners.
    /// Returns after open requests have ended or a short grace has passed.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<(), Error> {
        self.server.clone().serve(listener, shutdown).await
    }

    /// The node that answers logs, exec, port-forward and metrics.
    pub fn set_kubelet(&self, kubelet: Arc<dyn Kubelet>) {
        self.server.set_kubelet(kubelet);
    }

    /// A kubeconfig with the admin's client certificate for a server at `address`.
    pub fn admin_kubeconfig(&self, address: SocketAddr) -> String {
        self.server.pki.kubeconfig(&format!("https://{address}"))
    }

    /// The CA certificate (PEM) that clients must trust; content of `kube-root-ca.crt`.
    pub fn ca_certificate(&self) -> &str {
        &self.server.pki.ca_pem
    }

    /// Ends all watches and log streams, so that their clients reconnect; used before a stop.
    pub fn stop(&self) {
        self.server.stop.cancel();
    }

    /// Forgets the watch history of all resources, as a compaction does: watchers that fell behind
    /// get 410 and list again. For tests and failure experiments.
    pub fn compact(&self) {
        for resource in self.server.registry.snapshot().all() {
            if let Some(collection) = &resource.collection {
                collection.compact();
            }
        }
    }
}
