//! Binding, and what a user sees of a pod that fits nowhere.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::lab::Lab;

fn pod(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["containers"] = json!([{"name": "c", "image": "i"}]);
    json!({"metadata": {"name": name}, "spec": spec})
}

fn scheduled(pod: &Pod) -> Option<(String, Option<String>)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|c| c.type_ == "PodScheduled")
        .map(|c| (c.status.clone(), c.message.clone()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_waits_for_a_node_that_matches() {
    let lab = Lab::start().await;
    lab.create::<Pod>(pod("plain", json!({}))).await;
    lab.create::<Pod>(pod("picky", json!({"nodeSelector": {"disk": "ssd"}})))
        .await;
    let pods = lab.until::<Pod>("one bound, one refused", |all| {
        let find = |name: &str| {
            all.iter()
                .find(|p| p.metadata.name.as_deref() == Some(name))
                .and_then(scheduled)
        };
        find("plain").is_some_and(|(status, _)| status == "True")
            && find("picky").is_some_and(|(status, _)| status == "False")
    });
    let pods = pods.await;
    let picky = pods
        .iter()
        .find(|p| p.metadata.name.as_deref() == Some("picky"))
        .unwrap();
    let (_, message) = scheduled(picky).unwrap();
    assert_eq!(
        message.unwrap(),
        "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
    );
    let event = lab
        .event("picky", "FailedScheduling", "0/1 nodes are available")
        .await;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    assert!(event.event_time.is_some() && event.count.is_none());

    let nodes: Api<Node> = Api::all(lab.client.clone());
    let label = Patch::Merge(json!({"metadata": {"labels": {"disk": "ssd"}}}));
    nodes
        .patch("node0", &PatchParams::default(), &label)
        .await
        .unwrap();
    lab.until::<Pod>("bound after the node changed", |all| {
        all.iter()
            .all(|p| p.spec.as_ref().unwrap().node_name.as_deref() == Some("node0"))
    })
    .await;
    lab.event(
        "picky",
        "Scheduled",
        "Successfully assigned default/picky to node0",
    )
    .await;
}
