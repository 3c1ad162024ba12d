//! TLS towards services (`trafficPolicy.tls`).
//!
//! Certificates come from files at the paths that Istio 1.4 mounts; SDS follows with the issue that brings Citadel.

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, SubjectAltNameMatcher, TlsCertificate,
    UpstreamTlsContext, common_tls_context::ValidationContextType,
    subject_alt_name_matcher::SanType,
};

use crate::{
    compile::{Policy, Tls, TlsPolicyMode},
    envoy::{self, cluster::Cluster, core},
    model::{Service, ServicePort},
    names,
    snapshot::Scope,
};

const CERT_CHAIN: &str = "/etc/certs/cert-chain.pem";
const KEY: &str = "/etc/certs/key.pem";
const ROOT_CERT: &str = "/etc/certs/root-cert.pem";
/// Envoy refuses longer ones.
const MAX_SNI: usize = 255;

/// Whether a policy needs files of the proxy.
pub(super) fn needs_files(tls: &Tls) -> bool {
    match tls.mode {
        TlsPolicyMode::Disable => false,
        TlsPolicyMode::Simple => !tls.ca_certificates.is_empty(),
        TlsPolicyMode::Mutual | TlsPolicyMode::IstioMutual => true,
    }
}

/// Sets the transport socket of an outbound cluster, if its policy asks for TLS.
pub(super) fn client(
    cluster: &mut Cluster,
    scope: &Scope,
    service: &Arc<Service>,
    port: &ServicePort,
    subset: &str,
    policy: &Policy,
) {
    let Some(tls) = &policy.tls else { return };
    let http2 = port.protocol.is_http2();
    let context = match tls.mode {
        TlsPolicyMode::Disable => return,
        TlsPolicyMode::Simple => context(
            tls,
            None,
            &tls.subject_alt_names,
            &tls.sni,
            if http2 { &["h2"] } else { &[] },
        ),
        TlsPolicyMode::Mutual => {
            let pair = Some((tls.client_certificate.as_str(), tls.private_key.as_str()));
            context(
                tls,
                pair,
                &tls.subject_alt_names,
                &tls.sni,
                if http2 { &["h2"] } else { &[] },
            )
        }
        TlsPolicyMode::IstioMutual => {
            let mesh = Tls {
                ca_certificates: ROOT_CERT.to_owned(),
                ..tls.clone()
            };
            let sans = if tls.subject_alt_names.is_empty() {
                accounts(scope, service)
            } else {
                tls.subject_alt_names.clone()
            };
            let sni = if tls.sni.is_empty() {
                names::outbound_sni(port.number, subset, &service.hostname)
            } else {
                tls.sni.clone()
            };
            let alpn: &[&str] = if http2 { &["istio", "h2"] } else { &["istio"] };
            context(&mesh, Some((CERT_CHAIN, KEY)), &sans, &sni, alpn)
        }
    };
    cluster.transport_socket = Some(core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(envoy::any(
            &context,
        ))),
    });
}

fn context(
    tls: &Tls,
    pair: Option<(&str, &str)>,
    sans: &[String],
    sni: &str,
    alpn: &[&str],
) -> UpstreamTlsContext {
    // Names can only be checked on a chain that is trusted.
    let validation = (!tls.ca_certificates.is_empty()).then(|| CertificateValidationContext {
        trusted_ca: Some(file(&tls.ca_certificates)),
        match_typed_subject_alt_names: sans
            .iter()
            .filter(|s| !s.is_empty())
            .map(|s| san(s))
            .collect(),
        ..Default::default()
    });
    UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificates: pair
                .filter(|(chain, key)| !chain.is_empty() && !key.is_empty())
                .map(|(chain, key)| TlsCertificate {
                    certificate_chain: Some(file(chain)),
                    private_key: Some(file(key)),
                    ..Default::default()
                })
                .into_iter()
                .collect(),
            alpn_protocols: alpn.iter().map(|s| (*s).to_owned()).collect(),
            validation_context_type: validation.map(ValidationContextType::ValidationContext),
            ..Default::default()
        }),
        sni: if sni.len() <= MAX_SNI {
            sni.to_owned()
        } else {
            String::new()
        },
        ..Default::default()
    }
}

fn file(path: &str) -> core::DataSource {
    core::DataSource {
        specifier: Some(core::data_source::Specifier::Filename(path.to_owned())),
        ..Default::default()
    }
}

fn san(name: &str) -> SubjectAltNameMatcher {
    let san_type = if name.contains("://") {
        SanType::Uri
    } else {
        SanType::Dns
    };
    SubjectAltNameMatcher {
        san_type: san_type.into(),
        matcher: Some(envoy::exact(name)),
        ..Default::default()
    }
}

/// Identities that may answer for a service: those of its endpoints and those it was given, sorted.
fn accounts(scope: &Scope, service: &Service) -> Vec<String> {
    let key = service.key();
    let of_endpoints = scope
        .snapshot()
        .endpoints(&key)
        .flat_map(|set| &set.endpoints)
        .map(|e| e.service_account.to_string());
    let mut all: Vec<String> = of_endpoints
        .chain(service.service_accounts.iter().cloned())
        .filter(|a| !a.is_empty())
        .collect();
    all.sort();
    all.dedup();
    all
}
