//! Rules of built-in kinds that users and controllers run into.

use serde_json::Value;

use super::{immutable, names};
use crate::json;
use crate::registry::Resource;
use crate::selector::Labels;
use crate::status::FieldError;

pub(super) fn create(resource: &Resource, value: &Value, errors: &mut Vec<FieldError>) {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => pod_spec(value.get("spec").unwrap_or(&Value::Null), "spec", errors),
        ("", "services") => service(value, errors),
        ("", "configmaps" | "secrets") => data_keys(value, errors),
        ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets") => {
            workload(value, errors)
        }
        ("autoscaling", _) => autoscaler(value, errors),
        ("admissionregistration.k8s.io", _) => webhooks(value, errors),
        ("apiextensions.k8s.io", "customresourcedefinitions") => definition(value, errors),
        _ => {}
    }
}

pub(super) fn update(
    resource: &Resource,
    old: &Value,
    value: &Value,
    errors: &mut Vec<FieldError>,
) {
    let mut fixed = |path: &[&str]| {
        if json::at(old, path) != json::at(value, path) {
            errors.push(immutable(&path.join("."), json::at(value, path)));
        }
    };
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("apps", "deployments" | "replicasets" | "daemonsets") => fixed(&["spec", "selector"]),
        ("apps", "statefulsets") => {
            fixed(&["spec", "selector"]);
            fixed(&["spec", "serviceName"]);
        }
        ("batch", "jobs") => {
            fixed(&["spec", "selector"]);
            fixed(&["spec", "completions"]);
        }
        ("discovery.k8s.io", "endpointslices") => fixed(&["addressType"]),
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings")
            if old.get("roleRef") != value.get("roleRef") =>
        {
            let sent = value.get("roleRef").unwrap_or(&Value::Null);
            errors.push(FieldError::invalid(
                "roleRef",
                sent,
                "cannot change roleRef",
            ));
        }
        ("", "secrets") => {
            fixed(&["type"]);
            immutable_data(old, value, errors);
        }
        ("", "configmaps") => immutable_data(old, value, errors),
        ("", "services") => {
            let ip = |v: &Value| json::str_at(v, &["spec", "clusterIP"]).to_owned();
            let external = |v: &Value| json::str_at(v, &["spec", "type"]) == "ExternalName";
            if ip(old) != ip(value) && !ip(old).is_empty() && !external(old) && !external(value) {
                let sent = json::at(value, &["spec", "clusterIPs"]).unwrap_or(&Value::Null);
                errors.push(FieldError::invalid(
                    "spec.clusterIPs[0]",
                    sent,
                    "may not change once set",
                ));
            }
        }
        ("", "pods") => pod_update(old, value, errors),
        _ => {}
    }
}

fn immutable_data(old: &Value, value: &Value, errors: &mut Vec<FieldError>) {
    if old["immutable"] != true {
        return;
    }
    for key in ["data", "binaryData", "immutable"] {
        if old.get(key) != value.get(key) {
            errors.push(FieldError::forbidden(
                key,
                "field is immutable when `immutable` is set",
            ));
        }
    }
}

/// A running pod's spec hardly changes: images, tolerations, two deadlines, and metadata.
fn pod_update(old: &Value, value: &Value, errors: &mut Vec<FieldError>) {
    let frozen = |v: &Value| {
        let mut spec = v.get("spec").cloned().unwrap_or_default();
        for key in ["containers", "initContainers"] {
            for c in spec
                .get_mut(key)
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                json::remove(c, &["image"]);
            }
        }
        for key in [
            "tolerations",
            "activeDeadlineSeconds",
            "terminationGracePeriodSeconds",
            "schedulingGates",
        ] {
            json::remove(&mut spec, &[key]);
        }
        spec
    };
    if frozen(old) != frozen(value) {
        errors.push(FieldError::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
             `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
             `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ));
    }
}

