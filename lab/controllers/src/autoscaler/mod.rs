//! HorizontalPodAutoscaler: reads the target's scale and its pods' metrics, decides, writes the scale.
//!
//! One look per autoscaler and sync period, and one at once when its spec changes. `desired` computes what the metrics
//! ask for, `behavior` what is allowed of it, this file does the requests, conditions and events. What the windows need
//! to remember lives in memory: after a restart the current size counts as the recommendation so far.

mod behavior;
mod desired;
mod metrics;
mod quantity;

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition,
    HorizontalPodAutoscalerStatus, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus,
    ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::PostParams;
use kube::core::DynamicObject;
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::context::Context;
use crate::error::{During, Error, Result, now};
use crate::inventory::Inventory;
use crate::pods;
use crate::runtime::driver::{Again, Controller};
use crate::runtime::events::Kind;
use crate::runtime::queue::Queue;
use crate::runtime::store::Key;
use behavior::{Behavior, Memory};
use desired::{Proposal, Target};
use metrics::PodMetricsList;

const COMPONENT: &str = "horizontal-pod-autoscaler";

pub(crate) struct Autoscalers {
    context: Arc<Context>,
    inventory: Arc<Inventory>,
    queue: Arc<Queue<Key>>,
    memories: Arc<Mutex<HashMap<Key, Memory>>>,
}

/// Why no replica count could be computed: reason and text of the condition.
struct NoCount {
    reason: &'static str,
    text: String,
}

/// What all metrics together ask for.
struct Wish {
    replicas: i32,
    /// Which metric, in the words of conditions and events.
    metric: String,
    statuses: Vec<MetricStatus>,
}

impl Autoscalers {
    pub(crate) fn new(context: Arc<Context>, inventory: Arc<Inventory>) -> Self {
        let queue = Arc::new(Queue::new());
        let memories: Arc<Mutex<HashMap<Key, Memory>>> = Arc::default();
        let (wake, forget) = (queue.clone(), memories.clone());
        context
            .stores
            .autoscalers
            .on_change(move |old, new| match (old, new) {
                // Our own status writes are no reason for another look.
                (Some(old), Some(new)) if old.spec == new.spec => {}
                (_, Some(new)) => wake.add(Key::of(new.as_ref())),
                (Some(old), None) => {
                    forget.lock().remove(&Key::of(old.as_ref()));
                }
                (None, None) => {}
            });
        Self {
            context,
            inventory,
            queue,
            memories,
        }
    }

    fn target_api(
        &self,
        scaler: &HorizontalPodAutoscaler,
    ) -> Result<(Api<DynamicObject>, String), String> {
        let target = scaler
            .spec
            .as_ref()
            .map(|s| s.scale_target_ref.clone())
            .unwrap_or_default();
        let api_version = target.api_version.unwrap_or_default();
        let kind = self
            .inventory
            .kind_of(&api_version, &target.kind)
            .ok_or_else(|| {
                format!(
                    "no matches for kind \"{}\" in group \"{api_version}\"",
                    target.kind
                )
            })?;
        let namespace = scaler.namespace().unwrap_or_default();
        Ok((
            Api::namespaced_with(self.context.client.clone(), &namespace, &kind.resource),
            target.name,
        ))
    }

    async fn sync(&self, key: &Key, scaler: &HorizontalPodAutoscaler) -> Result<()> {
        let mut outcome = Outcome::of(scaler);
        let scale = match self.target_api(scaler) {
            Err(text) => Err(text),
            Ok((api, name)) => match api
                .get_scale(&name)
                .await
                .during(|| format!("read the scale of {name}"))
            {
                Ok(scale) => Ok((api, name, scale)),
                Err(error) => Err(error.cause()),
            },
        };
        let (api, name, scale) = match scale {
            Ok(found) => found,
            Err(text) => {
                self.warn(scaler, "FailedGetScale", &text);
                let text = format!(
                    "the HPA controller was unable to get the target's current scale: {text}"
                );
                outcome.set("AbleToScale", "False", "FailedGetScale", &text);
                return self.write(scaler, outcome).await;
            }
        };
        let text = "the HPA controller was able to get the target's current scale";
        outcome.set("AbleToScale", "True", "SucceededGetScale", text);
        let current = scale.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        outcome.status.current_replicas = Some(scale.status.as_ref().map_or(0, |s| s.replicas));
        let (min, max) = bounds(scaler);
        let decision = if current == 0 && min != 0 {
            outcome.status.desired_replicas = 0;
            let text = "scaling is disabled since the replica count of the target is zero";
            outcome.set("ScalingActive", "False", "ScalingDisabled", text);
            None
        } else if current > max {
            Some((
                max,
                "Current number of replicas above Spec.MaxReplicas".to_owned(),
            ))
        } else if current < min {
            Some((
                min,
                "Current number of replicas below Spec.MinReplicas".to_owned(),
            ))
        } else {
            self.evaluate(key, scaler, &scale, current, &mut outcome)
                .await
        };
        if let Some((wanted, reason)) = decision {
            outcome.status.desired_replicas = wanted;
            if wanted != current {
                self.rescale(
                    key,
                    scaler,
                    &api,
                    &name,
                    scale,
                    (current, wanted),
                    &reason,
                    &mut outcome,
                )
                .await?;
            }
        }
        self.write(scaler, outcome).await
    }

