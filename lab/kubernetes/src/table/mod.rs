//! Tables: the columns `kubectl get` prints, per kind, and the cells of a row.

mod cells;
mod jsonpath;
mod observed;
mod pod;

use serde_json::{Value, json};

use crate::json;
use crate::registry::Resource;

/// One column: name, type, format, priority (1 = only with `-o wide`).
type Column = (&'static str, &'static str, &'static str, i64);

const NAME: Column = ("Name", "string", "name", 0);
const AGE: Column = ("Age", "string", "", 0);

fn text(name: &'static str) -> Column {
    (name, "string", "", 0)
}

fn number(name: &'static str) -> Column {
    (name, "integer", "", 0)
}

fn wide(name: &'static str) -> Column {
    (name, "string", "", 1)
}

/// The columns of a built-in kind.
fn builtin(resource: &Resource) -> Vec<Column> {
    match resource.plural.as_str() {
        "pods" => vec![
            NAME,
            text("Ready"),
            text("Status"),
            text("Restarts"),
            AGE,
            wide("IP"),
            wide("Node"),
            wide("Nominated Node"),
            wide("Readiness Gates"),
        ],
        "deployments" => vec![
            NAME,
            text("Ready"),
            number("Up-to-date"),
            number("Available"),
            AGE,
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        "replicasets" | "replicationcontrollers" => vec![
            NAME,
            number("Desired"),
            number("Current"),
            number("Ready"),
            AGE,
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        "statefulsets" => vec![NAME, text("Ready"), AGE, wide("Containers"), wide("Images")],
        "daemonsets" => vec![
            NAME,
            number("Desired"),
            number("Current"),
            number("Ready"),
            number("Up-to-date"),
            number("Available"),
            text("Node Selector"),
            AGE,
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        "jobs" => vec![
            NAME,
            text("Status"),
            text("Completions"),
            text("Duration"),
            AGE,
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        "cronjobs" => vec![
            NAME,
            text("Schedule"),
            text("Timezone"),
            text("Suspend"),
            number("Active"),
            text("Last Schedule"),
            AGE,
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        "services" => vec![
            NAME,
            text("Type"),
            text("Cluster-IP"),
            text("External-IP"),
            text("Port(s)"),
            AGE,
            wide("Selector"),
        ],
        "endpoints" => vec![NAME, text("Endpoints"), AGE],
        "endpointslices" => vec![
            NAME,
            text("AddressType"),
            text("Ports"),
            text("Endpoints"),
            AGE,
        ],
        "configmaps" => vec![NAME, number("Data"), AGE],
        "secrets" => vec![NAME, text("Type"), number("Data"), AGE],
        "serviceaccounts" => vec![NAME, number("Secrets"), AGE],
        "namespaces" => vec![NAME, text("Status"), AGE],
        "nodes" => vec![
            NAME,
            text("Status"),
            text("Roles"),
            AGE,
            text("Version"),
            wide("Internal-IP"),
            wide("External-IP"),
            wide("OS-Image"),
            wide("Kernel-Version"),
            wide("Container-Runtime"),
        ],
        "events" => vec![
            text("Last Seen"),
            text("Type"),
            text("Reason"),
            text("Object"),
            wide("Subobject"),
            wide("Source"),
            text("Message"),
            wide("First Seen"),
            wide("Count"),
            ("Name", "string", "name", 1),
        ],
        "horizontalpodautoscalers" => {
            vec![
                NAME,
                text("Reference"),
                text("Targets"),
                text("MinPods"),
                text("MaxPods"),
                number("Replicas"),
                AGE,
            ]
        }
        "leases" => vec![NAME, text("Holder"), AGE],
        "poddisruptionbudgets" => {
            vec![
                NAME,
                text("Min Available"),
                text("Max Unavailable"),
                number("Allowed Disruptions"),
                AGE,
            ]
        }
        "mutatingwebhookconfigurations" | "validatingwebhookconfigurations" => {
            vec![NAME, number("Webhooks"), AGE]
        }
        "customresourcedefinitions" | "clusterroles" | "roles" => {
            vec![NAME, ("Created At", "date", "", 0)]
        }
        "clusterrolebindings" | "rolebindings" => {
            vec![
                NAME,
                text("Role"),
                AGE,
                wide("Users"),
                wide("Groups"),
                wide("ServiceAccounts"),
            ]
        }
        "ingresses" => vec![
            NAME,
            text("Class"),
            text("Hosts"),
            text("Address"),
            text("Ports"),
            AGE,
        ],
        "networkpolicies" => vec![NAME, text("Pod-Selector"), AGE],
        "priorityclasses" => vec![NAME, number("Value"), text("Global-Default"), AGE],
        "storageclasses" => vec![NAME, text("Provisioner"), AGE],
        _ => vec![NAME, AGE],
    }
}

/// `columnDefinitions` of a table.
pub(crate) fn columns(resource: &Resource, version: &str) -> Value {
    let definition = |name: &str, kind: &str, format: &str, description: &str, priority: i64| json!({"name": name, "type": kind, "format": format, "description": description, "priority": priority});
    if !resource.custom {
        return builtin(resource)
            .iter()
            .map(|(n, t, f, p)| definition(n, t, f, describe(n), *p))
            .collect();
    }
    let mut out = vec![definition("Name", "string", "name", describe("Name"), 0)];
    let own = resource
        .version(version)
        .map(|v| v.columns.as_slice())
        .unwrap_or_default();
    out.extend(
        own.iter()
            .map(|c| definition(&c.name, &c.kind, &c.format, &c.description, c.priority)),
    );
    if own.is_empty() {
        out.push(definition("Age", "date", "", describe("Age"), 0));
    }
    Value::Array(out)
}

fn describe(name: &str) -> &'static str {
    match name {
        "Name" => "Name must be unique within a namespace.",
        "Age" | "Created At" => "Time since the object was created.",
        _ => "",
    }
}

/// The cells of one row.
pub(crate) fn cells(resource: &Resource, version: &str, value: &Value) -> Vec<Value> {
    if !resource.custom {
        return cells::builtin(resource, value);
    }
    let mut out = vec![name(value)];
    let own = resource
        .version(version)
        .map(|v| v.columns.as_slice())
        .unwrap_or_default();
    for column in own {
        let found = jsonpath::find(value, &column.path);
        out.push(match column.kind.as_str() {
            "date" => found.map_or(Value::Null, |v| {
                v.as_str().map_or(v.clone(), |t| age(t).into())
            }),
            "integer" | "number" | "boolean" => found.cloned().unwrap_or(Value::Null),
            _ => found.map_or(Value::Null, |v| {
                v.as_str().map_or_else(|| v.to_string().into(), Value::from)
            }),
        });
    }
    if own.is_empty() {
        out.push(created(value));
    }
    out
}

fn name(value: &Value) -> Value {
    json::str_at(value, &["metadata", "name"]).into()
}

/// Time since creation.
fn created(value: &Value) -> Value {
    age(json::str_at(value, &["metadata", "creationTimestamp"])).into()
}

/// Time since an RFC 3339 time, as kubectl prints it; `<unknown>` for none.
fn age(time: &str) -> String {
    match time.parse::<jiff::Timestamp>() {
        Ok(then) => duration((jiff::Timestamp::now().as_second() - then.as_second()).max(0)),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// A duration in the one or two units that matter.
fn duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |big: i64, unit: char, small: i64, sub: char| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{sub}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, 'm', seconds % 60, 's'),
        600..10800 => format!("{minutes}m"),
        10800..28800 => two(hours, 'h', minutes % 60, 'm'),
        28800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, 'd', hours % 24, 'h'),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_kubectl() {
        for (seconds, text) in [
            (5, "5s"),
            (119, "119s"),
            (120, "2m"),
            (135, "2m15s"),
            (605, "10m"),
            (10799, "179m"),
            (10800, "3h"),
            (11000, "3h3m"),
            (30000, "8h"),
            (172_800, "2d"),
            (176_400, "2d1h"),
            (864_000, "10d"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
