//! Connections and streams from beginning to end.

use std::time::Duration;

use pilot_xds::{Settings, server::ServerSettings};
use tonic::Code;

use super::harness::*;

fn shop() -> World {
    World::default()
        .set(Cluster, "a", "cluster a")
        .set(Secret, "sentinel", "s")
}

#[tokio::test]
async fn a_drain_tells_streams_to_go_and_closes_the_listener() {
    let server = Server::start(shop()).await;
    let mut client = server.sotw().await;
    client.ask(Cluster, &[]).await;
    let response = client.expect(Cluster, &["cluster a"]).await;
    client.ack(&response, &[]).await;
    client.expect_nothing().await;
    server.drain.cancel();
    let status = client.try_next().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.message().contains("reconnect"),
        "{}",
        status.message()
    );
    server
        .until(|| server.engine.clients().list().is_empty())
        .await;
    let refused = within(async {
        while tokio::net::TcpStream::connect(server.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    refused.await;
}

#[tokio::test]
async fn an_old_connection_is_retired() {
    let limits = ServerSettings {
        max_age: Some(Duration::from_millis(200)),
        ..Default::default()
    };
    let server = Server::start_with(Settings::default(), limits).await;
    server.publish(shop());
    let mut client = server.sotw().await;
    client.ask(Cluster, &[]).await;
    let response = client.expect(Cluster, &["cluster a"]).await;
    client.ack(&response, &[]).await;
    assert_eq!(
        client.try_next().await.unwrap_err().code(),
        Code::Unavailable
    );
}

#[tokio::test]
async fn a_client_that_leaves_is_forgotten() {
    let server = Server::start(shop()).await;
    let mut client = server.sotw().await;
    client.ask(Cluster, &[]).await;
    client.expect(Cluster, &["cluster a"]).await;
    assert_eq!(server.engine.clients().list().len(), 1);
    assert!(server.metrics().contains("pilot_xds 1"));
    drop(client);
    server
        .until(|| server.engine.clients().list().is_empty())
        .await;
    server
        .until(|| server.metrics().contains("pilot_xds 0"))
        .await;
}

#[tokio::test]
async fn a_bad_node_is_told_why() {
    let server = Server::start(shop()).await;
    let mut client = server.sotw().await;
    client.node = Some(node("gadget~x"));
    client.ask(Cluster, &[]).await;
    let status = client.try_next().await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "gadget~x is no sidecar")
    );
    let mut client = server.sotw().await;
    client.node = None;
    client.ask(Cluster, &[]).await;
    let status = client.try_next().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("no node"), "{}", status.message());
}

#[tokio::test]
async fn a_hundred_clients_are_brought_to_the_same_world() {
    let server = Server::start(shop()).await;
    let mut clients = Vec::new();
    for _ in 0..100 {
        let mut client = server.sotw().await;
        client.ask(Cluster, &[]).await;
        let response = client.expect(Cluster, &["cluster a"]).await;
        client.ack(&response, &[]).await;
        clients.push(client);
    }
    // One of them never answers and never reads again.
    let silent = clients.pop().unwrap();
    for i in 0..3 {
        let body = format!("world {i}");
        server.change(|w| w.set(Cluster, "a", &body));
        for client in &mut clients {
            let response = client.expect(Cluster, &[&body]).await;
            client.ack(&response, &[]).await;
        }
    }
    drop(silent);
}

/// What changed while a client was away is made before it breaks too.
#[tokio::test]
async fn a_client_that_comes_back_keeps_its_clusters_until_it_has_moved() {
    let server = Server::start(
        shop()
            .set(Endpoint, "a", "endpoints a")
            .set(Endpoint, "b", "endpoints b")
            .set(Route, "80", "route to a"),
    )
    .await;
    let mut client = server.sotw().await;
    client.ask(Cluster, &[]).await;
    let first = client.expect(Cluster, &["cluster a"]).await;
    client.ack(&first, &[]).await;
    drop(client);
    server
        .until(|| server.engine.clients().list().is_empty())
        .await;
    server.change(|w| {
        w.remove(Cluster, "a")
            .remove(Endpoint, "a")
            .set(Cluster, "b", "cluster b")
            .set(Route, "80", "route to b")
    });
    let mut client = server.sotw().await;
    let again = |ty, names: &[&str]| {
        let mut request = sotw_request(ty, names);
        request.version_info = first.version_info.clone();
        request
    };
    client.send(again(Cluster, &[])).await;
    let clusters = client.expect(Cluster, &["cluster a", "cluster b"]).await;
    // Endpoints of the one that leaves stay as they are.
    client.send(again(Endpoint, &["a", "b"])).await;
    let endpoints = client.expect(Endpoint, &["endpoints b"]).await;
    client.ack(&endpoints, &["a", "b"]).await;
    client.send(again(Route, &["80"])).await;
    client.ack(&clusters, &[]).await;
    let routes = client.expect(Route, &["route to b"]).await;
    client.ack(&routes, &["80"]).await;
    let clusters = client.expect(Cluster, &["cluster b"]).await;
    client.ack(&clusters, &[]).await;
    // One that has nothing (another process of the same name) is sent what there is.
    drop(client);
    server
        .until(|| server.engine.clients().list().is_empty())
        .await;
    server.change(|w| w.remove(Cluster, "b").set(Cluster, "c", "cluster c"));
    let mut client = server.sotw().await;
    client.ask(Cluster, &[]).await;
    client.expect(Cluster, &["cluster c"]).await;
}
