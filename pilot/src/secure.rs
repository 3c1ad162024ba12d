//! The TLS port: xDS and the pages on one HTTP/2 listener, for clients that show a certificate of the mesh.
//!
//! The identity is files that somebody else writes: `cert-chain.pem`, `key.pem`, `root-cert.pem`. Where they are missing or
//! unfit there is no listener, which is said once, and they are looked for again; nothing else of Pilot depends on them.
//! Once they are read, changed files are taken over for new connections. A client certificate has to descend from the
//! roots; who it names is not asked. Nobody is served before Pilot is ready.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use mesh_service::{
    Drain, Health,
    tls::{ReloadingTls, TlsFiles},
};
use pilot_xds::server::{Service, Tls};
use tokio::net::TcpListener;
use tonic::body::Body;
use tower::ServiceExt as _;

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// See the [module](self).
pub(crate) struct SecurePort {
    address: SocketAddr,
    folder: PathBuf,
    open: Option<(TcpListener, ReloadingTls)>,
}

impl SecurePort {
    /// Binds the port if its files are there. Only a port that cannot be bound is an error.
    pub(crate) async fn new(address: SocketAddr, folder: &Path) -> anyhow::Result<Self> {
        let mut port = Self {
            address,
            folder: folder.to_owned(),
            open: None,
        };
        match ReloadingTls::load(port.files()) {
            Ok(tls) => port.open = Some((port.bind().await?, tls)),
            Err(error) => tracing::warn!(
                %address, %error,
                "no xDS over TLS: --certDir needs cert-chain.pem, key.pem and root-cert.pem; looked for again every {LOOK:?}"
            ),
        }
        Ok(port)
    }

    /// Where it listens, if it does.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.open.as_ref()?.0.local_addr().ok()
    }

    fn files(&self) -> TlsFiles {
        TlsFiles {
            cert_chain: self.folder.join("cert-chain.pem"),
            key: self.folder.join("key.pem"),
            client_roots: Some(self.folder.join("root-cert.pem")),
            alpn: vec![b"h2".to_vec()],
        }
    }

    async fn bind(&self) -> anyhow::Result<TcpListener> {
        let bound = TcpListener::bind(self.address).await;
        bound.with_context(|| format!("cannot listen on --secureGrpcAddr {}", self.address))
    }

    /// Waits for the files and for Pilot, then lets `serve` do it until the drain.
    pub(crate) async fn run(
        mut self,
        health: Health,
        drain: Drain,
        serve: impl AsyncFnOnce(TcpListener, Tls),
    ) {
        let opened = async {
            loop {
                if let Some(open) = self.open.take() {
                    health.ready().await;
                    return open;
                }
                tokio::time::sleep(LOOK).await;
                let Ok(tls) = ReloadingTls::load(self.files()) else {
                    continue;
                };
                match self.bind().await {
                    Ok(listener) => self.open = Some((listener, tls)),
                    Err(error) => tracing::warn!("{error:#}"),
                }
            }
        };
        let (listener, tls) = tokio::select! {
            open = opened => open,
            () = drain.begun() => return,
        };
        tracing::info!(address = ?listener.local_addr().ok(), "xDS over TLS");
        let config = tls.subscribe();
        drain.spawn(tls.run(LOOK, drain.clone()));
        serve(listener, config).await;
    }
}

/// gRPC to `grpc`, the rest to `pages`.
pub(crate) fn dispatch(grpc: impl Service, pages: axum::Router) -> impl Service {
    tower::service_fn(move |request: http::Request<Body>| {
        let (grpc, pages) = (grpc.clone(), pages.clone());
        async move {
            let is_grpc = request
                .headers()
                .get(http::header::CONTENT_TYPE)
                .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
            if is_grpc {
                return grpc.oneshot(request).await;
            }
            let response = pages.oneshot(request).await?;
            Ok(response.map(Body::new))
        }
    })
}
