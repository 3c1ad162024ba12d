//! State of the world.

use pilot_xds::{Settings, server::ServerSettings};

use super::harness::*;

/// Every world holds the secret that `expect_nothing` asks for.
fn world() -> World {
    World::default().set(Secret, "sentinel", "s")
}

fn shop() -> World {
    world()
        .set(Cluster, "a", "cluster a")
        .set(Endpoint, "a", "endpoints a")
        .set(Endpoint, "b", "endpoints b")
        .set(Listener, "80", "listener 80")
        .set(Route, "80", "route 80")
}

/// A client that has everything of `shop`.
async fn settled(server: &Server) -> Sotw {
    let mut client = server.sotw().await;
    client.ask(Cluster, &[]).await;
    let response = client.expect(Cluster, &["cluster a"]).await;
    client.ack(&response, &[]).await;
    client.ask(Endpoint, &["a"]).await;
    let response = client.expect(Endpoint, &["endpoints a"]).await;
    client.ack(&response, &["a"]).await;
    client.ask(Listener, &[]).await;
    let response = client.expect(Listener, &["listener 80"]).await;
    client.ack(&response, &[]).await;
    client.ask(Route, &["80"]).await;
    let response = client.expect(Route, &["route 80"]).await;
    client.ack(&response, &["80"]).await;
    client
}

#[tokio::test]
async fn a_client_gets_what_it_asks_for_and_an_ack_is_not_a_question() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    client.expect_nothing().await;
    let entry = &server.engine.clients().list()[0];
    assert_eq!(entry.node_id, "sidecar~10.0.0.1~a.b~c");
    let status = entry.status(Route);
    assert_eq!(status.names, ["80".into()]);
    assert!(!status.nonce_acked.is_empty());
    assert_eq!(status.nonce_acked, status.nonce_sent);
}

#[tokio::test]
async fn the_response_says_which_replica_and_which_version() {
    let server = Server::start(shop()).await;
    let mut client = server.sotw().await;
    client.ask(Cluster, &[]).await;
    let first = client.next().await;
    assert_eq!(
        first.control_plane.as_ref().unwrap().identifier,
        "pilot-test"
    );
    let (time, counter) = first.version_info.rsplit_once('/').unwrap();
    assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
    assert_eq!(counter, "0");
    client.ack(&first, &[]).await;
    server.change(|w| w.set(Cluster, "a", "cluster a 2"));
    let second = client.next().await;
    assert!(
        second.version_info.ends_with("/1"),
        "{}",
        second.version_info
    );
    assert_ne!(first.nonce, second.nonce);
}

#[tokio::test]
async fn nobody_is_served_before_the_first_world() {
    let server = Server::start_with(Settings::default(), ServerSettings::default()).await;
    let mut client = server.sotw().await;
    client.ask(Cluster, &[]).await;
    assert_eq!(server.engine.clients().list().len(), 0);
    server.publish(shop());
    client.expect(Cluster, &["cluster a"]).await;
}

#[tokio::test]
async fn an_empty_list_is_an_answer() {
    let server = Server::start(world()).await;
    let mut client = server.sotw().await;
    client.ask(Cluster, &[]).await;
    client.expect(Cluster, &[]).await;
}

#[tokio::test]
async fn only_what_changed_travels() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    // Endpoints: only the changed resource, and no other type.
    let number = server.change(|w| {
        w.set(Endpoint, "a", "endpoints a 2")
            .set(Endpoint, "b", "b 2")
    });
    let response = client.expect(Endpoint, &["endpoints a 2"]).await;
    client.ack(&response, &["a"]).await;
    server.synced(number).await;
    client.expect_nothing().await;
    // A world that claims to touch everything but changes no byte sends nothing.
    let number = server.change(|w| w);
    server.synced(number).await;
    client.expect_nothing().await;
    // A list of listeners is whole, routes are not.
    server.change(|w| {
        w.set(Listener, "90", "listener 90")
            .set(Route, "90", "route 90")
    });
    let response = client
        .expect(Listener, &["listener 80", "listener 90"])
        .await;
    client.ack(&response, &[]).await;
    client
        .send(with_nonce(
            sotw_request(Route, &["80", "90"]),
            &server,
            Route,
        ))
        .await;
    let response = client.expect(Route, &["route 90"]).await;
    client.ack(&response, &["80", "90"]).await;
    client.expect_nothing().await;
}

