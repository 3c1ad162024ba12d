//! DaemonSet → one pod per node that the template fits.
//!
//! Pods are bound by name (`spec.nodeName` through a node-affinity term on metadata.name, which the scheduler honours).
//! Updates delete the outdated pod of a node once enough others are available.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod,
    Toleration,
};
use kube::ResourceExt;

use crate::context::Context;
use crate::deployment::{fence_posts, template_hash};
use crate::error::Result;
use crate::owners::{claim_all, controller_key, controller_reference};
use crate::pod_control::{PodControl, pod_from, usable};
use crate::pods::{self, Availability, availability};
use crate::runtime::driver::{Again, Controller};
use crate::runtime::queue::Queue;
use crate::runtime::store::Key;
use crate::scheduler;

const COMPONENT: &str = "daemonset-controller";
/// Tells which template a pod was made from.
const REVISION: &str = "controller-revision-hash";

pub(crate) struct DaemonSets {
    context: Arc<Context>,
    queue: Arc<Queue<Key>>,
}

/// What a look at a DaemonSet leads to.
#[derive(Debug, Default)]
struct Plan {
    /// Nodes that lack a pod.
    create: Vec<String>,
    delete: Vec<Arc<Pod>>,
    status: DaemonSetStatus,
}

/// The node a pod is on or meant for.
fn node_of(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_ref().filter(|n| !n.is_empty()) {
        return Some(node.clone());
    }
    let terms = &spec
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()?
        .node_selector_terms;
    let field = terms
        .first()?
        .match_fields
        .as_ref()?
        .iter()
        .find(|f| f.key == "metadata.name")?;
    field.values.as_ref()?.first().cloned()
}

/// The pod for one node.
fn pod_for(set: &DaemonSet, node: &str, hash: &str) -> Option<Pod> {
    let template = &set.spec.as_ref()?.template;
    let namespace = set.namespace().unwrap_or_default();
    let mut pod = pod_from(
        template,
        &format!("{}-", set.name_any()),
        &namespace,
        controller_reference(set),
    );
    pod.labels_mut()
        .insert(REVISION.to_owned(), hash.to_owned());
    let spec = pod.spec.as_mut()?;
    let requirement = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let required = spec
        .affinity
        .get_or_insert_with(Affinity::default)
        .node_affinity
        .get_or_insert_with(NodeAffinity::default)
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(|| NodeSelector {
            node_selector_terms: vec![NodeSelectorTerm::default()],
        });
    for term in &mut required.node_selector_terms {
        term.match_fields
            .get_or_insert_default()
            .push(requirement.clone());
    }
    // A daemon stays where it is whatever becomes of the node.
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in [
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unreachable", "NoExecute"),
        ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ] {
        tolerations.push(Toleration {
            effect: Some(effect.to_owned()),
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            ..Toleration::default()
        });
    }
    Some(pod)
}

/// Decides on one DaemonSet. Pure.
fn plan(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    pods: &[Arc<Pod>],
    hash: &str,
    now: Timestamp,
) -> Plan {
    let Some(spec) = set.spec.as_ref() else {
        return Plan::default();
    };
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let mut on_node: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in pods {
        on_node
            .entry(node_of(pod).unwrap_or_default())
            .or_default()
            .push(pod.clone());
    }
    let mut plan = Plan::default();
    let mut status = DaemonSetStatus {
        observed_generation: set.metadata.generation,
        ..DaemonSetStatus::default()
    };
    let (mut updated, mut available, mut outdated) = (0, 0, Vec::new());
    for node in nodes {
        let fits = pod_for(set, &node.name_any(), hash)
            .is_some_and(|pod| scheduler::obstacle(&pod, node).is_none());
        let here = on_node.remove(&node.name_any()).unwrap_or_default();
        if !fits {
            status.number_misscheduled += i32::from(!here.is_empty());
            plan.delete
                .extend(here.into_iter().filter(|p| pods::is_active(p)));
            continue;
        }
        status.desired_number_scheduled += 1;
        // A failed pod is replaced; a second one on the node is too many.
        let (live, ended): (Vec<_>, Vec<_>) = here.into_iter().partition(|p| !pods::is_finished(p));
        plan.delete
            .extend(ended.into_iter().filter(|p| !pods::is_terminating(p)));
        let mut live = live.into_iter();
        let Some(pod) = live.next() else {
            plan.create.push(node.name_any());
            continue;
        };
        plan.delete
            .extend(live.filter(|p| !pods::is_terminating(p)));
        status.current_number_scheduled += 1;
        let is_available = availability(&pod, min_ready, now) == Availability::Available
            && !pods::is_terminating(&pod);
        status.number_ready += i32::from(pods::is_ready(&pod));
        available += i32::from(is_available);
        if pod.labels().get(REVISION).map(String::as_str) == Some(hash) {
            updated += 1;
        } else if !pods::is_terminating(&pod) {
            outdated.push((is_available, pod));
        }
    }
    // Pods of nodes that are gone.
    plan.delete.extend(
        on_node
            .into_values()
            .flatten()
            .filter(|p| !pods::is_terminating(p)),
    );
    let strategy = spec.update_strategy.as_ref();
    if strategy.and_then(|s| s.type_.as_deref()) != Some("OnDelete") {
        let most = strategy
            .and_then(|s| s.rolling_update.as_ref())
            .and_then(|r| r.max_unavailable.as_ref());
        let one = k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(1);
        let none = k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(0);
        let (_, most) = fence_posts(
            Some(&none),
            Some(most.unwrap_or(&one)),
            status.desired_number_scheduled,
        );
        let mut budget = most - (status.desired_number_scheduled - available);
        // What is not available anyway costs nothing.
        for (is_available, pod) in outdated {
            if !is_available {
                plan.delete.push(pod);
            } else if budget > 0 {
                budget -= 1;
                plan.delete.push(pod);
            }
        }
    }
    let nonzero = |n: i32| (n > 0).then_some(n);
    status.updated_number_scheduled = nonzero(updated);
    status.number_available = nonzero(available);
    status.number_unavailable = nonzero(status.desired_number_scheduled - available);
    plan.status = status;
    plan
}

