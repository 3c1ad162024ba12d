//! Budgets and the smaller workload kinds.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::api::EvictParams;
use serde_json::json;

use crate::lab::{EXIT, Lab, deployment};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_counts_and_evictions_obey_it() {
    let lab = Lab::start().await;
    let budget = json!({"metadata": {"name": "web"}, "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "web"}}}});
    lab.create::<PodDisruptionBudget>(budget).await;
    lab.create::<Deployment>(deployment("web", 2, "a")).await;
    lab.rolled_out("web").await;
    let allowed = |n: i32, healthy: i32| {
        move |all: &[PodDisruptionBudget]| {
            all.iter().any(|b| {
                b.status
                    .as_ref()
                    .is_some_and(|s| s.disruptions_allowed == n && s.current_healthy == healthy)
            })
        }
    };
    lab.until::<PodDisruptionBudget>("none allowed", allowed(0, 2))
        .await;
    let pod = lab.list::<Pod>().await.remove(0).name_any();
    let refused = lab.api::<Pod>().evict(&pod, &EvictParams::default()).await;
    assert!(
        matches!(&refused, Err(kube::Error::Api(status)) if status.code == 429),
        "{refused:?}"
    );
    lab.merge::<Deployment>("web", json!({"spec": {"replicas": 3}}))
        .await;
    lab.until::<PodDisruptionBudget>("one allowed", allowed(1, 3))
        .await;
    lab.api::<Pod>()
        .evict(&pod, &EvictParams::default())
        .await
        .unwrap();
    lab.until::<Pod>("evicted", |all| all.iter().all(|p| p.name_any() != pod))
        .await;
    lab.until::<PodDisruptionBudget>("whole again", allowed(1, 3))
        .await;
}

fn job(name: &str, exit: &str) -> serde_json::Value {
    json!({"metadata": {"name": name}, "spec": {"completions": 3, "parallelism": 2, "backoffLimit": 1,
        "template": {"metadata": {"annotations": {EXIT: exit}},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_end_well_or_badly() {
    let lab = Lab::start().await;
    let ended = |name: &'static str, kind: &'static str| {
        move |all: &[Job]| {
            all.iter().filter(|j| j.name_any() == name).any(|j| {
                let conditions = j.status.as_ref().and_then(|s| s.conditions.clone());
                conditions
                    .unwrap_or_default()
                    .iter()
                    .any(|c| c.type_ == kind && c.status == "True")
            })
        }
    };
    lab.create::<Job>(job("good", "0")).await;
    let jobs = lab
        .until::<Job>("complete", ended("good", "Complete"))
        .await;
    let status = jobs[0].status.clone().unwrap();
    assert_eq!((status.succeeded, status.active), (Some(3), None));
    assert!(status.completion_time.is_some());
    assert_eq!(lab.list::<Pod>().await.len(), 3, "finished pods stay");

    lab.create::<Job>(job("bad", "1")).await;
    let jobs = lab.until::<Job>("failed", ended("bad", "Failed")).await;
    let bad = jobs.iter().find(|j| j.name_any() == "bad").unwrap();
    let reason = bad.status.as_ref().unwrap().conditions.as_ref().unwrap()[0]
        .reason
        .clone();
    assert_eq!(reason.as_deref(), Some("BackoffLimitExceeded"));
    lab.event("good", "Completed", "Job completed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_has_one_pod_per_node_and_updates_it() {
    let lab = Lab::start().await;
    let set = json!({"metadata": {"name": "agent"}, "spec": {"selector": {"matchLabels": {"app": "agent"}},
        "template": {"metadata": {"labels": {"app": "agent"}}, "spec": {"containers": [{"name": "c", "image": "a"}]}}}});
    lab.create::<DaemonSet>(set).await;
    let settled = |all: &[DaemonSet]| {
        all.iter().any(|d| {
            let status = d.status.clone().unwrap_or_default();
            status.observed_generation == d.metadata.generation
                && (
                    status.desired_number_scheduled,
                    status.number_available,
                    status.updated_number_scheduled,
                ) == (1, Some(1), Some(1))
        })
    };
    lab.until::<DaemonSet>("one available", settled).await;
    let old = lab.list::<Pod>().await.remove(0);
    assert_eq!(
        old.spec.as_ref().unwrap().node_name.as_deref(),
        Some("node0")
    );
    let template = json!({"spec": {"containers": [{"name": "c", "image": "b"}]}});
    lab.merge::<DaemonSet>("agent", json!({"spec": {"template": template}}))
        .await;
    lab.until::<Pod>("replaced", |all| {
        all.len() == 1 && all[0].uid() != old.uid()
    })
    .await;
    lab.until::<DaemonSet>("settled again", settled).await;
}
