//! Kubernetes Ingress, as far as routes can be made of it.
//!
//! Read like the kinds of the mesh, from any of its three API versions: the older ones say `backend` where
//! `networking.k8s.io/v1` says `defaultBackend`, and name a service and its port side by side. Fields without meaning here
//! are passed over, since the API server validates them. Pilot turns Ingresses into Gateways and VirtualServices.

use serde::{Deserialize, Serialize};

/// What an Ingress asks for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressSpec {
    /// Class by field; the older annotation counts before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress_class_name: Option<String>,
    /// Where everything goes that no rule takes.
    #[serde(alias = "backend", skip_serializing_if = "Option::is_none")]
    pub default_backend: Option<IngressBackend>,
    /// Certificates.
    pub tls: Vec<IngressTls>,
    /// Routes by host.
    pub rules: Vec<IngressRule>,
}

/// Certificates for hosts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressTls {
    /// Hosts; none means all.
    pub hosts: Vec<String>,
    /// Secret with the certificate.
    pub secret_name: String,
}

/// Routes of a host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressRule {
    /// The host; empty means all.
    pub host: String,
    /// The routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<IngressPaths>,
}

/// Routes by path.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IngressPaths {
    /// In the user's order.
    pub paths: Vec<IngressPath>,
}

/// One route.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressPath {
    /// Path or pattern; empty means all.
    pub path: String,
    /// `Exact`, `Prefix` or `ImplementationSpecific`; unset in the oldest version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_type: Option<String>,
    /// Where requests go.
    pub backend: IngressBackend,
}

/// A service port.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "RawBackend", into = "RawBackend")]
pub struct IngressBackend {
    /// Service of the Ingress's namespace; empty if the backend is something else.
    pub service: String,
    /// Port of the service.
    pub port: Option<IngressPort>,
}

/// A port by number or by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum IngressPort {
    Number(u32),
    Name(String),
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawBackend {
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<RawService>,
    #[serde(skip_serializing)]
    service_name: String,
    #[serde(skip_serializing)]
    service_port: Option<IngressPort>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct RawService {
    name: String,
    port: RawPort,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct RawPort {
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

impl From<RawBackend> for IngressBackend {
    fn from(raw: RawBackend) -> Self {
        match raw.service {
            Some(RawService { name, port }) => Self {
                service: name,
                port: match (port.number, port.name) {
                    (Some(number), _) if number != 0 => Some(IngressPort::Number(number)),
                    (_, name) => name.filter(|n| !n.is_empty()).map(IngressPort::Name),
                },
            },
            None => Self {
                service: raw.service_name,
                port: raw.service_port,
            },
        }
    }
}

impl From<IngressBackend> for RawBackend {
    fn from(backend: IngressBackend) -> Self {
        let (number, name) = match backend.port {
            Some(IngressPort::Number(number)) => (Some(number), None),
            Some(IngressPort::Name(name)) => (None, Some(name)),
            None => (None, None),
        };
        Self {
            service: Some(RawService {
                name: backend.service,
                port: RawPort { number, name },
            }),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use crate::parse::{Options, load};

    #[test]
    fn every_version_is_read_alike() {
        let text = "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: i, namespace: shop}
spec:
  ingressClassName: istio
  defaultBackend: {service: {name: web, port: {number: 80}}}
  tls: [{hosts: [a.example.com], secretName: cert}]
  rules:
  - host: a.example.com
    http: {paths: [{path: /x, backend: {service: {name: web, port: {number: 80}}}}, {path: /y, backend: {service: {name: web, port: {name: http}}}}]}
---
apiVersion: extensions/v1beta1
kind: Ingress
metadata: {name: i, namespace: shop}
spec:
  ingressClassName: istio
  backend: {serviceName: web, servicePort: 80}
  tls: [{hosts: [a.example.com], secretName: cert}]
  rules:
  - host: a.example.com
    http: {paths: [{path: /x, backend: {serviceName: web, servicePort: 80}}, {path: /y, backend: {serviceName: web, servicePort: http}}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: n, namespace: shop}
spec: {}
";
        let parsed = load(text, Options::default());
        assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
        assert_eq!((parsed.objects.len(), parsed.skipped.len()), (2, 1));
        assert_eq!(parsed.objects[0], parsed.objects[1]);
        // What is shown can be read again.
        let shown = parsed.objects[0].spec_json().unwrap();
        let again: super::IngressSpec = serde_json::from_value(shown).unwrap();
        assert_eq!(again.rules[0].http.as_ref().unwrap().paths.len(), 2);
        assert_eq!(again.default_backend.unwrap().service, "web");
    }
}
