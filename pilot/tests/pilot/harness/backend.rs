//! Servers behind the proxies: they remember what they get and answer as told.

use std::{
    io::Error,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    task::{AbortHandle, JoinSet},
};

use super::values;

/// One request, or one line over TCP (then only `body` is set), as the server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub method: String,
    /// Path and query.
    pub path: String,
    pub authority: String,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: String,
    /// Of the TLS connection.
    pub sni: Option<String>,
    /// The client's own certificate.
    pub certificate: Option<CertificateDer<'static>>,
    /// The caller.
    pub peer: SocketAddr,
}

impl Seen {
    /// All values of a header, joined by commas; empty if there is none.
    pub(crate) fn header(&self, name: &str) -> String {
        values(&self.headers, name)
    }
}

/// What to answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Option<String>,
    trailers: Vec<(String, String)>,
    delay: Duration,
    close: bool,
}

impl Answer {
    /// With the backend's name as body.
    pub(crate) fn ok() -> Self {
        Self::status(200)
    }

    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: None,
            trailers: Vec::new(),
            delay: Duration::ZERO,
            close: false,
        }
    }

    /// The connection is closed without an answer.
    pub(crate) fn close() -> Self {
        Self {
            close: true,
            ..Self::ok()
        }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn trailer(mut self, name: &str, value: &str) -> Self {
        self.trailers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn body(mut self, body: &str) -> Self {
        self.body = Some(body.to_owned());
        self
    }

    /// It comes only after this time.
    pub(crate) fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

type Script = Arc<dyn Fn(&Seen) -> Answer + Send + Sync>;

struct State {
    name: String,
    seen: Mutex<Vec<Seen>>,
    script: Mutex<Script>,
    connections: Mutex<usize>,
}

/// A server. It ends, with all its connections, with this value.
pub(crate) struct Backend {
    state: Arc<State>,
    pub address: SocketAddr,
    accepting: AbortHandle,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Backend {
    /// Speaks HTTP/1.1 and, to those who begin so, HTTP/2. Answers 200 with its name, and with what [`Backend::script`] says.
    pub(crate) fn http(name: &str, listener: TcpListener) -> Self {
        Self::serve(name, listener, async |state, stream, peer| {
            serve_http(state, stream, peer, None, None).await;
        })
    }

    /// The same over TLS.
    pub(crate) fn https(name: &str, listener: TcpListener, tls: rustls::ServerConfig) -> Self {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        Self::serve(name, listener, move |state, stream, peer| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let session = stream.get_ref().1;
                let sni = session.server_name().map(str::to_owned);
                let certificate = session
                    .peer_certificates()
                    .and_then(|chain| Some(chain.first()?.clone().into_owned()));
                serve_http(state, stream, peer, sni, certificate).await;
            }
        })
    }

    /// Answers every line with its name, a space and the line.
    pub(crate) fn tcp(name: &str, listener: TcpListener) -> Self {
        Self::serve(name, listener, serve_lines)
    }

    /// Says its name as soon as somebody connects, then is as [`Backend::tcp`]: as MySQL and SMTP do.
    pub(crate) fn speaks_first(name: &str, listener: TcpListener) -> Self {
        Self::serve(name, listener, async |state, mut stream, peer| {
            let greeting = format!("{}\n", state.name);
            if stream.write_all(greeting.as_bytes()).await.is_ok() {
                serve_lines(state, stream, peer).await;
            }
        })
    }

    fn serve<F>(
        name: &str,
        listener: TcpListener,
        connection: impl Fn(Arc<State>, tokio::net::TcpStream, SocketAddr) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            name: name.to_owned(),
            seen: Mutex::default(),
            script: Mutex::new(Arc::new(|_| Answer::ok())),
            connections: Mutex::default(),
        });
        let accept = {
            let state = state.clone();
            async move {
                let mut connections = JoinSet::new();
                while let Ok((stream, peer)) = listener.accept().await {
                    *state.connections.lock().unwrap() += 1;
                    connections.spawn(connection(state.clone(), stream, peer));
                }
            }
        };
        Self {
            state,
            address,
            accepting: tokio::spawn(accept).abort_handle(),
        }
    }

    /// How requests are answered from now on.
    pub(crate) fn script(&self, script: impl Fn(&Seen) -> Answer + Send + Sync + 'static) {
        *self.state.script.lock().unwrap() = Arc::new(script);
    }

    /// Everything seen since the last call.
    pub(crate) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.seen.lock().unwrap())
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        *self.state.connections.lock().unwrap()
    }

    /// `ADDRESS PORT LABELS` for [`super::service`]; labels as in YAML's `{…}`.
    pub(crate) fn endpoint(&self, labels: &str) -> String {
        format!("{} {} {labels}", self.address.ip(), self.address.port())
    }
}

async fn serve_lines(state: Arc<State>, stream: tokio::net::TcpStream, peer: SocketAddr) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let answer = format!("{} {line}\n", state.name);
        state.seen.lock().unwrap().push(Seen {
            method: String::new(),
            path: String::new(),
            authority: String::new(),
            version: Version::default(),
            headers: HeaderMap::new(),
            body: line,
            sni: None,
            certificate: None,
            peer,
        });
        if write.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn serve_http<S>(
    state: Arc<State>,
    stream: S,
    peer: SocketAddr,
    sni: Option<String>,
    certificate: Option<CertificateDer<'static>>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (state, sni, certificate) = (state.clone(), sni.clone(), certificate.clone());
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_err(Error::other)?.to_bytes();
            let authority = match head.uri.authority() {
                Some(authority) => authority.to_string(),
                None => values(&head.headers, "host"),
            };
            let seen = Seen {
                method: head.method.to_string(),
                path: head
                    .uri
                    .path_and_query()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                authority,
                version: head.version,
                headers: head.headers,
                body: String::from_utf8_lossy(&body).into_owned(),
                sni,
                certificate,
                peer,
            };
            let script = state.script.lock().unwrap().clone();
            let answer = script(&seen);
            state.seen.lock().unwrap().push(seen);
            tokio::time::sleep(answer.delay).await;
            if answer.close {
                return Err(Error::other("told to close"));
            }
            Ok(response(answer, &state.name))
        }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let _ = builder
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn response(
    answer: Answer,
    name: &str,
) -> http::Response<BoxBody<Bytes, std::convert::Infallible>> {
    let map = |list: Vec<(String, String)>| -> HeaderMap {
        let parse = |(name, value): (String, String)| {
            let name: HeaderName = name.parse().unwrap();
            (name, HeaderValue::from_str(&value).unwrap())
        };
        list.into_iter().map(parse).collect()
    };
    let body = Full::from(answer.body.unwrap_or_else(|| name.to_owned()));
    let body = if answer.trailers.is_empty() {
        body.boxed()
    } else {
        let trailers = map(answer.trailers);
        body.with_trailers(async move { Some(Ok(trailers)) })
            .boxed()
    };
    let mut response = http::Response::new(body);
    *response.status_mut() = answer.status.try_into().unwrap();
    *response.headers_mut() = map(answer.headers);
    response
}
