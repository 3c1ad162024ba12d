//! The status of a Deployment from its ReplicaSets: counts, conditions, progress. Pure.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::revision::{replicas, set_replicas};

pub(crate) const AVAILABLE: &str = "Available";
pub(crate) const PROGRESSING: &str = "Progressing";
pub(crate) const REPLICA_FAILURE: &str = "ReplicaFailure";
pub(crate) const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
/// A deadline of this many seconds means none.
const NO_DEADLINE: i32 = i32::MAX;

type Conditions = Vec<DeploymentCondition>;

pub(crate) fn condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        last_transition_time: Some(Time(now)),
        last_update_time: Some(Time(now)),
        message: Some(message.to_owned()),
        reason: Some(reason.to_owned()),
        status: status.to_owned(),
        type_: kind.to_owned(),
    }
}

pub(crate) fn find<'a>(
    conditions: &'a [DeploymentCondition],
    kind: &str,
) -> Option<&'a DeploymentCondition> {
    conditions.iter().find(|c| c.type_ == kind)
}

/// Puts a condition at the end of the list unless the same status and reason are there already. The transition time
/// is that of the last change of status.
pub(crate) fn set(conditions: &mut Conditions, mut condition: DeploymentCondition) {
    if let Some(known) = find(conditions, &condition.type_) {
        if known.status == condition.status && known.reason == condition.reason {
            return;
        }
        if known.status == condition.status {
            condition.last_transition_time = known.last_transition_time.clone();
        }
    }
    conditions.retain(|c| c.type_ != condition.type_);
    conditions.push(condition);
}

pub(crate) fn deadline(deployment: &Deployment) -> Option<i32> {
    let seconds = deployment
        .spec
        .as_ref()
        .and_then(|s| s.progress_deadline_seconds)
        .unwrap_or(600);
    (seconds != NO_DEADLINE).then_some(seconds)
}

fn nonzero(n: i32) -> Option<i32> {
    (n > 0).then_some(n)
}

/// Counts, and the Available condition.
fn counts(
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    all: &[Arc<ReplicaSet>],
    max_unavailable: i32,
    now: Timestamp,
) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let status = |f: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| {
        all.iter()
            .filter_map(|s| s.status.as_ref())
            .map(f)
            .sum::<i32>()
    };
    let available = status(|s| s.available_replicas.unwrap_or(0));
    let wanted: i32 = all.iter().map(|s| set_replicas(s)).sum();
    let mut conditions = old.conditions.unwrap_or_default();
    if available >= replicas(deployment) - max_unavailable {
        let message = "Deployment has minimum availability.";
        set(
            &mut conditions,
            condition(AVAILABLE, "True", "MinimumReplicasAvailable", message, now),
        );
    } else {
        let message = "Deployment does not have minimum availability.";
        set(
            &mut conditions,
            condition(
                AVAILABLE,
                "False",
                "MinimumReplicasUnavailable",
                message,
                now,
            ),
        );
    }
    DeploymentStatus {
        available_replicas: nonzero(available),
        collision_count: old.collision_count,
        conditions: Some(conditions),
        observed_generation: deployment.metadata.generation,
        ready_replicas: nonzero(status(|s| s.ready_replicas.unwrap_or(0))),
        replicas: nonzero(status(|s| s.replicas)),
        terminating_replicas: None,
        unavailable_replicas: nonzero(wanted - available),
        updated_replicas: nonzero(
            new.and_then(|s| s.status.as_ref())
                .map_or(0, |s| s.replicas),
        ),
    }
}

/// All updated, all available, nothing old left.
pub(crate) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = replicas(deployment);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0)
}

fn progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let count = |n: Option<i32>| n.unwrap_or(0);
    let outdated = |s: &DeploymentStatus| count(s.replicas) - count(s.updated_replicas);
    count(new.updated_replicas) > count(old.updated_replicas)
        || outdated(new) < outdated(old)
        || count(new.ready_replicas) > count(old.ready_replicas)
        || count(new.available_replicas) > count(old.available_replicas)
}

