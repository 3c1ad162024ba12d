//! `RemoteService`: the JSON of --envoyMetricsService and --envoyAccessLogService.

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// A gRPC service that Envoy sends to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RemoteService {
    /// HOST:PORT
    #[serde(default)]
    pub address: String,
    /// TLS; absent: plain text.
    pub tls_settings: Option<TlsSettings>,
    /// TCP keepalive.
    pub tcp_keepalive: Option<Keepalive>,
}

/// TLS towards such a service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsSettings {
    /// How.
    #[serde(default)]
    pub mode: TlsMode,
    /// Own certificate, for MUTUAL.
    #[serde(default)]
    pub client_certificate: String,
    /// Own key, for MUTUAL.
    #[serde(default)]
    pub private_key: String,
    /// CA; empty: the server is not verified.
    #[serde(default)]
    pub ca_certificates: String,
    /// Names one of which the server's certificate must bear.
    #[serde(default)]
    pub subject_alt_names: Vec<String>,
    /// SNI.
    #[serde(default)]
    pub sni: String,
}

/// Kinds of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    /// None.
    #[default]
    Disable,
    /// The server shows a certificate.
    Simple,
    /// Both do.
    Mutual,
    /// Both do, with the mesh's own certificates.
    IstioMutual,
}

/// TCP keepalive.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Keepalive {
    /// Probes before the connection counts as dead.
    #[serde(default)]
    pub probes: u32,
    /// Idle time before the first, e.g. `10s`.
    #[serde(default)]
    pub time: Option<String>,
    /// Time between them.
    #[serde(default)]
    pub interval: Option<String>,
}

impl RemoteService {
    /// Parses a flag's value; empty, and an empty address, mean none.
    pub fn parse(flag: &str, text: &str) -> anyhow::Result<Option<Self>> {
        if text.is_empty() {
            return Ok(None);
        }
        let service: Self = serde_json::from_str(text).map_err(|error| {
            anyhow::anyhow!(
                "{flag} {text:?}: {error}; give {{\"address\": \"HOST:PORT\", \"tlsSettings\": {{\"mode\": …}}, \
                 \"tcpKeepalive\": {{\"probes\": 3, \"time\": \"10s\", \"interval\": \"10s\"}}}}"
            )
        })?;
        Ok(Some(service).filter(|service| !service.address.is_empty()))
    }
}

pub(super) fn keepalive(keepalive: &Keepalive) -> Value {
    let seconds = |text: &Option<String>| {
        let parsed = crate::duration::parse(text.as_deref()?).ok()?;
        Some(parsed.as_secs())
    };
    let mut fields = Map::new();
    if keepalive.probes > 0 {
        fields.insert("keepalive_probes".into(), keepalive.probes.into());
    }
    for (key, value) in [
        ("keepalive_time", seconds(&keepalive.time)),
        ("keepalive_interval", seconds(&keepalive.interval)),
    ] {
        if let Some(value) = value {
            fields.insert(key.into(), value.into());
        }
    }
    fields.into()
}

pub(super) fn tls_context(settings: &TlsSettings) -> Option<Value> {
    let (certificate, key, ca) = match settings.mode {
        TlsMode::Disable => return None,
        TlsMode::Simple => ("", "", settings.ca_certificates.as_str()),
        TlsMode::Mutual => (
            settings.client_certificate.as_str(),
            settings.private_key.as_str(),
            settings.ca_certificates.as_str(),
        ),
        TlsMode::IstioMutual => (
            "/etc/certs/cert-chain.pem",
            "/etc/certs/key.pem",
            "/etc/certs/root-cert.pem",
        ),
    };
    let mut context = json!({"common_tls_context": {"alpn_protocols": ["h2"]}});
    let common = &mut context["common_tls_context"];
    if !certificate.is_empty() {
        common["tls_certificates"] = json!([{"certificate_chain": {"filename": certificate}, "private_key": {"filename": key}}]);
    }
    if !ca.is_empty() {
        let names: Vec<Value> = settings
            .subject_alt_names
            .iter()
            .map(|name| {
                let kind = if name.contains("://") { "URI" } else { "DNS" };
                json!({"san_type": kind, "matcher": {"exact": name}})
            })
            .collect();
        common["validation_context"] =
            json!({"trusted_ca": {"filename": ca}, "match_typed_subject_alt_names": names});
    }
    if !settings.sni.is_empty() {
        context["sni"] = settings.sni.as_str().into();
    }
    Some(context)
}
