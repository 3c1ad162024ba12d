//! Pods: the STATUS column condenses phase, conditions and container states.

use serde_json::Value;

use super::{age, created, name};
use crate::json;

pub(super) fn cells(value: &Value) -> Vec<Value> {
    let statuses = json::list_at(value, &["status", "containerStatuses"]);
    let ready = statuses
        .iter()
        .filter(|s| {
            s["ready"] == true && !json::at(s, &["state", "running"]).is_none_or(Value::is_null)
        })
        .count();
    let total = json::list_at(value, &["spec", "containers"]).len();
    let or_none = |text: &str| Value::from(if text.is_empty() { "<none>" } else { text });
    let gates = json::list_at(value, &["spec", "readinessGates"]);
    vec![
        name(value),
        format!("{ready}/{total}").into(),
        status(value).into(),
        restarts(value).into(),
        created(value),
        or_none(json::str_at(value, &["status", "podIP"])),
        or_none(json::str_at(value, &["spec", "nodeName"])),
        or_none(json::str_at(value, &["status", "nominatedNodeName"])),
        if gates.is_empty() {
            "<none>".into()
        } else {
            format!("{}/{}", gates_met(value, gates), gates.len()).into()
        },
    ]
}

fn gates_met(value: &Value, gates: &[Value]) -> usize {
    let conditions = json::list_at(value, &["status", "conditions"]);
    gates
        .iter()
        .filter(|g| {
            conditions
                .iter()
                .any(|c| c["type"] == g["conditionType"] && c["status"] == "True")
        })
        .count()
}

/// A restartable init container is a sidecar.
fn is_sidecar(value: &Value, name: &str) -> bool {
    json::list_at(value, &["spec", "initContainers"])
        .iter()
        .any(|c| json::str_at(c, &["name"]) == name && c["restartPolicy"] == "Always")
}

fn status(value: &Value) -> String {
    let mut reason = match json::str_at(value, &["status", "reason"]) {
        "" => match json::str_at(value, &["status", "phase"]) {
            "" => "Unknown",
            phase => phase,
        },
        reason => reason,
    }
    .to_owned();
    let initializing = init_status(value);
    if let Some(text) = &initializing {
        reason.clone_from(text);
    } else {
        let mut running = false;
        for status in json::list_at(value, &["status", "containerStatuses"])
            .iter()
            .rev()
        {
            let at = |path: &[&str]| json::str_at(status, path).to_owned();
            let (waiting, terminated) = (
                at(&["state", "waiting", "reason"]),
                at(&["state", "terminated", "reason"]),
            );
            let ended = json::at(status, &["state", "terminated"]).filter(|t| !t.is_null());
            if !waiting.is_empty() {
                reason = waiting;
            } else if !terminated.is_empty() {
                reason = terminated;
            } else if let Some(ended) = ended {
                reason = exit_text(ended);
            } else if status["ready"] == true {
                running = true;
            }
        }
        if reason == "Completed" && running {
            reason = if has_ready(value) {
                "Running"
            } else {
                "NotReady"
            }
            .to_owned();
        }
    }
    if json::at(value, &["metadata", "deletionTimestamp"]).is_some() {
        let phase = json::str_at(value, &["status", "phase"]);
        if json::str_at(value, &["status", "reason"]) == "NodeLost" {
            return "Unknown".to_owned();
        }
        if !matches!(phase, "Succeeded" | "Failed") {
            return "Terminating".to_owned();
        }
    }
    reason
}

fn exit_text(ended: &Value) -> String {
    match json::int_at(ended, &["signal"]).filter(|s| *s != 0) {
        Some(signal) => format!("Signal:{signal}"),
        None => format!(
            "ExitCode:{}",
            json::int_at(ended, &["exitCode"]).unwrap_or(0)
        ),
    }
}

fn has_ready(value: &Value) -> bool {
    json::list_at(value, &["status", "conditions"])
        .iter()
        .any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// `Init:…` while init containers hold the pod up.
fn init_status(value: &Value) -> Option<String> {
    let total = json::list_at(value, &["spec", "initContainers"]).len();
    for (i, status) in json::list_at(value, &["status", "initContainerStatuses"])
        .iter()
        .enumerate()
    {
        let ended = json::at(status, &["state", "terminated"]).filter(|t| !t.is_null());
        if ended.is_some_and(|t| json::int_at(t, &["exitCode"]) == Some(0)) {
            continue;
        }
        if is_sidecar(value, json::str_at(status, &["name"])) && status["started"] == true {
            continue;
        }
        return Some(match ended {
            Some(ended) => match json::str_at(ended, &["reason"]) {
                "" => format!("Init:{}", exit_text(ended)),
                reason => format!("Init:{reason}"),
            },
            None => match json::str_at(status, &["state", "waiting", "reason"]) {
                "" | "PodInitializing" => format!("Init:{i}/{total}"),
                reason => format!("Init:{reason}"),
            },
        });
    }
    None
}

fn restarts(value: &Value) -> String {
    let mut count = 0;
    let mut last = "";
    let sidecars = json::list_at(value, &["status", "initContainerStatuses"])
        .iter()
        .filter(|s| is_sidecar(value, json::str_at(s, &["name"])));
    for status in json::list_at(value, &["status", "containerStatuses"])
        .iter()
        .chain(sidecars)
    {
        count += json::int_at(status, &["restartCount"]).unwrap_or(0);
        let finished = json::str_at(status, &["lastState", "terminated", "finishedAt"]);
        if finished > last {
            last = finished;
        }
    }
    if count == 0 || last.is_empty() {
        count.to_string()
    } else {
        format!("{count} ({} ago)", age(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn status_column() {
        let pod = |status: Value| json!({"spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]}, "status": status});
        let waiting = json!([{"name": "c", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 3}]);
        assert_eq!(
            status(&pod(
                json!({"phase": "Running", "containerStatuses": waiting})
            )),
            "CrashLoopBackOff"
        );
        let init = json!([{"name": "i", "state": {"running": {}}}]);
        assert_eq!(
            status(&pod(
                json!({"phase": "Pending", "initContainerStatuses": init})
            )),
            "Init:0/1"
        );
        assert_eq!(status(&pod(json!({"phase": "Pending"}))), "Pending");
        let mut gone = pod(json!({"phase": "Running"}));
        gone["metadata"] = json!({"deletionTimestamp": "x"});
        assert_eq!(status(&gone), "Terminating");
    }
}
