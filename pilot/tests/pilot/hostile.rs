//! A real Pilot among clients that are silent, deaf, contrary, or never stay.
//!
//! Figures of memory are printed; what is asserted is generous, and about memory only, never about time.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prost::Message as _;
use proto_envoy::{
    ResourceType,
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::rpc::Status as RpcStatus,
};
use serde_json::json;
use tokio::{net::TcpStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use super::harness::*;

const MIB: u64 = 1 << 20;

/// Many services: their clusters are some megabytes.
fn services(count: usize) -> String {
    (0..count)
        .map(|i| {
            let name = format!("service-{i:04}.shop");
            let vip = format!("10.97.{}.{}", i / 250, i % 250 + 1);
            let endpoint = format!("10.2.{}.{} 8080", i / 250, i % 250 + 1);
            service(&name, &vip, "80 http HTTP", &[endpoint])
        })
        .collect()
}

fn request(id: &str, ty: ResourceType) -> DiscoveryRequest {
    DiscoveryRequest {
        node: Some(Node {
            id: format!("sidecar~10.9.9.9~{id}.shop~shop.svc.cluster.local"),
            ..Node::default()
        }),
        type_url: ty.type_url().to_owned(),
        ..DiscoveryRequest::default()
    }
}

/// A client of aggregated discovery.
struct Client {
    id: String,
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Client {
    async fn connect(pilot: SocketAddr, id: &str) -> Self {
        let channel = Channel::from_shared(format!("http://{pilot}")).unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel.connect().await.unwrap())
            .max_decoding_message_size(256 << 20);
        let (requests, receiver) = mpsc::channel(8);
        requests
            .send(request(id, ResourceType::Cluster))
            .await
            .unwrap();
        let responses = client.stream_aggregated_resources(ReceiverStream::new(receiver));
        Self {
            id: id.to_owned(),
            requests,
            responses: responses.await.unwrap().into_inner(),
        }
    }

    async fn next(&mut self) -> DiscoveryResponse {
        let next = tokio::time::timeout(Duration::from_secs(60), self.responses.message());
        next.await
            .expect("no answer in 60 s")
            .unwrap()
            .expect("the stream ended")
    }

    async fn answer(&self, response: &DiscoveryResponse, refused: Option<&str>) {
        let answer = DiscoveryRequest {
            response_nonce: response.nonce.clone(),
            error_detail: refused.map(|reason| RpcStatus {
                code: 3,
                message: reason.to_owned(),
                ..RpcStatus::default()
            }),
            ..request(&self.id, ResourceType::Cluster)
        };
        self.requests.send(answer).await.unwrap();
    }
}

/// Resident memory of a process, in bytes.
fn memory(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn grown(what: &str, pid: i32, before: u64, at_most: u64) {
    let now = memory(pid);
    eprintln!("{what}: {} MiB, before {} MiB", now / MIB, before / MIB);
    let grown = now.saturating_sub(before);
    assert!(grown < at_most, "{what}: grew by {} MiB", grown / MIB);
}

async fn metric(pilot: &Pilot, line: &str) {
    until(line, async || {
        let text = pilot.page("/metrics").await.1;
        text.lines().any(|l| l == line).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_silent_connections() {
    const SILENT: usize = 10_000;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if hard < SILENT as u64 + 500 {
        eprintln!(
            "SKIPPED: {hard} open files are allowed here, {} are needed",
            SILENT + 500
        );
        return;
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let pilot = Pilot::start(|folder| write(folder, "services", &services(20))).await;
    let before = memory(pilot.pid());
    let mut silent = Vec::with_capacity(SILENT);
    for _ in 0..SILENT {
        silent.push(TcpStream::connect(pilot.grpc).await.unwrap());
    }
    grown(
        "with 10,000 silent connections",
        pilot.pid(),
        before,
        200 * MIB,
    );
    // A real proxy gets in and is served, while they are there.
    let node = "sidecar~10.9.9.9~client-0.shop~shop.svc.cluster.local";
    let envoy = Envoy::start(pilot.grpc, true, node, json!({"INTERCEPTION_MODE": "NONE"})).await;
    envoy.live().await;
    let clusters = envoy.stat("cluster_manager.active_clusters").await;
    assert!(clusters > 20, "{clusters}");
    grown("and a proxy", pilot.pid(), before, 250 * MIB);
    drop(silent);
    pilot.write(
        "more",
        &services(21)
            .replace("service-", "other-")
            .replace("10.97", "10.98"),
    );
    until("the proxy goes on", async || {
        (envoy.stat("cluster_manager.active_clusters").await > clusters).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_is_ended() {
    let pilot = Pilot::start(|folder| write(folder, "services", &services(2000))).await;
    let mut reader = Client::connect(pilot.grpc, "reader").await;
    let response = reader.next().await;
    let size = response.encoded_len() as u64;
    assert!(size > MIB / 4, "{size}");
    reader.answer(&response, None).await;
    let before = memory(pilot.pid());
    // It opens the smallest window there is, asks, and takes nothing of the answer.
    let stream = TcpStream::connect(pilot.grpc).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1 << 16)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let message = request("deaf", ResourceType::Cluster).encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body = [&[0][..], &length[..], &message[..]].concat();
    let (frames, receiver) = mpsc::channel(1);
    frames
        .send(Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(
            body,
        ))))
        .await
        .unwrap();
    let path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
    let post = http::Request::post(format!("http://{}{path}", pilot.grpc))
        .header("content-type", "application/grpc")
        .body(StreamBody::new(ReceiverStream::new(receiver)))
        .unwrap();
    let response = sender.send_request(post).await.unwrap();
    // Worlds go on for the others.
    for round in 0..3 {
        let more = services(round + 1)
            .replace("service-", "extra-")
            .replace("10.97", "10.99");
        pilot.write("extra", &more);
        let response = reader.next().await;
        reader.answer(&response, None).await;
    }
    metric(&pilot, "pilot_xds_write_timeout 1").await;
    let _ = connection.await;
    grown("a deaf client", pilot.pid(), before, 20 * size + 100 * MIB);
    drop((response, frames));
    metric(&pilot, "pilot_xds 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_shown_until_it_is_over() {
    let pilot = Pilot::start(|folder| write(folder, "services", &services(1))).await;
    let mut client = Client::connect(pilot.grpc, "contrary").await;
    let response = client.next().await;
    client.answer(&response, Some("no such thing")).await;
    let shown = async || {
        let syncz = pilot.json("/debug/syncz").await;
        Some(syncz[0]["cluster_error"].as_str()?.to_owned())
    };
    assert_eq!(until("syncz", shown).await, "no such thing");
    let ads = pilot.json("/debug/adsz").await;
    let cds = &ads[0]["types"]["cds"];
    assert_eq!(cds["error"], "no such thing", "{ads}");
    assert!(
        cds["errorSince"].is_string() && cds["sentAt"].is_string(),
        "{cds}"
    );
    assert_eq!(cds["nonceRefused"], cds["nonceSent"], "{cds}");
    let line = "pilot_xds_cds_reject{node=\"sidecar~10.9.9.9~contrary.shop~shop.svc.cluster.local\",err=\"no such thing\"} 1";
    metric(&pilot, line).await;
    metric(&pilot, "pilot_total_xds_rejects 1").await;
    // The next list is accepted, and all is well.
    pilot.write(
        "more",
        &services(1)
            .replace("service-", "other-")
            .replace("10.97", "10.98"),
    );
    let response = client.next().await;
    client.answer(&response, None).await;
    until("the error is gone", async || {
        let syncz = pilot.json("/debug/syncz").await;
        syncz[0]["cluster_error"].is_null().then_some(())
    })
    .await;
    let metrics = pilot.page("/metrics").await.1;
    assert!(!metrics.contains("pilot_xds_cds_reject{"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_reconnects() {
    let pilot = Pilot::start(|folder| write(folder, "services", &services(300))).await;
    // The first storm fills caches and the allocator; from then on nothing may pile up.
    let mut before = 0;
    for round in 0..6 {
        let all: Vec<_> = (0..200)
            .map(|i| {
                let address = pilot.grpc;
                tokio::spawn(async move {
                    let mut client = Client::connect(address, &format!("client-{i}")).await;
                    let response = client.next().await;
                    // 300 services, the black hole, passthroughs.
                    assert!(
                        response.resources.len() > 300,
                        "{}",
                        response.resources.len()
                    );
                })
            })
            .collect();
        for client in all {
            client.await.unwrap();
        }
        metric(&pilot, "pilot_xds 0").await;
        if round == 1 {
            before = memory(pilot.pid());
        }
    }
    grown("after four storms more", pilot.pid(), before, 150 * MIB);
}
