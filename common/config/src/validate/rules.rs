//! Rules shared by kinds: names, hosts, addresses, ports, durations, percentages, labels.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use proto_wellknown::Duration;

use super::Problems;
use crate::path::FieldPath;

/// 1 to 63 letters, digits and hyphens, not at the ends.
pub(crate) fn is_dns_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

pub(crate) fn is_fqdn(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    !text.is_empty()
        && text.len() <= 255
        && text.split('.').all(is_dns_label)
        && !text
            .rsplit('.')
            .next()
            .is_some_and(|top| top.chars().all(|c| c.is_ascii_digit()))
}

/// An FQDN whose first label may be `*`, `*-x` or `*x`.
pub(crate) fn is_wildcard_domain(text: &str) -> bool {
    match text.strip_prefix('*') {
        None => is_fqdn(text),
        Some("") => true,
        Some(rest) => match rest.strip_prefix('.') {
            Some(domain) => is_fqdn(domain),
            None => is_fqdn(rest.strip_prefix('-').unwrap_or(rest)),
        },
    }
}

pub(crate) fn is_ip(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

/// Whether two host names, each possibly with a leading `*`, can mean the same host.
pub(crate) fn hosts_overlap(a: &str, b: &str) -> bool {
    match (a.strip_prefix('*'), b.strip_prefix('*')) {
        (None, None) => a == b,
        (Some(a), None) => b.ends_with(a),
        (None, Some(b)) => a.ends_with(b),
        (Some(a), Some(b)) => a.ends_with(b) || b.ends_with(a),
    }
}

/// Whether every host that `inner` means is also meant by `outer`.
pub(crate) fn host_within(inner: &str, outer: &str) -> bool {
    match (inner.strip_prefix('*'), outer.strip_prefix('*')) {
        (None, None) => inner == outer,
        (Some(_), None) => false,
        (None, Some(outer)) => inner.ends_with(outer),
        (Some(inner), Some(outer)) => inner.ends_with(outer),
    }
}

pub(crate) const HOST_ACCEPTED: &str =
    "a DNS name such as reviews, reviews.prod.svc.cluster.local or *.example.com";

pub(crate) fn wildcard_domain(p: &mut Problems, path: &FieldPath, text: &str) {
    if !is_wildcard_domain(text) {
        p.add_accepting(path, format!("{text:?} is not a DNS name"), HOST_ACCEPTED);
    }
}

pub(crate) fn label(p: &mut Problems, path: &FieldPath, text: &str) {
    if !is_dns_label(text) {
        p.add_accepting(
            path,
            format!("{text:?} is not a DNS label"),
            "1 to 63 letters, digits and hyphens, such as http-web",
        );
    }
}

pub(crate) fn port(p: &mut Problems, path: &FieldPath, port: i64) {
    if !(1..=65535).contains(&port) {
        p.add_accepting(path, format!("{port} is not a port"), "1 to 65535");
    }
}

pub(crate) fn ipv4(p: &mut Problems, path: &FieldPath, text: &str) {
    if text.parse::<Ipv4Addr>().is_err() {
        p.add_accepting(
            path,
            format!("{text:?} is not an IPv4 address"),
            "an address such as 10.1.2.3",
        );
    }
}

pub(crate) fn ipv4_subnet(p: &mut Problems, path: &FieldPath, text: &str) {
    let valid = match text.split_once('/') {
        Some(_) => text.parse::<ipnet::Ipv4Net>().is_ok(),
        None => text.parse::<Ipv4Addr>().is_ok(),
    };
    if !valid {
        p.add_accepting(
            path,
            format!("{text:?} is not an IPv4 address or CIDR block"),
            "10.1.2.3 or 10.1.0.0/16",
        );
    }
}

/// The path of a `unix://` address.
pub(crate) fn unix_address(p: &mut Problems, path: &FieldPath, socket: &str) {
    let valid = socket.starts_with('@') && socket.len() > 1
        || socket.starts_with('/') && !socket.ends_with('/');
    if !valid {
        p.add_accepting(
            path,
            format!("{socket:?} is not a socket path"),
            "unix:///absolute/path or unix://@abstract-name",
        );
    }
}

/// `host:port`.
pub(crate) fn proxy_address(p: &mut Problems, path: &FieldPath, address: &str) {
    let Some((host, number)) = address.rsplit_once(':') else {
        p.add_accepting(path, format!("{address:?} has no port"), "host:port");
        return;
    };
    match number.parse::<i64>() {
        Ok(number) => port(p, path, number),
        Err(_) => p.add_accepting(path, format!("{number:?} is not a port"), "host:port"),
    }
    let bare = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    if !is_fqdn(bare) && !is_ip(bare) {
        p.add_accepting(
            path,
            format!("{host:?} is neither a DNS name nor an IP address"),
            "host:port",
        );
    }
}

pub(crate) fn duration(p: &mut Problems, path: &FieldPath, duration: &Duration) {
    const MILLI: i128 = 1_000_000;
    let nanos = duration.as_nanos();
    if nanos < MILLI {
        p.add_accepting(path, format!("{duration} is too short"), "1ms or longer");
    } else if nanos % MILLI != 0 {
        p.add_accepting(
            path,
            format!("{duration} is finer than a millisecond"),
            "whole milliseconds",
        );
    }
}

pub(crate) fn optional_duration(p: &mut Problems, path: &FieldPath, value: Option<&Duration>) {
    if let Some(value) = value {
        duration(p, path, value);
    }
}

pub(crate) fn percent(p: &mut Problems, path: &FieldPath, percent: i64) {
    if !(0..=100).contains(&percent) {
        p.add_accepting(path, format!("{percent} is not a percentage"), "0 to 100");
    }
}

pub(crate) fn fractional_percent(p: &mut Problems, path: &FieldPath, percent: f64) {
    // Envoy counts in millionths.
    if !(percent == 0.0 || (0.0001..=100.0).contains(&percent)) {
        p.add_accepting(
            path,
            format!("{percent} is not a percentage"),
            "0, or 0.0001 to 100",
        );
    }
}

pub(crate) fn not_negative(p: &mut Problems, path: &FieldPath, value: i32) {
    if value < 0 {
        p.add_accepting(path, format!("{value} is negative"), "0 or more");
    }
}

pub(crate) fn export_to(p: &mut Problems, path: &FieldPath, export_to: &[String]) {
    if export_to.len() > 1 {
        p.add_accepting(
            path,
            format!("has {} entries", export_to.len()),
            "at most one, \".\" or \"*\"",
        );
    }
    for (i, entry) in export_to.iter().enumerate() {
        if !matches!(entry.as_str(), "." | "*") {
            p.add_accepting(
                &path.index(i),
                format!("{entry:?} is not a visibility"),
                "\".\" (this namespace) or \"*\" (all)",
            );
        }
    }
}

/// `[dns-prefix/]name` with a name of at most 63 letters, digits, `-`, `_` and `.`.
fn is_qualified_name(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    prefix.is_none_or(|prefix| prefix.len() <= 253 && is_fqdn(prefix))
        && name.len() <= 63
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && ends(name.chars().next())
        && ends(name.chars().last())
}

pub(crate) fn labels(p: &mut Problems, path: &FieldPath, labels: &BTreeMap<String, String>) {
    for (key, value) in labels {
        if !is_qualified_name(key) {
            p.add_accepting(
                &path.key(key),
                format!("{key:?} is not a label name"),
                "[prefix/]name, such as app or example.com/tier",
            );
        }
        if !value.is_empty() && (value.contains('/') || !is_qualified_name(value)) {
            p.add_accepting(
                &path.key(key),
                format!("{value:?} is not a label value"),
                "at most 63 letters, digits, '-', '_' and '.'",
            );
        }
    }
}

/// What a port's protocol may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProtocolClass {
    Http,
    Tls,
    Tcp,
    Udp,
}

