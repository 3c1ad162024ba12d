//! Clients: HTTP/1.1 with anything in it, HTTP/2 with prior knowledge, lines over raw TCP.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, Version};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

/// No answer takes longer in a test that works.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to send.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    method: String,
    target: String,
    host: String,
    headers: Vec<(String, String)>,
    body: String,
    http2: bool,
}

impl Request {
    pub(crate) fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// `target` is what follows the method: a path with its query, or a whole URL for an HTTP proxy.
    pub(crate) fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            host: "nobody.test".to_owned(),
            headers: Vec::new(),
            body: String::new(),
            http2: false,
        }
    }

    /// The authority, as `Host` or `:authority`.
    pub(crate) fn host(mut self, host: &str) -> Self {
        self.host = host.to_owned();
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn body(mut self, body: &str) -> Self {
        self.body = body.to_owned();
        self
    }

    /// HTTP/2 instead of HTTP/1.1, without negotiation.
    pub(crate) fn http2(mut self) -> Self {
        self.http2 = true;
        self
    }

    fn build(self) -> http::Request<Full<Bytes>> {
        let uri: Uri = if self.http2 && self.target.starts_with('/') {
            format!("http://{}{}", self.host, self.target)
        } else {
            self.target
        }
        .parse()
        .unwrap();
        let mut request = http::Request::new(Full::from(self.body));
        *request.method_mut() = self.method.parse().unwrap();
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        if self.http2 {
            *request.version_mut() = Version::HTTP_2;
        } else {
            headers.insert("host", self.host.parse().unwrap());
        }
        for (name, value) in self.headers {
            let name: HeaderName = name.parse().unwrap();
            request
                .headers_mut()
                .append(name, HeaderValue::from_str(&value).unwrap());
        }
        request
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub status: u16,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: String,
    pub trailers: HeaderMap,
}

impl Response {
    /// All values of a header, joined by commas; empty if there is none.
    pub(crate) fn header(&self, name: &str) -> String {
        values(&self.headers, name)
    }
}

/// All values of a header, joined by commas; empty if there is none.
pub(crate) fn values(headers: &HeaderMap, name: &str) -> String {
    let values = headers.get_all(name).into_iter();
    let texts: Vec<&str> = values.map(|value| value.to_str().unwrap()).collect();
    texts.join(",")
}

/// One request on a connection; the error says what happened instead of an answer.
pub(crate) async fn send<S>(stream: S, request: Request) -> Result<Response, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let exchange = async {
        let io = TokioIo::new(stream);
        let http2 = request.http2;
        let request = request.build();
        let response = if http2 {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        Ok::<_, hyper::Error>(Response {
            status: head.status.as_u16(),
            version: head.version,
            headers: head.headers,
            body: String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            trailers,
        })
    };
    match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(outcome) => outcome.map_err(|error| format!("no answer: {error:?}")),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

/// A request on a new connection from where the test runs.
pub(crate) async fn ask(to: impl Into<SocketAddr>, request: Request) -> Result<Response, String> {
    let to = to.into();
    let stream = TcpStream::connect(to).await;
    send(stream.map_err(|error| format!("{to}: {error}"))?, request).await
}

/// Status and body; `None` if there was no complete answer.
pub(crate) async fn get(address: SocketAddr, host: &str, path: &str) -> Option<(u16, String)> {
    let answer = ask(address, Request::get(path).host(host)).await.ok()?;
    Some((answer.status, answer.body))
}

/// Sends a line and reads one; an empty answer means that the connection was closed properly, an error that it was reset.
pub(crate) async fn line<S>(stream: S, text: &str) -> std::io::Result<String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = BufReader::new(stream);
    let exchange = async {
        stream.write_all(format!("{text}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_line(&mut answer).await?;
        Ok(answer.trim_end().to_owned())
    };
    let timeout = std::io::ErrorKind::TimedOut;
    tokio::time::timeout(PATIENCE, exchange)
        .await
        .unwrap_or_else(|_| Err(timeout.into()))
}

/// Reads a line from a server that speaks first.
pub(crate) async fn greeting<S: AsyncRead + Unpin>(stream: S) -> std::io::Result<String> {
    let mut text = String::new();
    let mut stream = BufReader::new(stream);
    tokio::time::timeout(PATIENCE, stream.read_line(&mut text)).await??;
    Ok(text.trim_end().to_owned())
}
