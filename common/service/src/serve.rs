//! An accept loop that cannot be exhausted by silent clients.
//!
//! At most [`Limits::connections`] connections are served at once, a client has [`Limits::header_timeout`] to send a
//! request head, and TLS handshakes are bounded the same way. When the drain begins the listener closes, idle
//! connections are told to go and requests under way are finished.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo, http::Request};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, BufReader},
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tower::ServiceExt as _;

use crate::Drain;

/// Bounds of one listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections served at once; further ones wait in the kernel's queue.
    pub connections: usize,
    /// Time for the TLS handshake, and for each request head.
    pub header_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            header_timeout: Duration::from_secs(10),
        }
    }
}

/// Serves plain HTTP/1.1 and HTTP/2 until the drain begins, then finishes what is under way.
pub async fn http(listener: TcpListener, router: Router, drain: Drain) -> Result<(), Infallible> {
    accept(listener, None, router, drain, Limits::default()).await;
    Ok(())
}

/// Serves HTTPS; the TLS configuration is taken anew for each connection, so a reload needs no restart.
pub async fn https(
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    router: Router,
    drain: Drain,
) -> Result<(), Infallible> {
    accept(listener, Some(tls), router, drain, Limits::default()).await;
    Ok(())
}

async fn accept(
    listener: TcpListener,
    tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    router: Router,
    drain: Drain,
    limits: Limits,
) {
    let graceful = Arc::new(GracefulShutdown::new());
    let slots = Arc::new(Semaphore::new(limits.connections));
    loop {
        let permit = tokio::select! {
            permit = slots.clone().acquire_owned() => permit,
            () = drain.begun() => break,
        };
        // The semaphore is never closed.
        let Ok(permit) = permit else { break };
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: give the process a moment to close some.
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = drain.begun() => break,
        };
        let _ = stream.set_nodelay(true);
        let router = router.clone();
        let config = tls.as_ref().map(|tls| tls.borrow().clone());
        let watcher = graceful.watcher();
        drain.spawn(async move {
            let _permit = permit;
            match config {
                None => connection(stream, router, peer, limits, watcher).await,
                Some(config) => {
                    let handshake = tokio_rustls::TlsAcceptor::from(config).accept(stream);
                    match tokio::time::timeout(limits.header_timeout, handshake).await {
                        Ok(Ok(stream)) => connection(stream, router, peer, limits, watcher).await,
                        Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                        Err(_) => tracing::debug!(%peer, "TLS handshake timed out"),
                    }
                }
            }
        });
    }
    drop(listener);
    // Every connection task holds a clone through its watcher only, so this is the last one.
    if let Ok(graceful) = Arc::try_unwrap(graceful) {
        graceful.shutdown().await;
    }
}

async fn connection<S>(
    stream: S,
    router: Router,
    peer: std::net::SocketAddr,
    limits: Limits,
    watcher: hyper_util::server::graceful::Watcher,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request.map(Body::new))
    });
    // The protocol is told by the first bytes, and the builder would wait for them for ever.
    let mut stream = BufReader::with_capacity(256, stream);
    match tokio::time::timeout(limits.header_timeout, stream.fill_buf()).await {
        Ok(Ok(first)) if !first.is_empty() => {}
        _ => return,
    }
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30));
    let connection = builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .into_owned();
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%peer, %error, "connection ended with an error");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_drain_finishes_requests_under_way() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (started, gate) = (
            Arc::new(tokio::sync::Notify::new()),
            Arc::new(tokio::sync::Notify::new()),
        );
        let router = Router::new().route(
            "/slow",
            get({
                let (started, gate) = (started.clone(), gate.clone());
                move || async move {
                    started.notify_one();
                    gate.notified().await;
                    "done"
                }
            }),
        );
        let drain = Drain::default();
        let server = tokio::spawn(http(listener, router, drain.clone()));
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        client
            .write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        started.notified().await;
        drain.begin();
        gate.notify_one();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"),
            "{answer}"
        );
        server.await.unwrap().unwrap();
        assert!(
            tokio::net::TcpStream::connect(address).await.is_err(),
            "the listener is closed"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_sent_away() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(http(listener, Router::new(), Drain::default()));
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert!(
            rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"),
            "{}",
            String::from_utf8_lossy(&rest)
        );
    }
}
