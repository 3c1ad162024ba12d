//! PodDisruptionBudget status: how many pods may be evicted now. The API server's eviction subresource enforces it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::context::{Context, Stores};
use crate::deployment::resolve;
use crate::error::Result;
use crate::owners::controller_of;
use crate::pods;
use crate::runtime::driver::{Again, Controller};
use crate::runtime::queue::Queue;
use crate::runtime::store::Key;

/// An eviction that has not led to a deletion within this time did not happen.
const EVICTION_TIMEOUT: SignedDuration = SignedDuration::from_mins(2);

pub(crate) struct Budgets {
    context: Arc<Context>,
    queue: Arc<Queue<Key>>,
}

impl Budgets {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        let queue = Arc::new(Queue::new());
        let stores = &context.stores;
        let wake = queue.clone();
        stores.budgets.on_change(move |_, new| {
            if let Some(budget) = new {
                wake.add(Key::of(budget.as_ref()));
            }
        });
        let wake = queue.clone();
        let budgets = stores.budgets.clone();
        stores.pods.on_change(move |old, new| {
            let Some(pod) = new.or(old) else { return };
            for budget in budgets.in_namespace(&pod.namespace().unwrap_or_default()) {
                if [old, new]
                    .into_iter()
                    .flatten()
                    .any(|pod| covers(&budget, pod))
                {
                    wake.add(Key::of(budget.as_ref()));
                }
            }
        });
        let wake = queue.clone();
        let budgets = stores.budgets.clone();
        // The expected count is the size of the controllers behind the pods.
        stores.replica_sets.on_change(move |old, new| {
            let Some(set) = new.or(old) else { return };
            for budget in budgets.in_namespace(&set.namespace().unwrap_or_default()) {
                wake.add(Key::of(budget.as_ref()));
            }
        });
        Self { context, queue }
    }
}

fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_some_and(|s| pods::selects(s, pod.metadata.labels.as_ref()))
}

/// How many pods there should be: the sizes of the controllers that the pods belong to.
fn expected(stores: &Stores, namespace: &str, pods: &[Arc<Pod>]) -> i32 {
    let mut seen = BTreeSet::new();
    let mut total = 0;
    for pod in pods {
        let Some(owner) = controller_of(pod.as_ref()) else {
            total += 1;
            continue;
        };
        let key = Key::new(namespace, owner.name.clone());
        let (root, size) = match owner.kind.as_str() {
            "ReplicaSet" => {
                let Some(set) = stores.replica_sets.get(&key) else {
                    continue;
                };
                match controller_of(set.as_ref()).filter(|o| o.kind == "Deployment") {
                    Some(deployment) => {
                        let key = Key::new(namespace, deployment.name.clone());
                        let size = stores
                            .deployments
                            .get(&key)
                            .and_then(|d| d.spec.as_ref()?.replicas);
                        (deployment.uid.clone(), size.unwrap_or(1))
                    }
                    None => (
                        owner.uid.clone(),
                        set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1),
                    ),
                }
            }
            "StatefulSet" => {
                let size = stores
                    .stateful_sets
                    .get(&key)
                    .and_then(|s| s.spec.as_ref()?.replicas);
                (owner.uid.clone(), size.unwrap_or(1))
            }
            // Kinds without a size: the pod counts for itself.
            _ => (pod.uid().unwrap_or_default(), 1),
        };
        if seen.insert(root) {
            total += size;
        }
    }
    total
}

