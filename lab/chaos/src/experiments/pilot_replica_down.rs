//! `pilot-replica-down`: of two Pilots, the one with more proxies dies. Nobody notices, and changes still arrive.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::Namespaces;
use super::pilot_down::{acknowledged, nothing_rejected};
use super::replicas::{self, AVAILABLE_WITHIN};
use crate::cluster::eventually;
use crate::engine::{Context, Experiment, TRAFFIC};
use crate::error::{ChaosError, Result};
use crate::mesh::{self, ProbeRoute};
use crate::model::{Abort, Definition, Mode, Probe, Target};

/// Longest time for a change to reach proxies whose Pilot has just died.
const CARRIED_ON: Duration = Duration::from_secs(45);
const POLL: Duration = Duration::from_millis(250);

/// The experiment.
pub(super) struct PilotReplicaDown {
    definition: Definition,
}

impl PilotReplicaDown {
    pub(super) fn new(namespaces: &Namespaces) -> Self {
        Self {
            definition: Definition {
                name: "pilot-replica-down",
                summary: "One of two Pilots is killed, the one with more proxies: no request fails, and config changes still arrive on every proxy.",
                target: Target {
                    component: "istio-pilot".into(),
                    namespace: namespaces.istio.clone(),
                    selector: "istio=pilot".into(),
                },
                action: "pod-kill",
                mode: "one",
                duration: Duration::ZERO,
                error_budget: 0.0,
                abort: Abort::default(),
                probes: vec![
                    Probe::new(TRAFFIC, Mode::Continuous, "no request fails"),
                    Probe::new(
                        "two-replicas-serve",
                        Mode::Before,
                        "two Pilots are available and every proxy is connected to one",
                    ),
                    Probe::new(
                        "config-arrives",
                        Mode::During,
                        format!(
                            "a change made right after the kill is on every proxy and in responses within {} s",
                            CARRIED_ON.as_secs()
                        ),
                    ),
                    Probe::new(
                        "replica-replaced",
                        Mode::After,
                        "the Deployment has two available replicas again",
                    ),
                    Probe::new(
                        "all-acknowledged",
                        Mode::After,
                        "every proxy is connected and has acknowledged everything sent",
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
impl Experiment for PilotReplicaDown {
    fn definition(&self) -> &Definition {
        &self.definition
    }

    async fn run(&self, cx: &mut Context) -> Result<()> {
        let Target {
            component,
            namespace,
            ..
        } = &self.definition.target;
        let route = ProbeRoute::new(&cx.cluster, &cx.application).await?;
        cx.undo("objects chaos-probe are gone", route.clone().remove());
        let replicas = replicas::at_least(cx, namespace, component, 2).await?;
        cx.cluster
            .available(namespace, component, replicas, AVAILABLE_WITHIN)
            .await?;
        cx.event(format!("{component} has {replicas} available replicas"));
        route.apply(1).await?;
        eventually(
            "generation 1 on every proxy and in responses",
            Duration::from_secs(20),
            POLL,
            || route.arrived(1, &cx.ingress),
        )
        .await?;
        let victim = busiest(cx).await?;

        let killed = Instant::now();
        cx.fault_begins();
        cx.cluster.delete_pod(namespace, &victim, Some(0)).await?;
        cx.event(format!("killed {victim}"));
        route.apply(2).await?;
        cx.event("changed VirtualService chaos-probe to generation 2");
        let arrived = eventually(
            "generation 2 on every proxy and in responses",
            CARRIED_ON,
            POLL,
            || route.arrived(2, &cx.ingress),
        )
        .await;
        match &arrived {
            Ok(count) => {
                cx.event(format!("generation 2 is on all {count} proxies"));
                let text = format!(
                    "on all {count} proxies and in responses {:.1} s after the kill",
                    killed.elapsed().as_secs_f64()
                );
                cx.observe("config-arrives", true, text);
            }
            Err(e) => cx.observe("config-arrives", false, e.to_string()),
        }
        let replaced = cx
            .cluster
            .available(namespace, component, replicas, AVAILABLE_WITHIN)
            .await;
        cx.fault_ends();
        match &replaced {
            Ok(()) => {
                cx.event(format!("{component} has {replicas} available replicas"));
                let text = format!(
                    "{replicas} available {:.1} s after the kill",
                    killed.elapsed().as_secs_f64()
                );
                cx.observe("replica-replaced", true, text);
            }
            Err(e) => cx.observe("replica-replaced", false, e.to_string()),
        }
        if arrived.is_ok() && replaced.is_ok() {
            cx.recovered(killed);
        }
        acknowledged(cx, "all-acknowledged").await;
        nothing_rejected(cx).await
    }
}

/// The replica with the most proxies: the worst one to lose. Waits until all proxies are connected.
async fn busiest(cx: &mut Context) -> Result<String> {
    eventually(
        "every proxy is connected to a Pilot",
        Duration::from_secs(30),
        POLL,
        || mesh::all_acked(&cx.cluster),
    )
    .await?;
    let replicas = mesh::syncz(&cx.cluster).await?;
    let counts: Vec<String> = replicas
        .iter()
        .map(|(pod, proxies)| format!("{pod} serves {}", proxies.len()))
        .collect();
    cx.observe(
        "two-replicas-serve",
        replicas.len() >= 2,
        format!("{} proxies", counts.join(", ")),
    );
    let (victim, _) = replicas
        .into_iter()
        .max_by_key(|(_, proxies)| proxies.len())
        .ok_or_else(|| ChaosError::Precondition("no Pilot answered /debug/syncz".into()))?;
    Ok(victim)
}
