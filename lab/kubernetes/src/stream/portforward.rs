//! `pods/NAME/portforward` over WebSocket as kube-rs speaks it (`v4.channel.k8s.io`): for the i-th port
//! of the query channel 2i carries data and 2i+1 an error text; the first message on each channel is the
//! port as two bytes, little-endian. SPDY clients (also inside a WebSocket) go to [`super::spdy`].

use std::sync::Arc;

use axum::body::Body;
use axum::extract::ws::{Message, WebSocket};
use axum::response::Response;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::exec::{frame, websocket};
use super::{kubelet, spdy};
use crate::admission;
use crate::kubelet::{AsyncReadWrite, Kubelet};
use crate::rest::{Context, find, header_text};
use crate::status::{ApiError, Result};

const PROTOCOL: &str = "v4.channel.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const CHUNK: usize = 16 * 1024;
const QUEUE: usize = 16;
/// Ports in one request.
const MAX_PORTS: usize = 64;

/// What a forwarded connection leads to.
#[derive(Clone)]
pub(super) struct Target {
    kubelet: Arc<dyn Kubelet>,
    namespace: String,
    pod: String,
}

impl Target {
    pub(super) async fn connect(&self, port: u16) -> Result<Box<dyn AsyncReadWrite>, String> {
        self.kubelet.port_forward(&self.namespace, &self.pod, port).await.map_err(|e| {
            format!(
                "error forwarding port {port} to pod {}, uid : failed to connect to localhost:{port} inside the pod's network namespace: {e}",
                self.pod
            )
        })
    }
}

pub(crate) async fn serve(context: &Context, request: Request<Body>) -> Result<Response> {
    let pod = find(context)?;
    admission::connect(context, "PodPortForwardOptions").await?;
    let phase = crate::json::str_at(&pod.value, &["status", "phase"]);
    if phase != "Running" {
        return Err(ApiError::bad_request(format!(
            "unable to forward port because pod is not running. Current status={phase}"
        )));
    }
    let target = Target {
        kubelet: kubelet(context)?,
        namespace: context.namespace.clone(),
        pod: pod.name.clone(),
    };
    if spdy::is_upgrade(&request) {
        return spdy::port_forward(request, target);
    }
    let protocols = header_text(request.headers(), "sec-websocket-protocol").to_owned();
    if protocols.split(',').any(|p| p.trim() == TUNNEL) {
        let upgrade = websocket(request).await?;
        return Ok(upgrade
            .protocols([TUNNEL])
            .on_upgrade(move |socket| spdy::tunnel(socket, target)));
    }
    let ports = context
        .options
        .all("ports")
        .flat_map(|p| p.split(','))
        .map(|p| {
            p.parse::<u16>()
                .ok()
                .filter(|p| *p > 0)
                .ok_or_else(|| ApiError::bad_request(format!("invalid port \"{p}\": 1 to 65535")))
        })
        .collect::<Result<Vec<u16>>>()?;
    if ports.is_empty() || ports.len() > MAX_PORTS {
        return Err(ApiError::bad_request(format!(
            "query parameter \"ports\" must name 1 to {MAX_PORTS} ports"
        )));
    }
    let upgrade = websocket(request).await?;
    Ok(upgrade
        .protocols([PROTOCOL])
        .on_upgrade(move |socket| run(socket, target, ports)))
}

async fn run(socket: WebSocket, target: Target, ports: Vec<u16>) {
    let (mut sender, mut receiver) = socket.split();
    let (output, mut pending) = mpsc::channel::<(u8, Bytes)>(QUEUE);
    let mut inputs = Vec::new();
    let mut tasks = tokio::task::JoinSet::new();
    for (i, port) in (0u8..).zip(ports) {
        let (data, error) = (2 * i, 2 * i + 1);
        for channel in [data, error] {
            if sender
                .send(frame(channel, &port.to_le_bytes()))
                .await
                .is_err()
            {
                return;
            }
        }
        let (input, inbox) = mpsc::channel::<Bytes>(QUEUE);
        inputs.push(input);
        let (target, output) = (target.clone(), output.clone());
        tasks.spawn(async move {
            match target.connect(port).await {
                Ok(connection) => copy(connection, inbox, data, output).await,
                Err(why) => drop(output.send((error, why.into())).await),
            }
        });
    }
    drop(output);
    loop {
        tokio::select! {
            message = receiver.next() => match message {
                Some(Ok(Message::Binary(bytes))) => {
                    if let Some((channel, data)) = bytes.split_first()
                        && channel % 2 == 0
                        && let Some(input) = inputs.get(usize::from(channel / 2))
                    {
                        // A connection that ended takes no more input.
                        drop(input.send(Bytes::copy_from_slice(data)).await);
                    }
                }
                Some(Ok(Message::Close(_))) | Some(Err(_)) | None => break,
                Some(Ok(_)) => {}
            },
            chunk = pending.recv() => match chunk {
                Some((channel, data)) => {
                    if sender.send(frame(channel, &data)).await.is_err() {
                        break;
                    }
                }
                None => break,
            },
        }
    }
    drop(sender.send(Message::Close(None)).await);
}

/// Moves bytes between a pod's port and a channel until the pod's side ends.
async fn copy(
    connection: Box<dyn AsyncReadWrite>,
    mut inbox: mpsc::Receiver<Bytes>,
    channel: u8,
    output: mpsc::Sender<(u8, Bytes)>,
) {
    let (mut reader, mut writer) = tokio::io::split(connection);
    let write = async {
        while let Some(data) = inbox.recv().await {
            if writer.write_all(&data).await.is_err() || writer.flush().await.is_err() {
                return;
            }
        }
        drop(writer.shutdown().await);
    };
    let read = async {
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
    };
    tokio::pin!(write);
    tokio::pin!(read);
    tokio::select! {
        () = &mut read => {}
        () = &mut write => read.await,
    }
}
