//! The listener: HTTP/2 connections that cannot be exhausted.
//!
//! - A connection that says nothing, or never gets to its first request, is closed after [`ServerSettings::first_request`].
//!   Of these *unproven* connections at most [`ServerSettings::max_unproven`] are kept: one more and the oldest goes. Ten
//!   thousand silent connections so hold some sockets for a moment, and cannot keep a proxy out.
//! - A silent connection costs its socket and a small task; HTTP/2 state begins with the first byte.
//! - With TLS the handshake has to be done within the same time.
//! - HTTP/2 pings find peers that are gone.
//! - After [`ServerSettings::max_age`] (jittered, so that a thousand proxies that came together do not leave together) its
//!   streams are told to end, which they do when nothing is under way, the connection says GOAWAY, and after
//!   [`ServerSettings::age_grace`] it is cut. Proxies then spread over the replicas there are now.
//! - A drain does the same at once.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::body::Body;
use tower::ServiceExt as _;

/// What connections are served by: gRPC routes, or something that has them and more.
pub trait Service:
    tower::Service<
        http::Request<Body>,
        Response = http::Response<Body>,
        Error = Infallible,
        Future: Send + 'static,
    > + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Service for S where
    S: tower::Service<
            http::Request<Body>,
            Response = http::Response<Body>,
            Error = Infallible,
            Future: Send + 'static,
        > + Clone
        + Send
        + Sync
        + 'static
{
}

/// The TLS configuration of a listener; taken anew for each connection, so that a reload needs no restart.
pub type Tls = watch::Receiver<Arc<ServerConfig>>;

/// Bounds of the listener.
#[derive(Clone, Copy, Debug)]
pub struct ServerSettings {
    /// Connections at once.
    pub max_connections: usize,
    /// Of these, connections that have not come to a request yet.
    pub max_unproven: usize,
    /// Time to the first request.
    pub first_request: Duration,
    /// Streams per connection (`ISTIO_GPRC_MAXSTREAMS` bounds it upstream).
    pub max_streams: u32,
    /// Between pings (`--keepaliveInterval`).
    pub keepalive_interval: Duration,
    /// For the answer to a ping (`--keepaliveTimeout`).
    pub keepalive_timeout: Duration,
    /// How old a connection gets (`--keepaliveMaxServerConnectionAge`), ±10%; `None` for ever.
    pub max_age: Option<Duration>,
    /// How long its streams have to end.
    pub age_grace: Duration,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            max_connections: 20_000,
            max_unproven: 2_000,
            first_request: Duration::from_secs(10),
            max_streams: 100,
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            max_age: Some(Duration::from_secs(30 * 60)),
            age_grace: Duration::from_secs(10),
        }
    }
}

/// In the extensions of each request.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// The client's address.
    pub peer: SocketAddr,
    /// Triggered when the connection's streams should come to an end.
    pub retire: CancellationToken,
    /// Triggered by a stream whose client does not read: nothing can be said to it, so the connection is cut.
    pub cut: CancellationToken,
}

/// Connections without a request so far, oldest first.
#[derive(Default)]
struct Unproven(Mutex<(u64, BTreeMap<u64, CancellationToken>)>);

impl Unproven {
    /// Enters a connection, and shows the oldest out if there are too many.
    fn enter(&self, limit: usize) -> (u64, CancellationToken) {
        let mut guard = self.0.lock();
        let (counter, waiting) = &mut *guard;
        *counter += 1;
        let evict = CancellationToken::new();
        waiting.insert(*counter, evict.clone());
        if waiting.len() > limit
            && let Some((_, oldest)) = waiting.pop_first()
        {
            oldest.cancel();
        }
        (*counter, evict)
    }

    fn leave(&self, number: u64) {
        self.0.lock().1.remove(&number);
    }
}

struct Shared<S> {
    service: S,
    tls: Option<Tls>,
    settings: ServerSettings,
    drain: CancellationToken,
    unproven: Unproven,
    refused: Counter,
}

/// Serves HTTP/2 until `drain`, then lets connections finish within [`ServerSettings::age_grace`].
///
/// `refused` counts connections that were closed without having been served.
pub async fn serve<S: Service>(
    listener: TcpListener,
    service: S,
    tls: Option<Tls>,
    settings: ServerSettings,
    drain: CancellationToken,
    refused: Counter,
) -> Result<(), Infallible> {
    let slots = Arc::new(Semaphore::new(settings.max_connections));
    let shared = Arc::new(Shared {
        service,
        tls,
        settings,
        drain: drain.clone(),
        unproven: Unproven::default(),
        refused,
    });
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely; some will be back in a moment.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            shared.refused.inc();
            continue;
        };
        tasks.spawn(connection(shared.clone(), stream, peer, slot));
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
    Ok(())
}

