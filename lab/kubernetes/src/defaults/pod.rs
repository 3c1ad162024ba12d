//! Defaults of pod specs, wherever they stand.

use serde_json::{Map, Value, json};

use crate::json::{self, default};

/// Fills in a pod spec (of a pod, or of a template).
pub(super) fn spec(spec: &mut Map<String, Value>) {
    default(spec, "restartPolicy", "Always");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "securityContext", json!({}));
    default(spec, "schedulerName", "default-scheduler");
    if let Some(account) = spec.get("serviceAccountName").cloned().filter(|a| a != "") {
        default(spec, "serviceAccount", account);
    }
    for key in ["initContainers", "containers"] {
        for c in spec
            .get_mut(key)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            container(json::as_map(c));
        }
    }
    for v in spec
        .get_mut("volumes")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        volume(json::as_map(v));
    }
}

fn container(c: &mut Map<String, Value>) {
    let image = c.get("image").and_then(Value::as_str).unwrap_or_default();
    let tag = image
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .split_once(':')
        .map(|(_, t)| t);
    let policy = if !image.contains('@') && matches!(tag, None | Some("latest")) {
        "Always"
    } else {
        "IfNotPresent"
    };
    default(c, "imagePullPolicy", policy);
    default(c, "terminationMessagePath", "/dev/termination-log");
    default(c, "terminationMessagePolicy", "File");
    default(c, "resources", json!({}));
    // A limit is also the request.
    if let Some(Value::Object(resources)) = c.get_mut("resources")
        && let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned()
    {
        let requests = json::as_map(resources.entry("requests").or_insert(Value::Null));
        for (name, quantity) in limits {
            default(requests, &name, quantity);
        }
    }
    for port in c
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        default(json::as_map(port), "protocol", "TCP");
    }
    for env in c
        .get_mut("env")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(field) = env.get_mut("valueFrom").and_then(|v| v.get_mut("fieldRef")) {
            default(json::as_map(field), "apiVersion", "v1");
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = c.get_mut(key) {
            self::probe(json::as_map(probe));
        }
    }
    if let Some(lifecycle) = c.get_mut("lifecycle").and_then(Value::as_object_mut) {
        for handler in lifecycle.values_mut() {
            http_get(handler);
        }
    }
}

fn probe(probe: &mut Map<String, Value>) {
    for (key, value) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        if probe.get(key).and_then(Value::as_i64).unwrap_or(0) == 0 {
            probe.insert(key.into(), value.into());
        }
    }
    let mut holder = Value::Object(std::mem::take(probe));
    http_get(&mut holder);
    if let Some(grpc) = holder.get_mut("grpc") {
        default(json::as_map(grpc), "service", "");
    }
    *probe = std::mem::take(json::as_map(&mut holder));
}

fn http_get(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet") {
        let get = json::as_map(get);
        default(get, "scheme", "HTTP");
        default(get, "path", "/");
    }
}

fn volume(v: &mut Map<String, Value>) {
    let sources = [
        "configMap",
        "secret",
        "emptyDir",
        "hostPath",
        "projected",
        "downwardAPI",
        "persistentVolumeClaim",
        "csi",
        "nfs",
        "ephemeral",
        "iscsi",
        "image",
        "azureFile",
        "azureDisk",
        "awsElasticBlockStore",
        "gcePersistentDisk",
        "cephfs",
        "rbd",
        "fc",
        "flexVolume",
        "glusterfs",
        "gitRepo",
    ];
    if !sources.iter().any(|s| v.contains_key(*s)) {
        v.insert("emptyDir".into(), json!({}));
    }
    for key in ["configMap", "secret", "projected", "downwardAPI"] {
        if let Some(source) = v.get_mut(key) {
            default(json::as_map(source), "defaultMode", 420);
        }
    }
    if let Some(path) = v.get_mut("hostPath") {
        default(json::as_map(path), "type", "");
    }
    let field_refs = |items: &mut Value| {
        for item in items.as_array_mut().into_iter().flatten() {
            if let Some(field) = item.get_mut("fieldRef") {
                default(json::as_map(field), "apiVersion", "v1");
            }
        }
    };
    if let Some(items) = v.get_mut("downwardAPI").and_then(|d| d.get_mut("items")) {
        field_refs(items);
    }
    for source in v
        .get_mut("projected")
        .and_then(|p| p.get_mut("sources"))
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(items) = source
            .get_mut("downwardAPI")
            .and_then(|d| d.get_mut("items"))
        {
            field_refs(items);
        }
        if let Some(token) = source.get_mut("serviceAccountToken") {
            default(json::as_map(token), "expirationSeconds", 3600);
        }
    }
}

/// The DefaultTolerationSeconds, Priority and similar plugins.
pub(super) fn tolerations(value: &mut Value) {
    let spec = json::map_mut(value, &["spec"]);
    default(spec, "priority", 0);
    default(spec, "preemptionPolicy", "PreemptLowerPriority");
    default(spec, "enableServiceLinks", true);
    let list = json::list_mut(spec, "tolerations");
    for key in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let known = list.iter().any(|t| {
            let (k, effect) = (json::str_at(t, &["key"]), json::str_at(t, &["effect"]));
            (k == key || k.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !known {
            list.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
        }
    }
}

/// The quality-of-service class, from requests and limits.
pub(super) fn qos(value: &Value) -> &'static str {
    let containers = || {
        json::list_at(value, &["spec", "containers"])
            .iter()
            .chain(json::list_at(value, &["spec", "initContainers"]))
    };
    let mut any = false;
    let mut guaranteed = true;
    for c in containers() {
        for resource in ["cpu", "memory"] {
            let request = json::at(c, &["resources", "requests", resource]);
            let limit = json::at(c, &["resources", "limits", resource]);
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minimal_pod_is_filled_in() {
        let mut value = json!({"spec": {"containers": [{"name": "c", "image": "x:1", "ports": [{"containerPort": 80}],
            "readinessProbe": {"httpGet": {"port": 80}}, "resources": {"limits": {"cpu": "1"}}}], "volumes": [{"name": "v"}]}});
        assert_eq!(qos(&value), "Burstable");
        spec(json::map_mut(&mut value, &["spec"]));
        let c = &value["spec"]["containers"][0];
        assert_eq!(c["imagePullPolicy"], "IfNotPresent");
        assert_eq!(c["ports"][0]["protocol"], "TCP");
        assert_eq!(c["resources"]["requests"]["cpu"], "1");
        assert_eq!(
            c["readinessProbe"]["httpGet"],
            json!({"port": 80, "scheme": "HTTP", "path": "/"})
        );
        assert_eq!(c["readinessProbe"]["failureThreshold"], 3);
        assert_eq!(value["spec"]["volumes"][0]["emptyDir"], json!({}));
        let once = value.clone();
        spec(json::map_mut(&mut value, &["spec"]));
        assert_eq!(value, once);
    }
}
