//! HorizontalPodAutoscaler with injected metrics.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::lab::{Lab, deployment};

fn scaler(name: &str, target: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"minReplicas": 1, "maxReplicas": 5,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target},
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}})
}

fn condition(scaler: &HorizontalPodAutoscaler, kind: &str) -> (String, String, String) {
    let conditions = scaler
        .status
        .as_ref()
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default();
    let found = conditions.into_iter().find(|c| c.type_ == kind);
    found
        .map(|c| {
            (
                c.status,
                c.reason.unwrap_or_default(),
                c.message.unwrap_or_default(),
            )
        })
        .unwrap_or_default()
}

/// Keeps every pod of `app=web` at `millicores` until the Deployment has `replicas`.
async fn scaled(lab: &Lab, millicores: u64, replicas: i32) {
    let api = lab.api::<Deployment>();
    let what = format!("{replicas} replicas");
    let wait = crate::lab::until(api, &what, |all| {
        all.iter()
            .any(|d| d.spec.as_ref().unwrap().replicas == Some(replicas))
    });
    let feed = async {
        let mut pods = lab.list::<Pod>().await;
        loop {
            lab.usage.set(&pods, millicores * 1_000_000);
            let count = pods.len();
            pods = lab
                .until::<Pod>("pods change", |all| all.len() != count)
                .await;
        }
    };
    tokio::select! {
        _ = wait => {}
        () = feed => {}
    }
    lab.rolled_out("web").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cpu_moves_the_count_between_one_and_five() {
    let lab = Lab::start().await;
    lab.create::<Deployment>(deployment("web", 1, "a")).await;
    lab.rolled_out("web").await;
    lab.create::<HorizontalPodAutoscaler>(scaler("web", "web"))
        .await;
    // 100m requested, 300m used: 300 % of the request against a target of 50 %.
    scaled(&lab, 300, 5).await;
    lab.event(
        "web",
        "SuccessfulRescale",
        "New size: 5; reason: cpu resource utilization (percentage of request) above target",
    )
    .await;
    lab.usage.set(&lab.list::<Pod>().await, 50_000_000);
    let all = lab.until::<HorizontalPodAutoscaler>("steady", |all| {
        all.iter().any(|h| {
            condition(h, "AbleToScale").1 == "ReadyForNewScale"
                && h.status.as_ref().unwrap().current_replicas == Some(5)
                && condition(h, "ScalingLimited").1 == "DesiredWithinRange"
        })
    });
    let steady = all.await.remove(0);
    let (status, reason, message) = condition(&steady, "ScalingActive");
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("True", "ValidMetricFound")
    );
    let expected = "the HPA was able to successfully calculate a replica count from cpu resource utilization (percentage of request)";
    assert_eq!(message, expected);
    let metrics = serde_json::to_value(steady.status.unwrap().current_metrics).unwrap();
    assert_eq!(
        metrics[0]["resource"]["current"],
        json!({"averageUtilization": 50, "averageValue": "50m"})
    );

    scaled(&lab, 1, 1).await;
    lab.event(
        "web",
        "SuccessfulRescale",
        "New size: 1; reason: All metrics below target",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn troubles_are_named() {
    let lab = Lab::start().await;
    lab.create::<HorizontalPodAutoscaler>(scaler("lost", "nodeploy"))
        .await;
    let mut manifest = deployment("web", 1, "a");
    manifest["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({});
    lab.create::<Deployment>(manifest).await;
    lab.rolled_out("web").await;
    lab.create::<HorizontalPodAutoscaler>(scaler("web", "web"))
        .await;
    let find = |all: &[HorizontalPodAutoscaler], name: &str, kind: &str| {
        all.iter()
            .find(|h| h.name_any() == name)
            .map(|h| condition(h, kind))
            .unwrap_or_default()
    };
    let all = lab
        .until::<HorizontalPodAutoscaler>("no target", |all| {
            find(all, "lost", "AbleToScale").0 == "False"
        })
        .await;
    let (_, reason, message) = find(&all, "lost", "AbleToScale");
    assert_eq!(reason, "FailedGetScale");
    let expected = "the HPA controller was unable to get the target's current scale: deployments/scale.apps \"nodeploy\" not found";
    assert_eq!(message, expected);
    lab.event("lost", "FailedGetScale", "nodeploy").await;

    let prefix = "the HPA was unable to compute the replica count: failed to get cpu utilization: ";
    let all = lab
        .until::<HorizontalPodAutoscaler>("no metrics", |all| {
            find(all, "web", "ScalingActive").0 == "False"
        })
        .await;
    let (_, reason, message) = find(&all, "web", "ScalingActive");
    assert_eq!(reason, "FailedGetResourceMetric");
    let expected =
        "unable to get metrics for resource cpu: no metrics returned from resource metrics API";
    assert_eq!(message, format!("{prefix}{expected}"));
    let pods = lab.list::<Pod>().await;
    lab.usage.set(&pods, 1_000_000);
    let text = format!(
        "{prefix}missing request for cpu in container c of Pod {}",
        pods[0].name_any()
    );
    lab.until::<HorizontalPodAutoscaler>("no request", |all| {
        find(all, "web", "ScalingActive").2 == text
    })
    .await;
}
