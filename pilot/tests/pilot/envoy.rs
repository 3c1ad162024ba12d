//! Real ADS sessions with a real Envoy.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use axum::{Router, routing::get as handler};
use serde_json::json;
use tokio::net::TcpListener;

use super::harness::*;

pub(super) const HOST: &str = "web.shop.svc.cluster.local";

/// A backend that answers with its name.
pub(super) async fn backend(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(handler(move || async move { name }));
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

pub(super) async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn service(port: u16, endpoints: &[(SocketAddr, &str)]) -> String {
    let endpoints: String = endpoints
        .iter()
        .map(|(address, version)| {
            format!(
                "  - address: {}\n    ports: {{http: {}}}\n    labels: {{version: {version}}}\n",
                address.ip(),
                address.port()
            )
        })
        .collect();
    format!(
        "apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata: {{name: web, namespace: shop}}
spec:
  hosts: [{HOST}]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: {port}, name: http, protocol: HTTP}}]
  endpoints:
{endpoints}"
    )
}

fn rule(subsets: &[&str]) -> String {
    let subsets: String = subsets
        .iter()
        .map(|subset| {
            format!(
                "  - {{name: {subset}, labels: {{version: {}}}}}\n",
                &subset[..2]
            )
        })
        .collect();
    format!(
        "apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {{name: web, namespace: shop}}
spec:
  host: {HOST}
  subsets:
{subsets}"
    )
}

fn route(subset: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {{name: web, namespace: shop}}
spec:
  hosts: [{HOST}]
  http:
  - route:
    - destination: {{host: {HOST}, subset: {subset}}}
"
    )
}

/// Envoy as a sidecar whose listeners are bound for real, so that a test can talk to them without iptables.
pub(super) async fn sidecar(pilot: &Pilot, delta: bool) -> Envoy {
    let envoy = Envoy::start(
        pilot.grpc,
        delta,
        "sidecar~10.9.9.9~client-0.shop~shop.svc.cluster.local",
        json!({"INTERCEPTION_MODE": "NONE", "ISTIO_VERSION": "1.4.10", "LABELS": {"app": "client"}}),
    )
    .await;
    envoy.live().await;
    envoy
}

