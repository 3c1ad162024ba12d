//! SPDY/3.1, as kubectl before 1.30 speaks it for exec and port-forward, and as later ones speak it for
//! port-forward inside a WebSocket.
//!
//! One task reads frames and hands data to its stream, one writes. The client opens all streams; each
//! is answered at once. exec: streams named error, stdin, stdout, stderr, resize. port-forward: a pair
//! of streams (error, data) with a common requestID per connection.

mod frame;

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use axum::body::Body;
use axum::extract::ws::{Message, WebSocket};
use axum::response::Response;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderValue, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::frame::{Frame, Headers, Reader, Writer};
use super::exec::{STDERR, STDOUT, exit_status, pump, terminal_size};
use super::portforward::Target;
use crate::kubelet::{ExecOptions, ExecSession};
use crate::rest::header_text;
use crate::status::{ApiError, Result};

const EXEC_PROTOCOL: &str = "v4.channel.k8s.io";
const FORWARD_PROTOCOL: &str = "portforward.k8s.io";
/// Frames waiting to be written, and chunks waiting in a stream.
const QUEUE: usize = 32;
const CHUNK: usize = 16 * 1024;
const MAX_STREAMS: usize = 512;
/// The client gets this long to open its streams, and to hang up after the end.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn is_upgrade(request: &Request<Body>) -> bool {
    header_text(request.headers(), "upgrade")
        .to_ascii_lowercase()
        .starts_with("spdy/")
}

/// Answers 101 and hands the connection to `run`.
fn upgrade<F>(
    mut request: Request<Body>,
    protocol: &'static str,
    run: impl FnOnce(TokioIo<hyper::upgrade::Upgraded>) -> F + Send + 'static,
) -> Result<Response>
where
    F: Future<Output = ()> + Send,
{
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => run(TokioIo::new(upgraded)).await,
            Err(error) => tracing::debug!(%error, "a SPDY upgrade was not completed"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(
        "x-stream-protocol-version",
        HeaderValue::from_static(protocol),
    );
    Ok(response)
}

pub(super) fn exec(
    request: Request<Body>,
    options: &ExecOptions,
    start: impl Future<Output = Result<ExecSession>> + Send + 'static,
) -> Result<Response> {
    let offered = request.headers().get_all("x-stream-protocol-version");
    let known = offered
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|p| p.trim() == EXEC_PROTOCOL);
    if !known {
        return Err(ApiError::new(
            403,
            "Forbidden",
            format!(
                "unable to upgrade: unable to negotiate protocol: server supports [{EXEC_PROTOCOL}]"
            ),
        ));
    }
    let mut expected = vec!["error"];
    for (wanted, name) in [
        (options.stdin, "stdin"),
        (options.stdout, "stdout"),
        (options.stderr && !options.tty, "stderr"),
        (options.tty, "resize"),
    ] {
        if wanted {
            expected.push(name);
        }
    }
    upgrade(request, EXEC_PROTOCOL, move |io| {
        run_exec(io, expected, start)
    })
}

pub(super) fn port_forward(request: Request<Body>, target: Target) -> Result<Response> {
    upgrade(request, FORWARD_PROTOCOL, move |io| run_forward(io, target))
}

/// Port-forward inside a WebSocket: binary messages carry the bytes of a SPDY connection.
pub(super) async fn tunnel(socket: WebSocket, target: Target) {
    let (near, far) = tokio::io::duplex(4 * CHUNK);
    let (mut sender, mut receiver) = socket.split();
    let (mut from_spdy, mut to_spdy) = tokio::io::split(far);
    let inward = async {
        while let Some(Ok(message)) = receiver.next().await {
            let sent = match message {
                Message::Binary(data) => to_spdy.write_all(&data).await.is_ok(),
                Message::Close(_) => false,
                _ => true,
            };
            if !sent {
                break;
            }
        }
        drop(to_spdy.shutdown().await);
    };
    let outward = async {
        let mut buffer = vec![0; CHUNK];
        while let Ok(n) = from_spdy.read(&mut buffer).await {
            if n == 0
                || sender
                    .send(Message::Binary(Bytes::copy_from_slice(&buffer[..n])))
                    .await
                    .is_err()
            {
                break;
            }
        }
        drop(sender.send(Message::Close(None)).await);
    };
    tokio::select! {
        () = run_forward(near, target) => {}
        () = inward => {}
        () = outward => {}
    }
}