fn with_nonce(
    request: envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest,
    server: &Server,
    ty: pilot_xds::ResourceType,
) -> envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest {
    let response_nonce = server.engine.clients().list()[0].status(ty).nonce_sent;
    envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest {
        response_nonce,
        ..request
    }
}

#[tokio::test]
async fn clusters_come_first_and_leave_last() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    // a is replaced by b everywhere.
    server.change(|w| {
        w.remove(Cluster, "a")
            .set(Cluster, "b", "cluster b")
            .set(Endpoint, "a", "no endpoints")
            .set(Listener, "80", "listener to b")
            .set(Route, "80", "route to b")
    });
    // The union first. Endpoints of the cluster that leaves stay as they are.
    let clusters = client.expect(Cluster, &["cluster a", "cluster b"]).await;
    client.expect_nothing().await;
    // Envoy asks for the new cluster's endpoints before it answers the cluster list.
    client
        .send(with_nonce(
            sotw_request(Endpoint, &["a", "b"]),
            &server,
            Endpoint,
        ))
        .await;
    let endpoints = client.expect(Endpoint, &["endpoints b"]).await;
    client.ack(&endpoints, &["a", "b"]).await;
    client.expect_nothing().await;
    client.ack(&clusters, &[]).await;
    let listeners = client.expect(Listener, &["listener to b"]).await;
    let routes = client.expect(Route, &["route to b"]).await;
    client.ack(&listeners, &[]).await;
    client.expect_nothing().await;
    client.ack(&routes, &["80"]).await;
    // Now nothing refers to a any more.
    let clusters = client.expect(Cluster, &["cluster b"]).await;
    client.ack(&clusters, &[]).await;
    client.expect_nothing().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_holds_back_its_answer_gets_listeners_after_a_while() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    let begun = tokio::time::Instant::now();
    server.change(|w| w.set(Cluster, "a", "slow").set(Route, "80", "route 2"));
    client.expect(Cluster, &["slow"]).await;
    let endpoints = client.expect(Endpoint, &["endpoints a"]).await;
    client.ack(&endpoints, &["a"]).await;
    client.expect(Route, &["route 2"]).await;
    assert!(
        begun.elapsed() >= Settings::default().answer_wait,
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_changed_cluster_gets_its_endpoints_again() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    let old = server.engine.clients().list()[0]
        .status(Endpoint)
        .nonce_sent;
    server.change(|w| w.set(Cluster, "a", "cluster a 2"));
    let clusters = client.expect(Cluster, &["cluster a 2"]).await;
    let endpoints = client.expect(Endpoint, &["endpoints a"]).await;
    // Envoy's own question has crossed it: same names, old nonce.
    let mut request = sotw_request(Endpoint, &["a"]);
    request.response_nonce = old;
    client.send(request).await;
    client.ack(&endpoints, &["a"]).await;
    client.ack(&clusters, &[]).await;
    client.expect_nothing().await;
}

#[tokio::test]
async fn a_refusal_is_kept_and_shown_and_nothing_is_resent() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    server.change(|w| w.set(Listener, "80", "bad listener"));
    let response = client.expect(Listener, &["bad listener"]).await;
    client.nack(&response, &[], "no filter chain").await;
    client.expect_nothing().await;
    let status = server.engine.clients().list()[0].status(Listener);
    assert_eq!(status.error.as_deref(), Some("no filter chain"));
    assert_ne!(status.nonce_acked, status.nonce_sent);
    let text = server.metrics();
    assert!(
        text.contains(
            "pilot_xds_lds_reject{node=\"sidecar~10.0.0.1~a.b~c\",err=\"no filter chain\"} 1"
        ),
        "{text}"
    );
    assert!(text.contains("pilot_total_xds_rejects_total 1"), "{text}");
    // Other types go on, and a better list heals it.
    server.change(|w| w.set(Listener, "80", "good listener"));
    let response = client.expect(Listener, &["good listener"]).await;
    client.ack(&response, &[]).await;
    client.expect_nothing().await;
    assert_eq!(
        server.engine.clients().list()[0].status(Listener).error,
        None
    );
    assert!(!server.metrics().contains("pilot_xds_lds_reject{"));
}

