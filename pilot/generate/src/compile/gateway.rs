//! Gateways: servers by port, with what routers need to know of them.

use std::sync::Arc;

use mesh_config::{Meta, Object};
use proto_networking::networking::{Gateway, Server, server::tls_options::TlSmode};

use crate::{
    model::{Labels, Protocol, host},
    report::{Rejection, Rejector},
};

/// A Gateway, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayConfig {
    /// Metadata of the object.
    pub meta: Arc<Meta>,
    /// The object's content, to recognise that it did not change.
    pub spec: Arc<Gateway>,
    /// `NS/NAME`, as VirtualServices refer to it.
    pub full_name: Arc<str>,
    /// Workloads it is for; empty selects all.
    pub selector: Labels,
    /// Usable servers, in order.
    pub servers: Vec<GatewayServer>,
    /// What could not be used.
    pub rejections: Vec<Rejection>,
}

/// One server of a Gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayServer {
    /// Port number.
    pub port: u32,
    /// Port name.
    pub name: Arc<str>,
    /// Protocol of the port.
    pub protocol: Protocol,
    /// What kind of listener it needs.
    pub class: ServerClass,
    /// Hosts, with the namespace whose VirtualServices may use them (`None`: any).
    pub hosts: Vec<(Option<Arc<str>>, Arc<str>)>,
    /// Plain HTTP is answered with a redirect to HTTPS.
    pub https_redirect: bool,
}

/// Servers that share a port must be of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ServerClass {
    Http,
    /// TLS that ends here.
    TlsTerminated,
    /// TLS that is passed on by SNI.
    TlsPassthrough,
    Tcp,
}

impl GatewayConfig {
    /// Checks an object.
    pub fn compile(object: &Object<Gateway>) -> GatewayConfig {
        let (meta, spec) = (&object.meta, &object.spec);
        let mut rejections = Vec::new();
        let mut rejector = Rejector {
            kind: "Gateway",
            namespace: meta.namespace.as_str().into(),
            name: meta.name.as_str().into(),
            out: &mut rejections,
        };
        let servers = spec
            .servers
            .iter()
            .enumerate()
            .filter_map(|(i, spec)| {
                server(
                    spec,
                    &format!("servers[{i}]"),
                    &meta.namespace,
                    &mut rejector,
                )
            })
            .collect();
        GatewayConfig {
            meta: meta.clone(),
            spec: spec.clone(),
            full_name: format!("{}/{}", meta.namespace, meta.name).into(),
            selector: spec.selector.clone(),
            servers,
            rejections,
        }
    }
}

fn server(
    spec: &Server,
    path: &str,
    namespace: &str,
    rejector: &mut Rejector<'_>,
) -> Option<GatewayServer> {
    let Some(port) = spec
        .port
        .as_ref()
        .filter(|p| (1..=65535).contains(&p.number))
    else {
        let reason = "a port is required; accepted: 1 to 65535";
        rejector.reject(
            format!("{path}.port.number"),
            reason,
            "the server is left out",
        );
        return None;
    };
    let protocol = Protocol::parse(&port.protocol);
    let mode = spec
        .tls
        .as_ref()
        .and_then(|t| TlSmode::try_from(t.mode).ok());
    let class = match (protocol, mode) {
        (p, _) if p.is_http() => ServerClass::Http,
        (p, Some(TlSmode::Passthrough | TlSmode::AutoPassthrough)) if p.is_tls() => {
            ServerClass::TlsPassthrough
        }
        (p, Some(_)) if p.is_tls() => ServerClass::TlsTerminated,
        (p, None) if p.is_tls() => {
            rejector.reject(
                format!("{path}.tls"),
                "HTTPS and TLS servers need tls settings",
                "the server is left out",
            );
            return None;
        }
        (p, _) if p.is_tcp() => ServerClass::Tcp,
        _ => {
            let reason = format!(
                "{:?} is no protocol; accepted: HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS",
                port.protocol
            );
            rejector.reject(
                format!("{path}.port.protocol"),
                reason,
                "the server is left out",
            );
            return None;
        }
    };
    Some(GatewayServer {
        port: port.number,
        name: port.name.as_str().into(),
        protocol,
        class,
        hosts: hosts(&spec.hosts, path, namespace, rejector),
        https_redirect: spec.tls.as_ref().is_some_and(|t| t.https_redirect),
    })
}

fn hosts(
    list: &[String],
    path: &str,
    namespace: &str,
    rejector: &mut Rejector<'_>,
) -> Vec<(Option<Arc<str>>, Arc<str>)> {
    let mut out = Vec::with_capacity(list.len());
    for (i, text) in list.iter().enumerate() {
        let (of, name) = match text.split_once('/') {
            Some(("*", name)) => (None, name),
            Some((".", name)) => (Some(Arc::from(namespace)), name),
            Some((other, name)) => (Some(other.into()), name),
            None => (None, text.as_str()),
        };
        let name = name.to_ascii_lowercase();
        if host::is_valid(&name) {
            out.push((of, name.into()));
        } else {
            let reason = format!(
                "{text:?} is no host; accepted: a DNS name, a wildcard, with NAMESPACE/ before it"
            );
            rejector.reject(format!("{path}.hosts[{i}]"), reason, "the host is left out");
        }
    }
    out
}
