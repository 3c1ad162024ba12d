//! Cells of the built-in kinds, in the order of their columns.

use serde_json::{Map, Value};

use super::observed::{autoscaler, event, node};
use super::{age, created, name, pod};
use crate::json;
use crate::registry::Resource;

pub(super) const NONE: &str = "<none>";
/// Endpoints shown before "+ n more...".
const SHOWN: usize = 3;

pub(super) fn builtin(resource: &Resource, v: &Value) -> Vec<Value> {
    let int = |path: &[&str]| Value::from(json::int_at(v, path).unwrap_or(0));
    let text = |path: &[&str]| json::str_at(v, path);
    let or_none = |text: &str| Value::from(if text.is_empty() { NONE } else { text });
    let count = |key: &str| -> usize {
        v.get(key).map_or(0, |c| {
            c.as_array()
                .map_or_else(|| c.as_object().map_or(0, Map::len), Vec::len)
        })
    };
    let template = || {
        let spec = &["spec", "template", "spec", "containers"];
        [joined(v, spec, "name"), joined(v, spec, "image")]
    };
    match resource.plural.as_str() {
        "pods" => pod::cells(v),
        "deployments" => {
            let ready = format!(
                "{}/{}",
                int(&["status", "readyReplicas"]),
                int(&["spec", "replicas"])
            );
            let [containers, images] = template();
            let (updated, available) = (
                int(&["status", "updatedReplicas"]),
                int(&["status", "availableReplicas"]),
            );
            vec![
                name(v),
                ready.into(),
                updated,
                available,
                created(v),
                containers,
                images,
                selector(v),
            ]
        }
        "replicasets" | "replicationcontrollers" => {
            let [containers, images] = template();
            let (desired, current) = (int(&["spec", "replicas"]), int(&["status", "replicas"]));
            vec![
                name(v),
                desired,
                current,
                int(&["status", "readyReplicas"]),
                created(v),
                containers,
                images,
                selector(v),
            ]
        }
        "statefulsets" => {
            let ready = format!(
                "{}/{}",
                int(&["status", "readyReplicas"]),
                int(&["spec", "replicas"])
            );
            let [containers, images] = template();
            vec![name(v), ready.into(), created(v), containers, images]
        }
        "daemonsets" => {
            let [containers, images] = template();
            let status = |key| int(&["status", key]);
            let nodes = labels(json::map_at(
                v,
                &["spec", "template", "spec", "nodeSelector"],
            ));
            vec![
                name(v),
                status("desiredNumberScheduled"),
                status("currentNumberScheduled"),
                status("numberReady"),
                status("updatedNumberScheduled"),
                status("numberAvailable"),
                nodes,
                created(v),
                containers,
                images,
                selector(v),
            ]
        }
        "jobs" => {
            let [containers, images] = template();
            vec![
                name(v),
                job_status(v).into(),
                completions(v).into(),
                job_duration(v),
                created(v),
                containers,
                images,
                selector(v),
            ]
        }
        "cronjobs" => {
            let spec = &[
                "spec",
                "jobTemplate",
                "spec",
                "template",
                "spec",
                "containers",
            ];
            let last = text(&["status", "lastScheduleTime"]);
            let suspended = if v["spec"]["suspend"] == true {
                "True"
            } else {
                "False"
            };
            vec![
                name(v),
                text(&["spec", "schedule"]).into(),
                or_none(text(&["spec", "timeZone"])),
                suspended.into(),
                json::list_at(v, &["status", "active"]).len().into(),
                if last.is_empty() {
                    NONE.into()
                } else {
                    age(last).into()
                },
                created(v),
                joined(v, spec, "name"),
                joined(v, spec, "image"),
                NONE.into(),
            ]
        }
        "services" => vec![
            name(v),
            text(&["spec", "type"]).into(),
            or_none(text(&["spec", "clusterIP"])),
            external(v).into(),
            ports(v).into(),
            created(v),
            labels(json::map_at(v, &["spec", "selector"])),
        ],
        "endpoints" => vec![name(v), endpoints(v).into(), created(v)],
        "endpointslices" => vec![
            name(v),
            text(&["addressType"]).into(),
            joined_any(v, &["ports"], "port"),
            slice_addresses(v),
            created(v),
        ],
        "configmaps" => vec![
            name(v),
            (count("data") + count("binaryData")).into(),
            created(v),
        ],
        "secrets" => vec![
            name(v),
            text(&["type"]).into(),
            count("data").into(),
            created(v),
        ],
        "serviceaccounts" => vec![name(v), count("secrets").into(), created(v)],
        "namespaces" => vec![name(v), text(&["status", "phase"]).into(), created(v)],
        "nodes" => node(v),
        "events" => event(v),
        "horizontalpodautoscalers" => autoscaler(v),
        "leases" => vec![
            name(v),
            text(&["spec", "holderIdentity"]).into(),
            created(v),
        ],
        "poddisruptionbudgets" => {
            let either = |key: &str| match json::at(v, &["spec", key]) {
                None => "N/A".to_owned(),
                Some(Value::String(s)) => s.clone(),
                Some(n) => n.to_string(),
            };
            vec![
                name(v),
                either("minAvailable").into(),
                either("maxUnavailable").into(),
                int(&["status", "disruptionsAllowed"]),
                created(v),
            ]
        }
        "mutatingwebhookconfigurations" | "validatingwebhookconfigurations" => {
            vec![name(v), count("webhooks").into(), created(v)]
        }
        "customresourcedefinitions" | "clusterroles" | "roles" => {
            vec![name(v), text(&["metadata", "creationTimestamp"]).into()]
        }
        "clusterrolebindings" | "rolebindings" => {
            let role = format!(
                "{}/{}",
                text(&["roleRef", "kind"]),
                text(&["roleRef", "name"])
            );
            vec![
                name(v),
                role.into(),
                created(v),
                subjects(v, "User"),
                subjects(v, "Group"),
                subjects(v, "ServiceAccount"),
            ]
        }
        "ingresses" => {
            let hosts: Vec<&str> = json::list_at(v, &["spec", "rules"])
                .iter()
                .map(|r| json::str_at(r, &["host"]))
                .filter(|h| !h.is_empty())
                .collect();
            let hosts = if hosts.is_empty() {
                "*".to_owned()
            } else {
                hosts.join(",")
            };
            let ports = if json::list_at(v, &["spec", "tls"]).is_empty() {
                "80"
            } else {
                "80, 443"
            };
            vec![
                name(v),
                or_none(text(&["spec", "ingressClassName"])),
                hosts.into(),
                balancer(v).join(",").into(),
                ports.into(),
                created(v),
            ]
        }
        "networkpolicies" => vec![
            name(v),
            labels(json::map_at(v, &["spec", "podSelector", "matchLabels"])),
            created(v),
        ],
        "priorityclasses" => {
            let default = if v["globalDefault"] == true {
                "true"
            } else {
                "false"
            };
            vec![name(v), int(&["value"]), default.into(), created(v)]
        }
        "storageclasses" => vec![name(v), text(&["provisioner"]).into(), created(v)],
        _ => vec![name(v), created(v)],
    }
}

