//! Deployments and ReplicaSets: rollout, rollback, scaling, pausing, Recreate, refusing webhooks.

use std::collections::BTreeSet;

use futures::StreamExt;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::lab::{HOLD, Lab, deployment, revision};

fn reasons(deployment: &Deployment) -> Vec<(String, String, String)> {
    let conditions = deployment
        .status
        .as_ref()
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default();
    conditions
        .into_iter()
        .map(|c| (c.type_, c.status, c.reason.unwrap_or_default()))
        .collect()
}

fn has(deployment: &Deployment, kind: &str, status: &str, reason: &str) -> bool {
    reasons(deployment).contains(&(kind.into(), status.into(), reason.into()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_comes_up_with_the_documented_names_and_events() {
    let lab = Lab::start().await;
    lab.create::<Deployment>(deployment("web", 2, "a")).await;
    let web = lab.rolled_out("web").await;
    assert!(has(&web, "Available", "True", "MinimumReplicasAvailable"));
    assert!(has(&web, "Progressing", "True", "NewReplicaSetAvailable"));
    assert_eq!(web.annotations()["deployment.kubernetes.io/revision"], "1");
    assert_eq!(web.status.as_ref().unwrap().unavailable_replicas, None);

    let sets = lab.list::<ReplicaSet>().await;
    assert_eq!(sets.len(), 1);
    let set = &sets[0];
    let hash = set.labels()["pod-template-hash"].clone();
    assert_eq!(set.name_any(), format!("web-{hash}"));
    assert_eq!(
        set.annotations()["deployment.kubernetes.io/desired-replicas"],
        "2"
    );
    assert_eq!(
        set.annotations()["deployment.kubernetes.io/max-replicas"],
        "3"
    );
    assert_eq!(set.owner_references()[0].block_owner_deletion, Some(true));
    let pods = lab.list::<Pod>().await;
    assert_eq!(pods.len(), 2);
    for pod in &pods {
        assert!(
            pod.name_any().starts_with(&format!("web-{hash}-")),
            "{}",
            pod.name_any()
        );
        assert_eq!(
            pod.metadata.generate_name.as_deref(),
            Some(format!("web-{hash}-").as_str())
        );
        assert_eq!(pod.labels()["pod-template-hash"], hash);
        lab.event(
            &pod.name_any(),
            "Scheduled",
            &format!("Successfully assigned default/{} to node0", pod.name_any()),
        )
        .await;
        lab.event(
            "web-",
            "SuccessfulCreate",
            &format!("Created pod: {}", pod.name_any()),
        )
        .await;
    }
    let event = lab
        .event(
            "web",
            "ScalingReplicaSet",
            &format!("Scaled up replica set web-{hash} from 0 to 2"),
        )
        .await;
    assert_eq!(event.count, Some(1));
    assert_eq!(
        event.source.unwrap().component.as_deref(),
        Some("deployment-controller")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_never_leaves_its_fences_and_a_rollback_finds_its_set() {
    let lab = Lab::start().await;
    lab.create::<Deployment>(deployment("web", 2, "a")).await;
    lab.rolled_out("web").await;
    let first = lab.list::<ReplicaSet>().await.remove(0);

    // maxSurge 25 % of 2 is 1, maxUnavailable is 0: from 2 to 3 pods, never fewer than 2 available.
    let api: Api<Deployment> = lab.api();
    let observer = tokio::spawn(async move {
        let mut seen = BTreeSet::new();
        let mut all = std::pin::pin!(
            watcher(api, watcher::Config::default())
                .default_backoff()
                .applied_objects()
        );
        while let Some(Ok(web)) = all.next().await {
            let status = web.status.clone().unwrap_or_default();
            seen.insert((
                status.replicas.unwrap_or(0),
                status.available_replicas.unwrap_or(0),
            ));
            let image = web.spec.unwrap().template.spec.unwrap().containers[0]
                .image
                .clone();
            if image.as_deref() == Some("b")
                && status.updated_replicas == Some(2)
                && status.replicas == Some(2)
            {
                break;
            }
        }
        seen
    });
    let template = json!({"spec": {"containers": [{"name": "c", "image": "b"}]}});
    lab.merge::<Deployment>("web", json!({"spec": {"template": template}}))
        .await;
    let web = lab.rolled_out("web").await;
    for (replicas, available) in observer.await.unwrap() {
        assert!(
            replicas <= 3 && available >= 2,
            "{replicas} replicas, {available} available"
        );
    }
    assert_eq!(web.annotations()["deployment.kubernetes.io/revision"], "2");
    let sets = lab.list::<ReplicaSet>().await;
    assert_eq!(sets.len(), 2);
    let old = sets
        .iter()
        .find(|s| s.name_any() == first.name_any())
        .unwrap();
    assert_eq!(
        (old.spec.as_ref().unwrap().replicas, revision(old)),
        (Some(0), "1")
    );

    let template = first.spec.unwrap().template.unwrap();
    let containers = template.spec.unwrap().containers;
    lab.merge::<Deployment>(
        "web",
        json!({"spec": {"template": {"spec": {"containers": containers}}}}),
    )
    .await;
    let web = lab.rolled_out("web").await;
    assert_eq!(web.annotations()["deployment.kubernetes.io/revision"], "3");
    let sets = lab.list::<ReplicaSet>().await;
    assert_eq!(sets.len(), 2, "the old set serves again");
    let back = sets
        .iter()
        .find(|s| s.name_any() == first.metadata.name.clone().unwrap())
        .unwrap();
    assert_eq!(
        (back.spec.as_ref().unwrap().replicas, revision(back)),
        (Some(2), "3")
    );
    assert_eq!(
        back.annotations()["deployment.kubernetes.io/revision-history"],
        "1"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_that_never_becomes_ready_keeps_the_old_pods_and_meets_its_deadline() {
    let lab = Lab::start().await;
    let mut web = deployment("web", 2, "a");
    web["spec"]["progressDeadlineSeconds"] = json!(2);
    lab.create::<Deployment>(web).await;
    lab.rolled_out("web").await;
    let template = json!({"metadata": {"annotations": {HOLD: "1"}}});
    lab.merge::<Deployment>("web", json!({"spec": {"template": template}}))
        .await;
    let all = lab.until::<Deployment>("deadline", |all| {
        all.iter()
            .any(|d| has(d, "Progressing", "False", "ProgressDeadlineExceeded"))
    });
    let web = all.await.remove(0);
    let status = web.status.unwrap();
    assert_eq!(
        (
            status.available_replicas,
            status.updated_replicas,
            status.replicas
        ),
        (Some(2), Some(1), Some(3))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_goes_through_the_scale_subresource_and_takes_unready_pods_first() {
    let lab = Lab::start().await;
    lab.create::<Deployment>(deployment("web", 3, "a")).await;
    lab.rolled_out("web").await;
    let pods = lab.list::<Pod>().await;
    // One of the three stops being ready.
    let sick = pods[1].name_any();
    lab.merge::<Pod>(&sick, json!({"metadata": {"annotations": {HOLD: "1"}}}))
        .await;
    lab.until::<Deployment>("one unavailable", |all| {
        all[0].status.as_ref().unwrap().available_replicas == Some(2)
    })
    .await;
    let api: Api<Deployment> = lab.api();
    let patch = kube::api::Patch::Merge(json!({"spec": {"replicas": 2}}));
    let scale = api
        .patch_scale("web", &Default::default(), &patch)
        .await
        .unwrap();
    assert_eq!(scale.spec.unwrap().replicas, Some(2));
    lab.rolled_out("web").await;
    let left: Vec<_> = lab
        .until::<Pod>("two pods", |pods| pods.len() == 2)
        .await
        .iter()
        .map(|p| p.name_any())
        .collect();
    assert!(
        !left.contains(&sick),
        "{sick} was not ready and should have gone first: {left:?}"
    );
    lab.event("web", "ScalingReplicaSet", "from 3 to 2").await;
    lab.event("web-", "SuccessfulDelete", &format!("Deleted pod: {sick}"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_pod_is_replaced_at_once() {
    let lab = Lab::start().await;
    let mut web = deployment("web", 1, "a");
    // The node takes its time: the replacement must not wait for it.
    web["spec"]["template"]["metadata"]["annotations"] = json!({"test/linger": "1"});
    lab.create::<Deployment>(web).await;
    lab.rolled_out("web").await;
    let old = lab.list::<Pod>().await.remove(0);
    lab.api::<Pod>()
        .delete(&old.name_any(), &DeleteParams::default())
        .await
        .unwrap();
    let pods = lab.until::<Pod>("replacement ready", |pods| {
        pods.iter()
            .filter(|p| {
                p.metadata.deletion_timestamp.is_none()
                    && p.status.as_ref().unwrap().pod_ip.is_some()
            })
            .count()
            == 1
    });
    let pods = pods.await;
    assert_eq!(pods.len(), 2, "the old pod is still terminating");
    let ips: BTreeSet<_> = pods
        .iter()
        .map(|p| p.status.as_ref().unwrap().pod_ip.clone())
        .collect();
    assert_eq!(ips.len(), 2, "the replacement has its own address");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_means_no_rollout_but_scaling() {
    let lab = Lab::start().await;
    lab.create::<Deployment>(deployment("web", 1, "a")).await;
    lab.rolled_out("web").await;
    let template = json!({"spec": {"containers": [{"name": "c", "image": "b"}]}});
    lab.merge::<Deployment>(
        "web",
        json!({"spec": {"paused": true, "replicas": 3, "template": template}}),
    )
    .await;
    lab.until::<Deployment>("scaled while paused", |all| {
        all[0].status.as_ref().unwrap().available_replicas == Some(3)
            && has(&all[0], "Progressing", "Unknown", "DeploymentPaused")
    })
    .await;
    assert_eq!(lab.list::<ReplicaSet>().await.len(), 1);
    lab.merge::<Deployment>("web", json!({"spec": {"paused": null}}))
        .await;
    lab.rolled_out("web").await;
    assert_eq!(lab.list::<ReplicaSet>().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recreate_starts_the_new_after_the_last_old_pod() {
    let lab = Lab::start().await;
    let mut web = deployment("web", 2, "a");
    web["spec"]["strategy"] = json!({"type": "Recreate"});
    lab.create::<Deployment>(web).await;
    lab.rolled_out("web").await;
    let api: Api<Pod> = lab.api();
    let observer = tokio::spawn(async move {
        let (mut images, mut mixed) = (std::collections::BTreeMap::new(), false);
        let mut pods = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        while let Some(Ok(event)) = pods.next().await {
            match event {
                watcher::Event::Delete(pod) => drop(images.remove(&pod.name_any())),
                watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => {
                    let image = pod.spec.as_ref().unwrap().containers[0]
                        .image
                        .clone()
                        .unwrap();
                    images.insert(pod.name_any(), image);
                }
                _ => {}
            }
            let kinds: BTreeSet<_> = images.values().collect();
            mixed |= kinds.len() > 1;
            if images.len() == 2 && kinds.contains(&"b".to_owned()) {
                return mixed;
            }
        }
        true
    });
    let template = json!({"spec": {"containers": [{"name": "c", "image": "b"}]}});
    lab.merge::<Deployment>("web", json!({"spec": {"template": template}}))
        .await;
    lab.rolled_out("web").await;
    assert!(
        !observer.await.unwrap(),
        "old and new pods existed side by side"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusing_webhook_shows_on_set_and_deployment_and_heals() {
    let lab = Lab::start().await;
    // Nobody listens on port 9 of the loopback.
    let hook = json!({"metadata": {"name": "refuse"}, "webhooks": [{
        "name": "x.lab.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None", "timeoutSeconds": 1,
        "clientConfig": {"url": "https://127.0.0.1:9/"},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]}]});
    let hooks: Api<ValidatingWebhookConfiguration> = Api::all(lab.client.clone());
    hooks
        .create(
            &PostParams::default(),
            &serde_json::from_value(hook).unwrap(),
        )
        .await
        .unwrap();
    lab.create::<Deployment>(deployment("web", 2, "a")).await;
    let all = lab.until::<Deployment>("ReplicaFailure on the Deployment", |all| {
        all.iter()
            .any(|d| has(d, "ReplicaFailure", "True", "FailedCreate"))
    });
    let web = all.await.remove(0);
    assert_eq!(web.status.as_ref().unwrap().unavailable_replicas, Some(2));
    assert_eq!(
        reasons(&web)[2].0,
        "ReplicaFailure",
        "third condition: {:?}",
        reasons(&web)
    );
    let event = lab
        .event(
            "web-",
            "FailedCreate",
            "Error creating: Internal error occurred: failed calling webhook",
        )
        .await;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    assert_eq!(event.involved_object.kind.as_deref(), Some("ReplicaSet"));
    let set = lab.list::<ReplicaSet>().await.remove(0);
    let conditions = set.status.unwrap().conditions.unwrap();
    assert!(
        conditions[0]
            .message
            .as_ref()
            .unwrap()
            .starts_with("Internal error occurred"),
        "{conditions:?}"
    );
    hooks
        .delete("refuse", &DeleteParams::default())
        .await
        .unwrap();
    let web = lab.rolled_out("web").await;
    assert!(
        reasons(&web).iter().all(|r| r.0 != "ReplicaFailure"),
        "{:?}",
        reasons(&web)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_that_were_away_finish_what_was_begun_and_repeat_nothing() {
    let lab = Lab::start().await;
    lab.create::<Deployment>(deployment("web", 2, "a")).await;
    lab.rolled_out("web").await;
    let before: BTreeSet<_> = lab.list::<Pod>().await.iter().map(|p| p.uid()).collect();
    lab.stop_controllers().await;
    // Meanwhile one pod dies, the history of watches is lost, and another Deployment is asked for.
    let victim = lab.list::<Pod>().await.remove(0);
    lab.api::<Pod>()
        .delete(&victim.name_any(), &DeleteParams::default())
        .await
        .unwrap();
    lab.until::<Pod>("one pod left", |all| all.len() == 1).await;
    lab.create::<Deployment>(deployment("new", 1, "a")).await;
    lab.server.compact();
    lab.start_controllers();
    lab.rolled_out("new").await;
    lab.until::<Pod>("replaced", |all| {
        all.iter().filter(|p| p.labels()["app"] == "web").count() == 2
    })
    .await;
    lab.rolled_out("web").await;
    let after: BTreeSet<_> = lab
        .list::<Pod>()
        .await
        .iter()
        .filter(|p| p.labels()["app"] == "web")
        .map(|p| p.uid())
        .collect();
    assert_eq!(
        before.intersection(&after).count(),
        1,
        "the surviving pod was left alone"
    );
    assert_eq!(lab.list::<ReplicaSet>().await.len(), 2);
}
