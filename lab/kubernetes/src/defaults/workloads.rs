//! Defaults of controllers' objects.

use serde_json::{Value, json};

use super::pod;
use crate::json::{self, default};

fn template(value: &mut Value, path: &[&str]) {
    let template = json::map_mut(value, path);
    json::as_map(template.entry("metadata").or_insert(Value::Null))
        .entry("creationTimestamp")
        .or_insert(Value::Null);
    pod::spec(json::as_map(template.entry("spec").or_insert(Value::Null)));
}

pub(super) fn replication_controller(value: &mut Value) {
    template(value, &["spec", "template"]);
    let labels = json::at(value, &["spec", "template", "metadata", "labels"]).cloned();
    let spec = json::map_mut(value, &["spec"]);
    default(spec, "replicas", 1);
    if let Some(labels) = labels {
        default(spec, "selector", labels);
    }
}

pub(super) fn apps(plural: &str, value: &mut Value) {
    if plural == "controllerrevisions" {
        return;
    }
    template(value, &["spec", "template"]);
    let spec = json::map_mut(value, &["spec"]);
    if plural != "daemonsets" {
        default(spec, "replicas", 1);
    }
    match plural {
        "deployments" => {
            default(spec, "revisionHistoryLimit", 10);
            default(spec, "progressDeadlineSeconds", 600);
            let strategy = json::as_map(spec.entry("strategy").or_insert(Value::Null));
            default(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                let rolling = json::as_map(strategy.entry("rollingUpdate").or_insert(Value::Null));
                default(rolling, "maxUnavailable", "25%");
                default(rolling, "maxSurge", "25%");
            }
        }
        "statefulsets" => {
            default(spec, "revisionHistoryLimit", 10);
            default(spec, "podManagementPolicy", "OrderedReady");
            default(
                spec,
                "updateStrategy",
                json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}),
            );
            default(
                spec,
                "persistentVolumeClaimRetentionPolicy",
                json!({"whenDeleted": "Retain", "whenScaled": "Retain"}),
            );
        }
        "daemonsets" => {
            default(spec, "revisionHistoryLimit", 10);
            default(
                spec,
                "updateStrategy",
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}),
            );
        }
        _ => {}
    }
}

pub(super) fn batch(plural: &str, value: &mut Value) {
    if plural == "cronjobs" {
        template(value, &["spec", "jobTemplate", "spec", "template"]);
        let spec = json::map_mut(value, &["spec"]);
        default(spec, "concurrencyPolicy", "Allow");
        default(spec, "suspend", false);
        default(spec, "successfulJobsHistoryLimit", 3);
        default(spec, "failedJobsHistoryLimit", 1);
        return;
    }
    template(value, &["spec", "template"]);
    let spec = json::map_mut(value, &["spec"]);
    if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
        default(spec, "completions", 1);
    }
    default(spec, "parallelism", 1);
    default(spec, "backoffLimit", 6);
    default(spec, "completionMode", "NonIndexed");
    default(spec, "suspend", false);
}