pub(crate) const PROTOCOLS: &str =
    "HTTP, HTTP2, HTTPS, GRPC, GRPC-WEB, TLS, TCP, MONGO, REDIS, MYSQL or UDP";

/// The class of a protocol name in any case.
pub(crate) fn protocol_class(text: &str) -> Option<ProtocolClass> {
    Some(match text.to_ascii_lowercase().as_str() {
        "http" | "http2" | "grpc" | "grpc-web" => ProtocolClass::Http,
        "https" | "tls" => ProtocolClass::Tls,
        "tcp" | "mongo" | "redis" | "mysql" => ProtocolClass::Tcp,
        "udp" => ProtocolClass::Udp,
        _ => return None,
    })
}

pub(crate) fn protocol(p: &mut Problems, path: &FieldPath, text: &str) {
    if protocol_class(text).is_none() {
        p.add_accepting(path, format!("{text:?} is not a protocol"), PROTOCOLS);
    }
}

pub(crate) fn optional_protocol(p: &mut Problems, path: &FieldPath, text: &str) {
    if !text.is_empty() {
        protocol(p, path, text);
    }
}

/// A regular expression as Envoy's RE2 reads it.
pub(crate) fn regex(p: &mut Problems, path: &FieldPath, text: &str) {
    // Same syntax and size bound in spirit: RE2 has neither look-around nor back-references, and nor has this crate.
    let built = regex::RegexBuilder::new(text).size_limit(1 << 20).build();
    if let Err(error) = built {
        let reason = error.to_string();
        let reason = reason
            .lines()
            .last()
            .unwrap_or_default()
            .trim_start_matches("error: ");
        p.add_accepting(
            path,
            format!("{text:?} is not a regular expression: {reason}"),
            "RE2 syntax",
        );
    }
}

