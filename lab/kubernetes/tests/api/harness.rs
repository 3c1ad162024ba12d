//! A server per test, on its own directory and port.

use std::net::SocketAddr;

use http::Request;
use kube::Client;
use lab_kubernetes::{ApiServer, Config};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub(crate) struct Lab {
    pub(crate) dir: TempDir,
    pub(crate) server: ApiServer,
    pub(crate) client: Client,
    pub(crate) address: SocketAddr,
    shutdown: CancellationToken,
}

impl Lab {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::start_in(dir).await
    }

    pub(crate) async fn start_in(dir: TempDir) -> Self {
        Self::start_with(dir, |_| {}).await
    }

    pub(crate) async fn start_with(dir: TempDir, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(dir.path());
        change(&mut config);
        let server = ApiServer::open(config).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        tokio::spawn({
            let (server, shutdown) = (server.clone(), shutdown.clone());
            async move { server.serve(listener, shutdown).await }
        });
        let client = server.client("test");
        let lab = Self {
            dir,
            server,
            client,
            address,
            shutdown,
        };
        std::fs::write(lab.kubeconfig(), lab.server.admin_kubeconfig(address)).unwrap();
        lab
    }

    pub(crate) fn kubeconfig(&self) -> std::path::PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// A kube-rs client over TLS with the admin's certificate.
    pub(crate) async fn tls_client(&self) -> Client {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let text = self.server.admin_kubeconfig(self.address);
        let config = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        let config = kube::Config::from_custom_kubeconfig(config, &Default::default())
            .await
            .unwrap();
        Client::try_from(config).unwrap()
    }

    /// The default service account, which the controllers make in a real lab.
    pub(crate) async fn default_account(&self) {
        self.post(
            "/api/v1/namespaces/default/serviceaccounts",
            r#"{"metadata":{"name":"default"}}"#,
        )
        .await
        .unwrap();
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        kind: &str,
        body: &str,
    ) -> Result<Value, kube::core::Status> {
        send(&self.client, method, path, kind, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, kube::core::Status> {
        self.send("GET", path, "", "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Result<Value, kube::core::Status> {
        self.send("POST", path, "application/json", body).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Result<Value, kube::core::Status> {
        self.send("PUT", path, "application/json", &body.to_string())
            .await
    }

    pub(crate) async fn merge(&self, path: &str, body: &str) -> Result<Value, kube::core::Status> {
        self.send("PATCH", path, "application/merge-patch+json", body)
            .await
    }

    pub(crate) async fn delete(&self, path: &str, body: &str) -> Result<Value, kube::core::Status> {
        self.send("DELETE", path, "application/json", body).await
    }

    /// Stops the listeners and drops the server without any goodbye to its store.
    pub(crate) fn stop(self) -> TempDir {
        self.server.stop();
        self.shutdown.cancel();
        self.dir
    }
}

/// A raw request; failures are the Status the server sent.
pub(crate) async fn send(
    client: &Client,
    method: &str,
    path: &str,
    kind: &str,
    body: &str,
) -> Result<Value, kube::core::Status> {
    let mut request = Request::builder().method(method).uri(path);
    if !kind.is_empty() {
        request = request.header("content-type", kind);
    }
    match client
        .request::<Value>(request.body(body.as_bytes().to_vec()).unwrap())
        .await
    {
        Ok(value) => Ok(value),
        Err(kube::Error::Api(status)) => Err(*status),
        Err(other) => panic!("{method} {path}: {other}"),
    }
}
