//! Sidecars: which workloads they are for, what these may reach, and on which ports they are reached.
//!
//! Everything here is independent of the client but for `.`, which means the namespace that the Sidecar is applied to:
//! the Sidecar of the root namespace applies to many.

use std::{net::IpAddr, sync::Arc};

use mesh_config::{Meta, Object};
use proto_networking::networking::{
    CaptureMode, IstioEgressListener, IstioIngressListener, Port, Sidecar,
    outbound_traffic_policy::Mode,
};

use crate::{
    model::{Labels, Protocol, host},
    report::{Rejection, Rejector},
};

const UNIX: &str = "unix://";
/// `sizeof(sockaddr_un.sun_path)` without the final zero: Envoy refuses more.
const MAX_SOCKET_PATH: usize = 107;

/// A Sidecar, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct SidecarConfig {
    /// Metadata of the object.
    pub meta: Arc<Meta>,
    /// The object's content, to recognise that it did not change.
    pub spec: Arc<Sidecar>,
    /// Identity in scope keys.
    pub id: SidecarId,
    /// Labels of the workloads it is for; `None`: all of the namespace that no other one selects.
    pub selector: Option<Labels>,
    /// Outbound listeners: those with a port of their own in order, then the catch-all one if there is one. Never empty.
    pub egress: Vec<EgressListener>,
    /// Inbound listeners; empty: those that follow from the services of the workload.
    pub ingress: Vec<IngressListener>,
    /// Whether unknown destinations may be called; `None`: as the mesh has it.
    pub allow_any: Option<bool>,
    /// What could not be used.
    pub rejections: Vec<Rejection>,
}

/// Which Sidecar: its content comes from the snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct SidecarId {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// One `egress` entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EgressListener {
    /// A port of its own; `None`: one listener per port of the imported services.
    pub port: Option<ListenPort>,
    /// Where to listen, if the user said.
    pub bind: Option<Bind>,
    /// `captureMode: NONE`: bound for real, traffic is not redirected there.
    pub bound: bool,
    /// What is imported; may be empty.
    pub hosts: Vec<EgressHost>,
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// An IP address.
    Ip(IpAddr),
    /// A Unix socket: the path after `unix://`; `@name` is an abstract one.
    Unix(Arc<str>),
}

impl Bind {
    /// As names of listeners and routes spell it.
    pub fn text(&self) -> String {
        match self {
            Bind::Ip(ip) => ip.to_string(),
            Bind::Unix(path) => format!("{UNIX}{path}"),
        }
    }
}

/// The path in a text of the form [`Bind::text`] gives to Unix sockets.
pub(crate) fn socket_path(bind: &str) -> Option<&str> {
    bind.strip_prefix(UNIX)
}

/// The port of an `egress` or `ingress` entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenPort {
    /// 0 for Unix sockets.
    pub number: u32,
    /// What clients speak.
    pub protocol: Protocol,
    /// May be empty.
    pub name: Arc<str>,
}

/// `NAMESPACE/HOST`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct EgressHost {
    pub namespace: EgressNamespace,
    pub host: Arc<str>,
}

/// Of which namespace the imported services and VirtualServices are. (`~`, none at all, leaves no entry.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EgressNamespace {
    /// `*`.
    Any,
    /// `.`: the one the Sidecar is applied to.
    Own,
    /// By name.
    Named(Arc<str>),
}

impl EgressHost {
    /// Whether something of this namespace and host is meant, for clients of `own`.
    pub fn imports(&self, own: &str, namespace: &str, hostname: &str) -> bool {
        let of_namespace = match &self.namespace {
            EgressNamespace::Any => true,
            EgressNamespace::Own => namespace == own,
            EgressNamespace::Named(name) => **name == *namespace,
        };
        of_namespace && host::matches(&self.host, hostname)
    }
}

/// One `ingress` entry.
#[derive(Clone, Debug, PartialEq)]
pub struct IngressListener {
    /// Where clients connect to.
    pub port: ListenPort,
    /// Address; `None`: that of the workload.
    pub bind: Option<IpAddr>,
    /// `captureMode: NONE`: bound for real.
    pub bound: bool,
    /// Where the application listens.
    pub endpoint: IngressEndpoint,
}

/// Where the application listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IngressEndpoint {
    /// A port of the loopback interface.
    Port(u32),
    /// A Unix socket.
    Unix(Arc<str>),
}

