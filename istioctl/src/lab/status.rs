//! `lab status`: the daemon, its pods, the ingress.

use std::process::ExitCode;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use lab_chaos::cluster::is_ready;
use lab_chaos::mesh;
use serde::Serialize;
use serde_json::json;

use super::StateDir;
use crate::cli::Global;
use crate::connect::connect;
use crate::output::{OutputArgs, Paint, Table, age, print, print_json};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    component: String,
    namespace: String,
    pod: String,
    ready: String,
    state: String,
    restarts: i32,
    pod_ip: String,
    #[serde(skip)]
    is_ready: bool,
    created_at: Option<jiff::Timestamp>,
}

pub(super) async fn run(global: &Global, output: OutputArgs) -> anyhow::Result<ExitCode> {
    let lab = StateDir::of(global)?;
    let Some(info) = lab.running() else {
        if output.is_json() {
            print_json(&json!({"running": false, "stateDir": lab.path()}))?;
        } else {
            print(&format!(
                "No lab runs in {}. Start it with `istioctl lab up`.\n",
                lab.path().display()
            ));
        }
        return Ok(ExitCode::from(3));
    };
    let here = Global {
        kubeconfig: Some(lab.kubeconfig()),
        ..global.clone()
    };
    let cluster = connect(&here).await?;
    let pods = Api::<Pod>::all(cluster.client.clone())
        .list(&ListParams::default())
        .await?;
    let mut rows: Vec<Row> = pods.iter().map(row).collect();
    rows.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
    let ingress = mesh::ingress(&cluster)
        .await
        .ok()
        .map(|a| format!("http://{a}"));
    let started = started_at(info.pid);
    if output.is_json() {
        print_json(&json!({
            "running": true, "stateDir": lab.path(), "pid": info.pid, "startedAt": started,
            "version": info.version, "apiServer": info.api_server, "kubeconfig": lab.kubeconfig(),
            "ingress": ingress, "pods": rows,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let paint = Paint::stdout();
    let mut table = Table::new(&[
        "COMPONENT",
        "NAMESPACE",
        "READY",
        "STATUS",
        "RESTARTS",
        "POD IP",
        "AGE",
    ]);
    for row in &rows {
        let ready = match row.is_ready {
            true => paint.good(&row.ready),
            false => paint.warn(&row.ready),
        };
        table.row([
            row.component.clone(),
            row.namespace.clone(),
            ready,
            row.state.clone(),
            row.restarts.to_string(),
            row.pod_ip.clone(),
            row.created_at.map_or("-".to_owned(), age),
        ]);
    }
    let up = started.map_or("?".to_owned(), age);
    print(&format!(
        "{}\nlab      {} (pid {}, up {up})\nAPI      {}\ningress  {}\n",
        table.render(),
        lab.path().display(),
        info.pid,
        info.api_server,
        ingress.as_deref().unwrap_or("none"),
    ));
    Ok(ExitCode::SUCCESS)
}

fn row(pod: &Pod) -> Row {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    let ready = containers.iter().filter(|c| c.ready).count();
    let wanted = pod.spec.as_ref().map_or(0, |s| s.containers.len());
    let waiting = containers
        .iter()
        .filter_map(|c| c.state.as_ref()?.waiting.as_ref()?.reason.clone())
        .next();
    let state = match (&pod.metadata.deletion_timestamp, waiting) {
        (Some(_), _) => "Terminating".to_owned(),
        (None, Some(reason)) => reason,
        (None, None) => status.phase.unwrap_or_else(|| "Unknown".to_owned()),
    };
    Row {
        component: component(pod),
        namespace: pod.namespace().unwrap_or_default(),
        pod: pod.name_any(),
        ready: format!("{ready}/{wanted}"),
        state,
        restarts: containers.iter().map(|c| c.restart_count).sum(),
        pod_ip: status.pod_ip.unwrap_or_else(|| "-".to_owned()),
        is_ready: is_ready(pod),
        created_at: pod.metadata.creation_timestamp.as_ref().map(|t| t.0),
    }
}

/// Name of the Deployment: the pod's without the two suffixes that ReplicaSet and pod got.
fn component(pod: &Pod) -> String {
    let name = pod.name_any();
    let owned = pod
        .owner_references()
        .iter()
        .any(|o| o.kind == "ReplicaSet");
    match name.rsplitn(3, '-').nth(2) {
        Some(deployment) if owned => deployment.to_owned(),
        _ => name,
    }
}

/// When a process started, from the age of its directory in /proc.
fn started_at(pid: i32) -> Option<jiff::Timestamp> {
    let time = std::fs::metadata(format!("/proc/{pid}"))
        .ok()?
        .modified()
        .ok()?;
    time.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).expect("a Pod")
    }

    #[test]
    fn a_pod_in_words() {
        let row = row(&pod(json!({
            "metadata": {"name": "reviews-v1-7d9c-x2x4z", "namespace": "default",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "reviews-v1-7d9c", "uid": "u"}]},
            "spec": {"containers": [{"name": "reviews"}, {"name": "istio-proxy"}]},
            "status": {"phase": "Running", "podIP": "10.244.0.9", "containerStatuses": [
                {"name": "reviews", "ready": true, "restartCount": 1, "image": "", "imageID": ""},
                {"name": "istio-proxy", "ready": false, "restartCount": 2, "image": "", "imageID": "",
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
            ]}
        })));
        assert_eq!(row.component, "reviews-v1");
        assert_eq!((row.ready.as_str(), row.restarts), ("1/2", 3));
        assert_eq!(row.state, "CrashLoopBackOff");
        assert!(!row.is_ready);
    }

    #[test]
    fn a_bare_pod_keeps_its_name() {
        assert_eq!(
            component(&pod(json!({"metadata": {"name": "a-b-c-d"}}))),
            "a-b-c-d"
        );
    }
}
