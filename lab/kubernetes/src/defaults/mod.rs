//! Defaults, as the API server writes them into objects, and the built-in admission plugins.
//!
//! [`apply`] is pure and idempotent; it runs before and after the webhooks. What needs the store
//! (service accounts, cluster IPs, node ports) is in [`create`] and [`allocate`].

mod account;
mod pod;
mod service;
mod workloads;

use serde_json::{Map, Value, json};

use crate::crd;
use crate::json;
use crate::registry::Resource;
use crate::rest::Context;
use crate::status::Result;

/// On creation: defaults, and admission plugins that look at other objects.
pub(crate) async fn create(context: &Context, value: &mut Value) -> Result<()> {
    let resource = &context.resource;
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => {
            json::set(
                value,
                &["status"],
                json!({"phase": "Pending", "qosClass": pod::qos(value)}),
            );
            account::admit(context, value).await?;
            pod::tolerations(value);
        }
        ("", "namespaces") => {
            json::set(value, &["spec", "finalizers"], json!(["kubernetes"]));
            json::set(value, &["status"], json!({"phase": "Active"}));
        }
        ("", "secrets") => account::token_secret(context, value)?,
        ("apiextensions.k8s.io", "customresourcedefinitions") => {
            drop(json::remove(value, &["status"]))
        }
        _ => {}
    }
    apply(resource, value);
    Ok(())
}

/// On update: what an old client leaves out and the server keeps.
pub(crate) fn update(context: &Context, old: &Value, value: &mut Value) {
    if context.resource.is("", "services") {
        // Ports are matched by protocol, which may have been left out.
        service::defaults(value);
        service::keep(old, value);
    }
    apply(&context.resource, value);
}

/// Cluster IPs and node ports, which must be unique.
pub(crate) fn allocate(context: &Context, value: &mut Value) -> Result<()> {
    if context.resource.is("", "services") {
        service::allocate(context, value)
    } else {
        Ok(())
    }
}

/// Fills in the defaults of a kind.
pub(crate) fn apply(resource: &Resource, value: &mut Value) {
    if resource.custom {
        let version = resource
            .version(&resource.storage)
            .or(resource.versions.first());
        if let Some(schema) = version.and_then(|v| v.schema.as_ref()) {
            crd::prune::default(&schema.root, value);
        }
        return;
    }
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => pod::spec(json::map_mut(value, &["spec"])),
        ("", "services") => service::defaults(value),
        ("", "replicationcontrollers") => workloads::replication_controller(value),
        ("", "namespaces") => {
            let name = json::str_at(value, &["metadata", "name"]).to_owned();
            json::set(
                value,
                &["metadata", "labels", "kubernetes.io/metadata.name"],
                name.into(),
            );
        }
        ("", "secrets") => secret(value),
        ("", "endpoints") => endpoints(value),
        ("apps", _) => workloads::apps(&resource.plural, value),
        ("batch", _) => workloads::batch(&resource.plural, value),
        ("autoscaling", _) => autoscaler(value),
        ("discovery.k8s.io", "endpointslices") => {
            for port in json::list_mut(json::as_map(value), "ports") {
                let port = json::as_map(port);
                json::default(port, "name", "");
                json::default(port, "protocol", "TCP");
            }
        }
        ("admissionregistration.k8s.io", _) => webhooks(value),
        ("apiextensions.k8s.io", "customresourcedefinitions") => definition(value),
        ("rbac.authorization.k8s.io", "clusterrolebindings" | "rolebindings") => binding(value),
        ("networking.k8s.io", "networkpolicies") => {
            json::default(
                json::map_mut(value, &["spec"]),
                "policyTypes",
                json!(["Ingress"]),
            );
        }
        _ => {}
    }
}

fn secret(value: &mut Value) {
    use base64::Engine;
    let map = json::as_map(value);
    json::default(map, "type", "Opaque");
    // stringData is write-only: it becomes data.
    if let Some(Value::Object(plain)) = map.shift_remove("stringData") {
        let data = json::as_map(map.entry("data").or_insert(Value::Null));
        for (key, text) in plain {
            let encoded =
                base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap_or_default());
            data.insert(key, encoded.into());
        }
    }
}

fn endpoints(value: &mut Value) {
    let Some(subsets) = value.get_mut("subsets").and_then(Value::as_array_mut) else {
        return;
    };
    for subset in subsets {
        for port in subset
            .get_mut("ports")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            json::default(json::as_map(port), "protocol", "TCP");
        }
    }
}

fn autoscaler(value: &mut Value) {
    let spec = json::map_mut(value, &["spec"]);
    json::default(spec, "minReplicas", 1);
    if spec
        .get("metrics")
        .and_then(Value::as_array)
        .is_none_or(Vec::is_empty)
    {
        spec.insert(
            "metrics".into(),
            json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]),
        );
    }
}

fn webhooks(value: &mut Value) {
    // v1beta1 had laxer defaults; the version is gone once stored, so it leaves a mark in the context: see `beta`.
    let Some(list) = value.get_mut("webhooks").and_then(Value::as_array_mut) else {
        return;
    };
    for hook in list {
        webhook(json::as_map(hook), false);
    }
}

/// Defaults of one webhook; `beta` for configurations written as v1beta1.
pub(crate) fn webhook(hook: &mut Map<String, Value>, beta: bool) {
    let (policy, matching, seconds) = if beta {
        ("Ignore", "Exact", 30)
    } else {
        ("Fail", "Equivalent", 10)
    };
    json::default(hook, "failurePolicy", policy);
    json::default(hook, "matchPolicy", matching);
    json::default(hook, "timeoutSeconds", seconds);
    json::default(hook, "namespaceSelector", json!({}));
    json::default(hook, "objectSelector", json!({}));
    if beta {
        json::default(hook, "sideEffects", "Unknown");
        json::default(hook, "admissionReviewVersions", json!(["v1beta1"]));
    }
    for rule in hook
        .get_mut("rules")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        json::default(json::as_map(rule), "scope", "*");
    }
    if let Some(service) = hook
        .get_mut("clientConfig")
        .and_then(|c| c.get_mut("service"))
    {
        json::default(json::as_map(service), "port", 443);
    }
}

fn binding(value: &mut Value) {
    json::default(
        json::map_mut(value, &["roleRef"]),
        "apiGroup",
        "rbac.authorization.k8s.io",
    );
    for subject in value
        .get_mut("subjects")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let group = if subject["kind"] == "ServiceAccount" {
            ""
        } else {
            "rbac.authorization.k8s.io"
        };
        if !group.is_empty() {
            json::default(json::as_map(subject), "apiGroup", group);
        }
    }
}

fn definition(value: &mut Value) {
    let kind = json::str_at(value, &["spec", "names", "kind"]).to_owned();
    let spec = json::map_mut(value, &["spec"]);
    json::default(spec, "conversion", json!({"strategy": "None"}));
    let names = json::as_map(spec.entry("names").or_insert(Value::Null));
    if !kind.is_empty() {
        json::default(names, "singular", kind.to_lowercase());
        json::default(names, "listKind", format!("{kind}List"));
    }
    crd::establish(value);
}
