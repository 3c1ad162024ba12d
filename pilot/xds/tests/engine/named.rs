//! Clients that name their clusters and listeners, as gRPC does.

use pilot_xds::Settings;

use super::harness::*;

fn shop() -> World {
    World::default()
        .set(Cluster, "a", "cluster a")
        .set(Cluster, "b", "cluster b")
        .set(Endpoint, "a", "endpoints a")
        .set(Endpoint, "b", "endpoints b")
        .set(Listener, "x:80", "listener x")
        .set(Route, "x", "route to a")
        .set(Secret, "sentinel", "s")
}

/// A client that has come from its listener to the endpoints of `a`.
async fn settled(server: &Server) -> Sotw {
    let mut client = server.sotw().await;
    client.ask(Listener, &["x:80"]).await;
    let response = client.expect(Listener, &["listener x"]).await;
    client.ack(&response, &["x:80"]).await;
    client.ask(Route, &["x"]).await;
    let response = client.expect(Route, &["route to a"]).await;
    client.ack(&response, &["x"]).await;
    client.ask(Cluster, &["a"]).await;
    let response = client.expect(Cluster, &["cluster a"]).await;
    client.ack(&response, &["a"]).await;
    client.ask(Endpoint, &["a"]).await;
    let response = client.expect(Endpoint, &["endpoints a"]).await;
    client.ack(&response, &["a"]).await;
    client
}

fn last_nonce(server: &Server, ty: pilot_xds::ResourceType) -> String {
    server.engine.clients().list()[0].status(ty).nonce_sent
}

async fn rename(client: &mut Sotw, server: &Server, ty: pilot_xds::ResourceType, names: &[&str]) {
    let mut request = sotw_request(ty, names);
    request.response_nonce = last_nonce(server, ty);
    client.send(request).await;
}

#[tokio::test]
async fn only_what_is_named_is_sent() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    let number = server.change(|w| w.set(Cluster, "b", "other").set(Listener, "y:80", "other"));
    server.synced(number).await;
    client.expect_nothing().await;
    // The whole list of what is named, when one of them changes.
    rename(&mut client, &server, Cluster, &["a", "b"]).await;
    let response = client.expect(Cluster, &["cluster a", "other"]).await;
    client.ack(&response, &["a", "b"]).await;
    server.change(|w| w.set(Cluster, "b", "another"));
    let response = client.expect(Cluster, &["cluster a", "another"]).await;
    client.ack(&response, &["a", "b"]).await;
    client.expect_nothing().await;
}

#[tokio::test]
async fn what_does_not_exist_is_told_by_an_empty_list() {
    let server = Server::start(shop()).await;
    let mut client = server.sotw().await;
    client.ask(Listener, &["nobody:80"]).await;
    let response = client.expect(Listener, &[]).await;
    client.ack(&response, &["nobody:80"]).await;
    client.expect_nothing().await;
    server.change(|w| w.set(Listener, "nobody:80", "somebody"));
    let response = client.expect(Listener, &["somebody"]).await;
    client.ack(&response, &["nobody:80"]).await;
    server.change(|w| w.remove(Listener, "nobody:80"));
    client.expect(Listener, &[]).await;
}

/// gRPC acknowledges a route before it has the clusters in it: until it has moved, the old one must stay.
#[tokio::test]
async fn a_cluster_stays_until_the_client_has_moved() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    let number = server.change(|w| {
        w.remove(Cluster, "a")
            .set(Endpoint, "a", "no endpoints")
            .set(Route, "x", "route to b")
    });
    let response = client.expect(Route, &["route to b"]).await;
    client.ack(&response, &["x"]).await;
    client.expect_nothing().await;
    rename(&mut client, &server, Cluster, &["a", "b"]).await;
    let response = client.expect(Cluster, &["cluster a", "cluster b"]).await;
    client.ack(&response, &["a", "b"]).await;
    rename(&mut client, &server, Endpoint, &["a", "b"]).await;
    let response = client.expect(Endpoint, &["endpoints b"]).await;
    client.ack(&response, &["a", "b"]).await;
    client.expect_nothing().await;
    rename(&mut client, &server, Cluster, &["b"]).await;
    rename(&mut client, &server, Endpoint, &["b"]).await;
    client.expect_nothing().await;
    assert_eq!(
        server.engine.clients().list()[0].status(Cluster).names,
        ["b".into()]
    );
    let _ = number;
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_is_still_named_after_a_while_is_gone() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    let begun = tokio::time::Instant::now();
    let number = server.change(|w| w.remove(Cluster, "a").set(Endpoint, "a", "no endpoints"));
    let response = client.expect(Cluster, &[]).await;
    assert!(begun.elapsed() >= Settings::default().answer_wait);
    client.ack(&response, &["a"]).await;
    server.synced(number).await;
    // It comes back.
    server.change(|w| w.set(Cluster, "a", "cluster a 2"));
    client.expect(Cluster, &["cluster a 2"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_delta_client_is_told_likewise() {
    let server = Server::start(shop().remove(Secret, "sentinel")).await;
    let mut client = server.delta().await;
    client.subscribe(Cluster, &["a", "b"]).await;
    let response = client
        .expect(Cluster, &["a=cluster a", "b=cluster b"], &[])
        .await;
    client.ack(&response).await;
    server.change(|w| w.remove(Cluster, "a").remove(Cluster, "b"));
    client.unsubscribe(Cluster, &["b"]).await;
    let response = client.expect(Cluster, &[], &["a"]).await;
    client.ack(&response).await;
    client.expect_nothing().await;
}

#[tokio::test]
async fn from_everything_to_names_and_back() {
    let server = Server::start(shop()).await;
    let mut client = server.sotw().await;
    client.ask(Cluster, &[]).await;
    let response = client.expect(Cluster, &["cluster a", "cluster b"]).await;
    client.ack(&response, &["a"]).await;
    let response = client.expect(Cluster, &["cluster a"]).await;
    client.ack(&response, &["*"]).await;
    let response = client.expect(Cluster, &["cluster a", "cluster b"]).await;
    client.ack(&response, &["*"]).await;
    client.expect_nothing().await;
}
