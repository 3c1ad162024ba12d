//! Services of single types, the v2 API, and calls with one answer.

use envoy_types::pb::envoy::{
    config::core::v3::{ApiVersion as Api, ConfigSource, config_source::ConfigSourceSpecifier},
    config::{
        cluster::v3::{Cluster as ClusterMessage, cluster::EdsClusterConfig},
        core::v3::AggregatedConfigSource,
    },
};
use prost::Message as _;
use tonic::Code;

use super::harness::*;

const CDS: &str = "/envoy.service.cluster.v3.ClusterDiscoveryService";
const ADS_V2: &str =
    "/envoy.service.discovery.v2.AggregatedDiscoveryService/StreamAggregatedResources";

fn shop() -> World {
    World::default()
        .set(Cluster, "a", "cluster a")
        .set(Endpoint, "a", "endpoints a")
        .set(Listener, "80", "listener 80")
        .set(Route, "80", "route 80")
        .set(Secret, "default", "secret")
}

#[tokio::test]
async fn every_type_has_streams_of_its_own() {
    let server = Server::start(shop()).await;
    for (service, resources, ty, names, body) in [
        (
            "cluster.v3.ClusterDiscoveryService",
            "Clusters",
            Cluster,
            &[][..],
            "cluster a",
        ),
        (
            "endpoint.v3.EndpointDiscoveryService",
            "Endpoints",
            Endpoint,
            &["a"],
            "endpoints a",
        ),
        (
            "listener.v3.ListenerDiscoveryService",
            "Listeners",
            Listener,
            &[],
            "listener 80",
        ),
        (
            "route.v3.RouteDiscoveryService",
            "Routes",
            Route,
            &["80"],
            "route 80",
        ),
        (
            "secret.v3.SecretDiscoveryService",
            "Secrets",
            Secret,
            &["default"],
            "secret",
        ),
    ] {
        let service = format!("/envoy.service.{service}");
        let mut client = server
            .sotw_at(&format!("{service}/Stream{resources}"))
            .await;
        client.ask(ty, names).await;
        let response = client.expect(ty, &[body]).await;
        client.ack(&response, names).await;
        let name = names
            .first()
            .copied()
            .unwrap_or(if ty == Cluster { "a" } else { "80" });
        let mut client = server
            .delta_at(&format!("{service}/Delta{resources}"))
            .await;
        client.subscribe(ty, names).await;
        client.expect(ty, &[&format!("{name}={body}")], &[]).await;
        let mut request = sotw_request(ty, names);
        request.node = Some(node("sidecar~10.0.0.1~a.b~c"));
        let response = server
            .fetch(&format!("{service}/Fetch{resources}"), request)
            .await;
        assert_eq!(texts(&response.unwrap()), [body]);
    }
}

#[tokio::test]
async fn a_stream_of_one_type_follows_it_and_needs_no_type_url() {
    let server = Server::start(shop()).await;
    let mut client = server.sotw_at(&format!("{CDS}/StreamClusters")).await;
    let mut request = sotw_request(Cluster, &[]);
    request.type_url.clear();
    client.send(request).await;
    let response = client.expect(Cluster, &["cluster a"]).await;
    client.ack(&response, &[]).await;
    // Nothing of other types holds back a removal here.
    server.change(|w| {
        w.remove(Cluster, "a")
            .set(Cluster, "b", "cluster b")
            .set(Route, "80", "2")
    });
    let response = client.expect(Cluster, &["cluster a", "cluster b"]).await;
    client.ack(&response, &[]).await;
    let response = client.expect(Cluster, &["cluster b"]).await;
    client.ack(&response, &[]).await;
    let entry = &server.engine.clients().list()[0];
    assert_eq!(entry.service, &CDS[1..]);
    // Another type does not belong here.
    client.ask(Route, &["80"]).await;
    let status = client.try_next().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status
            .message()
            .contains("serves type.googleapis.com/envoy.config.cluster.v3.Cluster"),
        "{}",
        status.message()
    );
}

