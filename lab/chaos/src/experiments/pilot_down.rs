//! `pilot-down`: no Pilot at all. Traffic goes on, changes wait, new pods wait, and everything heals when it is back.

use std::time::Duration;

use async_trait::async_trait;
use kube::ResourceExt;
use tokio::time::Instant;

use super::replicas::{self, AVAILABLE_WITHIN};
use super::{Namespaces, newcomer};
use crate::cluster::eventually;
use crate::engine::{Context, Experiment, TRAFFIC};
use crate::error::Result;
use crate::mesh::{self, ProbeRoute, generations};
use crate::model::{Abort, Definition, Mode, Probe, Target};

/// What a sidecar must say that waits for its first config.
const WAITING: &str = "config not received from Pilot";
/// How long a change must have had no effect before "it does not arrive" is believed.
const HOLD: Duration = Duration::from_secs(10);
/// Envoy retries its ADS stream with up to 30 s between attempts.
const RECOVERY: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(250);

/// The experiment.
pub(super) struct PilotDown {
    definition: Definition,
}

impl PilotDown {
    pub(super) fn new(namespaces: &Namespaces) -> Self {
        Self {
            definition: Definition {
                name: "pilot-down",
                summary: "Every Pilot is killed and stays away: running traffic is unaffected, config changes and new pods wait, and all of it heals when Pilot is back.",
                target: Target {
                    component: "istio-pilot".into(),
                    namespace: namespaces.istio.clone(),
                    selector: "istio=pilot".into(),
                },
                action: "scale-to-zero",
                mode: "all",
                duration: HOLD,
                error_budget: 0.0,
                abort: Abort::default(),
                probes: vec![
                    Probe::new(TRAFFIC, Mode::Continuous, "no request fails"),
                    Probe::new(
                        "config-arrives",
                        Mode::Before,
                        "a VirtualService change reaches every proxy and shows in responses",
                    ),
                    Probe::new(
                        "config-held",
                        Mode::During,
                        format!(
                            "a change made meanwhile reaches no proxy and no response within {} s",
                            HOLD.as_secs()
                        ),
                    ),
                    Probe::new(
                        "new-pod-waits",
                        Mode::During,
                        format!("a pod started meanwhile stays unready and says: {WAITING}"),
                    ),
                    Probe::new(
                        "newest-config-arrives",
                        Mode::After,
                        format!(
                            "the newest change is on every proxy and in responses within {} s",
                            RECOVERY.as_secs()
                        ),
                    ),
                    Probe::new(
                        "all-acknowledged",
                        Mode::After,
                        "every proxy is connected and has acknowledged everything sent",
                    ),
                    Probe::new(
                        "new-pod-ready",
                        Mode::After,
                        "the pod started meanwhile becomes ready",
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
impl Experiment for PilotDown {
    fn definition(&self) -> &Definition {
        &self.definition
    }

    async fn run(&self, cx: &mut Context) -> Result<()> {
        let Target {
            component,
            namespace,
            selector,
        } = &self.definition.target;
        let route = before(cx).await?;
        let replicas = replicas::remember(cx, namespace, component).await?.max(1);

        take_away(cx, namespace, component, selector).await?;
        route.apply(2).await?;
        cx.event("changed VirtualService chaos-probe to generation 2");
        newcomer::start(cx).await?;
        cx.event(format!("started pod {}", newcomer::NAME));
        during(cx, &route).await?;

        let back = Instant::now();
        cx.fault_ends();
        cx.cluster.scale(namespace, component, replicas).await?;
        cx.event(format!("scaled {component} back to {replicas}"));
        cx.cluster
            .available(namespace, component, replicas, AVAILABLE_WITHIN)
            .await?;
        cx.event(format!("{component} is available"));
        after(cx, &route, back).await
    }
}

/// Generation 1 must arrive everywhere, else its absence later would prove nothing.
async fn before(cx: &mut Context) -> Result<ProbeRoute> {
    let route = ProbeRoute::new(&cx.cluster, &cx.application).await?;
    cx.undo("objects chaos-probe are gone", route.clone().remove());
    let began = Instant::now();
    route.apply(1).await?;
    cx.event("applied VirtualService chaos-probe, generation 1");
    let proxies = eventually(
        "generation 1 on every proxy and in responses",
        Duration::from_secs(20),
        POLL,
        || route.arrived(1, &cx.ingress),
    )
    .await;
    match &proxies {
        Ok(count) => {
            let text = format!(
                "on all {count} proxies and in responses after {:.1} s",
                began.elapsed().as_secs_f64()
            );
            cx.observe("config-arrives", true, text);
        }
        Err(e) => cx.observe("config-arrives", false, e.to_string()),
    }
    proxies?;
    Ok(route)
}

async fn take_away(
    cx: &mut Context,
    namespace: &str,
    component: &str,
    selector: &str,
) -> Result<()> {
    let pods = cx.cluster.pods(namespace, selector).await?;
    cx.fault_begins();
    cx.cluster.scale(namespace, component, 0).await?;
    for pod in &pods {
        cx.cluster
            .delete_pod(namespace, &pod.name_any(), Some(0))
            .await?;
    }
    let names: Vec<_> = pods.iter().map(ResourceExt::name_any).collect();
    cx.event(format!(
        "killed {} and scaled {component} to 0",
        names.join(", ")
    ));
    eventually(
        format!("no pod {selector} in {namespace}"),
        Duration::from_secs(30),
        POLL,
        || async {
            let left = cx.cluster.pods(namespace, selector).await?;
            Ok(match left.as_slice() {
                [] => Ok(()),
                some => Err(format!("{} pods are still there", some.len())),
            })
        },
    )
    .await?;
    cx.event("no Pilot is left");
    Ok(())
}

/// Watches responses for the whole time, then reads what each Envoy has.
async fn during(cx: &mut Context, route: &ProbeRoute) -> Result<()> {
    let until = Instant::now() + HOLD;
    let (mut responses, mut changed) = (0u32, 0u32);
    let mut last_error = None;
    while Instant::now() < until {
        match route.answered(&cx.ingress).await {
            Ok(1) => responses += 1,
            Ok(_) => changed += 1,
            Err(text) => last_error = Some(text),
        }
        tokio::time::sleep(POLL).await;
    }
    // The newcomer has no config at all; what counts here is that nobody has generation 2.
    let installed = route.installed().await?;
    let early = installed.values().flatten().any(|g| *g > 1);
    let old: std::collections::BTreeMap<_, _> = installed
        .into_iter()
        .filter(|(pod, _)| !pod.ends_with(newcomer::NAME))
        .collect();
    let stayed = !early && old.values().all(|g| *g == Some(1));
    let mut observed = format!(
        "{}; {responses} responses with generation 1, {changed} with another",
        generations(&old)
    );
    if let Some(text) = &last_error {
        observed.push_str(&format!("; a probe request failed: {text}"));
    }
    cx.observe(
        "config-held",
        stayed && changed == 0 && responses > 0 && last_error.is_none(),
        observed,
    );
    let said = eventually(
        format!("the sidecar of {} says {WAITING:?}", newcomer::NAME),
        Duration::from_secs(20),
        POLL,
        || newcomer::says(&cx.cluster, WAITING),
    )
    .await;
    match said {
        Ok(line) => cx.observe("new-pod-waits", true, format!("unready; {line}")),
        Err(e) => cx.observe("new-pod-waits", false, e.to_string()),
    }
    Ok(())
}

async fn after(cx: &mut Context, route: &ProbeRoute, back: Instant) -> Result<()> {
    let arrived = eventually(
        "generation 2 on every proxy and in responses",
        RECOVERY,
        POLL,
        || route.arrived(2, &cx.ingress),
    )
    .await;
    match &arrived {
        Ok(count) => {
            cx.recovered(back);
            let text = format!(
                "on all {count} proxies and in responses {:.1} s after Pilot was started again",
                back.elapsed().as_secs_f64()
            );
            cx.event(format!("generation 2 is on all {count} proxies"));
            cx.observe("newest-config-arrives", true, text);
        }
        Err(e) => cx.observe("newest-config-arrives", false, e.to_string()),
    }
    acknowledged(cx, "all-acknowledged").await;
    let ready = eventually(
        format!("pod {} is ready", newcomer::NAME),
        RECOVERY,
        POLL,
        || newcomer::ready(&cx.cluster),
    )
    .await;
    match ready {
        Ok(()) => {
            let text = format!(
                "ready {:.1} s after Pilot was started again",
                back.elapsed().as_secs_f64()
            );
            cx.observe("new-pod-ready", true, text);
        }
        Err(e) => cx.observe("new-pod-ready", false, e.to_string()),
    }
    nothing_rejected(cx).await
}

/// Answers `probe` from Pilot's own view.
pub(super) async fn acknowledged(cx: &mut Context, probe: &'static str) {
    let acked = eventually(
        "every proxy has acknowledged everything",
        Duration::from_secs(30),
        POLL,
        || mesh::all_acked(&cx.cluster),
    )
    .await;
    match acked {
        Ok(count) => cx.observe(
            probe,
            true,
            format!("{count} proxies, sent = acknowledged for CDS, LDS, EDS and RDS"),
        ),
        Err(e) => cx.observe(probe, false, e.to_string()),
    }
}

/// Answers the probe `nothing-rejected` from Envoy's counters.
pub(super) async fn nothing_rejected(cx: &mut Context) -> Result<()> {
    let rejected = mesh::rejected(&cx.cluster).await?;
    let text = match rejected.is_empty() {
        true => "all counters are 0".to_owned(),
        false => rejected.join(", "),
    };
    cx.observe("nothing-rejected", rejected.is_empty(), text);
    Ok(())
}