fn pod_spec(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let containers = json::list_at(spec, &["containers"]);
    if containers.is_empty() {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    let volumes: Vec<&str> = json::list_at(spec, &["volumes"])
        .iter()
        .map(|v| json::str_at(v, &["name"]))
        .collect();
    let mut seen = Vec::new();
    for key in ["initContainers", "containers"] {
        for (i, c) in json::list_at(spec, &[key]).iter().enumerate() {
            let at = format!("{path}.{key}[{i}]");
            let name = json::str_at(c, &["name"]);
            let sent = Value::from(name);
            if name.is_empty() {
                errors.push(FieldError::required(format!("{at}.name"), ""));
            } else if !names::is_label(name) {
                errors.push(FieldError::invalid(
                    format!("{at}.name"),
                    &sent,
                    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with \
                     an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
                     '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
                ));
            } else if seen.contains(&name) {
                errors.push(FieldError::duplicate(format!("{at}.name"), &sent));
            }
            seen.push(name);
            if json::str_at(c, &["image"]).is_empty() {
                errors.push(FieldError::required(format!("{at}.image"), ""));
            }
            for (j, mount) in json::list_at(c, &["volumeMounts"]).iter().enumerate() {
                let volume = json::str_at(mount, &["name"]);
                if !volumes.contains(&volume) {
                    errors.push(FieldError {
                        field: format!("{at}.volumeMounts[{j}].name"),
                        reason: "FieldValueNotFound",
                        message: format!("Not found: \"{volume}\""),
                    });
                }
            }
            for (j, port) in json::list_at(c, &["ports"]).iter().enumerate() {
                port_number(
                    json::at(port, &["containerPort"]),
                    format!("{at}.ports[{j}].containerPort"),
                    errors,
                );
            }
        }
    }
    let policy = json::str_at(spec, &["restartPolicy"]);
    if !matches!(policy, "Always" | "OnFailure" | "Never") {
        errors.push(FieldError::unsupported(
            format!("{path}.restartPolicy"),
            &policy.into(),
            &["Always", "OnFailure", "Never"],
        ));
    }
}

fn port_number(port: Option<&Value>, field: String, errors: &mut Vec<FieldError>) {
    match port.and_then(Value::as_i64) {
        None => errors.push(FieldError::required(field, "")),
        Some(1..=65535) => {}
        Some(n) => errors.push(FieldError::invalid(
            field,
            &n.into(),
            "must be between 1 and 65535, inclusive",
        )),
    }
}

fn service(value: &Value, errors: &mut Vec<FieldError>) {
    let kind = json::str_at(value, &["spec", "type"]);
    if !matches!(
        kind,
        "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName"
    ) {
        let accepted = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
        errors.push(FieldError::unsupported(
            "spec.type",
            &kind.into(),
            &accepted,
        ));
    }
    let ports = json::list_at(value, &["spec", "ports"]);
    let headless = json::str_at(value, &["spec", "clusterIP"]) == "None";
    if ports.is_empty() && kind != "ExternalName" && !headless {
        errors.push(FieldError::required("spec.ports", ""));
    }
    if kind == "ExternalName" && json::str_at(value, &["spec", "externalName"]).is_empty() {
        errors.push(FieldError::required("spec.externalName", ""));
    }
    for (i, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{i}]");
        port_number(json::at(port, &["port"]), format!("{at}.port"), errors);
        let name = json::str_at(port, &["name"]);
        if name.is_empty() && ports.len() > 1 {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        }
        let same_name = |p: &Value| !name.is_empty() && json::str_at(p, &["name"]) == name;
        if ports[..i].iter().any(same_name) {
            errors.push(FieldError::duplicate(format!("{at}.name"), &name.into()));
        }
        if ports[..i]
            .iter()
            .any(|p| p["port"] == port["port"] && p["protocol"] == port["protocol"])
        {
            let sent = serde_json::json!({"port": port["port"], "protocol": port["protocol"]});
            errors.push(FieldError::duplicate(at, &sent));
        }
    }
}