/// The status during and after a rollout, and when the progress deadline will have to be looked at.
pub(crate) fn rollout(
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    all: &[Arc<ReplicaSet>],
    max_unavailable: i32,
    now: Timestamp,
) -> (DeploymentStatus, Option<Duration>) {
    let old = deployment.status.clone().unwrap_or_default();
    let mut status = counts(deployment, new, all, max_unavailable, now);
    let mut conditions = status.conditions.take().unwrap_or_default();
    let what = new.map_or_else(
        || format!("Deployment \"{}\"", deployment.name_any()),
        |s| format!("ReplicaSet \"{}\"", s.name_any()),
    );
    let current = find(old.conditions.as_deref().unwrap_or_default(), PROGRESSING);
    let settled = status.replicas == status.updated_replicas
        && current.is_some_and(|c| c.reason.as_deref() == Some(NEW_SET_AVAILABLE));
    match deadline(deployment) {
        None => conditions.retain(|c| c.type_ != PROGRESSING),
        Some(_) if settled => {}
        Some(seconds) => {
            if is_complete(deployment, &status) {
                let message = format!("{what} has successfully progressed.");
                set(
                    &mut conditions,
                    condition(PROGRESSING, "True", NEW_SET_AVAILABLE, &message, now),
                );
            } else if progressed(&old, &status) {
                let message = format!("{what} is progressing.");
                let mut fresh = condition(PROGRESSING, "True", "ReplicaSetUpdated", &message, now);
                if let Some(current) = current.filter(|c| c.status == "True") {
                    fresh.last_transition_time = current.last_transition_time.clone();
                }
                // The deadline counts from the last progress: the update time must move.
                conditions.retain(|c| c.type_ != PROGRESSING);
                conditions.push(fresh);
            } else if current.is_some_and(|c| overdue(c, seconds, now)) {
                let message = format!("{what} has timed out progressing.");
                set(
                    &mut conditions,
                    condition(PROGRESSING, "False", TIMED_OUT, &message, now),
                );
            }
        }
    }
    copy_failure(&mut conditions, new, all, now);
    let next = find(&conditions, PROGRESSING)
        .filter(|c| !matches!(c.reason.as_deref(), Some(NEW_SET_AVAILABLE | TIMED_OUT)))
        .filter(|_| !is_complete(deployment, &status))
        .and_then(|c| deadline(deployment).map(|seconds| until_overdue(c, seconds, now)));
    status.conditions = Some(conditions);
    (status, next)
}

/// The status of a paused or just resized Deployment: counts only.
pub(crate) fn still(
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    all: &[Arc<ReplicaSet>],
    max_unavailable: i32,
    now: Timestamp,
) -> DeploymentStatus {
    counts(deployment, new, all, max_unavailable, now)
}

/// What the ReplicaSets could not do, the new one's trouble first, is the Deployment's third condition.
fn copy_failure(
    conditions: &mut Conditions,
    new: Option<&ReplicaSet>,
    all: &[Arc<ReplicaSet>],
    now: Timestamp,
) {
    let failure = new
        .into_iter()
        .chain(all.iter().map(Arc::as_ref))
        .find_map(|set| {
            set.status
                .as_ref()?
                .conditions
                .as_ref()?
                .iter()
                .find(|c| c.type_ == REPLICA_FAILURE)
        });
    match failure {
        None => conditions.retain(|c| c.type_ != REPLICA_FAILURE),
        Some(failure) => {
            let reason = failure.reason.as_deref().unwrap_or_default();
            let message = failure.message.as_deref().unwrap_or_default();
            set(
                conditions,
                condition(REPLICA_FAILURE, &failure.status, reason, message, now),
            );
        }
    }
}

