//! Node metadata: what Pilot and Mixer learn about this proxy.
//!
//! Values are strings, numbers and port lists included, because Istio's readers expect them so; LABELS is an object of
//! strings; keys out of ISTIO_METAJSON_* keep their JSON type.

use std::net::IpAddr;

use serde_json::{Map, Value};

use crate::{Environment, identity::Identity};

const META: &str = "ISTIO_META_";
const META_JSON: &str = "ISTIO_METAJSON_";
/// Keys that a proxy tells its peers.
const EXCHANGE_KEYS: &str = "NAME,NAMESPACE,INSTANCE_IPS,LABELS,OWNER,PLATFORM_METADATA,WORKLOAD_NAME,CANONICAL_TELEMETRY_SERVICE,MESH_ID,SERVICE_ACCOUNT";

/// An environment variable that could not be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{variable} is not a JSON object ({reason}); its keys are left out of the node metadata")]
pub struct MetadataError {
    /// The variable.
    pub variable: String,
    /// What the parser says.
    pub reason: String,
}

/// Collects the metadata, with these `flags` set; what cannot be used is returned beside it and costs nothing else.
pub fn collect(
    environment: &Environment,
    identity: &Identity,
    flags: &[&str],
) -> (Map<String, Value>, Vec<MetadataError>) {
    let (mut metadata, mut errors) = (Map::new(), Vec::new());
    for (variable, value) in environment {
        // WORKLOAD_NAME and its family are set below.
        let key = variable
            .strip_prefix(META)
            .filter(|key| !key.starts_with("WORKLOAD"));
        if let Some(key) = key {
            metadata.insert(key.to_owned(), value.clone().into());
        }
    }
    for (variable, text) in environment {
        let Some(key) = variable.strip_prefix(META_JSON) else {
            continue;
        };
        match serde_json::from_str::<Map<String, Value>>(text) {
            Ok(object) => {
                if key == "LABELS" {
                    if let Some(service) = object.get("istioTelemetryService") {
                        metadata.insert("CANONICAL_TELEMETRY_SERVICE".into(), service.clone());
                    }
                    metadata.insert("LABELS".into(), Value::Object(object.clone()));
                }
                metadata.extend(object);
            }
            Err(error) => errors.push(MetadataError {
                variable: variable.clone(),
                reason: error.to_string(),
            }),
        }
    }
    for (key, variable) in [
        ("NAME", "POD_NAME"),
        ("NAMESPACE", "POD_NAMESPACE"),
        ("OWNER", "ISTIO_META_OWNER"),
        ("WORKLOAD_NAME", "ISTIO_META_WORKLOAD_NAME"),
        ("SERVICE_ACCOUNT", "SERVICE_ACCOUNT"),
    ] {
        if let Some(value) = environment.get(variable).filter(|value| !value.is_empty()) {
            metadata.insert(key.into(), value.clone().into());
        }
    }
    let addresses: Vec<String> = identity.addresses.iter().map(IpAddr::to_string).collect();
    metadata.insert("INSTANCE_IPS".into(), addresses.join(",").into());
    metadata.insert("EXCHANGE_KEYS".into(), EXCHANGE_KEYS.into());
    for flag in flags {
        metadata.insert((*flag).into(), "1".into());
    }
    (metadata, errors)
}

/// Region, zone and sub-zone out of the label `istio-locality`, whose parts are separated by `/` or, as labels may
/// not hold a slash, by `.`.
pub fn locality(metadata: &Map<String, Value>) -> Option<[String; 3]> {
    let text = metadata.get("istio-locality")?.as_str()?;
    let separator = if text.contains('/') { '/' } else { '.' };
    let mut parts = text.split(separator).map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Some([next(), next(), next()])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::args::Role;

    fn identity() -> Identity {
        Identity {
            role: Role::Sidecar,
            addresses: vec!["10.244.1.5".parse().unwrap(), "10.0.0.9".parse().unwrap()],
            id: "a.b".into(),
            domain: "b.svc.cluster.local".into(),
            namespace: "b".into(),
        }
    }

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn as_the_injector_sets_it() {
        let environment = environment(&[
            ("POD_NAME", "reviews-v1-abc"),
            ("POD_NAMESPACE", "default"),
            ("SERVICE_ACCOUNT", "bookinfo-reviews"),
            ("ISTIO_META_POD_PORTS", "[{\"containerPort\":9080}]"),
            ("ISTIO_META_CONFIG_NAMESPACE", "default"),
            ("ISTIO_META_WORKLOAD_NAME", "reviews-v1"),
            (
                "ISTIO_META_OWNER",
                "kubernetes://apis/apps/v1/namespaces/default/deployments/reviews-v1",
            ),
            (
                "ISTIO_METAJSON_LABELS",
                r#"{"app":"reviews","version":"v1","istio-locality":"r1.z2"}"#,
            ),
            (
                "ISTIO_METAJSON_ANNOTATIONS",
                r#"{"sidecar.istio.io/statsInclusionPrefixes":"cluster.outbound"}"#,
            ),
            ("PATH", "/bin"),
        ]);
        let (metadata, errors) = collect(&environment, &identity(), &[]);
        assert_eq!(errors, []);
        let mut got = Value::Object(metadata.clone());
        got.as_object_mut().unwrap().remove("EXCHANGE_KEYS");
        assert_eq!(
            got,
            json!({
                "POD_PORTS": "[{\"containerPort\":9080}]", "CONFIG_NAMESPACE": "default", "OWNER": "kubernetes://apis/apps/v1/namespaces/default/deployments/reviews-v1",
                "LABELS": {"app": "reviews", "version": "v1", "istio-locality": "r1.z2"},
                "app": "reviews", "version": "v1", "istio-locality": "r1.z2",
                "sidecar.istio.io/statsInclusionPrefixes": "cluster.outbound",
                "NAME": "reviews-v1-abc", "NAMESPACE": "default", "WORKLOAD_NAME": "reviews-v1", "SERVICE_ACCOUNT": "bookinfo-reviews",
                "INSTANCE_IPS": "10.244.1.5,10.0.0.9",
            })
        );
        assert_eq!(
            locality(&metadata),
            Some(["r1".into(), "z2".into(), String::new()])
        );
    }

    #[test]
    fn a_bad_variable_costs_only_itself() {
        let environment = environment(&[("ISTIO_METAJSON_LABELS", "{app"), ("ISTIO_META_X", "1")]);
        let (metadata, errors) = collect(&environment, &identity(), &["SDS"]);
        assert_eq!(metadata["X"], json!("1"));
        assert_eq!(metadata["SDS"], json!("1"));
        assert!(
            errors[0]
                .to_string()
                .starts_with("ISTIO_METAJSON_LABELS is not a JSON object"),
            "{errors:?}"
        );
    }
}
