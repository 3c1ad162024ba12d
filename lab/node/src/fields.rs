//! What a pod may learn about itself: `fieldRef` and `resourceFieldRef`, for environment and downward volumes.

use std::{collections::BTreeMap, net::Ipv4Addr};

use k8s_openapi::{
    api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::network::GATEWAY;

/// The value of a field of the pod.
pub(crate) fn field(
    pod: &Pod,
    ip: Ipv4Addr,
    selector: &ObjectFieldSelector,
) -> Result<String, String> {
    let path = selector.field_path.as_str();
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(unknown(path)),
        };
        return Ok(map
            .as_ref()
            .and_then(|map| map.get(key))
            .cloned()
            .unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => spec
            .and_then(|spec| spec.node_name.clone())
            .unwrap_or_default(),
        "spec.serviceAccountName" => spec
            .and_then(|spec| spec.service_account_name.clone())
            .unwrap_or_else(|| "default".into()),
        "status.podIP" | "status.podIPs" => ip.to_string(),
        "status.hostIP" | "status.hostIPs" => GATEWAY.to_string(),
        _ => return Err(unknown(path)),
    })
}

fn unknown(path: &str) -> String {
    format!(
        "fieldRef {path} is not supported: accepted are metadata.{{name,namespace,uid,labels,annotations}}, \
         metadata.labels['KEY'], metadata.annotations['KEY'], spec.{{nodeName,serviceAccountName}}, status.{{podIP,hostIP}}"
    )
}

/// `metadata.labels['app']` → (`metadata.labels`, `app`).
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// One `key="value"` per line, as the downward API writes maps.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The value of a resource request or limit. A limit that is not set is the node's capacity.
pub(crate) fn resource(
    container: &Container,
    selector: &ResourceFieldSelector,
) -> Result<String, String> {
    let (kind, name) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| bad_resource(&selector.resource))?;
    let resources = container.resources.as_ref();
    let lists = match kind {
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        "limits" => resources.and_then(|r| r.limits.as_ref()),
        _ => return Err(bad_resource(&selector.resource)),
    };
    let value = match lists.and_then(|list| list.get(name)) {
        Some(quantity) => parse_quantity(quantity)
            .ok_or_else(|| format!("{}: bad quantity {:?}", selector.resource, quantity.0))?,
        None if kind == "requests" => 0.0,
        None => capacity(name),
    };
    let divisor = match &selector.divisor {
        Some(divisor) => parse_quantity(divisor).filter(|d| *d > 0.0).unwrap_or(1.0),
        None => 1.0,
    };
    Ok(format!("{:.0}", (value / divisor).ceil()))
}

fn bad_resource(name: &str) -> String {
    format!(
        "resourceFieldRef {name} is not supported: accepted are requests.X and limits.X with X cpu, memory or ephemeral-storage"
    )
}

/// CPUs, or bytes of memory, of this machine.
pub(crate) fn capacity(resource: &str) -> f64 {
    match resource {
        #[expect(clippy::cast_precision_loss, reason = "CPU counts are small")]
        "cpu" => std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64),
        _ => std::fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| {
                text.lines()
                    .next()?
                    .split_whitespace()
                    .nth(1)?
                    .parse::<f64>()
                    .ok()
            })
            .map_or(0.0, |kib| kib * 1024.0),
    }
}

/// A Kubernetes quantity as a number: `250m` → 0.25, `64Mi` → 67108864.
pub(crate) fn parse_quantity(quantity: &Quantity) -> Option<f64> {
    let text = quantity.0.trim();
    let digits = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-' | '+')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let number: f64 = number.parse().ok()?;
    let factor = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        exponent => 10f64.powi(exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    Some(number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, value) in [
            ("250m", 0.25),
            ("64Mi", 67_108_864.0),
            ("1.5", 1.5),
            ("2e3", 2000.0),
        ] {
            assert_eq!(
                parse_quantity(&Quantity(text.into())),
                Some(value),
                "{text}"
            );
        }
        assert_eq!(parse_quantity(&Quantity("12parsecs".into())), None);
    }

    #[test]
    fn labels_by_key_and_as_a_whole() {
        let mut pod = Pod::default();
        pod.metadata.labels = Some([("app".to_owned(), "x\"y".to_owned())].into());
        let ip = Ipv4Addr::LOCALHOST;
        let get = |path: &str| {
            field(
                &pod,
                ip,
                &ObjectFieldSelector {
                    field_path: path.into(),
                    ..Default::default()
                },
            )
        };
        assert_eq!(get("metadata.labels['app']").unwrap(), "x\"y");
        assert_eq!(get("metadata.labels").unwrap(), r#"app="x\"y""#);
        assert!(
            get("metadata.nonsense")
                .unwrap_err()
                .contains("metadata.nonsense")
        );
    }
}
