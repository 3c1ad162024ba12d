//! `pod-churn`: every pod of the application is deleted, one after another, under load.
//!
//! Each workload first gets a second replica: with a single one, deletion means absence, whatever the mesh does. What
//! is tested is that the endpoint leaves every Envoy before the pod stops answering, and that the replacement gets
//! traffic only when it can serve.

use std::time::Duration;

use async_trait::async_trait;
use kube::ResourceExt;
use tokio::time::Instant;

use super::Namespaces;
use super::newcomer::workloads;
use super::pilot_down::nothing_rejected;
use super::replicas::{self, AVAILABLE_WITHIN};
use crate::cluster::is_running;
use crate::engine::{Context, Experiment, TRAFFIC};
use crate::error::Result;
use crate::model::{Abort, Definition, Mode, Probe, Target};

/// Longest wait for deleted pods to drain: their grace period and a little more.
const GONE_WITHIN: Duration = Duration::from_secs(45);

/// The experiment.
pub(super) struct PodChurn {
    definition: Definition,
}

impl PodChurn {
    pub(super) fn new(namespaces: &Namespaces) -> Self {
        Self {
            definition: Definition {
                name: "pod-churn",
                summary: "Every workload gets two replicas, then one pod of each is deleted after another under load: no request fails, and each one is replaced.",
                target: Target {
                    component: "workloads".into(),
                    namespace: namespaces.application.clone(),
                    selector: "app".into(),
                },
                action: "pod-delete",
                mode: "each",
                duration: Duration::ZERO,
                error_budget: 0.0,
                abort: Abort::default(),
                probes: vec![
                    Probe::new(TRAFFIC, Mode::Continuous, "no request fails"),
                    Probe::new(
                        "pods-replaced",
                        Mode::During,
                        "every deleted pod is replaced by an available one",
                    ),
                    Probe::new(
                        "pods-gone",
                        Mode::After,
                        "every deleted pod has drained and is gone, with the load still flowing",
                    ),
                    Probe::new(
                        "nothing-rejected",
                        Mode::After,
                        "no Envoy rejected an update (update_rejected is 0)",
                    ),
                ],
            },
        }
    }
}

#[async_trait]
impl Experiment for PodChurn {
    fn definition(&self) -> &Definition {
        &self.definition
    }

    async fn run(&self, cx: &mut Context) -> Result<()> {
        let namespace = &self.definition.target.namespace;
        let names: Vec<String> = workloads(&cx.cluster)
            .await?
            .iter()
            .map(ResourceExt::name_any)
            .collect();
        // Registered first, so done last: what the scaling down ends must drain under load, too.
        let (cluster, ns) = (cx.cluster.clone(), namespace.clone());
        cx.undo("no pod is terminating", async move {
            cluster.nothing_terminates(&ns, GONE_WITHIN).await
        });
        let mut replicas = Vec::new();
        for name in &names {
            replicas.push(replicas::at_least(cx, namespace, name, 2).await?);
        }
        for (name, count) in names.iter().zip(&replicas) {
            cx.cluster
                .available(namespace, name, *count, AVAILABLE_WITHIN)
                .await?;
        }
        cx.event(format!("{} workloads have two replicas", names.len()));
        let began = Instant::now();
        cx.fault_begins();
        let (mut slowest, mut failures) = (Duration::ZERO, Vec::new());
        for (name, count) in names.iter().zip(&replicas) {
            match replace_one(cx, namespace, name, *count).await {
                Ok(took) => slowest = slowest.max(took),
                Err(e) => failures.push(e.to_string()),
            }
        }
        cx.fault_ends();
        let ok = failures.is_empty();
        if ok {
            cx.recovered(Instant::now() - slowest);
        }
        let text = match ok {
            true => format!(
                "{} pods replaced in {:.1} s, the slowest in {:.1} s",
                names.len(),
                began.elapsed().as_secs_f64(),
                slowest.as_secs_f64()
            ),
            false => failures.join("; "),
        };
        cx.observe("pods-replaced", ok, text);
        match cx.cluster.nothing_terminates(namespace, GONE_WITHIN).await {
            Ok(()) => {
                cx.event("the last deleted pod is gone");
                let text = format!(
                    "all gone {:.1} s after the first deletion",
                    began.elapsed().as_secs_f64()
                );
                cx.observe("pods-gone", true, text);
            }
            Err(e) => cx.observe("pods-gone", false, e.to_string()),
        }
        nothing_rejected(cx).await
    }
}

/// Deletes the oldest pod of a Deployment, as `kubectl delete pod` does, and waits for the replacement.
async fn replace_one(
    cx: &mut Context,
    namespace: &str,
    deployment: &str,
    replicas: i32,
) -> Result<Duration> {
    let spec = cx.cluster.deployment(namespace, deployment).await?.spec;
    let labels = spec.and_then(|s| s.selector.match_labels);
    let selector = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",");
    let mut pods = cx.cluster.pods(namespace, &selector).await?;
    pods.retain(is_running);
    pods.sort_by_key(|p| p.metadata.creation_timestamp.clone().map(|t| t.0));
    let Some(oldest) = pods.first() else {
        return Err(crate::ChaosError::Precondition(format!(
            "Deployment {namespace}/{deployment} has no running pod to delete"
        )));
    };
    let name = oldest.name_any();
    let began = Instant::now();
    cx.cluster.delete_pod(namespace, &name, None).await?;
    cx.event(format!("deleted {name}"));
    // The status that is there at this moment may still count the deleted pod: wait for the successor itself.
    let known: Vec<String> = pods.iter().map(ResourceExt::name_any).collect();
    crate::cluster::eventually(
        format!("a ready successor of pod {namespace}/{name}"),
        AVAILABLE_WITHIN,
        Duration::from_millis(200),
        || async {
            let now = cx.cluster.pods(namespace, &selector).await?;
            let successor = now
                .iter()
                .find(|p| !known.contains(&p.name_any()) && crate::cluster::is_ready(p));
            Ok(successor
                .map(|p| p.name_any())
                .ok_or_else(|| format!("{} pods, none of them new and ready", now.len())))
        },
    )
    .await?;
    cx.cluster
        .available(namespace, deployment, replicas, AVAILABLE_WITHIN)
        .await?;
    Ok(began.elapsed())
}
