//! TLS that ends at a server of a Gateway.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use proto_networking::networking::server::{
    TlsOptions,
    tls_options::{TlSmode as Mode, TlsProtocol},
};

use super::KeyPair;
use crate::report::Rejector;

/// Cipher suites of TLS 1.2 and before that Envoy 1.40 knows. (Those of TLS 1.3 cannot be chosen.)
const CIPHER_SUITES: [&str; 22] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-PSK-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-PSK-AES128-CBC-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-PSK-AES256-CBC-SHA",
    "ECDHE-ECDSA-AES128-SHA256",
    "ECDHE-RSA-AES128-SHA256",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "PSK-AES128-CBC-SHA",
    "PSK-AES256-CBC-SHA",
    "DES-CBC3-SHA",
];

/// TLS that ends at a server, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// Certificate, key and CA.
    pub credentials: Credentials,
    /// Clients must show a certificate.
    pub mutual: bool,
    /// Names one of which a client's certificate must bear; empty: any.
    pub subject_alt_names: Vec<String>,
    /// SHA-256 pins of the public key, base64.
    pub spki: Vec<String>,
    /// SHA-256 pins of the certificate, hexadecimal.
    pub hashes: Vec<String>,
    /// Lowest version; absent: Envoy's.
    pub min: Option<TlsVersion>,
    /// Highest version; absent: Envoy's.
    pub max: Option<TlsVersion>,
    /// Cipher suites in order of preference; empty: Envoy's.
    pub cipher_suites: Vec<String>,
}

/// What a server shows, and what it verifies clients with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// The certificate of the gateway's own workload (ISTIO_MUTUAL).
    Mesh,
    /// By name, for gateways that have user secrets by SDS; else files.
    Given {
        /// `credentialName`; empty: none.
        name: String,
        /// Certificate and key.
        files: Option<KeyPair>,
        /// CA of clients; empty: none.
        ca: String,
    },
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum TlsVersion {
    V1_0,
    V1_1,
    V1_2,
    V1_3,
}

/// Checks the settings of a server that ends TLS; `None`: it cannot be served (the rejection says why).
pub(in crate::compile) fn server(
    spec: &TlsOptions,
    mode: Mode,
    path: &str,
    rejector: &mut Rejector<'_>,
) -> Option<ServerTls> {
    let mutual = matches!(mode, Mode::Mutual | Mode::IstioMutual);
    let credentials = if mode == Mode::IstioMutual {
        Credentials::Mesh
    } else {
        credentials(spec, mutual, path, rejector)?
    };
    let field = |name: &str| format!("{path}.{name}");
    let mut subject_alt_names =
        super::names(&spec.subject_alt_names, &field("subjectAltNames"), rejector);
    let (mut spki, mut hashes) = (
        pins(
            &spec.verify_certificate_spki,
            field("verifyCertificateSpki"),
            SPKI,
            rejector,
        )?,
        pins(
            &spec.verify_certificate_hash,
            field("verifyCertificateHash"),
            HASH,
            rejector,
        )?,
    );
    let asks = mutual || matches!(&credentials, Credentials::Given { ca, .. } if !ca.is_empty());
    if !asks {
        // Clients are not asked for a certificate.
        let reason = "needs mode MUTUAL or ISTIO_MUTUAL, or caCertificates";
        for (list, name) in [
            (&mut subject_alt_names, "subjectAltNames"),
            (&mut spki, "verifyCertificateSpki"),
            (&mut hashes, "verifyCertificateHash"),
        ] {
            if !list.is_empty() {
                rejector.reject(field(name), reason, "clients are not verified");
                list.clear();
            }
        }
    }
    let (mut min, mut max) = (
        version(spec.min_protocol_version),
        version(spec.max_protocol_version),
    );
    if let (Some(low), Some(high)) = (min, max)
        && low > high
    {
        let reason = format!("{low:?} is above maxProtocolVersion {high:?}");
        rejector.reject(field("minProtocolVersion"), reason, "both are left out");
        (min, max) = (None, None);
    }
    Some(ServerTls {
        credentials,
        mutual,
        subject_alt_names,
        spki,
        hashes,
        min,
        max,
        cipher_suites: cipher_suites(&spec.cipher_suites, &field("cipherSuites"), rejector),
    })
}

