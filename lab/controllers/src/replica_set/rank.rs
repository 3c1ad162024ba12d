//! Which pods go first when there are too many. Pure.

use std::cmp::Ordering;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::pods;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Orders pods from the first to be deleted to the last: unbound, pending, not ready, cheap by annotation, ready for a
/// shorter time (by powers of two, so that age differences that do not matter do not decide), restarted more, younger.
pub(crate) fn deletion_order(a: &Pod, b: &Pod, now: Timestamp) -> Ordering {
    bound(a)
        .cmp(&bound(b))
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| pods::is_ready(a).cmp(&pods::is_ready(b)))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| {
            age_bucket(pods::ready_since(a), now).cmp(&age_bucket(pods::ready_since(b), now))
        })
        .then_with(|| pods::restarts(b).cmp(&pods::restarts(a)))
        .then_with(|| age_bucket(created(a), now).cmp(&age_bucket(created(b), now)))
        // Within a bucket the order is arbitrary but must be stable: two looks at the same pods pick the same one.
        .then_with(|| a.uid().cmp(&b.uid()))
}

/// The `count` pods to delete.
pub(crate) fn to_delete(mut pods: Vec<Arc<Pod>>, count: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    pods.sort_by(|a, b| deletion_order(a, b, now));
    pods.truncate(count);
    pods
}

fn bound(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .and_then(|s| s.node_name.as_deref())
        .is_some_and(|n| !n.is_empty())
}

fn phase_rank(pod: &Pod) -> u8 {
    match pods::phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

/// A malformed cost counts as none.
fn cost(pod: &Pod) -> i32 {
    pod.annotations()
        .get(DELETION_COST)
        .and_then(|c| c.parse().ok())
        .unwrap_or(0)
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.creation_timestamp().map(|t| t.0)
}

/// log2 of the age in seconds; 0 for what has no age.
fn age_bucket(since: Option<Timestamp>, now: Timestamp) -> u32 {
    since.map_or(0, |since| {
        let seconds = u64::try_from(now.duration_since(since).as_secs()).unwrap_or(0);
        seconds.checked_ilog2().map_or(0, |log| log + 1)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn pod(
        name: &str,
        node: Option<&str>,
        status: Value,
        cost: Option<&str>,
        created: &str,
    ) -> Arc<Pod> {
        let annotations = cost.map(|c| json!({DELETION_COST: c}));
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "uid": name, "annotations": annotations, "creationTimestamp": created},
                "spec": {"nodeName": node, "containers": []},
                "status": status,
            }))
            .unwrap(),
        )
    }

    fn running(ready_since: Option<&str>, restarts: i32) -> Value {
        let ready = if ready_since.is_some() {
            "True"
        } else {
            "False"
        };
        json!({"phase": "Running",
            "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": ready_since}],
            "containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": restarts}]})
    }

    #[test]
    fn order_of_deletion() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let old = "2026-01-01T00:00:00Z";
        let pods = vec![
            pod("7-oldest", Some("n"), running(Some(old), 0), None, old),
            pod(
                "6-younger",
                Some("n"),
                running(Some(old), 0),
                None,
                "2026-01-01T00:50:00Z",
            ),
            pod("5-restarted", Some("n"), running(Some(old), 3), None, old),
            pod(
                "4-ready-lately",
                Some("n"),
                running(Some("2026-01-01T00:59:00Z"), 0),
                None,
                old,
            ),
            pod("3-cheap", Some("n"), running(Some(old), 0), Some("-5"), old),
            pod("2-not-ready", Some("n"), running(None, 0), None, old),
            pod(
                "1-pending",
                Some("n"),
                json!({"phase": "Pending"}),
                None,
                old,
            ),
            pod("0-unbound", None, json!({"phase": "Pending"}), None, old),
        ];
        let names: Vec<_> = to_delete(pods, 8, now)
            .iter()
            .map(|p| p.name_any())
            .collect();
        let mut sorted = names.clone();
        sorted.sort();
        assert_eq!(names, sorted);
        assert_eq!(names.len(), 8);
    }
}
