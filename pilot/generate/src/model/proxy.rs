//! A connected proxy, parsed once from the Envoy `Node` of its first request.
//!
//! The node ID is `TYPE~IP~ID~DNSDOMAIN`; the rest is metadata that pilot-agent wrote into the bootstrap.

use std::{net::IpAddr, sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::config::core::v3::Node,
    google::protobuf::{Struct, Value, value::Kind},
};

use super::{CertificateSources, ContainerPort, Labels, Locality};

/// Sidecar of a workload, or a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum ProxyKind {
    Sidecar,
    Router,
}

/// What reads the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Client {
    /// Envoy: everything, or by name what its listeners and clusters refer to.
    #[default]
    Envoy,
    /// A gRPC library that routes by itself: everything by name, from the listener `HOST:PORT` on.
    Grpc,
}

impl Client {
    /// gRPC says what it is in `user_agent_name`; who cannot says so in metadata.
    fn of(node: &Node, meta: &Meta<'_>) -> Client {
        let named = node.user_agent_name.starts_with("gRPC");
        if named || meta.text("GENERATOR").as_deref() == Some("grpc") {
            Client::Grpc
        } else {
            Client::Envoy
        }
    }
}

/// How traffic reaches a sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum InterceptionMode {
    #[default]
    Redirect,
    Tproxy,
    /// No capture: listeners are bound for real.
    None,
}

/// What kind of router.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum RouterMode {
    #[default]
    Standard,
    /// Passes mTLS of other clusters through, by SNI.
    SniDnat,
}

/// Version of the proxy's own software, for gates; unknown counts as newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(pub u16, pub u16, pub u16);

impl Version {
    /// Newer than everything.
    pub const NEWEST: Version = Version(u16::MAX, u16::MAX, u16::MAX);

    fn parse(text: &str) -> Version {
        let text = text.strip_prefix("release-").unwrap_or(text);
        let mut parts = text.split('.').map(|p| {
            let digits = p
                .find(|c: char| !c.is_ascii_digit())
                .map_or(p, |end| &p[..end]);
            digits.parse::<u16>().ok()
        });
        match (parts.next().flatten(), parts.next().flatten()) {
            (Some(major), Some(minor)) => {
                Version(major, minor, parts.next().flatten().unwrap_or(0))
            }
            _ => Version::NEWEST,
        }
    }
}

/// Why a node cannot be served. The stream is closed with this text.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NodeError {
    /// Wrong shape.
    #[error(
        "node ID {id:?} has {parts} parts; expected TYPE~IP~ID~DNSDOMAIN, such as \
         sidecar~10.1.2.3~web-0.shop~shop.svc.cluster.local"
    )]
    Parts {
        /// The ID as sent.
        id: String,
        /// How many parts it has.
        parts: usize,
    },
    /// Unknown type.
    #[error("node type {0:?} is unknown; accepted: sidecar, router")]
    Kind(String),
    /// An address that is none.
    #[error("{field} holds {text:?}, which is not an IP address")]
    Address {
        /// Where it stood.
        field: &'static str,
        /// What stood there.
        text: String,
    },
}

/// A proxy as Pilot sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    /// The node ID as sent: key of debug output and of per-proxy metrics.
    pub id: Arc<str>,
    /// Sidecar or router.
    pub kind: ProxyKind,
    /// Envoy, or a gRPC library.
    pub client: Client,
    /// Addresses of the workload, at least one.
    pub ips: Vec<IpAddr>,
    /// Third part of the ID, `POD.NS`.
    pub name: Arc<str>,
    /// Client's DNS domain, `NS.svc.DOMAIN`.
    pub dns_domain: Arc<str>,
    /// Namespace whose config applies.
    pub namespace: Arc<str>,
    /// Software version.
    pub version: Version,
    /// Labels the proxy itself told; absent: ask the registry.
    pub labels: Option<Arc<Labels>>,
    /// Locality the proxy itself told.
    pub locality: Option<Locality>,
    /// Capture mode.
    pub interception: InterceptionMode,
    /// Router mode.
    pub router_mode: RouterMode,
    /// Cluster (registry) it runs in.
    pub cluster_id: Arc<str>,
    /// Network it runs in.
    pub network: Arc<str>,
    /// Networks whose endpoints it may see; empty: the unnamed one.
    pub network_view: Vec<Arc<str>>,
    /// Container ports the proxy itself told, for pods the registry does not know yet.
    pub pod_ports: Vec<ContainerPort>,
    /// Accept HTTP/1.0.
    pub http10: bool,
    /// Idle timeout of connections, if the proxy asks for one.
    pub idle_timeout: Option<Duration>,
    /// Where its certificates come from.
    pub certificates: Arc<CertificateSources>,
    /// All metadata, for EnvoyFilter's `proxy.metadata` match.
    pub metadata: Arc<std::collections::BTreeMap<String, String>>,
}