fn credentials(
    spec: &TlsOptions,
    mutual: bool,
    path: &str,
    rejector: &mut Rejector<'_>,
) -> Option<Credentials> {
    let field = |name: &str| format!("{path}.{name}");
    let files = super::key_pair(
        (&spec.server_certificate, field("serverCertificate")),
        (&spec.private_key, field("privateKey")),
        rejector,
    );
    let ca = super::file(&spec.ca_certificates, field("caCertificates"), rejector);
    let name = match spec.credential_name.as_str() {
        name if name.is_empty() || is_secret_name(name) => name.to_owned(),
        other => {
            let reason = format!(
                "{other:?} is no name of a secret; accepted: lower-case letters, digits, - and ."
            );
            rejector.reject(field("credentialName"), reason, "the name is left out");
            String::new()
        }
    };
    let action = "the server is left out";
    if name.is_empty() && files.is_none() {
        let reason =
            "no certificate to show; accepted: serverCertificate and privateKey, or credentialName";
        rejector.reject(path, reason, action);
        return None;
    }
    if mutual && name.is_empty() && ca.is_none() {
        let reason =
            "MUTUAL needs a CA to verify clients with; accepted: caCertificates, or credentialName";
        rejector.reject(path, reason, action);
        return None;
    }
    Some(Credentials::Given {
        name,
        files,
        ca: ca.unwrap_or_default(),
    })
}

/// As Kubernetes has them.
fn is_secret_name(name: &str) -> bool {
    name.len() <= 253
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
}

