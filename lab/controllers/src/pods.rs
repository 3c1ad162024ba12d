//! What controllers ask of a pod: is it ready, available, active; and labels against selectors.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

pub(crate) type Labels = BTreeMap<String, String>;

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or("Pending")
}

pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub(crate) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Counts towards its controller's replicas: neither finished nor being deleted.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_terminating(pod)
}

pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|c| c.type_ == kind)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Since when the pod has been ready; `None` if it is not.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|c| c.status == "True")?;
    Some(
        ready
            .last_transition_time
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |t| t.0),
    )
}

/// Whether the pod has been ready for `min_ready_seconds`, and otherwise how long until it will have been.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum Availability {
    Available,
    In(Duration),
    NotReady,
}

pub(crate) fn availability(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Availability {
    let Some(since) = ready_since(pod) else {
        return Availability::NotReady;
    };
    if min_ready_seconds <= 0 {
        return Availability::Available;
    }
    let ready_for = now.duration_since(since);
    let needed = jiff::SignedDuration::from_secs(min_ready_seconds.into());
    if ready_for >= needed {
        Availability::Available
    } else {
        Availability::In(Duration::try_from(needed - ready_for).unwrap_or(Duration::ZERO))
    }
}

pub(crate) fn restarts(pod: &Pod) -> i32 {
    pod.status
        .as_ref()
        .and_then(|s| s.container_statuses.as_ref())
        .map_or(0, |list| {
            list.iter().map(|c| c.restart_count).max().unwrap_or(0)
        })
}

/// `labels` carries all of `wanted`. An empty `wanted` is carried by everything; callers decide what that means.
pub(crate) fn carries(labels: Option<&Labels>, wanted: &Labels) -> bool {
    let Some(labels) = labels else {
        return wanted.is_empty();
    };
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether a label selector matches. An empty selector matches everything; an unknown operator matches nothing.
pub(crate) fn selects(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let empty = Labels::new();
    let labels = labels.unwrap_or(&empty);
    let exact = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    exact
        && selector
            .match_expressions
            .iter()
            .flatten()
            .all(|requirement| {
                let value = labels.get(&requirement.key);
                let values = requirement.values.as_deref().unwrap_or_default();
                match requirement.operator.as_str() {
                    "In" => value.is_some_and(|v| values.contains(v)),
                    "NotIn" => value.is_none_or(|v| !values.contains(v)),
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    _ => false,
                }
            })
}

/// Reads a selector in text form, as a Scale carries it: `app=web,tier in (a,b),!old`.
pub(crate) fn parse_selector(text: &str) -> Result<LabelSelector, String> {
    let mut requirements = Vec::new();
    let mut depth = 0_i32;
    let parts = text.split(|c: char| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    });
    for part in parts.map(str::trim).filter(|part| !part.is_empty()) {
        requirements.push(parse_requirement(part)?);
    }
    Ok(LabelSelector {
        match_expressions: Some(requirements),
        match_labels: None,
    })
}

fn parse_requirement(part: &str) -> Result<LabelSelectorRequirement, String> {
    let make = |key: &str, operator: &str, values: Option<Vec<String>>| LabelSelectorRequirement {
        key: key.trim().to_owned(),
        operator: operator.to_owned(),
        values,
    };
    let one = |value: &str| Some(vec![value.trim().to_owned()]);
    if let Some(key) = part.strip_prefix('!') {
        return Ok(make(key, "DoesNotExist", None));
    }
    if let Some((head, values)) = part.strip_suffix(')').and_then(|p| p.split_once('(')) {
        let values = Some(values.split(',').map(|v| v.trim().to_owned()).collect());
        let mut words = head.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(key), Some("in"), None) => Ok(make(key, "In", values)),
            (Some(key), Some("notin"), None) => Ok(make(key, "NotIn", values)),
            _ => Err(format!(
                "selector {part:?}: expected KEY in (…) or KEY notin (…)"
            )),
        };
    }
    Ok(if let Some((key, value)) = part.split_once("!=") {
        make(key, "NotIn", one(value))
    } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        make(key, "In", one(value))
    } else {
        make(part, "Exists", None)
    })
}

/// A selector that says nothing: controllers refuse to act on it, since it would take every pod of the namespace.
pub(crate) fn is_empty(selector: &LabelSelector) -> bool {
    selector
        .match_labels
        .as_ref()
        .is_none_or(BTreeMap::is_empty)
        && selector
            .match_expressions
            .as_ref()
            .is_none_or(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors() {
        let labels: Labels = serde_json::from_value(json!({"app": "web", "tier": "x"})).unwrap();
        for (selector, expected) in [
            (json!({}), true),
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "db"}}), false),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "web"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "none", "operator": "NotIn", "values": ["web"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "tier", "operator": "Near"}]}),
                false,
            ),
        ] {
            let parsed: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(selects(&parsed, Some(&labels)), expected, "{selector}");
        }
    }

    #[test]
    fn selectors_in_text_form() {
        let labels: Labels = serde_json::from_value(json!({"app": "web", "tier": "x"})).unwrap();
        for (text, expected) in [
            ("app=web", true),
            ("app==web,tier!=y", true),
            ("app=db", false),
            ("tier in (a, x),app", true),
            ("tier notin (x),app=web", false),
            ("!old", true),
            ("!app", false),
            ("", true),
        ] {
            assert_eq!(
                selects(&parse_selector(text).unwrap(), Some(&labels)),
                expected,
                "{text}"
            );
        }
        assert!(parse_selector("a near (b)").is_err());
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let at = |s: &str| s.parse::<Timestamp>().unwrap();
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
        .unwrap();
        assert_eq!(
            availability(&pod, 0, at("2026-01-01T00:00:00Z")),
            Availability::Available
        );
        assert_eq!(
            availability(&pod, 10, at("2026-01-01T00:00:04Z")),
            Availability::In(Duration::from_secs(6))
        );
        assert_eq!(
            availability(&pod, 10, at("2026-01-01T00:00:10Z")),
            Availability::Available
        );
        assert_eq!(
            availability(&Pod::default(), 0, at("2026-01-01T00:00:10Z")),
            Availability::NotReady
        );
    }
}