impl Proxy {
    /// Parses a node.
    pub fn from_node(node: &Node) -> Result<Proxy, NodeError> {
        let parts: Vec<&str> = node.id.split('~').collect();
        let [kind, ip, name, dns_domain] = parts[..] else {
            return Err(NodeError::Parts {
                id: clip(&node.id),
                parts: parts.len(),
            });
        };
        let kind = match kind {
            "sidecar" => ProxyKind::Sidecar,
            "router" => ProxyKind::Router,
            other => return Err(NodeError::Kind(clip(other))),
        };
        let meta = Meta(node.metadata.as_ref());
        let ips = match meta.text("INSTANCE_IPS").filter(|s| !s.trim().is_empty()) {
            Some(list) => list
                .split(',')
                .map(|ip| address("metadata INSTANCE_IPS", ip))
                .collect::<Result<_, _>>()?,
            None => vec![address("the second part of the node ID", ip)?],
        };
        let namespace = meta
            .text("CONFIG_NAMESPACE")
            .filter(|ns| !ns.is_empty())
            .unwrap_or_else(|| dns_domain.split('.').next().unwrap_or_default().to_owned());
        let locality = node
            .locality
            .as_ref()
            .map(|l| Locality {
                region: l.region.as_str().into(),
                zone: l.zone.as_str().into(),
                subzone: l.sub_zone.as_str().into(),
            })
            .filter(|l| !l.is_empty());
        Ok(Proxy {
            id: node.id.as_str().into(),
            kind,
            client: Client::of(node, &meta),
            ips,
            name: name.into(),
            dns_domain: dns_domain.to_ascii_lowercase().into(),
            namespace: namespace.into(),
            version: meta
                .text("ISTIO_VERSION")
                .map_or(Version::NEWEST, |v| Version::parse(&v)),
            labels: meta.labels().map(Arc::new),
            locality,
            interception: match meta.text("INTERCEPTION_MODE").as_deref() {
                Some("TPROXY") => InterceptionMode::Tproxy,
                Some("NONE") => InterceptionMode::None,
                _ => InterceptionMode::Redirect,
            },
            router_mode: match meta.text("ROUTER_MODE").as_deref() {
                Some("sni-dnat") => RouterMode::SniDnat,
                _ => RouterMode::Standard,
            },
            cluster_id: meta.text("CLUSTER_ID").unwrap_or_default().into(),
            network: meta.text("NETWORK").unwrap_or_default().into(),
            network_view: meta
                .text("REQUESTED_NETWORK_VIEW")
                .unwrap_or_default()
                .split(',')
                .filter(|s| !s.is_empty())
                .map(Into::into)
                .collect(),
            pod_ports: meta.pod_ports(),
            http10: meta.text("HTTP10").as_deref() == Some("1"),
            idle_timeout: meta.text("IDLE_TIMEOUT").and_then(|t| duration(&t)),
            certificates: Arc::new(CertificateSources::of(|key| meta.text(key))),
            metadata: Arc::new(meta.flat()),
        })
    }

    /// Whether the workload has IPv4 addresses; an address family without any gets no listeners.
    pub fn ipv4(&self) -> bool {
        self.ips.iter().any(IpAddr::is_ipv4)
    }

    /// Whether the workload has IPv6 addresses.
    pub fn ipv6(&self) -> bool {
        self.ips.iter().any(IpAddr::is_ipv6)
    }
}

/// Error texts quote at most this much of what a stranger sent.
fn clip(text: &str) -> String {
    text.chars().take(200).collect()
}

fn address(field: &'static str, text: &str) -> Result<IpAddr, NodeError> {
    text.trim().parse().map_err(|_| NodeError::Address {
        field,
        text: clip(text),
    })
}

/// Go's duration text, as far as metadata uses it: a number with unit ms, s, m or h.
fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().ok()?;
    let scale = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * scale)
        .ok()
        .filter(|d| !d.is_zero())
}

/// Typed reads of the metadata struct.
struct Meta<'a>(Option<&'a Struct>);

impl Meta<'_> {
    fn kind(&self, key: &str) -> Option<&Kind> {
        self.0?.fields.get(key)?.kind.as_ref()
    }

    fn text(&self, key: &str) -> Option<String> {
        self.kind(key).and_then(scalar)
    }

    /// `LABELS` is an object; agents that pass it as JSON text are understood too.
    fn labels(&self) -> Option<Labels> {
        match self.kind("LABELS")? {
            Kind::StructValue(s) => Some(
                s.fields
                    .iter()
                    .filter_map(|(k, v)| Some((k.clone(), v.kind.as_ref().and_then(scalar)?)))
                    .collect(),
            ),
            Kind::StringValue(json) => serde_json::from_str(json).ok(),
            _ => None,
        }
    }

    /// `POD_PORTS` is JSON text `[{"name","containerPort","protocol"}]`, or the same as a list value.
    fn pod_ports(&self) -> Vec<ContainerPort> {
        let list = match self.kind("POD_PORTS") {
            Some(Kind::StringValue(json)) => serde_json::from_str(json).unwrap_or_default(),
            Some(Kind::ListValue(list)) => {
                serde_json::Value::Array(list.values.iter().map(json).collect())
            }
            _ => return Vec::new(),
        };
        let entries = list.as_array().map(Vec::as_slice).unwrap_or_default();
        entries
            .iter()
            .filter_map(|e| {
                let number = e.get("containerPort")?;
                let number = number
                    .as_u64()
                    .or_else(|| number.as_f64().map(|n| n as u64))?;
                Some(ContainerPort {
                    name: e
                        .get("name")
                        .and_then(|n| n.as_str())
                        .unwrap_or_default()
                        .into(),
                    number: u32::try_from(number)
                        .ok()
                        .filter(|n| (1..=65535).contains(n))?,
                })
            })
            .collect()
    }

    fn flat(&self) -> std::collections::BTreeMap<String, String> {
        let fields = self.0.iter().flat_map(|s| &s.fields);
        fields
            .filter_map(|(k, v)| Some((k.clone(), v.kind.as_ref().and_then(scalar)?)))
            .collect()
    }
}

