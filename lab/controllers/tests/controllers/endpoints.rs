//! Endpoints and EndpointSlices, and how fast they follow their pods.

use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::DeleteParams;
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;

use crate::lab::{HOLD, Lab, deployment};

fn ready(slice: &EndpointSlice) -> usize {
    let is_ready = |e: &&k8s_openapi::api::discovery::v1::Endpoint| {
        e.conditions.as_ref().and_then(|c| c.ready) == Some(true)
    };
    slice.endpoints.iter().filter(is_ready).count()
}

async fn web(lab: &Lab, replicas: i32) {
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}});
    lab.create::<Service>(service).await;
    lab.until::<EndpointSlice>("an empty slice with the service", |all| {
        all.iter()
            .any(|s| s.name_any().starts_with("web-") && s.endpoints.is_empty())
    })
    .await;
    lab.until::<Endpoints>("empty endpoints with the service", |all| {
        all.iter().any(|e| e.name_any() == "web")
    })
    .await;
    lab.create::<Deployment>(deployment("web", replicas, "a"))
        .await;
    lab.rolled_out("web").await;
    lab.until::<EndpointSlice>("all ready", |all| {
        all.iter().map(ready).sum::<usize>() == usize::try_from(replicas).unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slices_and_endpoints_have_the_documented_form() {
    let lab = Lab::start().await;
    web(&lab, 2).await;
    let slices = lab.list::<EndpointSlice>().await;
    let slice = slices
        .iter()
        .find(|s| s.name_any().starts_with("web-"))
        .unwrap();
    assert_eq!(slice.labels()["kubernetes.io/service-name"], "web");
    assert_eq!(
        slice.labels()["endpointslice.kubernetes.io/managed-by"],
        "endpointslice-controller.k8s.io"
    );
    assert_eq!(slice.owner_references()[0].kind, "Service");
    assert!(
        slice
            .annotations()
            .contains_key("endpoints.kubernetes.io/last-change-trigger-time")
    );
    assert_eq!(
        serde_json::to_value(&slice.ports).unwrap(),
        json!([{"name": "http", "port": 8080, "protocol": "TCP"}])
    );
    let endpoint = &slice.endpoints[0];
    assert_eq!(
        (endpoint.node_name.as_deref(), endpoint.zone.as_deref()),
        (Some("node0"), Some("z1"))
    );
    assert_eq!(
        endpoint.target_ref.as_ref().unwrap().kind.as_deref(),
        Some("Pod")
    );
    let endpoints = lab
        .until::<Endpoints>("two addresses", |all| {
            all.iter().any(|e| {
                e.name_any() == "web"
                    && e.subsets
                        .as_ref()
                        .is_some_and(|s| s[0].addresses.as_ref().is_some_and(|a| a.len() == 2))
            })
        })
        .await;
    let subset = &endpoints
        .iter()
        .find(|e| e.name_any() == "web")
        .unwrap()
        .subsets
        .as_ref()
        .unwrap()[0];
    assert_eq!(subset.ports.as_ref().unwrap()[0].port, 8080);

    lab.api::<Service>()
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    lab.until::<EndpointSlice>("slices go with the service", |all| {
        !all.iter().any(|s| s.name_any().starts_with("web-"))
    })
    .await;
    lab.until::<Endpoints>("endpoints go with the service", |all| {
        !all.iter().any(|e| e.name_any() == "web")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_drains_before_it_goes() {
    let lab = Lab::start().await;
    let template = |d: &mut serde_json::Value| {
        d["spec"]["template"]["metadata"]["annotations"] = json!({"test/linger": "1"})
    };
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    lab.create::<Service>(service).await;
    let mut manifest = deployment("web", 1, "a");
    template(&mut manifest);
    lab.create::<Deployment>(manifest).await;
    lab.rolled_out("web").await;
    let pod = lab.list::<Pod>().await.remove(0);
    lab.api::<Pod>()
        .delete(&pod.name_any(), &DeleteParams::default())
        .await
        .unwrap();
    let shown = |s: &EndpointSlice| {
        s.endpoints
            .iter()
            .find(|e| e.target_ref.as_ref().unwrap().uid == pod.uid())
            .and_then(|e| e.conditions.clone())
    };
    let slices = lab.until::<EndpointSlice>("terminating endpoint", |all| {
        all.iter()
            .filter_map(shown)
            .any(|c| c.terminating == Some(true))
    });
    let conditions = slices.await.iter().find_map(shown).unwrap();
    assert_eq!(
        (conditions.ready, conditions.serving),
        (Some(false), Some(true))
    );
    let gone = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    lab.api::<Pod>()
        .delete(&pod.name_any(), &gone)
        .await
        .unwrap();
    lab.until::<EndpointSlice>("endpoint gone", |all| {
        all.iter().filter_map(shown).count() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_reaches_the_slice_without_waiting() {
    let lab = Lab::start().await;
    web(&lab, 2).await;
    let pod = lab.list::<Pod>().await.remove(0);
    let uid = pod.uid();
    let mut slices = std::pin::pin!(
        watcher(lab.api::<EndpointSlice>(), watcher::Config::default())
            .default_backoff()
            .applied_objects()
    );
    let mut times = Vec::new();
    // Milliseconds on an idle machine; the bound only tells an event-driven path from one that polls or backs off.
    for hold in [true, false].repeat(30) {
        let value = if hold { json!("1") } else { json!(null) };
        // From the user's write over the node's report to the slice: three writes, two watches.
        let start = Instant::now();
        lab.merge::<Pod>(
            &pod.name_any(),
            json!({"metadata": {"annotations": {HOLD: value}}}),
        )
        .await;
        while let Some(Ok(slice)) = slices.next().await {
            let endpoint = slice
                .endpoints
                .iter()
                .find(|e| e.target_ref.as_ref().is_some_and(|t| t.uid == uid));
            if endpoint.is_some_and(|e| e.conditions.as_ref().unwrap().ready == Some(!hold)) {
                break;
            }
        }
        times.push(start.elapsed());
        if times
            .last()
            .is_some_and(|time| *time < Duration::from_millis(500))
        {
            return;
        }
    }
    panic!("never within 500 ms: {times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headless_not_ready_and_hand_written() {
    let lab = Lab::start().await;
    let peers = json!({"metadata": {"name": "peers"}, "spec": {"clusterIP": "None", "publishNotReadyAddresses": true,
        "selector": {"app": "db"}, "ports": [{"port": 5432}]}});
    lab.create::<Service>(peers).await;
    let mut manifest = deployment("db", 1, "a");
    manifest["spec"]["template"]["metadata"]["annotations"] = json!({HOLD: "1"});
    lab.create::<Deployment>(manifest).await;
    let slices = lab.until::<EndpointSlice>("published although not ready", |all| {
        all.iter()
            .any(|s| s.name_any().starts_with("peers-") && ready(s) == 1)
    });
    let slices = slices.await;
    let slice = slices
        .iter()
        .find(|s| s.name_any().starts_with("peers-"))
        .unwrap();
    assert!(
        slice
            .labels()
            .contains_key("service.kubernetes.io/headless")
    );
    assert_eq!(
        slice.endpoints[0].conditions.as_ref().unwrap().serving,
        Some(false)
    );

    lab.create::<Service>(json!({"metadata": {"name": "ext"}, "spec": {"ports": [{"port": 80}]}}))
        .await;
    let written = json!({"metadata": {"name": "ext"}, "subsets": [{"addresses": [{"ip": "192.0.2.7"}], "ports": [{"port": 81}]}]});
    lab.create::<Endpoints>(written).await;
    let slices = lab.until::<EndpointSlice>("mirrored", |all| {
        all.iter().any(|s| s.name_any().starts_with("ext-"))
    });
    let slices = slices.await;
    let slice = slices
        .iter()
        .find(|s| s.name_any().starts_with("ext-"))
        .unwrap();
    assert_eq!(slice.endpoints[0].addresses, ["192.0.2.7"]);
    let manager = &slice.labels()["endpointslice.kubernetes.io/managed-by"];
    assert_eq!(manager, "endpointslicemirroring-controller.k8s.io");
}