/// A stream the client opened.
struct Stream {
    id: u32,
    headers: Headers,
    input: mpsc::Receiver<Bytes>,
    output: mpsc::Sender<Frame>,
}

impl Stream {
    fn header(&self, name: &str) -> &str {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map_or("", |(_, v)| v)
    }

    async fn write(&self, data: Bytes) -> bool {
        self.output
            .send(Frame::Data {
                id: self.id,
                data,
                fin: false,
            })
            .await
            .is_ok()
    }

    async fn finish(&self) {
        drop(
            self.output
                .send(Frame::Data {
                    id: self.id,
                    data: Bytes::new(),
                    fin: true,
                })
                .await,
        );
    }
}

/// Both directions of a SPDY connection.
struct Connection {
    streams: mpsc::Receiver<Stream>,
    tasks: JoinSet<()>,
}

impl Connection {
    fn new(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (reader, writer) = tokio::io::split(io);
        let (opened, streams) = mpsc::channel(QUEUE);
        let (output, pending) = mpsc::channel(QUEUE);
        let mut tasks = JoinSet::new();
        tasks.spawn(read(Reader::new(reader), opened, output));
        tasks.spawn(write(writer, pending));
        Self { streams, tasks }
    }

    /// Lets everything that was sent reach the client, which then hangs up.
    async fn close(mut self) {
        drop(self.streams);
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        drop(tokio::time::timeout(PATIENCE, ended).await);
    }
}

async fn read(
    mut reader: Reader<impl AsyncRead + Unpin>,
    opened: mpsc::Sender<Stream>,
    output: mpsc::Sender<Frame>,
) {
    let mut inputs: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    loop {
        let frame = match reader.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(why) => return tracing::debug!(why, "a SPDY connection broke"),
        };
        match frame {
            Frame::SynStream { id, headers, fin } => {
                let (input, inbox) = mpsc::channel(QUEUE);
                if inputs.len() >= MAX_STREAMS {
                    drop(output.send(Frame::Reset { id }).await);
                    continue;
                }
                if output.send(Frame::SynReply { id }).await.is_err() {
                    return;
                }
                if !fin {
                    inputs.insert(id, input);
                }
                let stream = Stream {
                    id,
                    headers,
                    input: inbox,
                    output: output.clone(),
                };
                if opened.send(stream).await.is_err() {
                    // Nobody takes new streams any more; the rest is read until the client hangs up.
                    inputs.clear();
                }
            }
            Frame::Data { id, data, fin } => {
                if let Some(input) = inputs.get(&id)
                    && !data.is_empty()
                    && input.send(data).await.is_err()
                {
                    inputs.remove(&id);
                }
                if fin {
                    inputs.remove(&id);
                }
            }
            Frame::Reset { id } => drop(inputs.remove(&id)),
            Frame::Ping { id } => drop(output.send(Frame::Ping { id }).await),
            Frame::GoAway | Frame::SynReply { .. } | Frame::Other => {}
        }
    }
}

async fn write(mut io: impl AsyncWrite + Unpin, mut pending: mpsc::Receiver<Frame>) {
    let mut writer = match Writer::new() {
        Ok(writer) => writer,
        Err(why) => return tracing::error!(why, "SPDY header compression cannot be set up"),
    };
    while let Some(frame) = pending.recv().await {
        let bytes = match writer.encode(&frame) {
            Ok(bytes) => bytes,
            Err(why) => return tracing::error!(why, "a SPDY frame cannot be written"),
        };
        if io.write_all(&bytes).await.is_err() || io.flush().await.is_err() {
            return;
        }
    }
}

async fn run_exec(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    expected: Vec<&'static str>,
    start: impl Future<Output = Result<ExecSession>> + Send,
) {
    let mut connection = Connection::new(io);
    let mut streams: HashMap<String, Stream> = HashMap::new();
    let collect = async {
        while expected.iter().any(|e| !streams.contains_key(*e)) {
            let Some(stream) = connection.streams.recv().await else {
                return false;
            };
            streams.insert(stream.header("streamtype").to_owned(), stream);
        }
        true
    };
    if !tokio::time::timeout(PATIENCE, collect)
        .await
        .unwrap_or(false)
    {
        return tracing::debug!(?expected, "a SPDY client did not open its streams");
    }
    let Some(error) = streams.remove("error") else {
        return;
    };
    let status = match start.await {
        Ok(session) => relay(session, &mut streams, &mut connection).await,
        Err(e) => Some(e.body()),
    };
    let Some(status) = status else { return };
    for stream in streams.values() {
        stream.finish().await;
    }
    error.write(status.to_string().into()).await;
    error.finish().await;
    drop((error, streams));
    connection.close().await;
}

