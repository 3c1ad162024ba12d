//! Gives every new pod its node.
//!
//! A pod goes to the first node that is ready for it: node selector, required node affinity, taints and the cordon are
//! honoured; requests are not held against capacity, since the lab shares one machine by design. What fits nowhere gets
//! the condition and event a user expects, and is looked at again when a node changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Binding, Node, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference, Pod, Taint,
    Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::context::Context;
use crate::error::{During, Result, now, unless_gone};
use crate::pods::{self, carries};
use crate::runtime::driver::{Again, Controller};
use crate::runtime::events::Kind;
use crate::runtime::queue::Queue;
use crate::runtime::store::Key;

const SCHEDULER: &str = "default-scheduler";

pub(crate) struct Scheduler {
    context: Arc<Context>,
    queue: Arc<Queue<Key>>,
}

impl Scheduler {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        let queue = Arc::new(Queue::new());
        let wake = queue.clone();
        context.stores.pods.on_change(move |old, new| {
            if let Some(pod) = new
                && wants_a_node(pod)
                && old.is_none_or(|old| old.spec != pod.spec || !wants_a_node(old))
            {
                wake.add(Key::of(pod.as_ref()));
            }
        });
        let wake = queue.clone();
        let waiting = context.stores.pods.clone();
        context.stores.nodes.on_change(move |old, new| {
            // Heartbeats change a node's status; only what scheduling reads may free a waiting pod.
            if let (Some(old), Some(new)) = (old, new)
                && old.spec == new.spec
                && old.metadata.labels == new.metadata.labels
            {
                return;
            }
            for pod in waiting.all() {
                if wants_a_node(&pod) {
                    wake.add(Key::of(pod.as_ref()));
                }
            }
        });
        Self { context, queue }
    }

    async fn bind(&self, key: &Key, pod: &Pod, node: &str) -> Result<()> {
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(key.name.clone()),
                namespace: Some(key.namespace.clone()),
                uid: pod.uid(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}/binding",
            key.namespace, key.name
        );
        let body = serde_json::to_vec(&binding)
            .map_err(kube::Error::SerdeError)
            .during(|| format!("encode Binding {key}"))?;
        let request =
            http_post(&path, body).during(|| format!("build the Binding of Pod {key}"))?;
        let bound = self
            .context
            .client
            .request::<serde_json::Value>(request)
            .await
            .during(|| format!("bind Pod {key} to node {node}"));
        match bound {
            // Somebody else bound it, or it is gone: the watch will tell.
            Err(error) if error.is_conflict() || error.is_not_found() => Ok(()),
            Err(error) => Err(error),
            Ok(_) => {
                let message = format!("Successfully assigned {key} to {node}");
                self.context.recorder.record_dated(
                    pod,
                    SCHEDULER,
                    Kind::Normal,
                    "Scheduled",
                    "Binding",
                    message,
                );
                Ok(())
            }
        }
    }

    async fn refuse(&self, key: &Key, pod: &Pod, message: String) -> Result<()> {
        let known = pods::condition(pod, "PodScheduled")
            .is_some_and(|c| c.status == "False" && c.message.as_deref() == Some(&message));
        if known {
            return Ok(());
        }
        let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": message, "lastProbeTime": null, "lastTransitionTime": now()});
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}});
        let written = unless_gone(
            self.context
                .api::<Pod>(&key.namespace)
                .patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
                .await
                .during(|| format!("mark Pod {key} unschedulable")),
        )?;
        if let Some(written) = written {
            self.context.stores.pods.wrote(written);
        }
        self.context.recorder.record_dated(
            pod,
            SCHEDULER,
            Kind::Warning,
            "FailedScheduling",
            "Scheduling",
            message,
        );
        Ok(())
    }
}

fn http_post(path: &str, body: Vec<u8>) -> Result<http::Request<Vec<u8>>, kube::Error> {
    http::Request::post(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(kube::Error::HttpError)
}

fn wants_a_node(pod: &Pod) -> bool {
    let Some(spec) = pod.spec.as_ref() else {
        return false;
    };
    spec.node_name.as_deref().unwrap_or_default().is_empty()
        && spec.scheduler_name.as_deref().unwrap_or(SCHEDULER) == SCHEDULER
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
        && pods::is_active(pod)
}

/// Why a node does not take a pod, in the words users know.
pub(crate) fn obstacle(pod: &Pod, node: &Node) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let node_spec = node.spec.clone().unwrap_or_default();
    let cordon = Taint {
        effect: "NoSchedule".to_owned(),
        key: "node.kubernetes.io/unschedulable".to_owned(),
        ..Taint::default()
    };
    if node_spec.unschedulable == Some(true) && !tolerations.iter().any(|t| tolerates(t, &cordon)) {
        return Some("node(s) were unschedulable".to_owned());
    }
    let mut taints = node_spec
        .taints
        .iter()
        .flatten()
        .filter(|t| t.effect != "PreferNoSchedule");
    if let Some(taint) = taints.find(|taint| !tolerations.iter().any(|t| tolerates(t, taint))) {
        let value = taint.value.as_deref().unwrap_or_default();
        return Some(format!(
            "node(s) had untolerated taint {{{}: {value}}}",
            taint.key
        ));
    }
    let labels = node.labels();
    let selected = spec
        .node_selector
        .as_ref()
        .is_none_or(|wanted| carries(Some(labels), wanted));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| {
            a.required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    let affine = required.is_none_or(|r| {
        r.node_selector_terms
            .iter()
            .any(|term| term_matches(term, node))
    });
    (!(selected && affine)).then(|| "node(s) didn't match Pod's node affinity/selector".to_owned())
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let effect = text(&toleration.effect);
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = text(&toleration.key);
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => key.is_empty() || key == taint.key,
        "Equal" | "" => key == taint.key && text(&toleration.value) == text(&taint.value),
        _ => false,
    }
}

fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let fields: BTreeMap<String, String> = [("metadata.name".to_owned(), node.name_any())].into();
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let field_expressions = term.match_fields.as_deref().unwrap_or_default();
    // A term that says nothing matches nothing.
    !(expressions.is_empty() && field_expressions.is_empty())
        && expressions
            .iter()
            .all(|r| requirement_met(r, node.labels()))
        && field_expressions
            .iter()
            .all(|r| requirement_met(r, &fields))
}

fn requirement_met(
    requirement: &NodeSelectorRequirement,
    labels: &BTreeMap<String, String>,
) -> bool {
    let value = labels.get(&requirement.key);
    let values = requirement.values.as_deref().unwrap_or_default();
    let compare = |f: fn(i64, i64) -> bool| {
        let (Some(value), [bound]) = (value, values) else {
            return false;
        };
        matches!((value.parse(), bound.parse()), (Ok(value), Ok(bound)) if f(value, bound))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| values.contains(v)),
        "NotIn" => value.is_none_or(|v| !values.contains(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|a, b| a > b),
        "Lt" => compare(|a, b| a < b),
        _ => false,
    }
}

/// The node for a pod, or what to tell its owner.
fn place(pod: &Pod, nodes: &[Arc<Node>]) -> Result<String, String> {
    if nodes.is_empty() {
        return Err("no nodes available to schedule pods".to_owned());
    }
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for node in nodes {
        match obstacle(pod, node) {
            None => return Ok(node.name_any()),
            Some(reason) => *reasons.entry(reason).or_default() += 1,
        }
    }
    let reasons: Vec<_> = reasons
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    Err(format!(
        "0/{} nodes are available: {}.",
        nodes.len(),
        reasons.join(", ")
    ))
}

impl Controller for Scheduler {
    const NAME: &'static str = "scheduler";
    const WORKERS: usize = 4;
    type Key = Key;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> Result<Again> {
        let Some(pod) = self
            .context
            .stores
            .pods
            .get(key)
            .filter(|pod| wants_a_node(pod))
        else {
            return Ok(Again::Never);
        };
        match place(&pod, &self.context.stores.nodes.all()) {
            Ok(node) => self.bind(key, &pod, &node).await?,
            Err(message) => self.refuse(key, &pod, message).await?,
        }
        Ok(Again::Never)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::Value;

    fn node(spec: Value, labels: Value) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(
                json!({"metadata": {"name": "node0", "labels": labels}, "spec": spec}),
            )
            .unwrap(),
        )
    }

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn placement() {
        let affinity = |operator: &str, values: Value| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "cores", "operator": operator, "values": values}]}]}}}})
        };
        let plain = || node(json!({}), json!({"cores": "2"}));
        let no_match =
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.";
        for (spec, node, expected) in [
            (json!({}), plain(), Ok("node0")),
            (
                json!({"nodeSelector": {"cores": "2"}}),
                plain(),
                Ok("node0"),
            ),
            (
                json!({"nodeSelector": {"disk": "ssd"}}),
                plain(),
                Err(no_match),
            ),
            (affinity("In", json!(["2", "4"])), plain(), Ok("node0")),
            (affinity("Gt", json!(["1"])), plain(), Ok("node0")),
            (affinity("Lt", json!(["2"])), plain(), Err(no_match)),
            (affinity("Near", json!([])), plain(), Err(no_match)),
            (
                json!({}),
                node(json!({"unschedulable": true}), json!({})),
                Err("0/1 nodes are available: 1 node(s) were unschedulable."),
            ),
            (
                json!({}),
                node(
                    json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}),
                    json!({}),
                ),
                Err("0/1 nodes are available: 1 node(s) had untolerated taint {k: v}."),
            ),
            (
                json!({"tolerations": [{"key": "k", "operator": "Exists"}]}),
                node(
                    json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}),
                    json!({}),
                ),
                Ok("node0"),
            ),
        ] {
            let shown = place(&pod(spec.clone()), &[node]);
            assert_eq!(
                shown,
                expected.map(str::to_owned).map_err(str::to_owned),
                "{spec}"
            );
        }
        assert!(place(&pod(json!({})), &[]).is_err());
    }

    #[test]
    fn which_pods_it_looks_at() {
        for (spec, expected) in [
            (json!({}), true),
            (json!({"nodeName": "node0"}), false),
            (json!({"schedulerName": "mine"}), false),
            (json!({"schedulingGates": [{"name": "g"}]}), false),
        ] {
            assert_eq!(wants_a_node(&pod(spec.clone())), expected, "{spec}");
        }
    }
}