    /// The count the metrics lead to within all limits, with the reason; conditions go into `outcome`.
    async fn evaluate(
        &self,
        key: &Key,
        scaler: &HorizontalPodAutoscaler,
        scale: &Scale,
        current: i32,
        outcome: &mut Outcome,
    ) -> Option<(i32, String)> {
        let at = Instant::now();
        self.memories
            .lock()
            .entry(key.clone())
            .or_default()
            .begin(current, at);
        let wish = match self.wish(scaler, scale, current).await {
            Ok(wish) => wish,
            Err(NoCount { reason, text }) => {
                outcome.status.desired_replicas = current;
                let text = format!("the HPA was unable to compute the replica count: {text}");
                outcome.set("ScalingActive", "False", reason, &text);
                return None;
            }
        };
        let text = format!(
            "the HPA was able to successfully calculate a replica count from {}",
            wish.metric
        );
        outcome.set("ScalingActive", "True", "ValidMetricFound", &text);
        outcome.status.current_metrics = Some(wish.statuses);
        let behavior = Behavior::from_spec(scaler.spec.as_ref().and_then(|s| s.behavior.as_ref()));
        let limited = {
            let mut memories = self.memories.lock();
            memories.entry(key.clone()).or_default().limit(
                &behavior,
                current,
                wish.replicas,
                bounds(scaler),
                at,
            )
        };
        outcome.set("AbleToScale", "True", limited.able.0, limited.able.1);
        let status = if limited.limited { "True" } else { "False" };
        outcome.set("ScalingLimited", status, limited.limit.0, limited.limit.1);
        let reason = if limited.replicas < current {
            "All metrics below target".to_owned()
        } else {
            format!("{} above target", wish.metric)
        };
        Some((limited.replicas, reason))
    }

    /// The highest wish of all metrics. With some metrics failing, a wish may still raise the count but not lower it.
    async fn wish(
        &self,
        scaler: &HorizontalPodAutoscaler,
        scale: &Scale,
        current: i32,
    ) -> Result<Wish, NoCount> {
        let specs = metric_specs(scaler);
        let selector = scale
            .status
            .as_ref()
            .and_then(|s| s.selector.clone())
            .unwrap_or_default();
        if selector.is_empty() {
            let text = "selector is required";
            self.warn(scaler, "SelectorRequired", text);
            return Err(NoCount {
                reason: "InvalidSelector",
                text: "the HPA target's scale is missing a selector".into(),
            });
        }
        let namespace = scaler.namespace().unwrap_or_default();
        let pods = self.pods(&namespace, &selector).map_err(|text| NoCount {
            reason: "InvalidSelector",
            text,
        })?;
        // One read serves all metrics of this autoscaler.
        let read = metrics::read(&self.context.client, &namespace, &selector).await;
        let mut best: Option<(i32, String)> = None;
        let mut statuses = Vec::new();
        let mut failures: Vec<(NoCount, String)> = Vec::new();
        for spec in &specs {
            match evaluate_metric(spec, &pods, read.as_ref(), current) {
                Ok((proposal, status, words)) => {
                    statuses.push(status);
                    if best
                        .as_ref()
                        .is_none_or(|(replicas, _)| proposal.replicas > *replicas)
                    {
                        best = Some((proposal.replicas, words));
                    }
                }
                Err((failure, context)) => {
                    self.warn(scaler, failure.reason, &failure.text);
                    failures.push((failure, context));
                }
            }
        }
        let invalid = failures.len();
        if let Some((failure, context)) = failures.into_iter().next()
            && best
                .as_ref()
                .is_none_or(|(replicas, _)| *replicas < current)
        {
            let text = format!(
                "invalid metrics ({invalid} invalid out of {}), first error is: {context}{}",
                specs.len(),
                failure.text
            );
            self.warn(scaler, "FailedComputeMetricsReplicas", &text);
            return Err(failure);
        }
        let (replicas, metric) = best.ok_or_else(|| NoCount {
            reason: "InvalidMetricSourceType",
            text: "spec.metrics is empty".to_owned(),
        })?;
        Ok(Wish {
            replicas,
            metric,
            statuses,
        })
    }

    fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<Arc<Pod>>, String> {
        let parsed = pods::parse_selector(selector)?;
        let mut pods = self.context.stores.pods.in_namespace(namespace);
        pods.retain(|pod| pods::selects(&parsed, pod.metadata.labels.as_ref()));
        Ok(pods)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the whole picture of one decision"
    )]
    async fn rescale(
        &self,
        key: &Key,
        scaler: &HorizontalPodAutoscaler,
        api: &Api<DynamicObject>,
        name: &str,
        mut scale: Scale,
        (current, wanted): (i32, i32),
        reason: &str,
        outcome: &mut Outcome,
    ) -> Result<()> {
        scale.spec.get_or_insert_default().replicas = Some(wanted);
        let written = api
            .replace_scale(name, &PostParams::default(), &scale)
            .await;
        match written
            .during(|| format!("scale {name} to {wanted} for HorizontalPodAutoscaler {key}"))
        {
            Ok(_) => {
                let text =
                    format!("the HPA controller was able to update the target scale to {wanted}");
                outcome.set("AbleToScale", "True", "SucceededRescale", &text);
                let message = format!("New size: {wanted}; reason: {reason}");
                self.context.recorder.record(
                    scaler,
                    COMPONENT,
                    Kind::Normal,
                    "SuccessfulRescale",
                    message,
                );
                self.memories.lock().entry(key.clone()).or_default().scaled(
                    current,
                    wanted,
                    Instant::now(),
                );
                outcome.status.last_scale_time = Some(now());
                Ok(())
            }
            Err(error) if error.is_conflict() => Err(error),
            Err(error) => {
                let text = error.cause();
                self.warn(
                    scaler,
                    "FailedRescale",
                    &format!("New size: {wanted}; reason: {reason}; error: {text}"),
                );
                let text =
                    format!("the HPA controller was unable to update the target scale: {text}");
                outcome.set("AbleToScale", "False", "FailedUpdateScale", &text);
                outcome.status.desired_replicas = current;
                Ok(())
            }
        }
    }

    fn warn(&self, scaler: &HorizontalPodAutoscaler, reason: &'static str, message: &str) {
        self.context
            .recorder
            .record(scaler, COMPONENT, Kind::Warning, reason, message);
    }

    async fn write(&self, scaler: &HorizontalPodAutoscaler, outcome: Outcome) -> Result<()> {
        if scaler.status.as_ref() == Some(&outcome.status) {
            return Ok(());
        }
        let mut changed = scaler.clone();
        changed.status = Some(outcome.status);
        let stores = &self.context.stores;
        let written = self.context.write_status(&stores.autoscalers, &changed);
        written.await.map(drop)
    }
}

fn bounds(scaler: &HorizontalPodAutoscaler) -> (i32, i32) {
    let spec = scaler.spec.as_ref();
    (
        spec.and_then(|s| s.min_replicas).unwrap_or(1),
        spec.map_or(1, |s| s.max_replicas),
    )
}

/// Without metrics the default is 80 % of the requested CPU.
fn metric_specs(scaler: &HorizontalPodAutoscaler) -> Vec<MetricSpec> {
    let specs = scaler
        .spec
        .as_ref()
        .and_then(|s| s.metrics.clone())
        .unwrap_or_default();
    if !specs.is_empty() {
        return specs;
    }
    let target = MetricTarget {
        average_utilization: Some(80),
        type_: "Utilization".to_owned(),
        ..MetricTarget::default()
    };
    vec![MetricSpec {
        type_: "Resource".to_owned(),
        resource: Some(k8s_openapi::api::autoscaling::v2::ResourceMetricSource {
            name: "cpu".to_owned(),
            target,
        }),
        ..MetricSpec::default()
    }]
}

type Evaluated = (Proposal, MetricStatus, String);