fn overdue(progressing: &DeploymentCondition, seconds: i32, now: Timestamp) -> bool {
    match progressing.reason.as_deref() {
        // Complete: whatever happens to the pods later is no failed rollout.
        Some(NEW_SET_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => until_overdue(progressing, seconds, now).is_zero(),
    }
}

fn until_overdue(progressing: &DeploymentCondition, seconds: i32, now: Timestamp) -> Duration {
    let since = progressing.last_update_time.as_ref().map_or(now, |t| t.0);
    let left = jiff::SignedDuration::from_secs(seconds.into()) - now.duration_since(since);
    Duration::try_from(left).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn deployment(status: Value) -> Deployment {
        serde_json::from_value(json!({"metadata": {"name": "web", "generation": 1},
            "spec": {"replicas": 2, "selector": {}, "template": {}}, "status": status}))
        .unwrap()
    }

    fn new_set(replicas: i32, available: i32, failure: Option<&str>) -> Arc<ReplicaSet> {
        let conditions =
            failure.map(|m| json!([{"type": REPLICA_FAILURE, "status": "True", "reason": "FailedCreate", "message": m}]));
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "web-1"}, "spec": {"replicas": 2, "selector": {}},
                "status": {"replicas": replicas, "readyReplicas": available, "availableReplicas": available,
                    "conditions": conditions}}))
            .unwrap(),
        )
    }

    fn reasons(status: &DeploymentStatus) -> Vec<(String, String, String)> {
        let list = status.conditions.clone().unwrap_or_default();
        list.into_iter()
            .map(|c| (c.type_, c.status, c.reason.unwrap_or_default()))
            .collect()
    }

    fn triple(a: &str, b: &str, c: &str) -> (String, String, String) {
        (a.into(), b.into(), c.into())
    }

    #[test]
    fn from_created_to_available() {
        let t0: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut conditions = Vec::new();
        set(
            &mut conditions,
            condition(
                PROGRESSING,
                "True",
                "NewReplicaSetCreated",
                "Created new replica set \"web-1\"",
                t0,
            ),
        );
        let mut web = deployment(json!({}));
        web.status = Some(DeploymentStatus {
            conditions: Some(conditions),
            ..DeploymentStatus::default()
        });

        let empty = new_set(0, 0, None);
        let (status, next) = rollout(&web, Some(&empty), std::slice::from_ref(&empty), 0, t0);
        assert_eq!(
            reasons(&status),
            [
                triple(PROGRESSING, "True", "NewReplicaSetCreated"),
                triple(AVAILABLE, "False", "MinimumReplicasUnavailable")
            ]
        );
        assert_eq!(
            (
                status.unavailable_replicas,
                status.replicas,
                status.observed_generation
            ),
            (Some(2), None, Some(1))
        );
        assert_eq!(next, Some(Duration::from_secs(600)));
        web.status = Some(status);

        let made = new_set(2, 0, None);
        let (status, _) = rollout(&web, Some(&made), std::slice::from_ref(&made), 0, t0);
        assert_eq!(
            reasons(&status),
            [
                triple(AVAILABLE, "False", "MinimumReplicasUnavailable"),
                triple(PROGRESSING, "True", "ReplicaSetUpdated")
            ]
        );
        web.status = Some(status);

        let ready = new_set(2, 2, None);
        let (status, next) = rollout(&web, Some(&ready), std::slice::from_ref(&ready), 0, t0);
        assert_eq!(
            reasons(&status),
            [
                triple(AVAILABLE, "True", "MinimumReplicasAvailable"),
                triple(PROGRESSING, "True", NEW_SET_AVAILABLE)
            ]
        );
        assert_eq!(next, None);
        assert_eq!(status.unavailable_replicas, None);
        web.status = Some(status.clone());
        let (same, _) = rollout(
            &web,
            Some(&ready),
            std::slice::from_ref(&ready),
            0,
            t0 + Duration::from_secs(99),
        );
        assert_eq!(same, status, "a settled Deployment's status does not move");
    }

    #[test]
    fn the_deadline_passes() {
        let t0: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let made = new_set(2, 0, None);
        let (status, _) = rollout(
            &deployment(json!({})),
            Some(&made),
            std::slice::from_ref(&made),
            0,
            t0,
        );
        let mut web = deployment(json!({}));
        web.status = Some(status);
        let (status, next) = rollout(
            &web,
            Some(&made),
            std::slice::from_ref(&made),
            0,
            t0 + Duration::from_secs(599),
        );
        assert_eq!(next, Some(Duration::from_secs(1)));
        assert_eq!(reasons(&status)[1].2, "ReplicaSetUpdated");
        let (status, next) = rollout(
            &web,
            Some(&made),
            std::slice::from_ref(&made),
            0,
            t0 + Duration::from_secs(600),
        );
        assert_eq!(reasons(&status)[1], triple(PROGRESSING, "False", TIMED_OUT));
        let last = status
            .conditions
            .as_ref()
            .unwrap()
            .last()
            .unwrap()
            .message
            .clone();
        assert_eq!(
            last.unwrap(),
            "ReplicaSet \"web-1\" has timed out progressing."
        );
        assert_eq!(next, None);
    }

    #[test]
    fn a_refusing_webhook_is_the_third_condition_and_goes() {
        let t0 = Timestamp::UNIX_EPOCH;
        let stuck = new_set(0, 0, Some("denied"));
        let mut conditions = Vec::new();
        set(
            &mut conditions,
            condition(PROGRESSING, "True", "NewReplicaSetCreated", "", t0),
        );
        let mut web = deployment(json!({}));
        web.status = Some(DeploymentStatus {
            conditions: Some(conditions),
            ..DeploymentStatus::default()
        });
        let (status, _) = rollout(&web, Some(&stuck), std::slice::from_ref(&stuck), 0, t0);
        assert_eq!(
            reasons(&status)[2],
            triple(REPLICA_FAILURE, "True", "FailedCreate")
        );
        assert_eq!(status.unavailable_replicas, Some(2));
        web.status = Some(status);
        let healed = new_set(2, 0, None);
        let (status, _) = rollout(&web, Some(&healed), std::slice::from_ref(&healed), 0, t0);
        assert!(reasons(&status).iter().all(|r| r.0 != REPLICA_FAILURE));
    }
}
