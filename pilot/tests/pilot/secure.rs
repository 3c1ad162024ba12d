//! xDS over TLS: who gets in, what is served there, and files that come and change.

use std::net::{Ipv4Addr, SocketAddr};

use prost::Message as _;
use proto_envoy::envoy::{config::core::v3::Node, service::discovery::v3::DiscoveryRequest};
use serde_json::Value;
use tokio::net::TcpStream;

use super::harness::*;

const NAME: &str = "istio-pilot.istio-system";
const WORKLOAD: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn install(folder: &Files, authority: &Authority) {
    let identity = authority.issue(&[NAME]);
    folder.write("key.pem", &identity.key_pem);
    folder.write("cert-chain.pem", &identity.certificate_pem);
    folder.write("root-cert.pem", &authority.pem());
}

async fn start(folder: &Files, address: &str) -> Pilot {
    let directory = folder.path("");
    Pilot::options()
        .arg(&format!("--secureGrpcAddr={address}"))
        .arg(&format!("--certDir={directory}"))
        .start(|_| ())
        .await
}

fn secure_address(pilot: &Pilot) -> Option<SocketAddr> {
    let file = std::fs::read_to_string(pilot.folder.path().join("addresses.json")).unwrap();
    let addresses: Value = serde_json::from_str(&file).unwrap();
    Some(addresses["secureGrpc"].as_str()?.parse().unwrap())
}

async fn ask_over_tls(
    to: SocketAddr,
    authority: &Authority,
    identity: Option<&Identity>,
    request: Request,
) -> Result<Response, String> {
    let stream = TcpStream::connect(to).await.map_err(|e| e.to_string())?;
    let stream = tls(stream, NAME, authority, identity, &["h2"]).await;
    send(stream.map_err(|e| e.to_string())?, request.http2()).await
}

/// One question to CDS. All its bytes are ASCII, as it happens.
fn clusters() -> Request {
    let request = DiscoveryRequest {
        node: Some(Node {
            id: "sidecar~10.1.1.1~web-0.shop~shop.svc.cluster.local".to_owned(),
            ..Node::default()
        }),
        ..DiscoveryRequest::default()
    };
    let body = request.encode_to_vec();
    let frame = [&[0, 0, 0, 0, u8::try_from(body.len()).unwrap()], &body[..]].concat();
    let path = "/envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters";
    Request::new("POST", path)
        .host(NAME)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(&String::from_utf8(frame).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_with_a_certificate_of_the_mesh_are_served() {
    let (authority, stranger) = (Authority::new("mesh"), Authority::new("stranger"));
    let folder = Files::new();
    install(&folder, &authority);
    let pilot = start(&folder, "127.0.0.1:0").await;
    let to = secure_address(&pilot).unwrap();
    let workload = authority.issue(&[WORKLOAD]);
    let page = || Request::get("/ready").host(NAME);
    // The pages and gRPC, on one port.
    let answer = ask_over_tls(to, &authority, Some(&workload), page())
        .await
        .unwrap();
    assert_eq!(answer.status, 200);
    let answer = ask_over_tls(to, &authority, Some(&workload), clusters())
        .await
        .unwrap();
    assert!(answer.body.contains("BlackHoleCluster"), "{answer:?}");
    // Without a certificate, or with one of somebody else, nobody.
    let other = stranger.issue(&[WORKLOAD]);
    for identity in [None, Some(&other)] {
        let refused = ask_over_tls(to, &authority, identity, page()).await;
        assert!(refused.is_err(), "{refused:?}");
    }
    // Another identity is taken over without a restart.
    let next = Authority::new("mesh, later");
    install(&folder, &next);
    let workload = next.issue(&[WORKLOAD]);
    until("the new identity", async || {
        ask_over_tls(to, &next, Some(&workload), page()).await.ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_may_come_late() {
    let folder = Files::new();
    let reserved = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let to = reserved.local_addr().unwrap();
    drop(reserved);
    let pilot = start(&folder, &to.to_string()).await;
    assert_eq!(secure_address(&pilot), None);
    let log = pilot.log();
    assert!(
        log.contains("no xDS over TLS") && log.contains("cert-chain.pem"),
        "{log}"
    );
    assert!(TcpStream::connect(to).await.is_err());
    let authority = Authority::new("mesh");
    install(&folder, &authority);
    let workload = authority.issue(&[WORKLOAD]);
    until("the listener", async || {
        let page = Request::get("/ready").host(NAME);
        ask_over_tls(to, &authority, Some(&workload), page)
            .await
            .ok()
    })
    .await;
}