/// One metric; the error carries what the summary puts before its text.
fn evaluate_metric(
    spec: &MetricSpec,
    pods: &[Arc<Pod>],
    read: Result<&PodMetricsList, &Error>,
    current: i32,
) -> Result<Evaluated, (NoCount, String)> {
    let (resource, container, target, reason) = match (
        spec.type_.as_str(),
        &spec.resource,
        &spec.container_resource,
    ) {
        ("Resource", Some(source), _) => (
            source.name.clone(),
            None,
            &source.target,
            "FailedGetResourceMetric",
        ),
        ("ContainerResource", _, Some(source)) => (
            source.name.clone(),
            Some(source.container.clone()),
            &source.target,
            "FailedGetContainerResourceMetric",
        ),
        (other, _, _) => {
            let text = format!(
                "metric type {other} is not served here: use Resource or ContainerResource"
            );
            return Err((
                NoCount {
                    reason: "InvalidMetricSourceType",
                    text,
                },
                String::new(),
            ));
        }
    };
    let kind = if container.is_some() {
        "container resource"
    } else {
        "resource"
    };
    let context = format!("failed to get {resource} {kind} metric value: ");
    let fail = |text: String| (NoCount { reason, text }, context.clone());
    let wanted = match (
        target.average_utilization,
        target.average_value.as_ref().and_then(quantity::milli),
    ) {
        (Some(percent), _) => Target::Utilization(percent),
        (None, Some(value)) => Target::AverageValue(value),
        (None, None) => {
            return Err(fail("invalid resource metric source: neither an average utilization nor an average value target was set".to_owned()));
        }
    };
    let unreadable = |error: &Error| {
        let text = error.cause();
        format!(
            "failed to get {resource} utilization: unable to get metrics for resource {resource}: unable to fetch metrics from resource metrics API: {text}"
        )
    };
    let list = read.map_err(|error| fail(unreadable(error)))?;
    let samples = metrics::samples(pods, list, &resource, container.as_deref());
    let proposal =
        desired::propose(&samples, &resource, wanted, current, Timestamp::now()).map_err(fail)?;
    let value = MetricValueStatus {
        average_utilization: proposal.utilization,
        average_value: Some(quantity::from_milli(proposal.average)),
        value: None,
    };
    let mut words = format!("{resource} {kind}");
    if matches!(wanted, Target::Utilization(_)) {
        words.push_str(" utilization (percentage of request)");
    }
    let status = match container {
        None => MetricStatus {
            type_: "Resource".to_owned(),
            resource: Some(ResourceMetricStatus {
                current: value,
                name: resource,
            }),
            ..MetricStatus::default()
        },
        Some(container) => MetricStatus {
            type_: "ContainerResource".to_owned(),
            container_resource: Some(ContainerResourceMetricStatus {
                container,
                current: value,
                name: resource,
            }),
            ..MetricStatus::default()
        },
    };
    Ok((proposal, status, words))
}

/// The status under construction.
struct Outcome {
    status: HorizontalPodAutoscalerStatus,
}

impl Outcome {
    fn of(scaler: &HorizontalPodAutoscaler) -> Self {
        let old = scaler.status.clone().unwrap_or_default();
        Self {
            status: HorizontalPodAutoscalerStatus {
                observed_generation: scaler.metadata.generation,
                current_metrics: None,
                ..old
            },
        }
    }

    /// Sets a condition in place; its time moves with its status only.
    fn set(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        let list = self.status.conditions.get_or_insert_default();
        let slot = match list.iter().position(|c| c.type_ == kind) {
            Some(index) => &mut list[index],
            None => {
                list.push(HorizontalPodAutoscalerCondition {
                    type_: kind.to_owned(),
                    ..Default::default()
                });
                let last = list.len() - 1;
                &mut list[last]
            }
        };
        if slot.status != status {
            slot.last_transition_time = Some(Time(now().0));
        }
        slot.status = status.to_owned();
        slot.reason = Some(reason.to_owned());
        slot.message = Some(message.to_owned());
    }
}

impl Controller for Autoscalers {
    const NAME: &'static str = "horizontal-pod-autoscaler";
    const WORKERS: usize = 2;
    type Key = Key;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> Result<Again> {
        let Some(scaler) = self.context.stores.autoscalers.get(key) else {
            return Ok(Again::Never);
        };
        self.sync(key, &scaler).await?;
        Ok(Again::After(self.context.config.hpa_sync_period))
    }
}
