//! Clients that mean no good.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pilot_xds::{Settings, server::ServerSettings};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use tokio_stream::wrappers::ReceiverStream;

use super::harness::*;

const METHOD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

fn shop() -> World {
    World::default()
        .set(Cluster, "a", "cluster a")
        .set(Secret, "sentinel", "s")
}

/// Posts raw bytes as a stream and returns its grpc-status and message.
async fn post(server: &Server, body: &[u8]) -> (String, String) {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://{}{METHOD}", server.address))
        .header("content-type", "application/grpc")
        .body(Full::new(Bytes::copy_from_slice(body)))
        .unwrap();
    let response = within(sender.send_request(request)).await.unwrap();
    let headers = response.headers().clone();
    let trailers = within(response.into_body().collect())
        .await
        .unwrap()
        .trailers()
        .cloned();
    let all = trailers.unwrap_or(headers);
    let text = |name| {
        all.get(name)
            .map(|v| v.to_str().unwrap().to_owned())
            .unwrap_or_default()
    };
    (text("grpc-status"), text("grpc-message"))
}

async fn still_serves(server: &Server) {
    let mut client = server.sotw().await;
    client.ask(Cluster, &[]).await;
    client.expect(Cluster, &["cluster a"]).await;
}

#[tokio::test]
async fn garbage_is_refused_with_a_status() {
    let server = Server::start(shop()).await;
    // Not a protobuf message.
    let (status, message) = post(&server, b"\0\0\0\0\x04\xff\xff\xff\xff").await;
    assert_eq!(status, "3", "{message}");
    assert!(
        message.contains("not%20a%20discovery%20request"),
        "{message}"
    );
    // No such compression flag.
    let (status, message) = post(&server, b"\x2a\0\0\0\x01x").await;
    assert_ne!(status, "0", "{message}");
    // Truncated: ten bytes announced, two there.
    let (status, message) = post(&server, b"\0\0\0\0\x0axx").await;
    assert_ne!(status, "0", "{message}");
    // Larger than anything sensible, announced only.
    let (status, message) = post(&server, b"\0\x7f\xff\xff\xff").await;
    assert_eq!(status, "11", "{message}");
    // A well-formed message without a type.
    let (status, _) = post(&server, b"\0\0\0\0\0").await;
    assert_eq!(status, "3");
    still_serves(&server).await;
}

#[tokio::test]
async fn what_is_not_http2_is_closed() {
    let server = Server::start(shop()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut rest = Vec::new();
    // HTTP/2 frames that say goodbye, or a reset; but an end.
    let _ = within(stream.read_to_end(&mut rest)).await;
    still_serves(&server).await;
}

#[tokio::test]
async fn silent_connections_cannot_keep_others_out() {
    let limits = ServerSettings {
        max_unproven: 20,
        ..Default::default()
    };
    let server = Server::start_with(Settings::default(), limits).await;
    server.publish(shop());
    let mut silent = Vec::new();
    for _ in 0..120 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    still_serves(&server).await;
    // The oldest were shown out.
    for stream in &mut silent[..90] {
        assert_eq!(within(stream.read(&mut [0; 16])).await.unwrap_or(0), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_not_for_ever() {
    let server = Server::start(shop()).await;
    let begun = tokio::time::Instant::now();
    // One that says nothing at all, and one that opens HTTP/2 and then says nothing.
    let mut mute = TcpStream::connect(server.address).await.unwrap();
    let mut polite = TcpStream::connect(server.address).await.unwrap();
    polite
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut rest = Vec::new();
    let _ = mute.read_to_end(&mut rest).await;
    let _ = polite.read_to_end(&mut rest).await;
    assert!(
        begun.elapsed() <= Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_requests_ends() {
    let server = Server::start(shop()).await;
    let mut client = server.sotw().await;
    let status = client.responses.message().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_and_delays_nobody() {
    let settings = Settings {
        write_timeout: Duration::from_millis(300),
        ..Settings::default()
    };
    let server = Server::start_with(settings, ServerSettings::default()).await;
    let large = "x".repeat(4 << 20);
    server.publish(shop().set(Endpoint, "large", &large));
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1 << 16)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let mut request = sotw_request(Endpoint, &["large"]);
    request.node = Some(node("sidecar~10.0.0.9~mute.b~c"));
    let message = prost::Message::encode_to_vec(&request);
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend(message);
    let (keep_open, frames) = tokio::sync::mpsc::channel(1);
    let request = http::Request::post(format!("http://{}{METHOD}", server.address))
        .header("content-type", "application/grpc")
        .body(http_body_util::StreamBody::new(ReceiverStream::new(frames)))
        .unwrap();
    keep_open
        .send(Ok::<_, Infallible>(Frame::data(Bytes::from(body))))
        .await
        .unwrap();
    let response = within(sender.send_request(request)).await.unwrap();
    // The response is held and never read.
    still_serves(&server).await;
    let _ = within(connection).await;
    assert!(
        server.metrics().contains("pilot_xds_write_timeout_total 1"),
        "{}",
        server.metrics()
    );
    drop((response, keep_open));
    still_serves(&server).await;
}
