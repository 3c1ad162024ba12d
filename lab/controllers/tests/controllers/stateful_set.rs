//! StatefulSets: names, order, updates with a partition, and the way back.

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::lab::{HOLD, Lab};

fn stateful_set(replicas: i32, image: &str) -> Value {
    json!({"metadata": {"name": "db"}, "spec": {
        "serviceName": "db", "replicas": replicas, "selector": {"matchLabels": {"app": "db"}},
        "template": template(image),
    }})
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

/// `name image` of each pod, by name.
fn images(pods: &[Pod]) -> Vec<String> {
    let image = |pod: &Pod| pod.spec.as_ref().unwrap().containers[0].image.clone();
    let mut all: Vec<_> = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .map(|pod| format!("{} {}", pod.name_any(), image(pod).unwrap()))
        .collect();
    all.sort();
    all
}

/// As `kubectl rollout status` decides it.
fn rolled_out(all: &[StatefulSet], replicas: i32) -> bool {
    all.iter().any(|set| {
        let status = set.status.clone().unwrap_or_default();
        status.observed_generation == set.metadata.generation
            && status.ready_replicas == Some(replicas)
            && status.replicas == replicas
            && status.current_revision == status.update_revision
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_come_in_order_with_names_of_their_own_and_go_from_the_top() {
    let lab = Lab::start().await;
    let service = json!({"metadata": {"name": "db"}, "spec": {"clusterIP": "None", "selector": {"app": "db"}, "ports": [{"port": 80}]}});
    lab.create::<Service>(service).await;
    let mut set = stateful_set(3, "a");
    set["spec"]["template"]["metadata"]["annotations"] = json!({HOLD: "yes"});
    lab.create::<StatefulSet>(set).await;
    for number in 0..3 {
        let name = format!("db-{number}");
        let pods = lab
            .until::<Pod>("the next one", |all| {
                all.iter().any(|p| p.name_any() == name)
            })
            .await;
        assert_eq!(pods.len(), number + 1, "those after it wait for it");
        let spec = pods
            .iter()
            .find(|p| p.name_any() == name)
            .unwrap()
            .spec
            .clone()
            .unwrap();
        assert_eq!(spec.hostname.as_deref(), Some(name.as_str()));
        assert_eq!(spec.subdomain.as_deref(), Some("db"));
        lab.merge::<Pod>(&name, json!({"metadata": {"annotations": {HOLD: null}}}))
            .await;
    }
    lab.until::<StatefulSet>("all ready", |all| rolled_out(all, 3))
        .await;
    lab.until::<EndpointSlice>("host names", |slices| {
        let mut names: Vec<_> = slices
            .iter()
            .flat_map(|slice| &slice.endpoints)
            .filter_map(|endpoint| endpoint.hostname.clone())
            .collect();
        names.sort();
        names == ["db-0", "db-1", "db-2"]
    })
    .await;

    // One that is lost comes back under its name, as another pod.
    let pods = lab.list::<Pod>().await;
    let lost = pods.iter().find(|p| p.name_any() == "db-1").unwrap().uid();
    lab.api::<Pod>()
        .delete("db-1", &Default::default())
        .await
        .unwrap();
    lab.until::<Pod>("back again", |all| {
        all.iter()
            .any(|p| p.name_any() == "db-1" && p.uid() != lost)
    })
    .await;
    lab.merge::<Pod>("db-1", json!({"metadata": {"annotations": {HOLD: null}}}))
        .await;

    lab.merge::<StatefulSet>("db", json!({"spec": {"replicas": 1}}))
        .await;
    lab.until::<StatefulSet>("one left", |all| rolled_out(all, 1))
        .await;
    assert_eq!(images(&lab.list::<Pod>().await), ["db-0 a"]);
    lab.event("db", "SuccessfulDelete", "Deleted pod: db-2")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_stops_at_the_partition_and_can_be_taken_back() {
    let lab = Lab::start().await;
    lab.create::<StatefulSet>(stateful_set(3, "a")).await;
    lab.until::<StatefulSet>("all ready", |all| rolled_out(all, 3))
        .await;
    let partition = |n: i32| json!({"type": "RollingUpdate", "rollingUpdate": {"partition": n}});
    let update = json!({"spec": {"template": template("b"), "updateStrategy": partition(2)}});
    lab.merge::<StatefulSet>("db", update).await;
    let canary = ["db-0 a", "db-1 a", "db-2 b"];
    lab.until::<StatefulSet>("the last one is new", |all| {
        let status = all[0].status.clone().unwrap_or_default();
        (status.updated_replicas, status.ready_replicas) == (Some(1), Some(3))
            && status.observed_generation == all[0].metadata.generation
    })
    .await;
    assert_eq!(images(&lab.list::<Pod>().await), canary);

    // Below the partition a lost pod comes back as it was.
    let uid = lab
        .list::<Pod>()
        .await
        .iter()
        .find(|p| p.name_any() == "db-0")
        .unwrap()
        .uid();
    lab.api::<Pod>()
        .delete("db-0", &Default::default())
        .await
        .unwrap();
    let pods = lab
        .until::<Pod>("db-0 again", |all| {
            all.iter().any(|p| p.name_any() == "db-0" && p.uid() != uid)
        })
        .await;
    assert_eq!(images(&pods), canary);

    lab.merge::<StatefulSet>("db", json!({"spec": {"updateStrategy": partition(0)}}))
        .await;
    lab.until::<StatefulSet>("all new", |all| rolled_out(all, 3))
        .await;
    assert_eq!(
        images(&lab.list::<Pod>().await),
        ["db-0 b", "db-1 b", "db-2 b"]
    );

    // The old template again: its revision is raised, none is added.
    lab.merge::<StatefulSet>("db", json!({"spec": {"template": template("a")}}))
        .await;
    lab.until::<StatefulSet>("all as before", |all| rolled_out(all, 3))
        .await;
    lab.until::<Pod>("back", |all| images(all) == ["db-0 a", "db-1 a", "db-2 a"])
        .await;
    let mut revisions: Vec<i64> = lab
        .list::<ControllerRevision>()
        .await
        .iter()
        .map(|revision| revision.revision)
        .collect();
    revisions.sort_unstable();
    assert_eq!(revisions, [2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_sets_do_not_wait() {
    let lab = Lab::start().await;
    let mut set = stateful_set(3, "a");
    set["spec"]["podManagementPolicy"] = json!("Parallel");
    set["spec"]["template"]["metadata"]["annotations"] = json!({HOLD: "yes"});
    lab.create::<StatefulSet>(set).await;
    lab.until::<Pod>("all at once", |all| all.len() == 3).await;
}
