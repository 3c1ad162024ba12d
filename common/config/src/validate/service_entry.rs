//! Rules of ServiceEntry (SE1 to SE18 of the reference).

use proto_networking::networking::ServiceEntry;
use proto_networking::networking::service_entry::{Endpoint, Resolution};

use super::Problems;
use super::rules::{self, ProtocolClass};
use crate::meta::Meta;
use crate::path::FieldPath;

const UNIX: &str = "unix://";

pub(super) fn check(p: &mut Problems, _: &Meta, spec: &ServiceEntry) {
    let root = FieldPath::spec();
    hosts(p, &root, spec);
    let Ok(resolution) = Resolution::try_from(spec.resolution) else {
        let message = format!("{} is not a resolution", spec.resolution);
        p.add_accepting(&root.key("resolution"), message, "NONE, STATIC or DNS");
        return;
    };
    for (i, address) in spec.addresses.iter().enumerate() {
        let path = root.key("addresses").index(i);
        rules::ipv4_subnet(p, &path, address);
        if address.contains('/') && resolution == Resolution::Dns {
            p.add_accepting(
                &path,
                format!("{address:?} is a CIDR block, which resolution DNS cannot stand behind"),
                "a single address, or resolution NONE or STATIC",
            );
        }
    }
    ports(p, &root.key("ports"), spec);
    let path = root.key("endpoints");
    match resolution {
        Resolution::None if !spec.endpoints.is_empty() => {
            p.add_accepting(
                &path,
                "are given though resolution is NONE",
                "resolution STATIC or DNS",
            );
        }
        Resolution::Static if spec.endpoints.is_empty() => {
            p.add_accepting(
                &path,
                "is empty though resolution is STATIC",
                "at least one endpoint",
            );
        }
        _ => {}
    }
    for (i, e) in spec.endpoints.iter().enumerate() {
        endpoint(p, &path.index(i), e, spec, resolution);
    }
    several_hosts(p, &root, spec, resolution);
    rules::export_to(p, &root.key("exportTo"), &spec.export_to);
}

fn hosts(p: &mut Problems, root: &FieldPath, spec: &ServiceEntry) {
    let path = root.key("hosts");
    if spec.hosts.is_empty() {
        p.add_accepting(&path, "is empty", "at least one host");
    }
    let by_name = spec.resolution() == Resolution::Dns && spec.endpoints.is_empty();
    for (i, host) in spec.hosts.iter().enumerate() {
        let path = path.index(i);
        if host == "*" {
            p.add_accepting(
                &path,
                "\"*\" would stand for every host there is",
                rules::HOST_ACCEPTED,
            );
        } else if by_name && host.starts_with('*') {
            p.add_accepting(
                &path,
                format!("{host:?} cannot be resolved by DNS"),
                "a full name, or endpoints to resolve instead",
            );
        } else {
            rules::wildcard_domain(p, &path, host);
        }
    }
}

fn ports(p: &mut Problems, path: &FieldPath, spec: &ServiceEntry) {
    for (i, port) in spec.ports.iter().enumerate() {
        let path = path.index(i);
        rules::label(p, &path.key("name"), &port.name);
        rules::optional_protocol(p, &path.key("protocol"), &port.protocol);
        rules::port(p, &path.key("number"), i64::from(port.number));
        let before = &spec.ports[..i];
        if before.iter().any(|other| other.name == port.name) {
            p.add_accepting(
                &path.key("name"),
                format!("{:?} is there twice", port.name),
                "names that differ",
            );
        }
        if before.iter().any(|other| other.number == port.number) {
            p.add_accepting(
                &path.key("number"),
                format!("{} is there twice", port.number),
                "numbers that differ",
            );
        }
    }
}

fn endpoint(
    p: &mut Problems,
    path: &FieldPath,
    endpoint: &Endpoint,
    spec: &ServiceEntry,
    resolution: Resolution,
) {
    rules::labels(p, &path.key("labels"), &endpoint.labels);
    for (name, number) in &endpoint.ports {
        let path = path.key("ports").key(name);
        if !spec.ports.iter().any(|port| port.name == *name) {
            let known: Vec<&str> = spec.ports.iter().map(|port| port.name.as_str()).collect();
            p.add_accepting(
                &path,
                format!("the service has no port {name:?}"),
                known.join(", "),
            );
        }
        rules::port(p, &path, i64::from(*number));
    }
    let path = path.key("address");
    match (endpoint.address.strip_prefix(UNIX), resolution) {
        (Some(socket), Resolution::Static) => {
            rules::unix_address(p, &path, socket);
            if !endpoint.ports.is_empty() {
                p.add_accepting(&path, "a socket has no ports", "no ports for this endpoint");
            }
            if spec.ports.len() != 1 {
                let message = format!(
                    "a socket serves one port, the service has {}",
                    spec.ports.len()
                );
                p.add_accepting(&path, message, "exactly one port of the service");
            }
        }
        (None, Resolution::Static) => rules::ipv4(p, &path, &endpoint.address),
        (_, Resolution::Dns)
            if !rules::is_ip(&endpoint.address) && !rules::is_fqdn(&endpoint.address) =>
        {
            p.add_accepting(
                &path,
                format!(
                    "{:?} is neither an IP address nor a DNS name",
                    endpoint.address
                ),
                "an IP address or a full DNS name",
            );
        }
        _ => {}
    }
}

/// Plain TCP carries no host, so hosts that share an entry cannot be told apart.
fn several_hosts(p: &mut Problems, root: &FieldPath, spec: &ServiceEntry, resolution: Resolution) {
    if spec.hosts.len() < 2 || resolution == Resolution::None {
        return;
    }
    for (i, port) in spec.ports.iter().enumerate() {
        let class = rules::protocol_class(&port.protocol);
        if !matches!(class, Some(ProtocolClass::Http | ProtocolClass::Tls)) {
            p.add_accepting(
                &root.key("ports").index(i).key("protocol"),
                format!(
                    "{:?} cannot tell {} hosts apart",
                    port.protocol,
                    spec.hosts.len()
                ),
                "one host per ServiceEntry, or an HTTP or TLS protocol",
            );
        }
    }
}
