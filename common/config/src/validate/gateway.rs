//! Rules of Gateway (GW1 to GW17 of the reference).

use proto_networking::networking::server::TlsOptions;
use proto_networking::networking::server::tls_options::TlSmode;
use proto_networking::networking::{Gateway, Port, Server};

use super::Problems;
use super::rules::{self, ProtocolClass};
use crate::meta::Meta;
use crate::path::FieldPath;

pub(super) fn check(p: &mut Problems, meta: &Meta, spec: &Gateway) {
    rules::label(
        p,
        &FieldPath::root().key("metadata").key("name"),
        &meta.name,
    );
    let path = FieldPath::spec().key("servers");
    if spec.servers.is_empty() {
        p.add_accepting(&path, "is empty", "at least one server");
    }
    for (i, s) in spec.servers.iter().enumerate() {
        server(p, &path.index(i), s);
        let name = |s: &Server| {
            s.port
                .as_ref()
                .map(|port| port.name.clone())
                .filter(|n| !n.is_empty())
        };
        if let Some(own) = name(s)
            && spec.servers[..i]
                .iter()
                .any(|other| name(other).as_ref() == Some(&own))
        {
            let path = path.index(i).key("port").key("name");
            p.add_accepting(
                &path,
                format!("{own:?} is there twice"),
                "names that differ between servers",
            );
        }
    }
}

fn server(p: &mut Problems, path: &FieldPath, server: &Server) {
    if server.hosts.is_empty() {
        p.add_accepting(&path.key("hosts"), "is empty", "at least one host");
    }
    for (i, host) in server.hosts.iter().enumerate() {
        self::host(p, &path.key("hosts").index(i), host);
    }
    match &server.port {
        None => p.add_accepting(
            &path.key("port"),
            "is missing",
            "a number, a protocol and a name",
        ),
        Some(port) => {
            self::port(p, &path.key("port"), port);
            tls_fits_protocol(p, path, port, server.tls.as_ref());
        }
    }
    if let Some(tls) = &server.tls {
        tls_options(p, &path.key("tls"), tls);
    }
}

/// `[namespace/]dnsName`.
fn host(p: &mut Problems, path: &FieldPath, host: &str) {
    const ACCEPTED: &str = "[namespace/]dnsName, such as *.example.com or shop/api.example.com";
    let name = match host.split_once('/') {
        None => host,
        Some((namespace, name)) => {
            if !matches!(namespace, "*" | ".") && !rules::is_dns_label(namespace) {
                p.add_accepting(path, format!("{namespace:?} is not a namespace"), ACCEPTED);
            }
            name
        }
    };
    if name == "*" || rules::is_ip(name) {
        return;
    }
    if !name.contains('.') {
        p.add_accepting(
            path,
            format!("{name:?} is a short name, which means nothing at a gateway"),
            ACCEPTED,
        );
    } else if !rules::is_wildcard_domain(name) {
        p.add_accepting(path, format!("{name:?} is not a DNS name"), ACCEPTED);
    }
}

fn port(p: &mut Problems, path: &FieldPath, port: &Port) {
    rules::protocol(p, &path.key("protocol"), &port.protocol);
    if port.number != 0 {
        rules::port(p, &path.key("number"), i64::from(port.number));
    }
    if port.name.is_empty() {
        p.add_accepting(&path.key("name"), "is empty", "a name such as http");
    }
}

fn tls_fits_protocol(p: &mut Problems, path: &FieldPath, port: &Port, tls: Option<&TlsOptions>) {
    let path = path.key("tls");
    let protocol = &port.protocol;
    match (rules::protocol_class(protocol), tls) {
        (Some(ProtocolClass::Tls), None) => {
            p.add_accepting(
                &path,
                format!("is missing though the protocol is {protocol}"),
                "tls with a mode",
            );
        }
        (Some(ProtocolClass::Http), Some(tls)) => {
            let bare = tls.server_certificate.is_empty()
                && tls.private_key.is_empty()
                && tls.ca_certificates.is_empty();
            let passes = matches!(tls.mode(), TlSmode::Passthrough | TlSmode::AutoPassthrough);
            if !(bare && passes) {
                let message = format!("terminates TLS though the protocol is {protocol}");
                p.add_accepting(&path, message, "protocol HTTPS, or only httpsRedirect");
            }
        }
        (Some(ProtocolClass::Tcp | ProtocolClass::Udp), Some(_)) => {
            p.add_accepting(
                &path,
                format!("is set though the protocol is {protocol}"),
                "protocol TLS or HTTPS",
            );
        }
        _ => {}
    }
}

fn tls_options(p: &mut Problems, path: &FieldPath, tls: &TlsOptions) {
    let files = [
        ("serverCertificate", &tls.server_certificate),
        ("privateKey", &tls.private_key),
        ("caCertificates", &tls.ca_certificates),
    ];
    match tls.mode() {
        TlSmode::IstioMutual => {
            for (name, _) in files.iter().filter(|(_, file)| !file.is_empty()) {
                p.add_accepting(
                    &path.key(*name),
                    "is set though mode is ISTIO_MUTUAL",
                    "no files: the mesh's own are used",
                );
            }
        }
        mode @ (TlSmode::Simple | TlSmode::Mutual) if tls.credential_name.is_empty() => {
            let needed = if mode == TlSmode::Simple { 2 } else { 3 };
            for (name, _) in files[..needed].iter().filter(|(_, file)| file.is_empty()) {
                let message = format!("is empty though mode is {}", mode.as_str_name());
                p.add_accepting(
                    &path.key(*name),
                    message,
                    "the path of a file, or credentialName",
                );
            }
        }
        _ => {}
    }
}