fn scalar(kind: &Kind) -> Option<String> {
    match kind {
        Kind::StringValue(s) => Some(s.clone()),
        Kind::NumberValue(n) => Some(n.to_string()),
        Kind::BoolValue(b) => Some(b.to_string()),
        _ => None,
    }
}

fn json(value: &Value) -> serde_json::Value {
    match &value.kind {
        Some(Kind::StringValue(s)) => s.as_str().into(),
        Some(Kind::NumberValue(n)) => (*n).into(),
        Some(Kind::BoolValue(b)) => (*b).into(),
        Some(Kind::ListValue(l)) => l.values.iter().map(json).collect(),
        Some(Kind::StructValue(s)) => {
            serde_json::Value::Object(s.fields.iter().map(|(k, v)| (k.clone(), json(v))).collect())
        }
        _ => serde_json::Value::Null,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn node(id: &str, metadata: &[(&str, Kind)]) -> Node {
        let fields = metadata
            .iter()
            .map(|(k, v)| {
                (
                    (*k).to_owned(),
                    Value {
                        kind: Some(v.clone()),
                    },
                )
            })
            .collect();
        Node {
            id: id.to_owned(),
            metadata: Some(Struct { fields }),
            ..Node::default()
        }
    }

    fn text(s: &str) -> Kind {
        Kind::StringValue(s.to_owned())
    }

    #[test]
    fn a_sidecar_is_read_from_its_id_and_metadata() {
        let n = node(
            "sidecar~10.1.2.3~web-0.shop~shop.svc.cluster.local",
            &[
                ("INSTANCE_IPS", text("10.1.2.3, fd00::3")),
                ("ISTIO_VERSION", text("release-1.4.10")),
                ("LABELS", text(r#"{"app":"web"}"#)),
                (
                    "POD_PORTS",
                    text(r#"[{"name":"http","containerPort":9080,"protocol":"TCP"}]"#),
                ),
                ("IDLE_TIMEOUT", text("90s")),
            ],
        );
        let p = Proxy::from_node(&n).unwrap();
        assert_eq!(
            (p.kind, &*p.namespace, p.version),
            (ProxyKind::Sidecar, "shop", Version(1, 4, 10))
        );
        assert!(p.ipv4() && p.ipv6());
        assert_eq!(p.labels.unwrap().get("app").unwrap(), "web");
        assert_eq!(p.pod_ports[0].number, 9080);
        assert_eq!(p.idle_timeout, Some(Duration::from_secs(90)));
    }

    #[test]
    fn grpc_clients_are_known_by_what_they_say() {
        let id = "sidecar~10.1.2.3~web-0.shop~shop.svc.cluster.local";
        let client = |n: &Node| Proxy::from_node(n).unwrap().client;
        assert_eq!(client(&node(id, &[])), Client::Envoy);
        assert_eq!(
            client(&node(id, &[("GENERATOR", text("grpc"))])),
            Client::Grpc
        );
        let mut named = node(id, &[]);
        named.user_agent_name = "gRPC C-core Linux".to_owned();
        assert_eq!(client(&named), Client::Grpc);
    }

    #[test]
    fn what_cannot_be_served_says_why() {
        let err = |id: &str| Proxy::from_node(&node(id, &[])).unwrap_err().to_string();
        assert!(err("sidecar~1.2.3.4~x").contains("3 parts"));
        assert!(err("ingress~1.2.3.4~x~y").contains("accepted: sidecar, router"));
        assert!(err("sidecar~no~x~y").contains("not an IP address"));
        let bad = node(
            "sidecar~1.2.3.4~x~y",
            &[("INSTANCE_IPS", text("1.2.3.4,what"))],
        );
        assert!(
            Proxy::from_node(&bad)
                .unwrap_err()
                .to_string()
                .contains("INSTANCE_IPS")
        );
    }

    #[test]
    fn an_unknown_version_is_the_newest() {
        assert_eq!(Version::parse("master-20200101"), Version::NEWEST);
        assert_eq!(Version::parse("1.4.0-beta.1"), Version(1, 4, 0));
        assert!(Version::parse("1.3.8") < Version::parse("1.4.0"));
    }
}