fn joined(v: &Value, path: &[&str], key: &str) -> Value {
    json::list_at(v, path)
        .iter()
        .map(|c| json::str_at(c, &[key]))
        .collect::<Vec<_>>()
        .join(",")
        .into()
}

fn joined_any(v: &Value, path: &[&str], key: &str) -> Value {
    let texts: Vec<String> = json::list_at(v, path)
        .iter()
        .filter_map(|p| p.get(key))
        .map(|p| p.to_string().replace('"', ""))
        .collect();
    if texts.is_empty() {
        "<unset>".into()
    } else {
        texts.join(",").into()
    }
}

fn labels(labels: Option<&Map<String, Value>>) -> Value {
    let texts: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    if texts.is_empty() {
        NONE.into()
    } else {
        texts.join(",").into()
    }
}

fn selector(v: &Value) -> Value {
    let plain = json::at(v, &["spec", "selector", "matchLabels"]).is_none();
    let path: &[&str] = if plain {
        &["spec", "selector"]
    } else {
        &["spec", "selector", "matchLabels"]
    };
    labels(json::map_at(v, path))
}

fn balancer(v: &Value) -> Vec<&str> {
    json::list_at(v, &["status", "loadBalancer", "ingress"])
        .iter()
        .map(|i| match json::str_at(i, &["ip"]) {
            "" => json::str_at(i, &["hostname"]),
            ip => ip,
        })
        .collect()
}