#[tokio::test]
async fn one_answer_is_owed_even_if_there_is_nothing() {
    let server = Server::start(shop()).await;
    let mut request = sotw_request(Route, &["90"]);
    request.node = Some(node("sidecar~10.0.0.1~a.b~c"));
    let path = "/envoy.service.route.v3.RouteDiscoveryService/FetchRoutes";
    let response = server.fetch(path, request).await.unwrap();
    assert!(response.resources.is_empty());
    assert_eq!(response.type_url, Route.type_url());
    let mut request = sotw_request(Route, &["90"]);
    request.node = Some(node("gadget~x"));
    let status = server.fetch(path, request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    server
        .until(|| server.engine.clients().list().is_empty())
        .await;
}

#[tokio::test]
async fn an_unknown_method_is_named() {
    let server = Server::start(shop()).await;
    let status = server
        .fetch(&format!("{CDS}/StreamRoutes"), sotw_request(Route, &[]))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(
        status.message().contains("StreamClusters"),
        "{}",
        status.message()
    );
}

/// A cluster with something in it that v2 does not have.
fn cluster(name: &str) -> Vec<u8> {
    let source = ConfigSource {
        config_source_specifier: Some(
            ConfigSourceSpecifier::Ads(AggregatedConfigSource::default()),
        ),
        resource_api_version: Api::V3.into(),
        ..Default::default()
    };
    ClusterMessage {
        name: name.to_owned(),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(source),
            ..Default::default()
        }),
        ..Default::default()
    }
    .encode_to_vec()
}

fn v2_request(
    ty: pilot_xds::ResourceType,
) -> envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest {
    let mut request = sotw_request(ty, &[]);
    request.type_url = ty.v2_url().to_owned();
    request
}

#[tokio::test]
async fn a_v2_client_is_spoken_to_in_v2() {
    let mut world = shop();
    world
        .0
        .entry(Cluster)
        .or_default()
        .insert("a".to_owned(), cluster("a"));
    let server = Server::start(world).await;
    let mut client = server.sotw_at(ADS_V2).await;
    client.send(v2_request(Cluster)).await;
    let response = client.next().await;
    assert_eq!(
        response.type_url,
        "type.googleapis.com/envoy.api.v2.Cluster"
    );
    let any = &response.resources[0];
    assert_eq!(any.type_url, "type.googleapis.com/envoy.api.v2.Cluster");
    let body = ClusterMessage::decode(&*any.value).unwrap();
    let source = body.eds_cluster_config.unwrap().eds_config.unwrap();
    assert_eq!(source.resource_api_version, 0, "v2 has no such field");
    // The rest of the protocol is the same.
    let mut ack = v2_request(Cluster);
    ack.response_nonce = response.nonce.clone();
    client.send(ack).await;
    let number = server.change(|mut w| {
        w.0.entry(Cluster)
            .or_default()
            .insert("b".to_owned(), cluster("b"));
        w
    });
    let response = client.next().await;
    assert_eq!(response.resources.len(), 2);
    let mut ack = v2_request(Cluster);
    ack.response_nonce = response.nonce.clone();
    client.send(ack).await;
    server.synced(number).await;
    // A client of both versions is answered in the one it asked in.
    let mut client = server.sotw_at(ADS_V2).await;
    client.ask(Cluster, &[]).await;
    let response = client.next().await;
    assert_eq!(response.type_url, Cluster.type_url());
    let body = ClusterMessage::decode(&*response.resources[0].value).unwrap();
    let source = body.eds_cluster_config.unwrap().eds_config.unwrap();
    assert_eq!(source.resource_api_version, i32::from(Api::V3));
}

#[tokio::test]
async fn v2_has_its_services_of_single_types() {
    let server = Server::start(shop()).await;
    for (path, ty) in [
        (
            "/envoy.api.v2.ClusterDiscoveryService/StreamClusters",
            Cluster,
        ),
        (
            "/envoy.api.v2.EndpointDiscoveryService/StreamEndpoints",
            Endpoint,
        ),
        (
            "/envoy.api.v2.ListenerDiscoveryService/StreamListeners",
            Listener,
        ),
        ("/envoy.api.v2.RouteDiscoveryService/StreamRoutes", Route),
        (
            "/envoy.service.discovery.v2.SecretDiscoveryService/StreamSecrets",
            Secret,
        ),
    ] {
        let mut client = server.sotw_at(path).await;
        let mut request = v2_request(ty);
        request.resource_names = vec!["a".to_owned(), "80".to_owned(), "default".to_owned()];
        request.type_url.clear();
        client.send(request).await;
        assert_eq!(client.next().await.type_url, ty.v2_url());
    }
}
