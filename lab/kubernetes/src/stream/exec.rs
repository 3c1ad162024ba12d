//! `pods/NAME/exec` over WebSocket (`v4.channel.k8s.io`, `v5.channel.k8s.io`).
//!
//! Every message is binary; its first byte is the channel: 0 stdin, 1 stdout, 2 stderr, 3 status,
//! 4 resize, and in v5 255 closes the channel named by the next byte. The status (a `Status` object) is
//! the last message; then the socket closes normally. SPDY clients are handed to [`super::spdy`].

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use bytes::Bytes;
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use http::Request;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::{from_kubelet, kubelet, log, spdy};
use crate::admission;
use crate::kubelet::{ExecOptions, ExecSession, ExitStatus};
use crate::rest::{Context, find};
use crate::status::{ApiError, Result};

pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
pub(super) const STATUS: u8 = 3;
pub(super) const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// Bytes read from a command at a time.
const CHUNK: usize = 16 * 1024;
/// Output waiting for a slow client, in chunks; then the command's pipe fills up.
const QUEUE: usize = 16;

pub(crate) async fn serve(context: &Context, request: Request<Body>) -> Result<Response> {
    let pod = find(context)?;
    let options = options(context, &pod.value)?;
    admission::connect(context, "PodExecOptions").await?;
    if context.subresource.as_deref() == Some("attach") {
        return Err(ApiError::bad_request(
            "attach is not served by this lab; use exec or logs",
        ));
    }
    let kubelet = kubelet(context)?;
    let (namespace, name) = (context.namespace.clone(), pod.name.clone());
    let wanted = options.clone();
    let start = async move {
        kubelet
            .exec(&namespace, &name, options)
            .await
            .map_err(from_kubelet)
    };
    if spdy::is_upgrade(&request) {
        return spdy::exec(request, &wanted, start);
    }
    let upgrade = websocket(request).await?;
    Ok(upgrade
        .protocols(PROTOCOLS)
        .on_upgrade(move |socket| async move {
            let (sender, receiver) = socket.split();
            let session = start.await;
            run(sender, receiver, session).await;
        }))
}

/// The WebSocket handshake of a request.
pub(super) async fn websocket(request: Request<Body>) -> Result<WebSocketUpgrade> {
    let (mut parts, _) = request.into_parts();
    WebSocketUpgrade::from_request_parts(&mut parts, &())
        .await
        .map_err(|e| ApiError::bad_request(format!("Upgrade request required: {}", e.body_text())))
}

fn options(context: &Context, pod: &Value) -> Result<ExecOptions> {
    let query = &context.options;
    let container = match query.get("container") {
        None => default_container(pod),
        named => log::container(pod, named)?,
    };
    let options = ExecOptions {
        container: Some(container),
        command: query.all("command").map(str::to_owned).collect(),
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        tty: query.flag("tty"),
    };
    if options.command.is_empty() {
        return Err(ApiError::bad_request(
            "you must specify at least 1 command for the container",
        ));
    }
    if !(options.stdin || options.stdout || options.stderr) {
        return Err(ApiError::bad_request(
            "you must specify at least 1 of stdin, stdout, stderr",
        ));
    }
    Ok(options)
}

fn default_container(pod: &Value) -> String {
    let annotated = crate::json::str_at(
        pod,
        &[
            "metadata",
            "annotations",
            "kubectl.kubernetes.io/default-container",
        ],
    );
    if !annotated.is_empty() {
        return annotated.to_owned();
    }
    let containers = crate::json::list_at(pod, &["spec", "containers"]);
    containers
        .first()
        .map(|c| crate::json::str_at(c, &["name"]).to_owned())
        .unwrap_or_default()
}

