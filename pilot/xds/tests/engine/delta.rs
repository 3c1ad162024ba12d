//! Incremental.

use super::harness::*;

fn shop() -> World {
    World::default()
        .set(Cluster, "a", "1")
        .set(Cluster, "b", "1")
        .set(Endpoint, "a", "1")
        .set(Endpoint, "b", "1")
        .set(Listener, "80", "1")
        .set(Route, "80", "1")
}

async fn settled(server: &Server) -> DeltaClient {
    let mut client = server.delta().await;
    client.subscribe(Cluster, &[]).await;
    let response = client.expect(Cluster, &["a=1", "b=1"], &[]).await;
    client.ack(&response).await;
    client.subscribe(Endpoint, &["a", "b"]).await;
    let response = client.expect(Endpoint, &["a=1", "b=1"], &[]).await;
    client.ack(&response).await;
    client.subscribe(Listener, &["*"]).await;
    let response = client.expect(Listener, &["80=1"], &[]).await;
    client.ack(&response).await;
    client.subscribe(Route, &["80"]).await;
    let response = client.expect(Route, &["80=1"], &[]).await;
    client.ack(&response).await;
    client
}

#[tokio::test]
async fn only_what_changed_travels_in_every_type() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    client.expect_nothing().await;
    server.change(|w| w.set(Cluster, "c", "1").set(Listener, "90", "1"));
    let response = client.expect(Cluster, &["c=1"], &[]).await;
    client.ack(&response).await;
    let response = client.expect(Listener, &["90=1"], &[]).await;
    client.ack(&response).await;
    let number = server.change(|w| w.set(Listener, "90", "2").remove(Listener, "80"));
    let response = client.expect(Listener, &["90=2"], &["80"]).await;
    client.ack(&response).await;
    server.synced(number).await;
    client.expect_nothing().await;
}

#[tokio::test]
async fn clusters_leave_last() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    server.change(|w| {
        w.remove(Cluster, "a")
            .remove(Endpoint, "a")
            .set(Cluster, "b", "2")
            .set(Route, "80", "2")
    });
    let clusters = client.expect(Cluster, &["b=2"], &[]).await;
    // The changed cluster's endpoints again; those of the one that leaves are not touched.
    let endpoints = client.expect(Endpoint, &["b=1"], &[]).await;
    client.ack(&endpoints).await;
    client.ack(&clusters).await;
    let routes = client.expect(Route, &["80=2"], &[]).await;
    client.expect_nothing().await;
    client.ack(&routes).await;
    let clusters = client.expect(Cluster, &[], &["a"]).await;
    client.unsubscribe(Endpoint, &["a"]).await;
    client.ack(&clusters).await;
    client.expect_nothing().await;
}

#[tokio::test]
async fn a_cluster_that_comes_back_in_time_is_not_removed() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    server.change(|w| w.remove(Cluster, "a").set(Route, "80", "2"));
    let routes = client.expect(Route, &["80=2"], &[]).await;
    let number = server.change(|w| w.set(Cluster, "a", "1"));
    client.ack(&routes).await;
    server.synced(number).await;
    client.expect_nothing().await;
}

#[tokio::test]
async fn a_reconnect_brings_only_the_difference() {
    let server = Server::start(shop()).await;
    drop(settled(&server).await);
    server.change(|w| {
        w.set(Cluster, "b", "2")
            .remove(Cluster, "a")
            .set(Cluster, "c", "1")
            .set(Endpoint, "c", "1")
    });
    let mut client = server.delta().await;
    client.resume(Cluster, &[], &[("a", "1"), ("b", "1")]).await;
    let clusters = client.expect(Cluster, &["b=2", "c=1"], &[]).await;
    client
        .resume(Endpoint, &["a", "b"], &[("a", "1"), ("b", "1")])
        .await;
    client.resume(Route, &["80"], &[("80", "1")]).await;
    client.ack(&clusters).await;
    let clusters = client.expect(Cluster, &[], &["a"]).await;
    client.ack(&clusters).await;
    client.expect_nothing().await;
}

#[tokio::test]
async fn a_changed_cluster_after_a_reconnect_gets_its_endpoints() {
    let server = Server::start(shop()).await;
    let mut client = server.delta().await;
    client
        .resume(Endpoint, &["a", "b"], &[("a", "1"), ("b", "1")])
        .await;
    client
        .resume(Cluster, &[], &[("a", "old"), ("b", "1")])
        .await;
    client.expect(Cluster, &["a=1"], &[]).await;
    client.expect(Endpoint, &["a=1"], &[]).await;
}

#[tokio::test]
async fn versions_of_somebody_else_are_no_reason_to_hold_back() {
    let server = Server::start(shop()).await;
    let mut client = server.delta().await;
    let mut request = delta_request(Route, &["80"], &[]);
    request
        .initial_resource_versions
        .insert("80".into(), "2026-01-01/7".into());
    client.send(request).await;
    client.expect(Route, &["80=1"], &[]).await;
}

#[tokio::test]
async fn asking_again_for_what_one_has_is_answered() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    client.subscribe(Endpoint, &["a"]).await;
    let response = client.expect(Endpoint, &["a=1"], &[]).await;
    client.ack(&response).await;
    // Also inside a wildcard.
    client.subscribe(Cluster, &["b"]).await;
    let response = client.expect(Cluster, &["b=1"], &[]).await;
    client.ack(&response).await;
    // The cluster came anew, so its endpoints follow.
    let response = client.expect(Endpoint, &["b=1"], &[]).await;
    client.ack(&response).await;
    client.expect_nothing().await;
}

#[tokio::test]
async fn what_does_not_exist_is_said_once_and_its_arrival_too() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    client.subscribe(Route, &["90"]).await;
    let response = client.expect(Route, &[], &["90"]).await;
    client.ack(&response).await;
    server.change(|w| w.set(Route, "90", "1"));
    let response = client.expect(Route, &["90=1"], &[]).await;
    client.ack(&response).await;
    server.change(|w| w.remove(Route, "90"));
    client.expect(Route, &[], &["90"]).await;
}

#[tokio::test]
async fn subscriptions_count_even_with_a_stale_nonce() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    client.unsubscribe(Endpoint, &["a"]).await;
    let mut request = delta_request(Endpoint, &["a"], &[]);
    request.response_nonce = "from another life".into();
    client.send(request).await;
    client.expect(Endpoint, &["a=1"], &[]).await;
}

#[tokio::test]
async fn one_response_at_a_time_and_what_was_missed_is_merged() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    server.change(|w| w.set(Endpoint, "a", "2"));
    let first = client.expect(Endpoint, &["a=2"], &[]).await;
    for i in 3..400 {
        server.change(|w| w.set(Endpoint, "a", &i.to_string()));
    }
    server.change(|w| w.set(Endpoint, "b", "2"));
    client.expect_nothing().await;
    client.ack(&first).await;
    let last = client.expect(Endpoint, &["a=399", "b=2"], &[]).await;
    client.ack(&last).await;
    client.expect_nothing().await;
}

#[tokio::test]
async fn a_refusal_is_kept_and_not_resent() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    server.change(|w| w.set(Route, "80", "bad"));
    let response = client.expect(Route, &["80=bad"], &[]).await;
    client.nack(&response, "duplicate domain").await;
    client.expect_nothing().await;
    let status = server.engine.clients().list()[0].status(Route);
    assert_eq!(status.error.as_deref(), Some("duplicate domain"));
    server.change(|w| w.set(Route, "80", "1"));
    client.expect(Route, &["80=1"], &[]).await;
}
