//! Traffic that moves to other services, and connections to Pilot that are recycled, under load: nothing may fail.
//!
//! Routes here have no retries, which would hide a break: a request whose cluster or endpoints are not there is a failure.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    envoy::{HOST, backend, free_port, sidecar},
    harness::*,
};

/// Requests one after the other, until it is told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Vec<Option<(u16, String)>>>,
}

impl Load {
    fn start(to: SocketAddr) -> Self {
        let (stop, sent) = <(Arc<AtomicBool>, Arc<AtomicU64>)>::default();
        let task = tokio::spawn({
            let (stop, sent) = (stop.clone(), sent.clone());
            async move {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match get(to, HOST, "/").await {
                        Some((200, _)) => {}
                        other => failures.push(other),
                    }
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                failures
            }
        });
        Self { stop, sent, task }
    }

    /// Waits until so many more requests were answered.
    async fn more(&self, count: u64) {
        let goal = self.sent.load(Ordering::Relaxed) + count;
        until("more requests", async || {
            (self.sent.load(Ordering::Relaxed) >= goal).then_some(())
        })
        .await;
    }

    async fn no_failures(self, pilot: &Pilot) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.task.await.unwrap();
        assert!(failures.is_empty(), "{failures:?}\n{}", pilot.log());
    }
}

/// The host that clients call, and a service of its own behind it that its route leads to.
fn world(port: u16, round: u32, backend: SocketAddr) -> String {
    let entry = |name: &str, host: &str| {
        let spec = format!(
            "  hosts: [{host}]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: {port}, name: http, protocol: HTTP}}]
  endpoints: [{{address: {}, ports: {{http: {}}}}}]
",
            backend.ip(),
            backend.port()
        );
        format!(
            "apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata: {{name: {name}, namespace: shop}}
spec:
{spec}---
"
        )
    };
    let target = format!("target-{round}.shop.svc.cluster.local");
    format!(
        "{}{}apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {{name: web, namespace: shop}}
spec:
  hosts: [{HOST}]
  http:
  - retries: {{attempts: 0}}
    route: [{{destination: {{host: {target}}}}}]
",
        entry("web", HOST),
        entry(&format!("target-{round}"), &target)
    )
}

/// In one change a service comes, the route moves to it, and the service it led to goes, endpoints and all.
async fn service_moves(delta: bool) {
    let backends = [backend("v1").await, backend("v2").await];
    let port = free_port().await;
    let pilot = Pilot::start(|folder| write(folder, "world", &world(port, 0, backends[0]))).await;
    let envoy = sidecar(&pilot, delta).await;
    let listener = SocketAddr::from(([127, 0, 0, 1], port));
    until("the first answer", async || {
        (get(listener, HOST, "/").await?.0 == 200).then_some(())
    })
    .await;
    let load = Load::start(listener);
    for round in 1..=12_u32 {
        let (index, expected) = if round % 2 == 0 { (0, "v1") } else { (1, "v2") };
        pilot.write("world", &world(port, round, backends[index]));
        until("the new service answers", async || {
            (get(listener, HOST, "/").await?.1 == expected).then_some(())
        })
        .await;
        load.more(10).await;
    }
    load.no_failures(&pilot).await;
    until("only the last service's cluster is left", async || {
        let clusters = envoy.admin("/clusters").await;
        let targets: std::collections::BTreeSet<&str> = clusters
            .lines()
            .filter_map(|line| line.split_once("||target-")?.1.split('.').next())
            .collect();
        (targets.len() == 1).then_some(())
    })
    .await;
    envoy.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_services_move_sotw() {
    service_moves(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_services_move_delta() {
    service_moves(true).await;
}

async fn recycled(delta: bool) {
    let backends = [backend("v1").await, backend("v2").await];
    let port = free_port().await;
    let pilot = Pilot::options()
        .arg("--keepaliveMaxServerConnectionAge=1s")
        .start(|folder| write(folder, "world", &world(port, 0, backends[0])))
        .await;
    let envoy = sidecar(&pilot, delta).await;
    let listener = SocketAddr::from(([127, 0, 0, 1], port));
    until("the first answer", async || {
        (get(listener, HOST, "/").await?.0 == 200).then_some(())
    })
    .await;
    let load = Load::start(listener);
    let streams = async || {
        pilot
            .log()
            .matches("this connection is being retired")
            .count()
    };
    for round in 1..=4_u32 {
        let before = streams().await;
        until("another connection", async || {
            (streams().await > before).then_some(())
        })
        .await;
        // A change that may well come while there is no stream.
        let (index, expected) = if round % 2 == 0 { (0, "v1") } else { (1, "v2") };
        pilot.write("world", &world(port, round, backends[index]));
        until("the change arrives", async || {
            (get(listener, HOST, "/").await?.1 == expected).then_some(())
        })
        .await;
        load.more(10).await;
    }
    load.no_failures(&pilot).await;
    envoy.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recycled_connections_lose_no_request_sotw() {
    recycled(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recycled_connections_lose_no_request_delta() {
    recycled(true).await;
}
