//! Gateways: servers by port, with what routers need to know of them.

use std::sync::Arc;

use mesh_config::{Meta, Object};
use proto_networking::networking::{
    Gateway, Server,
    server::{TlsOptions, tls_options::TlSmode},
};

use super::ServerTls;
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
    /// What it does with connections.
    pub kind: ServerKind,
    /// Hosts, with the namespace whose VirtualServices may use them (`None`: any).
    pub hosts: Vec<(Option<Arc<str>>, Arc<str>)>,
    /// Plain HTTP is answered with a redirect to HTTPS.
    pub https_redirect: bool,
}

/// What a server does with connections.
#[derive(Clone, Debug, PartialEq)]
pub enum ServerKind {
    /// Routes plain HTTP.
    Http,
    /// Carries bytes.
    Tcp,
    /// Ends TLS and routes the HTTP inside.
    Https(ServerTls),
    /// Ends TLS and carries the bytes inside.
    TlsTcp(ServerTls),
    /// Passes TLS on by SNI, as VirtualServices say.
    Passthrough,
    /// Passes TLS on to the cluster that the SNI names.
    AutoPassthrough,
}

/// Servers that share a port must be of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ServerClass {
    Http,
    Tls,
    Tcp,
}

impl std::fmt::Display for ServerClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ServerClass::Http => "plain HTTP",
            ServerClass::Tls => "TLS",
            ServerClass::Tcp => "TCP",
        })
    }
}

impl ServerKind {
    /// Its class.
    pub fn class(&self) -> ServerClass {
        match self {
            ServerKind::Http => ServerClass::Http,
            ServerKind::Tcp => ServerClass::Tcp,
            _ => ServerClass::Tls,
        }
    }

    /// Settings of TLS that ends here.
    pub fn tls(&self) -> Option<&ServerTls> {
        match self {
            ServerKind::Https(tls) | ServerKind::TlsTcp(tls) => Some(tls),
            _ => None,
        }
    }
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
    let kind = kind(protocol, spec.tls.as_ref(), &port.protocol, path, rejector)?;
    let hosts = hosts(&spec.hosts, path, namespace, rejector);
    if hosts.is_empty() {
        // Without hosts TLS would be ended for every name.
        let reason = "no usable host; accepted: at least one, or *";
        rejector.reject(format!("{path}.hosts"), reason, "the server is left out");
        return None;
    }
    Some(GatewayServer {
        port: port.number,
        name: port.name.as_str().into(),
        protocol,
        kind,
        hosts,
        https_redirect: spec.tls.as_ref().is_some_and(|t| t.https_redirect),
    })
}

fn kind(
    protocol: Protocol,
    tls: Option<&TlsOptions>,
    text: &str,
    path: &str,
    rejector: &mut Rejector<'_>,
) -> Option<ServerKind> {
    let action = "the server is left out";
    let path = |field: &str| format!("{path}.{field}");
    if protocol.is_http() {
        let ends = |t: &&TlsOptions| {
            matches!(
                t.mode(),
                TlSmode::Simple | TlSmode::Mutual | TlSmode::IstioMutual
            )
        };
        if let Some(tls) = tls.filter(ends) {
            let reason = format!(
                "{} cannot be had with protocol {text}; accepted: protocol HTTPS, or only httpsRedirect",
                tls.mode().as_str_name()
            );
            // Served in plain text it would be open to those whom the settings mean to keep out.
            rejector.reject(path("tls.mode"), reason, action);
            return None;
        }
        return Some(ServerKind::Http);
    }
    if !protocol.is_tcp() {
        let reason =
            format!("{text:?} is no protocol; accepted: HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS");
        rejector.reject(path("port.protocol"), reason, action);
        return None;
    }
    let Some(tls) = tls else {
        if protocol.is_tls() {
            rejector.reject(
                path("tls"),
                "HTTPS and TLS servers need tls settings",
                action,
            );
            return None;
        }
        return Some(ServerKind::Tcp);
    };
    let Ok(mode) = TlSmode::try_from(tls.mode) else {
        let reason = format!(
            "{} is no mode; accepted: PASSTHROUGH, SIMPLE, MUTUAL, AUTO_PASSTHROUGH, ISTIO_MUTUAL",
            tls.mode
        );
        rejector.reject(path("tls.mode"), reason, action);
        return None;
    };
    match mode {
        TlSmode::Passthrough => Some(ServerKind::Passthrough),
        TlSmode::AutoPassthrough => Some(ServerKind::AutoPassthrough),
        TlSmode::Simple | TlSmode::Mutual | TlSmode::IstioMutual => {
            let tls = super::tls::server(tls, mode, &path("tls"), rejector)?;
            Some(match protocol {
                Protocol::Https => ServerKind::Https(tls),
                _ => ServerKind::TlsTcp(tls),
            })
        }
    }
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