async fn connection<S: Service>(
    shared: Arc<Shared<S>>,
    stream: TcpStream,
    peer: SocketAddr,
    _slot: OwnedSemaphorePermit,
) {
    let deadline = Instant::now() + shared.settings.first_request;
    let (number, evict) = shared.unproven.enter(shared.settings.max_unproven);
    // Until the first byte there is nothing but this task and the socket.
    let spoke = tokio::select! {
        peeked = peek(&stream) => peeked,
        () = tokio::time::sleep_until(deadline) => false,
        () = evict.cancelled() => false,
        () = shared.drain.cancelled() => false,
    };
    let visit = Visit {
        peer,
        number,
        evict,
        deadline,
    };
    match &shared.tls {
        _ if !spoke => {
            shared.refused.inc();
        }
        None => {
            let _ = stream.set_nodelay(true);
            Box::pin(speak(&shared, stream, &visit)).await;
        }
        Some(tls) => {
            let _ = stream.set_nodelay(true);
            let config = tls.borrow().clone();
            let accept = tokio_rustls::TlsAcceptor::from(config).accept(stream);
            let accepted = tokio::select! {
                accepted = Box::pin(accept) => accepted,
                () = tokio::time::sleep_until(deadline) => Err(std::io::ErrorKind::TimedOut.into()),
                () = visit.evict.cancelled() => Err(std::io::ErrorKind::TimedOut.into()),
                () = shared.drain.cancelled() => Err(std::io::ErrorKind::ConnectionAborted.into()),
            };
            match accepted {
                Ok(stream) => Box::pin(speak(&shared, stream, &visit)).await,
                Err(error) => {
                    tracing::debug!(%peer, %error, "TLS handshake failed");
                    shared.refused.inc();
                }
            }
        }
    }
    shared.unproven.leave(number);
}

/// Whether the client said something; `false` if it left. (Readiness alone may be a false alarm.)
async fn peek(stream: &TcpStream) -> bool {
    stream.peek(&mut [0]).await.is_ok_and(|length| length > 0)
}

/// One connection's place among the unproven.
struct Visit {
    peer: SocketAddr,
    number: u64,
    evict: CancellationToken,
    deadline: Instant,
}

async fn speak<S: Service>(
    shared: &Arc<Shared<S>>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    visit: &Visit,
) {
    let Visit {
        peer,
        number,
        ref evict,
        deadline,
    } = *visit;
    let settings = shared.settings;
    let retire = CancellationToken::new();
    let cut = CancellationToken::new();
    let proven = Arc::new(AtomicBool::new(false));
    let service = {
        let (shared, proven) = (shared.clone(), proven.clone());
        let info = ConnectionInfo {
            peer,
            retire: retire.clone(),
            cut: cut.clone(),
        };
        hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
            if !proven.swap(true, Ordering::Relaxed) {
                shared.unproven.leave(number);
            }
            request.extensions_mut().insert(info.clone());
            shared.service.clone().oneshot(request.map(Body::new))
        })
    };
    let mut connection = pin!(
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(settings.max_streams)
            .keep_alive_interval(settings.keepalive_interval)
            .keep_alive_timeout(settings.keepalive_timeout)
            // Requests are small; a client cannot make us buffer more than this per stream and connection.
            .initial_stream_window_size(256 * 1024)
            .initial_connection_window_size(1024 * 1024)
            .max_header_list_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), service)
    );
    let age = settings
        .max_age
        .map(|age| age.mul_f64(rand::random_range(0.9..1.1)));
    let mut end_of_life = pin!(async {
        match age {
            Some(age) => tokio::time::sleep(age).await,
            None => std::future::pending().await,
        }
    });
    let mut proof = pin!(tokio::time::sleep_until(deadline));
    let mut proof_due = true;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "connection ended with an error");
                }
                return;
            }
            () = proof.as_mut(), if proof_due => {
                proof_due = false;
                if !proven.load(Ordering::Relaxed) {
                    shared.refused.inc();
                    return;
                }
            }
            () = evict.cancelled(), if !proven.load(Ordering::Relaxed) => {
                shared.refused.inc();
                return;
            }
            () = cut.cancelled() => return,
            () = end_of_life.as_mut() => break,
            () = shared.drain.cancelled() => break,
        }
    }
    retire.cancel();
    connection.as_mut().graceful_shutdown();
    if tokio::time::timeout(settings.age_grace, connection)
        .await
        .is_err()
    {
        tracing::debug!(%peer, "streams did not end in time; connection cut");
    }
}