/// References to gateways: `mesh`, a name, or `namespace/name`.
pub(crate) fn gateways(p: &mut Problems, path: &FieldPath, gateways: &[String]) {
    for (i, gateway) in gateways.iter().enumerate() {
        let valid = match gateway.split_once('/') {
            Some((namespace, name)) => {
                (namespace == "." || is_dns_label(namespace)) && is_dns_label(name)
            }
            None => is_fqdn(gateway),
        };
        if !valid {
            p.add_accepting(
                &path.index(i),
                format!("{gateway:?} names no gateway"),
                "mesh, a Gateway's name, or namespace/name",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names() {
        for good in ["a", "a.b", "a.b.", "a-1.b2", "xn--bcher-kva.example"] {
            assert!(is_fqdn(good), "{good}");
        }
        let long = "a.".repeat(200);
        for bad in [
            "", ".", "a..b", "-a.b", "a-.b", "a_b.c", "1.2.3.4", "a.5", "*.a", "a b", &long,
        ] {
            assert!(!is_fqdn(bad), "{bad}");
        }
        for good in ["*", "*.a.b", "*-x.com", "*x.com", "a.b"] {
            assert!(is_wildcard_domain(good), "{good}");
        }
        for bad in ["", "*.", "a.*", "**", "*.*.com", "*."] {
            assert!(!is_wildcard_domain(bad), "{bad}");
        }
    }

    #[test]
    fn host_sets() {
        assert!(hosts_overlap("*.a.com", "x.a.com") && hosts_overlap("*", "b"));
        assert!(hosts_overlap("*.b.a.com", "*.a.com") && !hosts_overlap("a.com", "b.com"));
        assert!(!hosts_overlap("*.a.com", "a.com"));
        assert!(host_within("x.a.com", "*.a.com") && host_within("*.b.a.com", "*.a.com"));
        assert!(!host_within("*.a.com", "x.a.com") && !host_within("*", "*.a.com"));
    }

    #[test]
    fn label_names() {
        assert!(is_qualified_name("app.kubernetes.io/name") && is_qualified_name("v1"));
        for bad in ["", "a/", "/a", "a b", "-a", "a.", "a/b/c"] {
            assert!(!is_qualified_name(bad), "{bad}");
        }
    }
}