impl SidecarConfig {
    /// Checks an object.
    pub fn compile(object: &Object<Sidecar>) -> SidecarConfig {
        let (meta, spec) = (&object.meta, &object.spec);
        let id = SidecarId {
            namespace: meta.namespace.as_str().into(),
            name: meta.name.as_str().into(),
        };
        let mut rejections = Vec::new();
        let mut rejector = Rejector {
            kind: "Sidecar",
            namespace: id.namespace.clone(),
            name: id.name.clone(),
            out: &mut rejections,
        };
        let egress = egress(&spec.egress, &mut rejector);
        let ingress = ingress(&spec.ingress, &mut rejector);
        SidecarConfig {
            meta: meta.clone(),
            spec: spec.clone(),
            id,
            selector: spec.workload_selector.as_ref().map(|s| s.labels.clone()),
            egress,
            ingress,
            allow_any: spec
                .outbound_traffic_policy
                .as_ref()
                .map(|p| p.mode() == Mode::AllowAny),
            rejections,
        }
    }
}

const LEFT_OUT: &str = "the listener is left out";

fn egress(list: &[IstioEgressListener], rejector: &mut Rejector<'_>) -> Vec<EgressListener> {
    let mut own_port: Vec<EgressListener> = Vec::new();
    let mut catch_all: Option<EgressListener> = None;
    for (i, spec) in list.iter().enumerate() {
        let path = format!("egress[{i}]");
        let Some(listener) = egress_listener(spec, &path, rejector) else {
            continue;
        };
        let same = |other: &EgressListener| match (&listener.port, &other.port) {
            (Some(a), Some(b)) if a.number == 0 => b.number == 0 && listener.bind == other.bind,
            (Some(a), Some(b)) => a.number == b.number,
            _ => false,
        };
        if listener.port.is_none() {
            if catch_all.is_some() {
                let reason = "a second listener without port; accepted: one";
                rejector.reject(format!("{path}.port"), reason, LEFT_OUT);
            } else {
                catch_all = Some(listener);
            }
        } else if own_port.iter().any(same) {
            let reason = "an earlier listener has the port; accepted: ports that differ";
            rejector.reject(format!("{path}.port.number"), reason, LEFT_OUT);
        } else {
            own_port.push(listener);
        }
    }
    own_port.extend(catch_all);
    if list.is_empty() {
        own_port.push(EgressListener {
            hosts: vec![EgressHost {
                namespace: EgressNamespace::Any,
                host: "*".into(),
            }],
            ..Default::default()
        });
    }
    own_port
}

fn egress_listener(
    spec: &IstioEgressListener,
    path: &str,
    rejector: &mut Rejector<'_>,
) -> Option<EgressListener> {
    let bind = match spec.bind.as_str() {
        "" => None,
        text => match bind(text) {
            Some(bind) => Some(bind),
            None => {
                let reason = format!(
                    "{text:?} is no address; accepted: an IP address, or unix:///path of at most {MAX_SOCKET_PATH} bytes"
                );
                rejector.reject(format!("{path}.bind"), reason, LEFT_OUT);
                return None;
            }
        },
    };
    let socket = matches!(bind, Some(Bind::Unix(_)));
    let port = match &spec.port {
        None if socket => {
            let reason = "a socket needs a port with number 0 and a protocol";
            rejector.reject(format!("{path}.port"), reason, LEFT_OUT);
            return None;
        }
        None => None,
        Some(port) => Some(listen_port(port, socket, path, rejector)?),
    };
    Some(EgressListener {
        port,
        bind,
        bound: spec.capture_mode() == CaptureMode::None || socket,
        hosts: hosts(&spec.hosts, path, rejector),
    })
}

fn bind(text: &str) -> Option<Bind> {
    match text.strip_prefix(UNIX) {
        Some(path) => socket(path).map(Bind::Unix),
        None => text.parse().ok().map(Bind::Ip),
    }
}

fn socket(path: &str) -> Option<Arc<str>> {
    let usable = match path.as_bytes() {
        [b'@', rest @ ..] => !rest.is_empty(),
        [b'/', rest @ ..] => !rest.is_empty() && !path.ends_with('/'),
        _ => false,
    };
    (usable && path.len() <= MAX_SOCKET_PATH && !path.contains('\0')).then(|| path.into())
}

