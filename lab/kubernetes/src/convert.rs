//! Conversion between the versions of a resource: storage on one side, what a client asked for on the other.
//!
//! CRDs and webhook configurations have one shape for all versions (strategy None); the horizontal
//! autoscaler and events differ per version.

use serde_json::{Map, Value, json};

use crate::defaults;
use crate::json;
use crate::registry::Resource;

impl Resource {
    /// The apiVersion objects are stored with. The two events groups share the core form.
    pub(crate) fn storage_api_version(&self) -> String {
        if self.is("events.k8s.io", "events") {
            "v1".to_owned()
        } else {
            self.api_version(&self.storage)
        }
    }

    /// Whether objects must be converted to be shown in `version`.
    pub(crate) fn needs_conversion(&self, version: &str) -> bool {
        self.api_version(version) != self.storage_api_version()
    }
}

/// The stored object as `version` shows it.
pub(crate) fn from_storage(resource: &Resource, version: &str, stored: &Value) -> Value {
    let mut value = stored.clone();
    if resource.needs_conversion(version) {
        match (resource.group.as_str(), resource.plural.as_str(), version) {
            ("autoscaling", "horizontalpodautoscalers", "v1") => hpa_to_v1(&mut value),
            ("events.k8s.io", "events", _) => event_from_core(&mut value),
            _ => {}
        }
        json::set(
            &mut value,
            &["apiVersion"],
            resource.api_version(version).into(),
        );
    }
    value
}

/// A client's object in the form that is stored.
pub(crate) fn to_storage(resource: &Resource, version: &str, mut value: Value) -> Value {
    if resource.needs_conversion(version) {
        match (resource.group.as_str(), resource.plural.as_str(), version) {
            ("autoscaling", "horizontalpodautoscalers", "v1") => hpa_to_v2(&mut value),
            ("events.k8s.io", "events", _) => event_to_core(&mut value),
            ("admissionregistration.k8s.io", _, "v1beta1") => {
                let hooks = value.get_mut("webhooks").and_then(Value::as_array_mut);
                for hook in hooks.into_iter().flatten() {
                    defaults::webhook(json::as_map(hook), true);
                }
            }
            _ => {}
        }
        json::set(
            &mut value,
            &["apiVersion"],
            resource.storage_api_version().into(),
        );
    }
    value
}

const OTHER_METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

fn is_cpu_utilization(metric: &Value, side: &str) -> bool {
    json::str_at(metric, &["resource", "name"]) == "cpu"
        && json::at(metric, &["resource", side, "averageUtilization"]).is_some()
}

/// v2 to v1: one CPU target becomes a field, everything else an annotation.
fn hpa_to_v1(value: &mut Value) {
    let mut notes = Map::new();
    let mut spec_extra = Vec::new();
    if let Some(Value::Array(metrics)) = json::remove(value, &["spec", "metrics"]) {
        for metric in metrics {
            if is_cpu_utilization(&metric, "target") {
                let target = metric["resource"]["target"]["averageUtilization"].clone();
                json::set(value, &["spec", "targetCPUUtilizationPercentage"], target);
            } else {
                spec_extra.push(metric);
            }
        }
    }
    if !spec_extra.is_empty() {
        notes.insert(
            OTHER_METRICS.into(),
            Value::Array(spec_extra).to_string().into(),
        );
    }
    if let Some(behavior) = json::remove(value, &["spec", "behavior"]) {
        notes.insert(BEHAVIOR.into(), behavior.to_string().into());
    }
    if let Some(Value::Array(metrics)) = json::remove(value, &["status", "currentMetrics"]) {
        if let Some(cpu) = metrics.iter().find(|m| is_cpu_utilization(m, "current")) {
            let current = cpu["resource"]["current"]["averageUtilization"].clone();
            json::set(
                value,
                &["status", "currentCPUUtilizationPercentage"],
                current,
            );
        }
        notes.insert(
            CURRENT_METRICS.into(),
            Value::Array(metrics).to_string().into(),
        );
    }
    if let Some(conditions) = json::remove(value, &["status", "conditions"]) {
        notes.insert(CONDITIONS.into(), conditions.to_string().into());
    }
    if !notes.is_empty() {
        json::map_mut(value, &["metadata", "annotations"]).extend(notes);
    }
}

fn hpa_to_v2(value: &mut Value) {
    let mut note = |key: &str| -> Option<Value> {
        let text = json::remove(value, &["metadata", "annotations", key])?;
        serde_json::from_str(text.as_str()?).ok()
    };
    let (extra, current, conditions, behavior) = (
        note(OTHER_METRICS),
        note(CURRENT_METRICS),
        note(CONDITIONS),
        note(BEHAVIOR),
    );
    let mut metrics = Vec::new();
    if let Some(target) = json::remove(value, &["spec", "targetCPUUtilizationPercentage"]) {
        metrics.push(json!({"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": target}}}));
    }
    if let Some(Value::Array(extra)) = extra {
        metrics.extend(extra);
    }
    if !metrics.is_empty() {
        json::set(value, &["spec", "metrics"], Value::Array(metrics));
    }
    let cpu = json::remove(value, &["status", "currentCPUUtilizationPercentage"]);
    for (path, found) in [
        (["status", "currentMetrics"], current.or_else(|| {
            cpu.map(|c| json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": c}}}]))
        })),
        (["status", "conditions"], conditions),
        (["spec", "behavior"], behavior),
    ] {
        if let Some(found) = found {
            json::set(value, &path, found);
        }
    }
}

/// Field names of events: (events.k8s.io, core).
const EVENT_NAMES: &[(&str, &str)] = &[
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("deprecatedCount", "count"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedSource", "source"),
];

fn event_from_core(value: &mut Value) {
    let map = json::as_map(value);
    for (new, core) in EVENT_NAMES {
        if let Some(v) = map.shift_remove(*core) {
            map.insert((*new).to_owned(), v);
        }
    }
}

fn event_to_core(value: &mut Value) {
    let map = json::as_map(value);
    for (new, core) in EVENT_NAMES {
        if let Some(v) = map.shift_remove(*new) {
            map.insert((*core).to_owned(), v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn autoscaler_versions_round_trip() {
        let v2 = json!({"spec": {"maxReplicas": 5, "metrics": [
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
            {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}}]},
            "metadata": {"annotations": {"a": "b"}}, "status": {"conditions": [{"type": "AbleToScale"}]}});
        let mut v = v2.clone();
        hpa_to_v1(&mut v);
        assert_eq!(v["spec"]["targetCPUUtilizationPercentage"], 50);
        assert!(v["metadata"]["annotations"].get(OTHER_METRICS).is_some());
        hpa_to_v2(&mut v);
        assert_eq!(v, v2);
    }
}