#[tokio::test]
async fn one_response_at_a_time_and_what_was_missed_is_merged() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    server.change(|w| w.set(Endpoint, "a", "1"));
    let first = client.expect(Endpoint, &["1"]).await;
    for i in 2..500 {
        server.change(|w| w.set(Endpoint, "a", &i.to_string()));
    }
    client.expect_nothing().await;
    client.ack(&first, &["a"]).await;
    let last = client.expect(Endpoint, &["499"]).await;
    client.ack(&last, &["a"]).await;
    client.expect_nothing().await;
}

#[tokio::test]
async fn a_stale_nonce_is_ignored() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    server.change(|w| w.set(Endpoint, "a", "1"));
    let first = client.expect(Endpoint, &["1"]).await;
    let mut stale = sotw_request(Endpoint, &["a", "b"]);
    stale.response_nonce = "not ours".into();
    client.send(stale).await;
    client.expect_nothing().await;
    assert!(server.metrics().contains("pilot_rds_expired_nonce_total 1"));
    // Repeated with the right one, as Envoy does.
    client.ack(&first, &["a", "b"]).await;
    client.expect(Endpoint, &["endpoints b"]).await;
}

#[tokio::test]
async fn names_come_and_go() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    let nonce = server.engine.clients().list()[0]
        .status(Endpoint)
        .nonce_sent;
    let mut request = sotw_request(Endpoint, &["b"]);
    request.response_nonce = nonce;
    client.send(request).await;
    let response = client.expect(Endpoint, &["endpoints b"]).await;
    client.ack(&response, &["b"]).await;
    // a is not subscribed to any more.
    let number = server.change(|w| w.set(Endpoint, "a", "unseen"));
    server.synced(number).await;
    client.expect_nothing().await;
    // Asked for again it is sent, whatever was sent before.
    client.ack(&response, &["a", "b"]).await;
    client.expect(Endpoint, &["unseen"]).await;
}

#[tokio::test]
async fn an_unknown_type_gets_no_answer_and_disturbs_nobody() {
    let server = Server::start(shop()).await;
    let mut client = settled(&server).await;
    let mut request = sotw_request(Route, &[]);
    request.type_url = "type.googleapis.com/envoy.service.runtime.v3.Runtime".into();
    client.send(request).await;
    client.expect_nothing().await;
    assert!(
        server
            .metrics()
            .contains("pilot_xds_unknown_type_requests_total 1")
    );
}

#[tokio::test]
async fn secrets_travel_alone_so_that_a_refused_one_holds_no_other_back() {
    let shop = world()
        .set(Secret, "a", "secret a")
        .set(Secret, "b", "secret b");
    let server = Server::start(shop).await;
    let mut client = server.sotw().await;
    let names = ["a", "b", "sentinel"];
    client.ask(Secret, &names).await;
    let response = client.expect(Secret, &["secret a"]).await;
    client.nack(&response, &names, "no such file").await;
    let response = client.expect(Secret, &["secret b"]).await;
    client.ack(&response, &names).await;
    let response = client.expect(Secret, &["s"]).await;
    client.ack(&response, &names).await;
    // A change of both is two responses as well.
    server.change(|world| world.set(Secret, "a", "A").set(Secret, "b", "B"));
    let response = client.expect(Secret, &["A"]).await;
    client.ack(&response, &names).await;
    client.expect(Secret, &["B"]).await;
}