/// A port of its own. Its number is 0 for a socket, and only there.
fn listen_port(
    port: &Port,
    socket: bool,
    path: &str,
    rejector: &mut Rejector<'_>,
) -> Option<ListenPort> {
    let accepted = if socket { 0..=0 } else { 1..=65535 };
    if !accepted.contains(&port.number) {
        let reason = format!(
            "{} is no port; accepted: 1 to 65535, or 0 together with a bind of unix:///path",
            port.number
        );
        rejector.reject(format!("{path}.port.number"), reason, LEFT_OUT);
        return None;
    }
    let protocol = Protocol::parse(&port.protocol);
    if protocol == Protocol::Udp {
        let reason = "UDP is not proxied; accepted: HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS";
        rejector.reject(format!("{path}.port.protocol"), reason, LEFT_OUT);
        return None;
    }
    if protocol == Protocol::Unsupported && !port.protocol.is_empty() {
        let reason = format!(
            "{:?} is no protocol; accepted: HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS",
            port.protocol
        );
        let action = "what clients speak is found out by sniffing";
        rejector.reject(format!("{path}.port.protocol"), reason, action);
    }
    Some(ListenPort {
        number: port.number,
        protocol,
        name: port.name.as_str().into(),
    })
}

fn hosts(list: &[String], path: &str, rejector: &mut Rejector<'_>) -> Vec<EgressHost> {
    let mut out: Vec<EgressHost> = Vec::with_capacity(list.len());
    for (i, text) in list.iter().enumerate() {
        let split = text.split_once('/');
        let name = split.map(|(_, name)| name.to_ascii_lowercase());
        let (Some((namespace, _)), Some(name)) = (split, name.filter(|n| host::is_valid(n))) else {
            let reason = format!(
                "{text:?} imports nothing; accepted: NAMESPACE/HOST with a namespace, *, . or ~ and a host name or wildcard, such as ./* or prod/api.example.com"
            );
            rejector.reject(format!("{path}.hosts[{i}]"), reason, "the host is left out");
            continue;
        };
        let namespace = match namespace {
            "~" => continue,
            "*" => EgressNamespace::Any,
            "." => EgressNamespace::Own,
            named => EgressNamespace::Named(named.into()),
        };
        let host = EgressHost {
            namespace,
            host: name.into(),
        };
        if !out.contains(&host) {
            out.push(host);
        }
    }
    out
}

fn ingress(list: &[IstioIngressListener], rejector: &mut Rejector<'_>) -> Vec<IngressListener> {
    let mut out: Vec<IngressListener> = Vec::new();
    for (i, spec) in list.iter().enumerate() {
        let path = format!("ingress[{i}]");
        let Some(listener) = ingress_listener(spec, &path, rejector) else {
            continue;
        };
        if out.iter().any(|l| l.port.number == listener.port.number) {
            let reason = "an earlier listener has the port; accepted: ports that differ";
            rejector.reject(format!("{path}.port.number"), reason, LEFT_OUT);
        } else {
            out.push(listener);
        }
    }
    out
}

fn ingress_listener(
    spec: &IstioIngressListener,
    path: &str,
    rejector: &mut Rejector<'_>,
) -> Option<IngressListener> {
    let Some(port) = &spec.port else {
        let reason = "a port is required; accepted: a number and a protocol";
        rejector.reject(format!("{path}.port"), reason, LEFT_OUT);
        return None;
    };
    let port = listen_port(port, false, path, rejector)?;
    let bind = match spec.bind.as_str() {
        "" => None,
        text => match text.parse() {
            Ok(ip) => Some(ip),
            Err(_) => {
                let reason = format!("{text:?} is no address; accepted: an IP address");
                rejector.reject(format!("{path}.bind"), reason, LEFT_OUT);
                return None;
            }
        },
    };
    let Some(endpoint) = endpoint(&spec.default_endpoint) else {
        let reason = format!(
            "{:?} is no endpoint; accepted: 127.0.0.1:PORT, :PORT or unix:///path",
            spec.default_endpoint
        );
        rejector.reject(format!("{path}.defaultEndpoint"), reason, LEFT_OUT);
        return None;
    };
    Some(IngressListener {
        port,
        bind,
        bound: spec.capture_mode() == CaptureMode::None,
        endpoint,
    })
}

