//! Whether a webhook concerns a request: rules, scope, selectors.

use serde_json::Value;

use super::{Hook, Operation, Subject};
use crate::json;
use crate::selector::Labels;
use crate::status::Result;

/// How a request matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Match {
    /// The version in which the webhook wants the object.
    pub(super) version: String,
}

pub(super) fn find(subject: &Subject<'_>, hook: &Hook) -> Result<Option<Match>> {
    let Some(found) = rules(subject, &hook.config) else {
        return Ok(None);
    };
    if !namespace(subject, &hook.config)? || !objects(subject, &hook.config)? {
        return Ok(None);
    }
    Ok(Some(found))
}

fn rules(subject: &Subject<'_>, config: &Value) -> Option<Match> {
    let context = subject.context;
    let asked = context.version.as_str();
    let all = json::list_at(config, &["rules"]);
    if all.iter().any(|r| rule(subject, r, asked)) {
        return Some(Match {
            version: asked.to_owned(),
        });
    }
    if json::str_at(config, &["matchPolicy"]) == "Exact" {
        return None;
    }
    context
        .resource
        .versions
        .iter()
        .map(|v| v.name.as_str())
        .find(|v| *v != asked && all.iter().any(|r| rule(subject, r, v)))
        .map(|v| Match {
            version: v.to_owned(),
        })
}

fn rule(subject: &Subject<'_>, rule: &Value, version: &str) -> bool {
    let resource = &subject.context.resource;
    let has = |key: &str, wanted: &str| {
        json::list_at(rule, &[key])
            .iter()
            .any(|v| v == "*" || v == wanted)
    };
    let scope = match json::str_at(rule, &["scope"]) {
        "Namespaced" => resource.namespaced,
        "Cluster" => !resource.namespaced,
        _ => true,
    };
    scope
        && has("operations", subject.operation.name())
        && has("apiGroups", &resource.group)
        && has("apiVersions", version)
        && json::list_at(rule, &["resources"])
            .iter()
            .filter_map(Value::as_str)
            .any(|r| names(r, &resource.plural, subject.context.subresource.as_deref()))
}

/// `pods`, `pods/*`, `pods/status`, `*`, `*/*`, `*/status`.
fn names(rule: &str, plural: &str, subresource: Option<&str>) -> bool {
    let (resource, sub) = rule
        .split_once('/')
        .map_or((rule, None), |(r, s)| (r, Some(s)));
    let resource_matches = resource == "*" || resource == plural;
    let sub_matches = match (sub, subresource) {
        (Some("*"), _) => true,
        (sub, subresource) => sub == subresource,
    };
    resource_matches && sub_matches
}

fn namespace(subject: &Subject<'_>, config: &Value) -> Result<bool> {
    let Some(selector) = config.get("namespaceSelector") else {
        return Ok(true);
    };
    let labels = Labels::from_object(selector)?;
    if labels.is_empty() {
        return Ok(true);
    }
    let context = subject.context;
    if context.resource.is("", "namespaces") {
        // A namespace is judged by its own labels: the new ones, or the last ones when it goes.
        return Ok(subject
            .object
            .or(subject.old)
            .is_none_or(|o| labels.matches_object(o)));
    }
    if !context.resource.namespaced {
        return Ok(true);
    }
    let namespace = context
        .server
        .store
        .collection("namespaces")
        .get("", &context.namespace);
    Ok(namespace.is_some_and(|n| labels.matches_object(&n.value)))
}

fn objects(subject: &Subject<'_>, config: &Value) -> Result<bool> {
    let Some(selector) = config.get("objectSelector") else {
        return Ok(true);
    };
    let labels = Labels::from_object(selector)?;
    if labels.is_empty() {
        return Ok(true);
    }
    if subject.operation == Operation::Connect {
        return Ok(false);
    }
    Ok([subject.object, subject.old]
        .into_iter()
        .flatten()
        .any(|o| labels.matches_object(o)))
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn resources_and_subresources() {
        assert!(names("pods", "pods", None) && !names("pods", "pods", Some("status")));
        assert!(
            names("pods/*", "pods", Some("status")) && names("pods/status", "pods", Some("status"))
        );
        assert!(names("*", "pods", None) && !names("*", "pods", Some("status")));
        assert!(
            names("*/*", "pods", Some("exec"))
                && names("*/*", "pods", None)
                && names("*/scale", "x", Some("scale"))
        );
        assert!(!names("services", "pods", None));
    }
}
