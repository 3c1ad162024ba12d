//! Budgets and the smaller workload kinds.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::api::EvictParams;
use serde_json::json;

use crate::lab::{Lab, deployment};

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