fn data_keys(value: &Value, errors: &mut Vec<FieldError>) {
    for field in ["data", "binaryData"] {
        for (key, _) in json::map_at(value, &[field]).into_iter().flatten() {
            let ok = !key.is_empty()
                && key.len() <= 253
                && !matches!(key.as_str(), "." | "..")
                && key
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            if !ok {
                errors.push(FieldError::invalid(
                    format!("{field}[{key}]"),
                    &key.as_str().into(),
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or \
                     'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
                ));
            }
        }
    }
}

fn workload(value: &Value, errors: &mut Vec<FieldError>) {
    let selector = json::at(value, &["spec", "selector"])
        .filter(|s| s.as_object().is_some_and(|m| !m.is_empty()));
    match selector {
        None => errors.push(FieldError::required("spec.selector", "")),
        Some(selector) => {
            let labels = json::map_at(value, &["spec", "template", "metadata", "labels"]);
            if !Labels::from_object(selector).is_ok_and(|s| s.matches(labels)) {
                let sent = json::at(value, &["spec", "template", "metadata", "labels"])
                    .cloned()
                    .unwrap_or_default();
                errors.push(FieldError::invalid(
                    "spec.template.metadata.labels",
                    &sent,
                    "`selector` does not match template `labels`",
                ));
            }
        }
    }
    if let Some(n) = json::int_at(value, &["spec", "replicas"]).filter(|n| *n < 0) {
        errors.push(FieldError::invalid(
            "spec.replicas",
            &n.into(),
            "must be greater than or equal to 0",
        ));
    }
    let empty = Value::Null;
    pod_spec(
        json::at(value, &["spec", "template", "spec"]).unwrap_or(&empty),
        "spec.template.spec",
        errors,
    );
}

fn autoscaler(value: &Value, errors: &mut Vec<FieldError>) {
    let (min, max) = (
        json::int_at(value, &["spec", "minReplicas"]).unwrap_or(1),
        json::int_at(value, &["spec", "maxReplicas"]).unwrap_or(0),
    );
    if max < 1 {
        errors.push(FieldError::invalid(
            "spec.maxReplicas",
            &max.into(),
            "must be greater than 0",
        ));
    } else if max < min {
        errors.push(FieldError::invalid(
            "spec.maxReplicas",
            &max.into(),
            "must be greater than or equal to `minReplicas`",
        ));
    }
    for key in ["kind", "name"] {
        if json::str_at(value, &["spec", "scaleTargetRef", key]).is_empty() {
            errors.push(FieldError::required(
                format!("spec.scaleTargetRef.{key}"),
                "",
            ));
        }
    }
}

fn webhooks(value: &Value, errors: &mut Vec<FieldError>) {
    let hooks = json::list_at(value, &["webhooks"]);
    for (i, hook) in hooks.iter().enumerate() {
        let at = format!("webhooks[{i}]");
        let name = json::str_at(hook, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        } else if !names::is_subdomain(name) || name.split('.').count() < 3 {
            let why = "should be a domain with at least three segments separated by dots";
            errors.push(FieldError::invalid(format!("{at}.name"), &name.into(), why));
        }
        if hooks[..i]
            .iter()
            .any(|h| json::str_at(h, &["name"]) == name)
        {
            errors.push(FieldError::duplicate(format!("{at}.name"), &name.into()));
        }
        if let Some(t) = json::int_at(hook, &["timeoutSeconds"]).filter(|t| !(1..=30).contains(t)) {
            let why = "the timeout value must be between 1 and 30 seconds";
            errors.push(FieldError::invalid(
                format!("{at}.timeoutSeconds"),
                &t.into(),
                why,
            ));
        }
        match json::str_at(hook, &["sideEffects"]) {
            "" => errors.push(FieldError::required(
                format!("{at}.sideEffects"),
                "must specify one of None, NoneOnDryRun",
            )),
            "None" | "NoneOnDryRun" | "Some" | "Unknown" => {}
            other => errors.push(FieldError::unsupported(
                format!("{at}.sideEffects"),
                &other.into(),
                &["None", "NoneOnDryRun"],
            )),
        }
        let versions = json::list_at(hook, &["admissionReviewVersions"]);
        if versions.is_empty() {
            let why = "must specify one of v1, v1beta1";
            errors.push(FieldError::required(
                format!("{at}.admissionReviewVersions"),
                why,
            ));
        } else if !versions.iter().any(|v| v == "v1" || v == "v1beta1") {
            let why = "must include at least one of v1, v1beta1";
            errors.push(FieldError::invalid(
                format!("{at}.admissionReviewVersions"),
                &versions.to_vec().into(),
                why,
            ));
        }
        client_config(hook, &at, errors);
    }
}

