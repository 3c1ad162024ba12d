//! Nodes, events and autoscalers: kinds whose rows show what somebody observed.

use serde_json::Value;

use super::cells::NONE;
use super::{age, created, name};
use crate::json;

pub(super) fn node(v: &Value) -> Vec<Value> {
    let ready = json::list_at(v, &["status", "conditions"])
        .iter()
        .find(|c| c["type"] == "Ready")
        .map(|c| json::str_at(c, &["status"]));
    let mut status = match ready {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if v["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    let roles: Vec<&str> = json::map_at(v, &["metadata", "labels"])
        .into_iter()
        .flatten()
        .filter_map(|(k, _)| k.strip_prefix("node-role.kubernetes.io/"))
        .filter(|r| !r.is_empty())
        .collect();
    let address = |kind: &str| {
        let found = json::list_at(v, &["status", "addresses"])
            .iter()
            .find(|a| json::str_at(a, &["type"]) == kind);
        Value::from(found.map_or(NONE, |a| json::str_at(a, &["address"])))
    };
    let info = |key: &str| match json::str_at(v, &["status", "nodeInfo", key]) {
        "" => Value::from("<unknown>"),
        text => text.into(),
    };
    vec![
        name(v),
        status.into(),
        if roles.is_empty() {
            NONE.into()
        } else {
            roles.join(",").into()
        },
        created(v),
        info("kubeletVersion"),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

pub(super) fn event(v: &Value) -> Vec<Value> {
    let text = |path: &[&str]| json::str_at(v, path);
    let or = |a: &'static [&'static str], b: &'static [&'static str]| match json::str_at(v, a) {
        "" => json::str_at(v, b),
        t => t,
    };
    let first = or(&["firstTimestamp"], &["eventTime"]);
    let last = match text(&["series", "lastObservedTime"]) {
        "" => match text(&["lastTimestamp"]) {
            "" => first,
            t => t,
        },
        t => t,
    };
    let object = format!(
        "{}/{}",
        text(&["involvedObject", "kind"]).to_lowercase(),
        text(&["involvedObject", "name"])
    );
    let component = or(&["source", "component"], &["reportingComponent"]);
    let source = match text(&["source", "host"]) {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    };
    let count = json::int_at(v, &["series", "count"])
        .or_else(|| json::int_at(v, &["count"]))
        .unwrap_or(1);
    vec![
        age(last).into(),
        text(&["type"]).into(),
        text(&["reason"]).into(),
        object.into(),
        text(&["involvedObject", "fieldPath"]).into(),
        source.into(),
        text(&["message"]).trim().into(),
        age(first).into(),
        count.into(),
        name(v),
    ]
}

pub(super) fn autoscaler(v: &Value) -> Vec<Value> {
    let reference = format!(
        "{}/{}",
        json::str_at(v, &["spec", "scaleTargetRef", "kind"]),
        json::str_at(v, &["spec", "scaleTargetRef", "name"])
    );
    let min =
        json::int_at(v, &["spec", "minReplicas"]).map_or("<unset>".to_owned(), |n| n.to_string());
    let max = json::int_at(v, &["spec", "maxReplicas"])
        .unwrap_or(0)
        .to_string();
    let replicas = json::int_at(v, &["status", "currentReplicas"]).unwrap_or(0);
    vec![
        name(v),
        reference.into(),
        targets(v).into(),
        min.into(),
        max.into(),
        replicas.into(),
        created(v),
    ]
}

/// `cpu: 2%/50%` per metric; the v1 form has one.
fn targets(v: &Value) -> String {
    if let Some(target) = json::int_at(v, &["spec", "targetCPUUtilizationPercentage"]) {
        let current = json::int_at(v, &["status", "currentCPUUtilizationPercentage"])
            .map_or("<unknown>".to_owned(), |c| format!("{c}%"));
        return format!("cpu: {current}/{target}%");
    }
    let metrics = json::list_at(v, &["spec", "metrics"]);
    if metrics.is_empty() {
        return NONE.to_owned();
    }
    let current = json::list_at(v, &["status", "currentMetrics"]);
    let texts: Vec<String> = metrics
        .iter()
        .enumerate()
        .map(|(i, metric)| {
            let now = current
                .get(i)
                .and_then(|c| c.get("resource"))
                .and_then(|r| r.get("current"));
            let target = json::at(metric, &["resource", "target"]);
            let label = json::str_at(metric, &["resource", "name"]);
            let value = |of: Option<&Value>| {
                let of = of?;
                of.get("averageUtilization")
                    .map(|n| format!("{n}%"))
                    .or_else(|| {
                        of.get("averageValue")
                            .or_else(|| of.get("value"))
                            .and_then(Value::as_str)
                            .map(str::to_owned)
                    })
            };
            let unknown = || "<unknown>".to_owned();
            format!(
                "{label}: {}/{}",
                value(now).unwrap_or_else(unknown),
                value(target).unwrap_or_else(unknown)
            )
        })
        .collect();
    texts.join(", ")
}
