//! TLS towards services: `trafficPolicy.tls` of DestinationRules.

use proto_networking::networking::{TlsSettings, tls_settings::TlSmode as Mode};

use super::KeyPair;
use crate::report::Rejector;

/// Envoy refuses longer ones.
pub(crate) const MAX_SNI: usize = 255;

/// TLS towards a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Kind.
    pub mode: TlsPolicyMode,
    /// The client's certificate (MUTUAL).
    pub identity: Option<KeyPair>,
    /// File of the CAs that the server's certificate must descend from; empty: it is not verified.
    pub ca_certificates: String,
    /// Names one of which the server's certificate must bear; empty: any.
    pub subject_alt_names: Vec<String>,
    /// SNI; empty: none, for mesh mTLS the default one.
    pub sni: String,
}

/// Mode of [`Tls`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TlsPolicyMode {
    Disable,
    Simple,
    Mutual,
    IstioMutual,
}

/// Checks the settings.
pub(in crate::compile) fn client(
    spec: &TlsSettings,
    path: &str,
    rejector: &mut Rejector<'_>,
) -> Tls {
    let field = |name: &str| format!("{path}.{name}");
    let mode = match Mode::try_from(spec.mode) {
        Ok(Mode::Disable) => TlsPolicyMode::Disable,
        Ok(Mode::Simple) => TlsPolicyMode::Simple,
        Ok(Mode::Mutual) => TlsPolicyMode::Mutual,
        Ok(Mode::IstioMutual) => TlsPolicyMode::IstioMutual,
        Err(_) => {
            let reason = format!(
                "{} is no mode; accepted: DISABLE, SIMPLE, MUTUAL, ISTIO_MUTUAL",
                spec.mode
            );
            rejector.reject(field("mode"), reason, "traffic is not encrypted");
            TlsPolicyMode::Disable
        }
    };
    let identity = match mode {
        TlsPolicyMode::Mutual => {
            let pair = super::key_pair(
                (&spec.client_certificate, field("clientCertificate")),
                (&spec.private_key, field("privateKey")),
                rejector,
            );
            if pair.is_none() {
                let reason = "MUTUAL needs the files of a certificate and its key";
                let action = "no certificate is shown: a server that asks for one will refuse";
                rejector.reject(field("clientCertificate"), reason, action);
            }
            pair
        }
        _ => None,
    };
    let with_files = matches!(mode, TlsPolicyMode::Simple | TlsPolicyMode::Mutual);
    let ca_certificates = if with_files {
        super::file(&spec.ca_certificates, field("caCertificates"), rejector).unwrap_or_default()
    } else {
        String::new()
    };
    let mut subject_alt_names =
        super::names(&spec.subject_alt_names, &field("subjectAltNames"), rejector);
    if with_files && ca_certificates.is_empty() && !subject_alt_names.is_empty() {
        let reason = "without caCertificates the server may bear any name it likes; accepted: both, or neither";
        let action = "the server is not verified";
        rejector.reject(field("subjectAltNames"), reason, action);
        subject_alt_names.clear();
    }
    let mut sni = spec.sni.clone();
    if sni.len() > MAX_SNI || sni.contains('\0') {
        let reason = format!(
            "{} bytes are too many; accepted: up to {MAX_SNI}",
            sni.len()
        );
        rejector.reject(field("sni"), reason, "no SNI is sent");
        sni.clear();
    }
    Tls {
        mode,
        identity,
        ca_certificates,
        subject_alt_names,
        sni,
    }
}