async fn session(delta: bool) {
    let (v1, v2) = (backend("v1").await, backend("v2").await);
    let port = free_port().await;
    let pilot = Pilot::start(|folder| write(folder, "web", &service(port, &[(v1, "v1")]))).await;
    let envoy = sidecar(&pilot, delta).await;
    let listener = SocketAddr::from(([127, 0, 0, 1], port));
    let ask = || get(listener, HOST, "/");
    let expect = |status: u16, body: &'static str| async move {
        until(body, || async move {
            let (got, text) = get(listener, HOST, "/").await?;
            (got == status && text.contains(body)).then_some(())
        })
        .await;
    };
    expect(200, "v1").await;

    // An endpoint comes and the old one goes: by EDS alone.
    let clusters = envoy.stat("cluster_manager.cds.update_success").await;
    pilot.write("web", &service(port, &[(v2, "v2")]));
    expect(200, "v2").await;
    assert_eq!(
        envoy.stat("cluster_manager.cds.update_success").await,
        clusters
    );

    // Subsets and a route to one of them.
    pilot.write("web", &service(port, &[(v1, "v1"), (v2, "v2")]));
    pilot.write("rule", &rule(&["v1", "v2"]));
    pilot.write("route", &route("v1"));
    expect(200, "v1").await;
    until("only v1 answers", || async {
        for _ in 0..10 {
            if ask().await?.1 != "v1" {
                return None;
            }
        }
        Some(())
    })
    .await;

    // A fault: routes alone.
    let listeners = envoy.stat("listener_manager.lds.update_success").await;
    let abort = "  - fault: {abort: {httpStatus: 418, percentage: {value: 100}}}\n    route:";
    pilot.write("route", &route("v1").replace("  - route:", abort));
    expect(418, "fault").await;
    assert_eq!(
        envoy.stat("listener_manager.lds.update_success").await,
        listeners
    );

    // The client is seen, synced, and its dump can be read. Envoy serves a route a moment before its answer is here.
    until("everything that was sent is acknowledged", async || {
        let entry = pilot.json("/debug/syncz").await[0].clone();
        assert_eq!(entry["proxy"], "client-0.shop");
        let mut types = ["cluster", "listener", "route", "endpoint"].iter();
        let acked = types.all(|ty| {
            let sent = &entry[format!("{ty}_sent")];
            assert!(sent.is_string(), "{entry}");
            *sent == entry[format!("{ty}_acked")]
        });
        acked.then_some(())
    })
    .await;
    let dump = pilot.json("/debug/config_dump?proxyID=client-0.shop").await;
    let served = dump["configs"][1]["dynamic_active_clusters"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(
        envoy.stat("cluster_manager.active_clusters").await,
        served as u64 + 1,
        "and the static one"
    );
    // Every config object has arrived, and it is known since when.
    let objects = pilot.json("/debug/config_distribution").await;
    let resources: Vec<&str> = objects
        .as_array()
        .unwrap()
        .iter()
        .map(|object| {
            assert_eq!(
                (&object["have"], &object["proxies"]),
                (&json!(1), &json!(1)),
                "{object}"
            );
            assert!(
                object["since"].is_string() && object["refused"] == json!([]),
                "{object}"
            );
            object["resource"].as_str().unwrap()
        })
        .collect();
    assert_eq!(
        resources,
        [
            "virtual-service/shop/web",
            "destination-rule/shop/web",
            "service-entry/shop/web"
        ]
    );
    let one = "/debug/config_distribution?resource=virtual-service/shop/web";
    let versions = pilot.json(one).await;
    assert_eq!(
        versions[0]["route_acked"], versions[0]["cluster_acked"],
        "{versions}"
    );
    assert!(versions[0]["route_acked"].is_string(), "{versions}");
    let (status, text) = pilot
        .page("/debug/config_distribution?resource=reviews")
        .await;
    assert!(
        status == 404 && text.contains("virtual-service/default/reviews"),
        "{text}"
    );
    let instances = pilot.json("/debug/instancesz").await;
    assert_eq!(
        instances["sidecar~10.9.9.9~client-0.shop~shop.svc.cluster.local"],
        json!([]),
        "the client serves nothing"
    );
    let ads = pilot.json("/debug/adsz").await;
    assert_eq!(ads[0]["protocol"], if delta { "delta" } else { "sotw" });
    envoy.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_by_state_of_the_world() {
    session(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_by_delta() {
    session(true).await;
}

/// Subsets replaced by others again and again, under load: a break before make would show as 503.
async fn changes_under_load(delta: bool) {
    let (v1, v2) = (backend("v1").await, backend("v2").await);
    let port = free_port().await;
    let pilot = Pilot::start(|folder| {
        write(folder, "web", &service(port, &[(v1, "v1"), (v2, "v2")]));
        write(
            folder,
            "traffic",
            &format!("{}---\n{}", rule(&["v1-0"]), route("v1-0")),
        );
    })
    .await;
    let envoy = sidecar(&pilot, delta).await;
    let listener = SocketAddr::from(([127, 0, 0, 1], port));
    until("the first answer", || async {
        (get(listener, HOST, "/").await?.0 == 200).then_some(())
    })
    .await;

    let (stop, sent) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let load = tokio::spawn({
        let (stop, sent) = (stop.clone(), sent.clone());
        async move {
            let mut failures = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match get(listener, HOST, "/").await {
                    Some((200, _)) => {}
                    other => failures.push(other),
                }
                sent.fetch_add(1, Ordering::Relaxed);
            }
            failures
        }
    });
    for round in 1..=12_u64 {
        let subset = format!("v{}-{round}", round % 2 + 1);
        // The former subset's cluster disappears in the same change in which the new one comes.
        pilot.write(
            "traffic",
            &format!("{}---\n{}", rule(&[&subset]), route(&subset)),
        );
        let expected = &subset[..2];
        until("the new subset answers", || async {
            (get(listener, HOST, "/").await?.1 == expected).then_some(())
        })
        .await;
        until("the load has met this round", async || {
            (sent.load(Ordering::Relaxed) > 10 * round).then_some(())
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    let failures = load.await.unwrap();
    assert!(failures.is_empty(), "{failures:?}\n{}", pilot.log());
    until("only the last subset's cluster is left", || async {
        let clusters = envoy.admin("/clusters").await;
        let subsets: std::collections::BTreeSet<&str> = clusters
            .lines()
            .filter_map(|line| line.split_once("|v")?.1.split('|').next())
            .collect();
        (subsets.len() == 1).then_some(())
    })
    .await;
    envoy.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_subsets_change_sotw() {
    changes_under_load(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_subsets_change_delta() {
    changes_under_load(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_survives_pilot_and_catches_up() {
    let v1 = backend("v1").await;
    let port = free_port().await;
    let mut pilot =
        Pilot::start(|folder| write(folder, "web", &service(port, &[(v1, "v1")]))).await;
    let envoy = sidecar(&pilot, true).await;
    let listener = SocketAddr::from(([127, 0, 0, 1], port));
    until("the first answer", || async {
        (get(listener, HOST, "/").await?.0 == 200).then_some(())
    })
    .await;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pilot.pid()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert_eq!(pilot.exit().await.code(), Some(0));
    // It ended with a client connected, and the client goes on without it.
    until("envoy noticed", || async {
        (envoy.stat("control_plane.connected_state").await == 0).then_some(())
    })
    .await;
    assert_eq!(
        get(listener, HOST, "/").await.unwrap(),
        (200, "v1".to_owned())
    );
    envoy.assert_nothing_rejected().await;
}
