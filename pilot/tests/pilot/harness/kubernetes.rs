//! A Kubernetes API server for what only its Services can say: unnamed ports, headless services, probes.
//!
//! It is the lab's, in the test's own process; objects are written without a socket, Pilot reads them over TLS.

use std::net::SocketAddr;

use lab_kubernetes::{ApiServer, Config};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::PilotOptions;

/// A running API server; it ends with this value.
pub(crate) struct Kubernetes {
    folder: TempDir,
    server: ApiServer,
    client: kube::Client,
    shutdown: CancellationToken,
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        self.server.stop();
        self.shutdown.cancel();
    }
}

impl Kubernetes {
    /// With the namespace `shop`.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = ApiServer::open(Config::new(folder.path())).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        std::fs::write(
            folder.path().join("kubeconfig"),
            server.admin_kubeconfig(address),
        )
        .unwrap();
        let shutdown = CancellationToken::new();
        tokio::spawn({
            let (server, shutdown) = (server.clone(), shutdown.clone());
            async move { server.serve(listener, shutdown).await }
        });
        let client = server.client("test");
        let this = Self {
            folder,
            server,
            client,
            shutdown,
        };
        this.create("/api/v1/namespaces", json!({"metadata": {"name": "shop"}}))
            .await;
        this
    }

    /// A Pilot that takes services from here, and config from its directory as ever.
    pub(crate) fn registry_of(&self, pilot: PilotOptions) -> PilotOptions {
        let kubeconfig = self.folder.path().join("kubeconfig");
        pilot
            .arg("--registries=Kubernetes")
            .arg(&format!("--kubeconfig={}", kubeconfig.display()))
    }

    /// Creates an object in a collection, such as `/api/v1/namespaces/shop/services`.
    pub(crate) async fn create(&self, collection: &str, object: Value) {
        let request = http::Request::post(collection).header("content-type", "application/json");
        let request = request.body(object.to_string().into_bytes()).unwrap();
        let answer = self.client.request::<Value>(request).await;
        answer.unwrap_or_else(|error| panic!("{collection}: {error}: {object}"));
    }

    /// A Service of namespace `shop` without a selector, and the slice of its ready endpoints. `vip` may be `None` for a
    /// headless one; `ports` are (name, number, the endpoints' port).
    pub(crate) async fn service(
        &self,
        name: &str,
        vip: &str,
        ports: &[(&str, u16, u16)],
        addresses: &[String],
    ) {
        let service_ports: Vec<Value> = ports
            .iter()
            .map(|(name, port, target)| json!({"name": name, "port": port, "targetPort": target}))
            .collect();
        let slice_ports: Vec<Value> = ports
            .iter()
            .map(|(name, _, target)| json!({"name": name, "port": target, "protocol": "TCP"}))
            .collect();
        self.create(
            "/api/v1/namespaces/shop/services",
            json!({"metadata": {"name": name}, "spec": {"clusterIP": vip, "ports": service_ports}}),
        )
        .await;
        let endpoints: Vec<Value> = addresses
            .iter()
            .map(|address| json!({"addresses": [address], "conditions": {"ready": true}}))
            .collect();
        self.create(
            "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices",
            json!({
                "metadata": {"name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4", "ports": slice_ports, "endpoints": endpoints
            }),
        )
        .await;
    }
}