fn endpoint(text: &str) -> Option<IngressEndpoint> {
    if let Some(path) = text.strip_prefix(UNIX) {
        return socket(path).map(IngressEndpoint::Unix);
    }
    let port = text
        .strip_prefix("127.0.0.1:")
        .or_else(|| text.strip_prefix(':'))?;
    let number = port.parse().ok().filter(|n| (1..=65535).contains(n))?;
    Some(IngressEndpoint::Port(number))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use mesh_config::ConfigKind;

    use super::*;

    fn compile(yaml: &str) -> SidecarConfig {
        let text = format!(
            "apiVersion: networking.istio.io/v1alpha3\nkind: Sidecar\nmetadata: {{name: s, namespace: shop}}\nspec: {yaml}\n"
        );
        let options = mesh_config::parse::Options {
            file: None,
            default_namespace: "default",
        };
        let parsed = mesh_config::parse::from_yaml(&text, options);
        assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
        let configs = mesh_config::Configs::from_objects(parsed.objects);
        assert_eq!(configs.sidecars[0].meta.kind, ConfigKind::Sidecar);
        SidecarConfig::compile(&configs.sidecars[0])
    }

    fn fields(config: &SidecarConfig) -> Vec<&str> {
        config.rejections.iter().map(|r| r.field.as_str()).collect()
    }

    #[test]
    fn hosts_name_a_namespace_and_a_host() {
        let config = compile(
            "{egress: [{hosts: ['./*', '*/API.example.com', 'prod/*.svc.cluster.local', '~/*', 'nope', 'x/b c']}]}",
        );
        let hosts = &config.egress[0].hosts;
        assert_eq!(hosts.len(), 3);
        assert!(hosts[0].imports("a", "a", "x.y") && !hosts[0].imports("a", "b", "x.y"));
        assert!(hosts[1].imports("a", "b", "api.example.com"));
        assert!(hosts[2].imports("a", "prod", "x.prod.svc.cluster.local"));
        assert!(!hosts[2].imports("a", "dev", "x.prod.svc.cluster.local"));
        assert_eq!(
            fields(&config),
            ["egress[0].hosts[4]", "egress[0].hosts[5]"]
        );
    }

    #[test]
    fn the_catch_all_listener_is_last_and_alone() {
        let config = compile(
            "{egress: [{hosts: ['./*']}, {port: {number: 80, protocol: HTTP}, hosts: ['./*']}, {hosts: ['*/*']}, {port: {number: 80, protocol: TCP}, hosts: ['./*']}]}",
        );
        let ports: Vec<Option<u32>> = config
            .egress
            .iter()
            .map(|e| e.port.as_ref().map(|p| p.number))
            .collect();
        assert_eq!(ports, [Some(80), None]);
        assert_eq!(config.egress[1].hosts[0].namespace, EgressNamespace::Own);
        assert_eq!(fields(&config), ["egress[2].port", "egress[3].port.number"]);
    }

    #[test]
    fn without_egress_everything_visible_is_imported() {
        let config = compile("{workloadSelector: {labels: {app: a}}}");
        assert!(config.egress[0].hosts[0].imports("a", "b", "any.host"));
        assert_eq!(config.selector.unwrap().get("app").unwrap(), "a");
        assert_eq!(config.allow_any, None);
    }

    #[test]
    fn sockets_have_port_zero() {
        let config = compile(
            "{egress: [{port: {number: 0, protocol: HTTP}, bind: 'unix:///run/x', hosts: ['./*']}, {port: {number: 0, protocol: HTTP}, bind: 'unix://@x', hosts: ['./*']}, {port: {number: 0, protocol: HTTP}, hosts: ['./*']}, {bind: 'unix:///run/y', hosts: ['./*']}, {port: {number: 7, protocol: HTTP}, bind: 'unix:///run/z', hosts: ['./*']}], outboundTrafficPolicy: {mode: REGISTRY_ONLY}}",
        );
        let binds: Vec<String> = config
            .egress
            .iter()
            .map(|e| e.bind.as_ref().unwrap().text())
            .collect();
        assert_eq!(binds, ["unix:///run/x", "unix://@x"]);
        assert!(config.egress.iter().all(|e| e.bound));
        assert_eq!(
            fields(&config),
            [
                "egress[2].port.number",
                "egress[3].port",
                "egress[4].port.number"
            ]
        );
        assert_eq!(config.allow_any, Some(false));
    }

    #[test]
    fn ingress_endpoints_are_ports_or_sockets() {
        let config = compile(
            "{ingress: [{port: {number: 9080, protocol: HTTP, name: web}, defaultEndpoint: '127.0.0.1:8080'}, {port: {number: 9081, protocol: TCP}, bind: 10.0.0.1, captureMode: NONE, defaultEndpoint: ':81'}, {port: {number: 9082, protocol: TCP}, defaultEndpoint: 'unix:///run/app'}, {port: {number: 9083, protocol: TCP}, defaultEndpoint: '10.0.0.1:80'}, {port: {number: 9080, protocol: TCP}, defaultEndpoint: ':1'}]}",
        );
        let endpoints: Vec<&IngressEndpoint> = config.ingress.iter().map(|i| &i.endpoint).collect();
        assert_eq!(
            endpoints,
            [
                &IngressEndpoint::Port(8080),
                &IngressEndpoint::Port(81),
                &IngressEndpoint::Unix("/run/app".into())
            ]
        );
        assert!(config.ingress[1].bound && config.ingress[1].bind.is_some());
        assert_eq!(
            fields(&config),
            ["ingress[3].defaultEndpoint", "ingress[4].port.number"]
        );
    }
}