/// A kind of pin: how it is recognised, and what is said of one that is none.
type PinKind = (fn(&str) -> bool, &'static str);

const SPKI: PinKind = (is_spki, "the base64 of the SHA-256 of a public key");
const HASH: PinKind = (
    is_hash,
    "the SHA-256 of a certificate in hexadecimal, with or without colons",
);

/// The good ones of a list of pins; `None` if there were some and none is good: then nobody must get in.
fn pins(
    list: &[String],
    field: String,
    (is_good, accepted): PinKind,
    rejector: &mut Rejector<'_>,
) -> Option<Vec<String>> {
    let good: Vec<String> = list.iter().filter(|p| is_good(p)).cloned().collect();
    let lost = good.is_empty() && !list.is_empty();
    for (i, pin) in list.iter().enumerate().filter(|(_, pin)| !is_good(pin)) {
        let action = if lost {
            "the server is left out, since no pin remains"
        } else {
            "the pin is left out"
        };
        let reason = format!("{pin:?} is no pin; accepted: {accepted}");
        rejector.reject(format!("{field}[{i}]"), reason, action);
    }
    (!lost).then_some(good)
}

fn is_spki(pin: &str) -> bool {
    pin.len() == 44 && STANDARD.decode(pin).is_ok_and(|bytes| bytes.len() == 32)
}

fn is_hash(pin: &str) -> bool {
    let is_hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    match pin.len() {
        64 => is_hex(pin),
        95 => pin.split(':').all(|byte| byte.len() == 2 && is_hex(byte)),
        _ => false,
    }
}

fn version(value: i32) -> Option<TlsVersion> {
    match TlsProtocol::try_from(value) {
        Ok(TlsProtocol::Tlsv10) => Some(TlsVersion::V1_0),
        Ok(TlsProtocol::Tlsv11) => Some(TlsVersion::V1_1),
        Ok(TlsProtocol::Tlsv12) => Some(TlsVersion::V1_2),
        Ok(TlsProtocol::Tlsv13) => Some(TlsVersion::V1_3),
        Ok(TlsProtocol::TlsAuto) | Err(_) => None,
    }
}

/// Envoy refuses a list in which it does not know a name.
fn cipher_suites(list: &[String], field: &str, rejector: &mut Rejector<'_>) -> Vec<String> {
    let known = |name: &str| CIPHER_SUITES.contains(&name);
    // `[A|B]` is a group of equal preference.
    let group = |text: &str| {
        text.strip_prefix('[')
            .and_then(|t| t.strip_suffix(']'))
            .is_some_and(|names| names.split('|').all(known))
    };
    let mut out: Vec<String> = Vec::with_capacity(list.len());
    for (i, suite) in list.iter().enumerate() {
        if !known(suite) && !group(suite) {
            let reason = format!(
                "{suite:?} is no cipher suite that Envoy knows; accepted: {}, and groups [A|B] of them",
                CIPHER_SUITES.join(", ")
            );
            let action = "the suite is left out; with none left, Envoy's own are used";
            rejector.reject(format!("{field}[{i}]"), reason, action);
        } else if !out.contains(suite) {
            out.push(suite.clone());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Rejection;

    fn options() -> TlsOptions {
        TlsOptions {
            server_certificate: "/a.pem".to_owned(),
            private_key: "/a.key".to_owned(),
            ca_certificates: "/ca.pem".to_owned(),
            ..TlsOptions::default()
        }
    }

    fn check(spec: &TlsOptions, mode: Mode) -> (Option<ServerTls>, Vec<Rejection>) {
        let mut out = Vec::new();
        let mut rejector = Rejector {
            kind: "Gateway",
            namespace: "shop".into(),
            name: "edge".into(),
            out: &mut out,
        };
        (server(spec, mode, "tls", &mut rejector), out)
    }

    #[test]
    fn bad_entries_go_alone_and_a_list_of_pins_never_gets_empty() {
        let good = "NvqYIYSbgK2vCJpQhObf77vv+bQWtc5ek5RIOwPiC9A=";
        let mut spec = options();
        spec.verify_certificate_spki = vec!["short".to_owned(), good.to_owned()];
        spec.verify_certificate_hash = vec![["ab"; 32].join(":"), "zz".repeat(32)];
        spec.cipher_suites = [
            "ECDHE-RSA-AES128-GCM-SHA256",
            "RC4-SHA",
            "[AES128-SHA|AES256-SHA]",
        ]
        .map(str::to_owned)
        .to_vec();
        let (tls, rejections) = check(&spec, Mode::Mutual);
        let tls = tls.unwrap();
        assert_eq!(
            (tls.spki.len(), tls.hashes.len(), tls.cipher_suites.len()),
            (1, 1, 2)
        );
        let fields: Vec<&str> = rejections.iter().map(|r| r.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "tls.verifyCertificateSpki[0]",
                "tls.verifyCertificateHash[1]",
                "tls.cipherSuites[1]"
            ]
        );
        spec.verify_certificate_hash = vec!["zz".repeat(32)];
        let (tls, rejections) = check(&spec, Mode::Mutual);
        assert_eq!(tls, None);
        assert!(
            rejections
                .iter()
                .any(|r| r.action.contains("no pin remains"))
        );
    }

    #[test]
    fn a_server_needs_something_to_show_and_to_verify_with() {
        let with = |change: fn(&mut TlsOptions), mode: Mode| {
            let mut spec = options();
            change(&mut spec);
            check(&spec, mode).0.is_some()
        };
        assert!(with(|_| (), Mode::Simple) && with(|_| (), Mode::Mutual));
        assert!(!with(|s| s.private_key.clear(), Mode::Simple));
        assert!(!with(|s| s.ca_certificates.clear(), Mode::Mutual));
        assert!(!with(
            |s| s.server_certificate = "/a~b".to_owned(),
            Mode::Simple
        ));
        assert!(with(
            |s| *s = TlsOptions {
                credential_name: "web".into(),
                ..Default::default()
            },
            Mode::Mutual
        ));
        assert!(!with(
            |s| *s = TlsOptions {
                credential_name: "file-cert:/etc/shadow".into(),
                ..Default::default()
            },
            Mode::Simple
        ));
        assert!(with(|s| *s = TlsOptions::default(), Mode::IstioMutual));
    }

    #[test]
    fn versions_that_cross_are_left_out() {
        let spec = TlsOptions {
            min_protocol_version: TlsProtocol::Tlsv13.into(),
            max_protocol_version: TlsProtocol::Tlsv12.into(),
            ..options()
        };
        let (tls, rejections) = check(&spec, Mode::Simple);
        assert!(tls.is_some_and(|t| t.min.is_none() && t.max.is_none()));
        assert_eq!(rejections[0].field, "tls.minProtocolVersion");
    }
}