/// The status of a command that ended.
pub(super) fn exit_status(status: Option<ExitStatus>) -> Value {
    match status {
        Some(ExitStatus { code: 0 }) => json!({"metadata": {}, "status": "Success"}),
        Some(ExitStatus { code }) => json!({"metadata": {}, "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"), "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}}),
        None => ApiError::internal("the node lost the command").body(),
    }
}

type Sender = SplitSink<WebSocket, Message>;
type Receiver = futures::stream::SplitStream<WebSocket>;

async fn run(mut sender: Sender, receiver: Receiver, session: Result<ExecSession>) {
    // Clients wait for the first message before they take the stream as open.
    if sender.send(frame(STDOUT, &[])).await.is_err() {
        return;
    }
    let status = match session {
        Err(error) => error.body(),
        Ok(session) => match relay(&mut sender, receiver, session).await {
            Some(status) => status,
            None => return,
        },
    };
    drop(
        sender
            .send(frame(STATUS, status.to_string().as_bytes()))
            .await,
    );
    let close = CloseFrame {
        code: axum::extract::ws::close_code::NORMAL,
        reason: "".into(),
    };
    drop(sender.send(Message::Close(Some(close))).await);
}

pub(super) fn frame(channel: u8, data: &[u8]) -> Message {
    let mut bytes = Vec::with_capacity(data.len() + 1);
    bytes.push(channel);
    bytes.extend_from_slice(data);
    Message::Binary(bytes.into())
}

/// Moves bytes until the command has ended and its output is drained; `None` if the client went away.
async fn relay(sender: &mut Sender, receiver: Receiver, session: ExecSession) -> Option<Value> {
    let ExecSession {
        stdin,
        stdout,
        stderr,
        resize,
        status,
    } = session;
    let (output, mut pending) = mpsc::channel(QUEUE);
    let readers = [(STDOUT, stdout), (STDERR, stderr)]
        .into_iter()
        .filter_map(|(channel, reader)| {
            reader.map(|r| tokio::spawn(pump(channel, r, output.clone())))
        })
        .collect::<Vec<_>>();
    drop(output);
    let mut input = tokio::spawn(feed(receiver, stdin, resize));
    let (mut gone, mut listening) = (false, true);
    loop {
        tokio::select! {
            chunk = pending.recv() => match chunk {
                Some((channel, data)) => {
                    if sender.send(frame(channel, &data)).await.is_err() {
                        gone = true;
                        break;
                    }
                }
                None => break,
            },
            left = &mut input, if listening => {
                listening = false;
                // The client closed the socket (as opposed to its standard input).
                if left.is_ok_and(|closed| closed) {
                    gone = true;
                    break;
                }
            }
        }
    }
    let result = if gone {
        None
    } else {
        Some(exit_status(status.await.ok()))
    };
    input.abort();
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    result
}

/// Reads a command's output into the queue.
pub(super) async fn pump(
    channel: u8,
    mut reader: Box<dyn AsyncRead + Send + Unpin>,
    output: mpsc::Sender<(u8, Bytes)>,
) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(n) = reader.read(&mut buffer).await {
        if n == 0
            || output
                .send((channel, Bytes::copy_from_slice(&buffer[..n])))
                .await
                .is_err()
        {
            return;
        }
    }
}

/// Handles what the client sends; says whether it closed the connection.
async fn feed(
    mut receiver: Receiver,
    mut stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    resize: Option<mpsc::Sender<(u16, u16)>>,
) -> bool {
    while let Some(Ok(message)) = receiver.next().await {
        let data = match message {
            Message::Binary(data) => data,
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            Message::Close(_) => return true,
            Message::Ping(_) | Message::Pong(_) => continue,
        };
        match data.split_first() {
            Some((&STDIN, input)) => {
                if let Some(writer) = &mut stdin
                    && (writer.write_all(input).await.is_err() || writer.flush().await.is_err())
                {
                    stdin = None;
                }
            }
            Some((&RESIZE, size)) => {
                if let (Some(resize), Some(size)) = (&resize, terminal_size(size)) {
                    let _ = resize.send(size).await;
                }
            }
            Some((&CLOSE, [STDIN, ..])) => {
                if let Some(mut writer) = stdin.take() {
                    drop(writer.shutdown().await);
                }
            }
            _ => {}
        }
    }
    true
}

pub(super) fn terminal_size(bytes: &[u8]) -> Option<(u16, u16)> {
    let size: Value = serde_json::from_slice(bytes).ok()?;
    let number = |key| {
        size.get(key)
            .and_then(Value::as_u64)
            .and_then(|n| u16::try_from(n).ok())
    };
    Some((number("Width")?, number("Height")?))
}
