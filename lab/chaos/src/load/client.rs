//! One keep-alive HTTP/1.1 connection, by hyper.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Largest part of a body that is kept; the rest is read and dropped.
const KEEP: usize = 256 * 1024;

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Headers.
    pub headers: http::HeaderMap,
    /// The first 256 KiB of the body.
    pub body: Bytes,
}

impl Reply {
    /// Status and the beginning of the body, for a failure's text.
    pub fn describe(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let head: String = text.trim().chars().take(160).collect();
        match head.is_empty() {
            true => format!("status {}", self.status),
            false => format!("status {}: {head}", self.status),
        }
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }
}

/// A connection that is opened when it is first needed and again when the server closed it.
#[derive(Debug)]
pub struct Connection {
    address: String,
    sender: Option<SendRequest<Empty<Bytes>>>,
}

impl Connection {
    /// A connection to `host:port`; nothing is opened yet.
    pub fn new(address: String) -> Self {
        Self {
            address,
            sender: None,
        }
    }

    /// Forgets the open connection, e.g. after a request was given up half way.
    pub fn close(&mut self) {
        self.sender = None;
    }

    /// Sends GET and reads the whole answer. The error is a sentence for a person.
    pub async fn get(&mut self, host: &str, path: &str) -> Result<Reply, String> {
        let request = http::Request::get(path)
            .header(http::header::HOST, host)
            .header(http::header::USER_AGENT, "istioctl-chaos")
            .body(Empty::<Bytes>::new())
            .map_err(|e| format!("bad request for host {host:?}, path {path:?}: {e}"))?;
        let mut sender = match self.reusable().await {
            Some(sender) => sender,
            None => self.open().await?,
        };
        // `try_send_request` gives the request back when the connection was closed before anything of it was sent:
        // that is what a user agent retries silently, so it is no failure.
        let response = match sender.try_send_request(request).await {
            Ok(response) => response,
            Err(mut error) => match error.take_message() {
                Some(request) => {
                    sender = self.open().await?;
                    sender
                        .send_request(request)
                        .await
                        .map_err(|e| explain("sending the request", &e))?
                }
                None => return Err(explain("waiting for the answer", &error.into_error())),
            },
        };
        let (head, body) = response.into_parts();
        let body = read(body).await?;
        self.sender = Some(sender);
        Ok(Reply {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    }

    async fn reusable(&mut self) -> Option<SendRequest<Empty<Bytes>>> {
        let mut sender = self.sender.take()?;
        sender.ready().await.ok()?;
        Some(sender)
    }

    async fn open(&self) -> Result<SendRequest<Empty<Bytes>>, String> {
        let stream = TcpStream::connect(&self.address)
            .await
            .map_err(|e| format!("connecting to {}: {e}", self.address))?;
        // Small requests must not wait for Nagle's algorithm; without it the load still works.
        let _ = stream.set_nodelay(true);
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|e| explain("opening HTTP", &e))?;
        // Ends by itself when the sender is dropped or the server closes.
        tokio::spawn(connection);
        Ok(sender)
    }
}

async fn read(mut body: hyper::body::Incoming) -> Result<Bytes, String> {
    let mut kept = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| explain("reading the answer", &e))?;
        if let Some(data) = frame.data_ref() {
            let room = KEEP - kept.len().min(KEEP);
            kept.extend_from_slice(&data[..data.len().min(room)]);
        }
    }
    Ok(kept.into())
}

fn explain(doing: &str, error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = format!("{doing}: {error}");
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(&format!(": {inner}"));
        source = inner.source();
    }
    text
}