fn client_config(hook: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let url = json::str_at(hook, &["clientConfig", "url"]);
    let service = json::at(hook, &["clientConfig", "service"]).is_some();
    match (url, service) {
        ("", false) => errors.push(FieldError::required(
            format!("{at}.clientConfig"),
            "exactly one of url or service is required",
        )),
        ("", true) => {}
        (_, true) => errors.push(FieldError::required(
            format!("{at}.clientConfig"),
            "exactly one of url or service is required",
        )),
        (url, false) => {
            let scheme = url.split_once("://").map_or("", |(s, _)| s);
            if scheme != "https" {
                let why =
                    "'https' is the only allowed URL scheme; desired format: https://host[/path]";
                errors.push(FieldError::invalid(
                    format!("{at}.clientConfig.url"),
                    &scheme.into(),
                    why,
                ));
            }
        }
    }
}

fn definition(value: &Value, errors: &mut Vec<FieldError>) {
    let text = |path: &[&str]| json::str_at(value, path);
    let (group, plural) = (text(&["spec", "group"]), text(&["spec", "names", "plural"]));
    let name = text(&["metadata", "name"]);
    if name != format!("{plural}.{group}") {
        errors.push(FieldError::invalid(
            "metadata.name",
            &name.into(),
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    for path in [
        ["spec", "group"].as_slice(),
        &["spec", "names", "plural"],
        &["spec", "names", "kind"],
        &["spec", "scope"],
    ] {
        if text(path).is_empty() {
            errors.push(FieldError::required(path.join("."), ""));
        }
    }
    let scope = text(&["spec", "scope"]);
    if !matches!(scope, "" | "Cluster" | "Namespaced") {
        errors.push(FieldError::unsupported(
            "spec.scope",
            &scope.into(),
            &["Cluster", "Namespaced"],
        ));
    }
    let versions = json::list_at(value, &["spec", "versions"]);
    if versions.iter().filter(|v| v["storage"] == true).count() != 1 {
        let why = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid(
            "spec.versions",
            &Value::Array(versions.iter().map(|v| v["name"].clone()).collect()),
            why,
        ));
    }
    for (i, version) in versions.iter().enumerate() {
        let at = format!("spec.versions[{i}]");
        let Some(schema) = json::at(version, &["schema", "openAPIV3Schema"]) else {
            errors.push(FieldError::required(
                format!("{at}.schema.openAPIV3Schema"),
                "schemas are required",
            ));
            continue;
        };
        if json::str_at(schema, &["type"]) != "object" {
            let field = format!("{at}.schema.openAPIV3Schema.type");
            errors.push(FieldError::required(
                field,
                "must not be empty at the root: must be object",
            ));
        }
        if let Err(why) = crate::crd::schema::Schema::new(schema.clone()) {
            let field = format!("{at}.schema.openAPIV3Schema");
            errors.push(FieldError {
                field,
                reason: "FieldValueInvalid",
                message: format!("Invalid value: {why}"),
            });
        }
    }
}
