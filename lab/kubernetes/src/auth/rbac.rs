//! RBAC: the stored roles and bindings, read afresh for each decision (a lab has a few dozen).

use serde_json::Value;

use super::{Identity, service_account};
use crate::json;
use crate::server::Server;

/// What somebody wants to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) verb: &'a str,
    pub(crate) group: &'a str,
    /// `pods` or `pods/log`.
    pub(crate) resource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

/// Whether any rule bound to the identity covers the request.
pub(crate) fn allowed(server: &Server, identity: &Identity, request: &Request<'_>) -> bool {
    identity.is_master()
        || self_review(request)
        || rules(server, identity, request.namespace)
            .iter()
            .any(|r| covers(r, request))
}

/// Everybody may ask about themselves.
fn self_review(request: &Request<'_>) -> bool {
    request.verb == "create"
        && matches!(
            (request.group, request.resource),
            (
                "authorization.k8s.io",
                "selfsubjectaccessreviews" | "selfsubjectrulesreviews"
            ) | ("authentication.k8s.io", "selfsubjectreviews")
        )
}

/// All rules that apply to the identity in a namespace (empty: cluster scope).
pub(crate) fn rules(server: &Server, identity: &Identity, namespace: &str) -> Vec<Value> {
    let list = |id: &str, ns: Option<&str>| server.store.collection(id).list(ns, 0).0;
    let mut rules = Vec::new();
    let mut collect = |binding: &Value, within: &str| {
        if !json::list_at(binding, &["subjects"])
            .iter()
            .any(|s| is_subject(s, within, identity))
        {
            return;
        }
        let name = json::str_at(binding, &["roleRef", "name"]);
        let role = match json::str_at(binding, &["roleRef", "kind"]) {
            "ClusterRole" => server
                .store
                .collection("clusterroles.rbac.authorization.k8s.io")
                .get("", name),
            _ => server
                .store
                .collection("roles.rbac.authorization.k8s.io")
                .get(within, name),
        };
        if let Some(role) = role {
            rules.extend_from_slice(json::list_at(&role.value, &["rules"]));
        }
    };
    for binding in list("clusterrolebindings.rbac.authorization.k8s.io", None) {
        collect(&binding.value, "");
    }
    if !namespace.is_empty() {
        for binding in list("rolebindings.rbac.authorization.k8s.io", Some(namespace)) {
            collect(&binding.value, namespace);
        }
    }
    rules
}

fn is_subject(subject: &Value, within: &str, identity: &Identity) -> bool {
    let name = json::str_at(subject, &["name"]);
    match json::str_at(subject, &["kind"]) {
        "User" => name == identity.user,
        "Group" => identity.groups.iter().any(|g| g == name),
        "ServiceAccount" => {
            let namespace = match json::str_at(subject, &["namespace"]) {
                "" => within,
                ns => ns,
            };
            service_account(&identity.user) == Some((namespace, name))
        }
        _ => false,
    }
}

fn covers(rule: &Value, request: &Request<'_>) -> bool {
    let has = |key: &str, wanted: &str| {
        json::list_at(rule, &[key])
            .iter()
            .any(|v| v == "*" || v == wanted)
    };
    let resource = || {
        let sub = request
            .resource
            .split_once('/')
            .map(|(_, sub)| format!("*/{sub}"));
        has("resources", request.resource) || sub.is_some_and(|s| has("resources", &s))
    };
    let names = json::list_at(rule, &["resourceNames"]);
    has("verbs", request.verb)
        && has("apiGroups", request.group)
        && resource()
        && (names.is_empty() || names.iter().any(|n| n == request.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules_cover_what_they_name() {
        let request = |verb, resource, name| Request {
            verb,
            group: "",
            resource,
            namespace: "d",
            name,
        };
        let rule = json!({"apiGroups": [""], "resources": ["pods", "*/log"], "verbs": ["get"]});
        assert!(covers(&rule, &request("get", "pods", "a")));
        assert!(covers(&rule, &request("get", "pods/log", "a")));
        assert!(!covers(&rule, &request("get", "pods/exec", "a")));
        assert!(!covers(&rule, &request("list", "pods", "")));
        let named =
            json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"], "resourceNames": ["x"]});
        assert!(covers(&named, &request("get", "pods", "x")));
        assert!(!covers(&named, &request("get", "pods", "y")));
    }
}
