//! TLS towards services, as DestinationRules ask for it.

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;

use super::Verify;
use crate::{
    compile::{MAX_SNI, Policy, Tls, TlsPolicyMode},
    envoy::core,
    model::{Service, ServicePort},
    names,
    report::{Report, metric},
    snapshot::Scope,
};

/// The transport socket of an outbound cluster, if its policy asks for TLS.
pub(in crate::generate) fn client(
    scope: &Scope,
    service: &Arc<Service>,
    port: &ServicePort,
    subset: &str,
    policy: &Policy,
    report: &mut Report,
) -> Option<core::TransportSocket> {
    let tls = policy.tls.as_ref()?;
    let context = match tls.mode {
        TlsPolicyMode::Disable => return None,
        TlsPolicyMode::Simple | TlsPolicyMode::Mutual => originated(scope, tls, port),
        TlsPolicyMode::IstioMutual => mesh(scope, tls, service, port, subset, report),
    };
    Some(super::socket(&context))
}

/// TLS with the user's own certificates.
fn originated(scope: &Scope, tls: &Tls, port: &ServicePort) -> UpstreamTlsContext {
    let own = tls.identity.as_ref().map(|files| super::pair(scope, files));
    let ca = (!tls.ca_certificates.is_empty()).then(|| super::root(scope, &tls.ca_certificates));
    let verify = Verify {
        ca,
        names: &tls.subject_alt_names,
        ..Verify::default()
    };
    // Where Envoy follows the client's protocol it offers the fitting one by itself.
    let alpn: &[&str] = if port.protocol.is_http2() {
        &["h2"]
    } else {
        &[]
    };
    UpstreamTlsContext {
        common_tls_context: Some(super::common(own, verify, alpn)),
        sni: tls.sni.clone(),
        ..Default::default()
    }
}

/// Mesh mTLS: the workload's own certificate, and the service accounts of the service as names.
fn mesh(
    scope: &Scope,
    tls: &Tls,
    service: &Arc<Service>,
    port: &ServicePort,
    subset: &str,
    report: &mut Report,
) -> UpstreamTlsContext {
    let accounts = if tls.subject_alt_names.is_empty() {
        accounts(scope, service)
    } else {
        tls.subject_alt_names.clone()
    };
    let (own, root) = super::workload(scope, &scope.key().certificates.client);
    let verify = Verify {
        ca: Some(root),
        names: &accounts,
        ..Verify::default()
    };
    let alpn: &[&str] = if port.protocol.is_http2() {
        &["istio", "h2"]
    } else {
        &["istio"]
    };
    let mut sni = tls.sni.clone();
    if sni.is_empty() {
        sni = names::outbound_sni(port.number, subset, &service.hostname);
        if sni.len() > MAX_SNI {
            let message = format!("its SNI would have over {MAX_SNI} bytes; none is sent");
            report.event(metric::REJECTED_CONFIGS, std::mem::take(&mut sni), message);
        }
    }
    UpstreamTlsContext {
        common_tls_context: Some(super::common(Some(own), verify, alpn)),
        sni,
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
