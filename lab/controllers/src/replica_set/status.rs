//! The status of a ReplicaSet from its pods. Pure.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::pods::{Availability, availability, carries, is_ready};

/// What kept the last look from creating or deleting all it wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// The new status and when it will change by itself, because a pod will have been ready for long enough.
pub(crate) fn status(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    failure: Option<&Failure>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let spec = set.spec.as_ref();
    let template_labels = spec
        .and_then(|s| s.template.as_ref())
        .and_then(|t| t.metadata.as_ref())
        .and_then(|m| m.labels.clone());
    let min_ready = spec.and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let template_labels = template_labels.unwrap_or_default();
    let labeled = active
        .iter()
        .filter(|p| carries(p.metadata.labels.as_ref(), &template_labels))
        .count();
    let ready = active.iter().filter(|p| is_ready(p)).count();
    let mut available = 0;
    let mut next: Option<Duration> = None;
    for pod in active {
        match availability(pod, min_ready, now) {
            Availability::Available => available += 1,
            Availability::In(wait) => next = Some(next.map_or(wait, |n| n.min(wait))),
            Availability::NotReady => {}
        }
    }
    let old = set.status.clone().unwrap_or_default();
    let status = ReplicaSetStatus {
        available_replicas: count(available),
        conditions: conditions(old.conditions, failure, now),
        fully_labeled_replicas: count(labeled),
        observed_generation: set.metadata.generation,
        ready_replicas: count(ready),
        replicas: count(active.len()).unwrap_or(0),
        terminating_replicas: None,
    };
    (status, next)
}

/// The API leaves zero counts out.
fn count(n: usize) -> Option<i32> {
    i32::try_from(n).ok().filter(|n| *n != 0)
}

fn conditions(
    old: Option<Vec<ReplicaSetCondition>>,
    failure: Option<&Failure>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    const FAILURE: &str = "ReplicaFailure";
    let mut list = old.unwrap_or_default();
    match failure {
        None => list.retain(|c| c.type_ != FAILURE),
        Some(failure) => {
            let known = list
                .iter()
                .any(|c| c.type_ == FAILURE && c.reason.as_deref() == Some(failure.reason));
            if !known {
                list.retain(|c| c.type_ != FAILURE);
                list.push(ReplicaSetCondition {
                    last_transition_time: Some(Time(now)),
                    message: Some(failure.message.clone()),
                    reason: Some(failure.reason.to_owned()),
                    status: "True".to_owned(),
                    type_: FAILURE.to_owned(),
                });
            }
        }
    }
    (!list.is_empty()).then_some(list)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn set(min_ready: i32) -> ReplicaSet {
        serde_json::from_value(json!({"metadata": {"generation": 3}, "spec": {"replicas": 2,
            "minReadySeconds": min_ready, "selector": {}, "template": {"metadata": {"labels": {"a": "b"}}}}}))
        .unwrap()
    }

    fn pod(ready_since: Option<&str>) -> Arc<Pod> {
        let status = if ready_since.is_some() {
            "True"
        } else {
            "False"
        };
        Arc::new(
            serde_json::from_value(
                json!({"metadata": {"labels": {"a": "b", "c": "d"}}, "status": {"conditions": [
                {"type": "Ready", "status": status, "lastTransitionTime": ready_since}]}}),
            )
            .unwrap(),
        )
    }

    #[test]
    fn counts_and_the_next_look() {
        let now: Timestamp = "2026-01-01T00:00:05Z".parse().unwrap();
        let pods = [
            pod(Some("2026-01-01T00:00:00Z")),
            pod(Some("2026-01-01T00:00:03Z")),
            pod(None),
        ];
        let (status, next) = status(&set(4), &pods, None, now);
        assert_eq!(next, Some(Duration::from_secs(2)));
        assert_eq!(
            serde_json::to_value(status).unwrap(),
            json!({"replicas": 3, "fullyLabeledReplicas": 3, "readyReplicas": 2, "availableReplicas": 1,
                "observedGeneration": 3})
        );
    }

    #[test]
    fn failure_appears_once_and_goes() {
        let now = Timestamp::UNIX_EPOCH;
        let failure = Failure {
            reason: "FailedCreate",
            message: "no way".into(),
        };
        let mut set = set(0);
        let (first, _) = status(&set, &[], Some(&failure), now);
        let shown = serde_json::to_value(&first).unwrap();
        assert_eq!(shown["conditions"][0]["type"], "ReplicaFailure");
        assert_eq!(shown["conditions"][0]["message"], "no way");
        set.status = Some(first.clone());
        let later = Failure {
            reason: "FailedCreate",
            message: "other words".into(),
        };
        assert_eq!(status(&set, &[], Some(&later), now).0, first);
        assert_eq!(status(&set, &[], None, now).0.conditions, None);
    }
}
