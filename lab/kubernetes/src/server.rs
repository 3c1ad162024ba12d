//! The pieces of a running server, its TLS listeners and the in-process way in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{CertificateUser, Tokens};
use crate::kubelet::Kubelet;
use crate::pki::Pki;
use crate::registry::{Registry, Resource};
use crate::store::Store;
use crate::{Config, Error, bootstrap, maintenance, rest};

/// A client gets this long for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// And this long for the headers of a request; an idle kept-alive connection ends with it, too.
const HEADERS: Duration = Duration::from_secs(60);
/// How long open requests may go on after a stop.
const DRAIN: Duration = Duration::from_secs(2);

/// Shared by all requests.
pub(crate) struct Server {
    pub(crate) config: Config,
    pub(crate) store: Arc<Store>,
    pub(crate) registry: Registry,
    pub(crate) pki: Pki,
    pub(crate) tokens: Tokens,
    pub(crate) kubelet: ArcSwapOption<Arc<dyn Kubelet>>,
    /// Ends watches and streams.
    pub(crate) stop: CancellationToken,
    pub(crate) requests: AtomicU64,
    /// Node ports and cluster IPs are chosen one at a time.
    pub(crate) allocation: parking_lot::Mutex<()>,
    connections: Arc<Semaphore>,
}

impl Server {
    pub(crate) async fn open(config: Config) -> Result<Arc<Self>, Error> {
        let pki = Pki::open(&config)?;
        let store = Store::open(&config.db_path, config.watch_history)
            .await
            .map_err(Error::Store)?;
        let server = Arc::new(Self {
            registry: Registry::new(&store),
            tokens: Tokens::new(&pki)?,
            kubelet: ArcSwapOption::empty(),
            stop: CancellationToken::new(),
            requests: AtomicU64::new(0),
            allocation: parking_lot::Mutex::default(),
            connections: Arc::new(Semaphore::new(config.max_connections)),
            pki,
            store,
            config,
        });
        bootstrap::run(&server).await?;
        maintenance::spawn(&server);
        Ok(server)
    }

    /// After a write: what derives from objects is brought up to date.
    pub(crate) fn written(&self, resource: &Resource) {
        if resource.is("apiextensions.k8s.io", "customresourcedefinitions") {
            self.registry.rebuild(&self.store);
        }
    }

    pub(crate) fn kubelet(&self) -> Option<Arc<dyn Kubelet>> {
        self.kubelet.load().as_deref().cloned()
    }

    pub(crate) fn set_kubelet(&self, kubelet: Arc<dyn Kubelet>) {
        self.kubelet.store(Some(Arc::new(kubelet)));
    }

    pub(crate) fn router(self: &Arc<Self>) -> Router {
        Router::new().fallback(entry).with_state(self.clone())
    }

    /// Accepts connections until `shutdown`, then lets open requests end.
    pub(crate) async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<(), Error> {
        let tls = self.pki.server_config().map_err(|message| Error::Pki {
            dir: self.config.pki_dir.clone(),
            message,
        })?;
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let tasks = TaskTracker::new();
        loop {
            let permit = tokio::select! {
                permit = self.connections.clone().acquire_owned() => permit,
                () = shutdown.cancelled() => break,
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            match (accepted, permit) {
                (Ok((stream, _)), Ok(permit)) => {
                    let (server, acceptor, shutdown) =
                        (self.clone(), acceptor.clone(), shutdown.clone());
                    tasks.spawn(async move {
                        server.connection(stream, acceptor, shutdown).await;
                        drop(permit);
                    });
                }
                (Err(error), _) => {
                    // Out of file descriptors, most likely: give connections time to end.
                    tracing::warn!(%error, "the API server cannot accept a connection; trying again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                (_, Err(_)) => break,
            }
        }
        tasks.close();
        if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
            tracing::debug!(
                open = tasks.len(),
                "connections were still open at the end of the drain"
            );
        }
        Ok(())
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        acceptor: TlsAcceptor,
        shutdown: CancellationToken,
    ) {
        drop(stream.set_nodelay(true));
        let tls = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => return tracing::debug!("TLS handshake did not end in time"),
        };
        let user = tls
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|c| c.first())
            .and_then(CertificateUser::from_certificate);
        let router = self.router();
        let service = tower::service_fn(move |mut request: Request<hyper::body::Incoming>| {
            if let Some(user) = &user {
                request.extensions_mut().insert(user.clone());
            }
            let router = router.clone();
            async move { tower::ServiceExt::oneshot(router, request).await }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(60))
            .max_concurrent_streams(256);
        let connection = builder
            .serve_connection_with_upgrades(TokioIo::new(tls), TowerToHyperService::new(service));
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error, "connection ended");
        }
    }
}

fn entry(
    State(server): State<Arc<Server>>,
    request: Request<Body>,
) -> BoxFuture<'static, Response> {
    server.requests.fetch_add(1, Ordering::Relaxed);
    rest::handle(server, request).boxed()
}