/// The status, and when an eviction under way will be given up. Pure.
fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    expected: i32,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<Duration>) {
    let old = budget.status.clone().unwrap_or_default();
    let spec = budget.spec.clone().unwrap_or_default();
    let count = i32::try_from(pods.len()).unwrap_or(i32::MAX);
    let (expected, wanted) = match (spec.max_unavailable, spec.min_available) {
        (Some(unavailable), _) => (
            expected,
            (expected - resolve(&unavailable, expected, true).unwrap_or(0)).max(0),
        ),
        (None, Some(IntOrString::Int(n))) => (count, n),
        (None, Some(percent)) => (
            expected,
            resolve(&percent, expected, true).unwrap_or(expected),
        ),
        (None, None) => (count, 1),
    };
    let mut again: Option<Duration> = None;
    let mut disrupted = BTreeMap::new();
    for (name, since) in old.disrupted_pods.clone().unwrap_or_default() {
        let left = EVICTION_TIMEOUT - now.duration_since(since.0);
        let alive = pods
            .iter()
            .any(|p| p.name_any() == name && !pods::is_terminating(p));
        if alive && left > SignedDuration::ZERO {
            let left = Duration::try_from(left).unwrap_or_default();
            again = Some(again.map_or(left, |a| a.min(left)));
            disrupted.insert(name, since);
        }
    }
    let healthy = pods
        .iter()
        .filter(|p| {
            pods::is_active(p) && pods::is_ready(p) && !disrupted.contains_key(&p.name_any())
        })
        .count();
    let healthy = i32::try_from(healthy).unwrap_or(i32::MAX);
    let allowed = if expected > 0 {
        (healthy - wanted).max(0)
    } else {
        0
    };
    let (value, reason) = if allowed > 0 {
        ("True", "SufficientPods")
    } else {
        ("False", "InsufficientPods")
    };
    let generation = budget.metadata.generation;
    let known = old
        .conditions
        .as_deref()
        .unwrap_or_default()
        .iter()
        .find(|c| c.type_ == "DisruptionAllowed");
    let since = known
        .filter(|c| c.status == value)
        .map(|c| c.last_transition_time.clone());
    let condition = Condition {
        last_transition_time: since.unwrap_or(Time(now)),
        message: String::new(),
        observed_generation: generation,
        reason: reason.to_owned(),
        status: value.to_owned(),
        type_: "DisruptionAllowed".to_owned(),
    };
    let status = PodDisruptionBudgetStatus {
        conditions: Some(vec![condition]),
        current_healthy: healthy,
        desired_healthy: wanted,
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        disruptions_allowed: allowed,
        expected_pods: expected,
        observed_generation: generation,
    };
    (status, again)
}

impl Controller for Budgets {
    const NAME: &'static str = "disruption";
    type Key = Key;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> Result<Again> {
        let Some(budget) = self.context.stores.budgets.get(key) else {
            return Ok(Again::Never);
        };
        let mut pods = self.context.stores.pods.in_namespace(&key.namespace);
        pods.retain(|pod| covers(&budget, pod) && !pods::is_finished(pod));
        let expected = expected(&self.context.stores, &key.namespace, &pods);
        let now = crate::error::now().0;
        let (status, again) = status(&budget, &pods, expected, now);
        if budget.status.as_ref() != Some(&status) {
            let mut changed = PodDisruptionBudget::clone(&budget);
            changed.status = Some(status);
            let stores = &self.context.stores;
            let written = self.context.write_status(&stores.budgets, &changed);
            written.await?;
        }
        Ok(Again::after(again))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, ready: bool) -> Arc<Pod> {
        let status = if ready { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(
                json!({"metadata": {"name": name}, "status": {"phase": "Running",
                "conditions": [{"type": "Ready", "status": status}]}}),
            )
            .unwrap(),
        )
    }

    #[test]
    fn how_many_may_go() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let three = [pod("a", true), pod("b", true), pod("c", true)];
        let two = [pod("a", true), pod("b", true), pod("c", false)];
        let recent = json!({"disruptedPods": {"a": "2026-01-01T00:00:00Z"}});
        let stale = json!({"disruptedPods": {"a": "2025-12-31T00:00:00Z"}});
        for (spec, old, pods, expected) in [
            (json!({"minAvailable": 2}), json!({}), &three, (1, 2, 3)),
            (json!({"minAvailable": 2}), json!({}), &two, (0, 2, 2)),
            (json!({"minAvailable": "50%"}), json!({}), &three, (1, 2, 3)),
            (json!({"maxUnavailable": 1}), json!({}), &three, (1, 2, 3)),
            (json!({"maxUnavailable": 1}), json!({}), &two, (0, 2, 2)),
            (
                json!({"maxUnavailable": "34%"}),
                json!({}),
                &three,
                (2, 1, 3),
            ),
            (json!({"minAvailable": 1}), recent, &three, (1, 1, 2)),
            (json!({"minAvailable": 1}), stale, &three, (2, 1, 3)),
        ] {
            let mut old: Value = old;
            for (field, value) in [
                ("currentHealthy", 0),
                ("desiredHealthy", 0),
                ("disruptionsAllowed", 0),
                ("expectedPods", 0),
            ] {
                old[field] = json!(value);
            }
            let budget: PodDisruptionBudget =
                serde_json::from_value(json!({"metadata": {}, "spec": spec, "status": old}))
                    .unwrap();
            let (status, _) = status(&budget, pods, 3, now);
            let shown = (
                status.disruptions_allowed,
                status.desired_healthy,
                status.current_healthy,
            );
            assert_eq!(shown, expected, "{:?}", budget.spec);
        }
    }
}