fn external(v: &Value) -> String {
    let own: Vec<&str> = json::list_at(v, &["spec", "externalIPs"])
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let mut all = Vec::new();
    match json::str_at(v, &["spec", "type"]) {
        "ExternalName" => return json::str_at(v, &["spec", "externalName"]).to_owned(),
        "LoadBalancer" => {
            all = balancer(v);
            if all.is_empty() && own.is_empty() {
                return "<pending>".to_owned();
            }
        }
        _ => {}
    }
    all.extend(own);
    if all.is_empty() {
        NONE.to_owned()
    } else {
        all.join(",")
    }
}

fn ports(v: &Value) -> String {
    let texts: Vec<String> = json::list_at(v, &["spec", "ports"])
        .iter()
        .map(|p| {
            let (port, protocol) = (
                json::int_at(p, &["port"]).unwrap_or(0),
                json::str_at(p, &["protocol"]),
            );
            match json::int_at(p, &["nodePort"]) {
                Some(node) => format!("{port}:{node}/{protocol}"),
                None => format!("{port}/{protocol}"),
            }
        })
        .collect();
    if texts.is_empty() {
        NONE.to_owned()
    } else {
        texts.join(",")
    }
}

fn endpoints(v: &Value) -> String {
    let mut all = Vec::new();
    for subset in json::list_at(v, &["subsets"]) {
        let addresses = json::list_at(subset, &["addresses"])
            .iter()
            .map(|a| json::str_at(a, &["ip"]));
        let ports = json::list_at(subset, &["ports"]);
        for ip in addresses {
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            all.extend(
                ports
                    .iter()
                    .map(|p| format!("{ip}:{}", json::int_at(p, &["port"]).unwrap_or(0))),
            );
        }
    }
    if all.is_empty() {
        return NONE.to_owned();
    }
    let shown = all
        .iter()
        .take(SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join(",");
    if all.len() > SHOWN {
        format!("{shown} + {} more...", all.len() - SHOWN)
    } else {
        shown
    }
}

fn slice_addresses(v: &Value) -> Value {
    let all: Vec<&str> = json::list_at(v, &["endpoints"])
        .iter()
        .flat_map(|e| json::list_at(e, &["addresses"]))
        .filter_map(Value::as_str)
        .collect();
    match all.len() {
        0 => "<unset>".into(),
        n if n > SHOWN => format!("{} + {} more...", all[..SHOWN].join(","), n - SHOWN).into(),
        _ => all.join(",").into(),
    }
}

fn job_status(v: &Value) -> &'static str {
    let is = |kind: &str| {
        json::list_at(v, &["status", "conditions"])
            .iter()
            .any(|c| c["type"] == kind && c["status"] == "True")
    };
    match () {
        () if is("Complete") => "Complete",
        () if is("Failed") => "Failed",
        () if json::at(v, &["metadata", "deletionTimestamp"]).is_some() => "Terminating",
        () if is("Suspended") => "Suspended",
        () => "Running",
    }
}

fn completions(v: &Value) -> String {
    let done = json::int_at(v, &["status", "succeeded"]).unwrap_or(0);
    match json::int_at(v, &["spec", "completions"]) {
        Some(n) => format!("{done}/{n}"),
        None => format!(
            "{done}/1 of {}",
            json::int_at(v, &["spec", "parallelism"]).unwrap_or(1)
        ),
    }
}

fn job_duration(v: &Value) -> Value {
    let time = |key: &str| {
        json::str_at(v, &["status", key])
            .parse::<jiff::Timestamp>()
            .ok()
    };
    match (time("startTime"), time("completionTime")) {
        (Some(start), Some(end)) => {
            super::duration((end.as_second() - start.as_second()).max(0)).into()
        }
        (Some(start), None) => {
            super::duration((jiff::Timestamp::now().as_second() - start.as_second()).max(0)).into()
        }
        _ => Value::Null,
    }
}

fn subjects(v: &Value, kind: &str) -> Value {
    json::list_at(v, &["subjects"])
        .iter()
        .filter(|s| s["kind"] == kind)
        .map(|s| match json::str_at(s, &["namespace"]) {
            "" => json::str_at(s, &["name"]).to_owned(),
            ns => format!("{ns}/{}", json::str_at(s, &["name"])),
        })
        .collect::<Vec<_>>()
        .join(", ")
        .into()
}