/// Runs a command over its streams; `None` if the client hung up.
async fn relay(
    session: ExecSession,
    streams: &mut HashMap<String, Stream>,
    connection: &mut Connection,
) -> Option<serde_json::Value> {
    let ExecSession {
        stdin,
        stdout,
        stderr,
        resize,
        status,
    } = session;
    let (output, mut pending) = mpsc::channel(QUEUE);
    let mut tasks = JoinSet::new();
    for (channel, reader) in [(STDOUT, stdout), (STDERR, stderr)] {
        if let Some(reader) = reader {
            tasks.spawn(pump(channel, reader, output.clone()));
        }
    }
    drop(output);
    if let (Some(mut writer), Some(mut stream)) = (stdin, streams.remove("stdin")) {
        tasks.spawn(async move {
            while let Some(data) = stream.input.recv().await {
                if writer.write_all(&data).await.is_err() || writer.flush().await.is_err() {
                    break;
                }
            }
            drop(writer.shutdown().await);
            stream.finish().await;
        });
    }
    if let (Some(resize), Some(mut stream)) = (resize, streams.remove("resize")) {
        tasks.spawn(async move {
            while let Some(data) = stream.input.recv().await {
                if let Some(size) = terminal_size(&data) {
                    let _ = resize.send(size).await;
                }
            }
        });
    }
    loop {
        tokio::select! {
            chunk = pending.recv() => {
                let Some((channel, data)) = chunk else { break };
                let name = if channel == STDERR { "stderr" } else { "stdout" };
                if let Some(stream) = streams.get(name)
                    && !stream.write(data).await
                {
                    return None;
                }
            }
            stream = connection.streams.recv() => {
                // No further streams are expected; the end of the channel is the end of the client.
                stream?;
            }
        }
    }
    let ended = status.await.ok();
    tasks.shutdown().await;
    Some(exit_status(ended))
}

async fn run_forward(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, target: Target) {
    let mut connection = Connection::new(io);
    let mut halves: HashMap<String, Stream> = HashMap::new();
    let mut forwards = JoinSet::new();
    while let Some(stream) = connection.streams.recv().await {
        while forwards.try_join_next().is_some() {}
        let request = stream.header("requestid").to_owned();
        let Some(other) = halves.remove(&request) else {
            if halves.len() < MAX_STREAMS {
                halves.insert(request, stream);
            }
            continue;
        };
        let (error, data) = if stream.header("streamtype") == "data" {
            (other, stream)
        } else {
            (stream, other)
        };
        forwards.spawn(forward(error, data, target.clone()));
    }
    forwards.shutdown().await;
    connection.close().await;
}

/// One forwarded connection.
async fn forward(error: Stream, mut data: Stream, target: Target) {
    let port = data.header("port").parse::<u16>();
    let connected = match port {
        Ok(port) => target.connect(port).await,
        Err(_) => Err(format!("invalid port \"{}\"", data.header("port"))),
    };
    let connection = match connected {
        Ok(connection) => connection,
        Err(why) => {
            error.write(why.into()).await;
            error.finish().await;
            data.finish().await;
            return;
        }
    };
    let (mut reader, mut writer) = tokio::io::split(connection);
    let output = data.output.clone();
    let id = data.id;
    let inward = async {
        while let Some(bytes) = data.input.recv().await {
            if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
                return;
            }
        }
        drop(writer.shutdown().await);
    };
    let outward = async {
        let mut buffer = vec![0; CHUNK];
        while let Ok(n) = reader.read(&mut buffer).await {
            let chunk = Bytes::copy_from_slice(&buffer[..n]);
            if n == 0
                || output
                    .send(Frame::Data {
                        id,
                        data: chunk,
                        fin: false,
                    })
                    .await
                    .is_err()
            {
                break;
            }
        }
        drop(
            output
                .send(Frame::Data {
                    id,
                    data: Bytes::new(),
                    fin: true,
                })
                .await,
        );
    };
    // The pod's end of the conversation is the end; the client may have closed its half long before.
    tokio::pin!(inward);
    tokio::pin!(outward);
    tokio::select! {
        () = &mut outward => {}
        () = &mut inward => outward.await,
    }
    error.finish().await;
}