impl DaemonSets {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        let queue = Arc::new(Queue::new());
        let stores = &context.stores;
        let wake = queue.clone();
        stores.daemon_sets.on_change(move |_, new| {
            if let Some(set) = new {
                wake.add(Key::of(set.as_ref()));
            }
        });
        let wake = queue.clone();
        stores.pods.on_change(move |old, new| {
            for pod in [old, new].into_iter().flatten() {
                if let Some(owner) = controller_key::<Pod, DaemonSet>(pod) {
                    wake.add(owner);
                }
            }
        });
        let wake = queue.clone();
        let sets = stores.daemon_sets.clone();
        stores.nodes.on_change(move |old, new| {
            if let (Some(old), Some(new)) = (old, new)
                && old.spec == new.spec
                && old.metadata.labels == new.metadata.labels
            {
                return;
            }
            for set in sets.all() {
                wake.add(Key::of(set.as_ref()));
            }
        });
        Self { context, queue }
    }
}

impl Controller for DaemonSets {
    const NAME: &'static str = "daemonset";
    type Key = Key;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> Result<Again> {
        let Some(set) = self.context.stores.daemon_sets.get(key) else {
            return Ok(Again::Never);
        };
        let Some(spec) = set.spec.as_ref() else {
            return Ok(Again::Never);
        };
        usable(&spec.selector, || format!("DaemonSet {key}"))?;
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Again::Never);
        }
        let store = &self.context.stores.pods;
        let pods = claim_all(
            &self.context.client,
            store,
            set.as_ref(),
            &spec.selector,
            |_| true,
        )
        .await?;
        let hash = template_hash(&spec.template, 0);
        let plan = plan(
            &set,
            &self.context.stores.nodes.all(),
            &pods,
            &hash,
            Timestamp::now(),
        );
        let control = PodControl {
            context: &self.context,
            component: COMPONENT,
            owner: set.as_ref(),
        };
        control.delete_all(&plan.delete).await?;
        let mut outcome = Ok(Again::Never);
        for pod in plan.create.iter().filter_map(|n| pod_for(&set, n, &hash)) {
            if let Err(error) = control.create(&pod).await {
                outcome = Err(error);
            }
        }
        if set.status.as_ref() != Some(&plan.status) {
            let mut changed = DaemonSet::clone(&set);
            changed.status = Some(plan.status);
            let stores = &self.context.stores;
            let written = self.context.write_status(&stores.daemon_sets, &changed);
            written.await?;
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn node(name: &str, labels: serde_json::Value) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap(),
        )
    }

    fn pod(node: &str, hash: &str, ready: bool) -> Arc<Pod> {
        let status = if ready { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": node, "labels": {REVISION: hash}},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]}}))
            .unwrap(),
        )
    }

    #[test]
    fn one_per_matching_node_and_updates_one_at_a_time() {
        let set: DaemonSet =
            serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": {"selector": {},
            "template": {"spec": {"containers": [], "nodeSelector": {"x": "y"}}}}}))
            .unwrap();
        let nodes = [
            node("a", json!({"x": "y"})),
            node("b", json!({"x": "y"})),
            node("c", json!({})),
        ];
        let now = Timestamp::UNIX_EPOCH;
        let first = plan(&set, &nodes, &[], "h", now);
        assert_eq!(
            (first.create, first.status.desired_number_scheduled),
            (vec!["a".into(), "b".into()], 2)
        );
        let made = pod_for(&set, "a", "h").unwrap();
        assert_eq!(node_of(&made).as_deref(), Some("a"));

        let settled = plan(
            &set,
            &nodes,
            &[pod("a", "h", true), pod("b", "h", true)],
            "h",
            now,
        );
        assert!(settled.create.is_empty() && settled.delete.is_empty());
        assert_eq!(
            (
                settled.status.number_available,
                settled.status.updated_number_scheduled
            ),
            (Some(2), Some(2))
        );

        let update = plan(
            &set,
            &nodes,
            &[pod("a", "old", true), pod("b", "old", true)],
            "h",
            now,
        );
        assert_eq!(update.delete.len(), 1);
        let waiting = plan(
            &set,
            &nodes,
            &[pod("a", "h", false), pod("b", "old", true)],
            "h",
            now,
        );
        assert!(waiting.delete.is_empty());
        let misplaced = plan(&set, &nodes, &[pod("c", "h", true)], "h", now);
        assert_eq!(
            (misplaced.delete.len(), misplaced.status.number_misscheduled),
            (1, 1)
        );
    }
}
