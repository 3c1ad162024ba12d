//! Rules of Sidecar (SC1 to SC14 of the reference).

use std::collections::BTreeSet;

use proto_networking::networking::{
    CaptureMode, IstioEgressListener, IstioIngressListener, Port, Sidecar,
};

use super::{Problems, rules};
use crate::meta::Meta;
use crate::path::FieldPath;

const UNIX: &str = "unix://";

pub(super) fn check(p: &mut Problems, _: &Meta, spec: &Sidecar) {
    let root = FieldPath::spec();
    if let Some(selector) = &spec.workload_selector {
        let path = root.key("workloadSelector").key("labels");
        if selector.labels.is_empty() {
            p.add_accepting(
                &path,
                "is empty",
                "labels, or no workloadSelector for the whole namespace",
            );
        }
        rules::labels(p, &path, &selector.labels);
    }
    ingress(p, &root.key("ingress"), &spec.ingress);
    if spec.egress.is_empty() {
        p.add_accepting(&root.key("egress"), "is empty", "at least one listener");
        return;
    }
    egress(p, &root.key("egress"), &spec.egress);
}

fn ingress(p: &mut Problems, path: &FieldPath, listeners: &[IstioIngressListener]) {
    let mut numbers = BTreeSet::new();
    for (i, listener) in listeners.iter().enumerate() {
        let path = path.index(i);
        let Some(port) = &listener.port else {
            p.add_accepting(&path.key("port"), "is missing", "a number and a protocol");
            continue;
        };
        if !port.name.is_empty() {
            rules::label(p, &path.key("port").key("name"), &port.name);
        }
        numbered_port(p, &path, port, &listener.bind);
        if !numbers.insert(port.number) {
            let message = format!("{} is there twice", port.number);
            p.add_accepting(
                &path.key("port").key("number"),
                message,
                "numbers that differ",
            );
        }
        default_endpoint(p, &path.key("defaultEndpoint"), &listener.default_endpoint);
    }
}

fn numbered_port(p: &mut Problems, path: &FieldPath, port: &Port, bind: &str) {
    rules::optional_protocol(p, &path.key("port").key("protocol"), &port.protocol);
    rules::port(p, &path.key("port").key("number"), i64::from(port.number));
    if !bind.is_empty() {
        rules::ipv4(p, &path.key("bind"), bind);
    }
}

fn default_endpoint(p: &mut Problems, path: &FieldPath, endpoint: &str) {
    const ACCEPTED: &str = "127.0.0.1:port, :port or unix:///path";
    if endpoint.is_empty() {
        p.add_accepting(path, "is empty", ACCEPTED);
    } else if let Some(socket) = endpoint.strip_prefix(UNIX) {
        rules::unix_address(p, path, socket);
    } else {
        match endpoint.split_once(':') {
            Some(("" | "127.0.0.1", number)) if number.parse::<i64>().is_ok() => {
                rules::port(p, path, number.parse().unwrap_or_default());
            }
            _ => p.add_accepting(
                path,
                format!("{endpoint:?} is not an endpoint of the workload"),
                ACCEPTED,
            ),
        }
    }
}

fn egress(p: &mut Problems, path: &FieldPath, listeners: &[IstioEgressListener]) {
    let (mut numbers, mut sockets, mut catch_all) = (BTreeSet::new(), BTreeSet::new(), None);
    for (i, listener) in listeners.iter().enumerate() {
        let path = path.index(i);
        match &listener.port {
            None => {
                if let Some(first) = catch_all.replace(i) {
                    p.add_accepting(
                        &path,
                        format!("has no port, like egress[{first}]"),
                        "one listener without port",
                    );
                }
                if i + 1 != listeners.len() {
                    p.add_accepting(
                        &path,
                        "has no port and is not the last",
                        "the listener without port at the end",
                    );
                }
            }
            Some(port) if port.number == 0 => {
                socket_listener(p, &path, port, listener);
                if !sockets.insert(&listener.bind) {
                    p.add_accepting(
                        &path.key("bind"),
                        format!("{:?} is there twice", listener.bind),
                        "different sockets",
                    );
                }
            }
            Some(port) => {
                numbered_port(p, &path, port, &listener.bind);
                if !numbers.insert(port.number) {
                    let message = format!("{} is there twice", port.number);
                    p.add_accepting(
                        &path.key("port").key("number"),
                        message,
                        "numbers that differ",
                    );
                }
            }
        }
        if listener.hosts.is_empty() {
            p.add_accepting(
                &path.key("hosts"),
                "is empty",
                "at least one namespace/dnsName",
            );
        }
        for (i, host) in listener.hosts.iter().enumerate() {
            self::host(p, &path.key("hosts").index(i), host);
        }
    }
}

/// A listener on a socket instead of a port.
fn socket_listener(
    p: &mut Problems,
    path: &FieldPath,
    port: &Port,
    listener: &IstioEgressListener,
) {
    rules::protocol(p, &path.key("port").key("protocol"), &port.protocol);
    match listener.bind.strip_prefix(UNIX) {
        Some(socket) => rules::unix_address(p, &path.key("bind"), socket),
        None => p.add_accepting(
            &path.key("bind"),
            format!(
                "{:?} is not a socket though the port has no number",
                listener.bind
            ),
            "unix:///path, or a port number",
        ),
    }
    if !matches!(
        listener.capture_mode(),
        CaptureMode::Default | CaptureMode::None
    ) {
        p.add_accepting(
            &path.key("captureMode"),
            "traffic to a socket is not captured",
            "DEFAULT or NONE",
        );
    }
}

/// `namespace/dnsName`.
fn host(p: &mut Problems, path: &FieldPath, host: &str) {
    const ACCEPTED: &str = "namespace/dnsName with a namespace of a name, *, . or ~, such as ./* or prod/api.example.com";
    let Some((namespace, name)) = host.split_once('/') else {
        p.add_accepting(path, format!("{host:?} names no namespace"), ACCEPTED);
        return;
    };
    if !matches!(namespace, "*" | "." | "~") && !rules::is_dns_label(namespace) {
        p.add_accepting(path, format!("{namespace:?} is not a namespace"), ACCEPTED);
    }
    if name != "*" && !name.contains('.') {
        p.add_accepting(
            path,
            format!("{name:?} is a short name, which means nothing here"),
            ACCEPTED,
        );
    } else if !rules::is_wildcard_domain(name) {
        p.add_accepting(path, format!("{name:?} is not a DNS name"), ACCEPTED);
    }
}
