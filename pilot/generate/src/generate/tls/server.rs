//! TLS that ends at a server of a Gateway.

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    DownstreamTlsContext, SdsSecretConfig, TlsParameters, tls_parameters::TlsProtocol,
};

use super::Verify;
use crate::{
    compile::{Credentials, ServerTls, TlsVersion},
    envoy::{self, core},
    names,
    snapshot::Scope,
};

const ALPN: [&str; 2] = ["h2", "http/1.1"];

/// Why this gateway cannot serve the settings.
pub(in crate::generate) fn unavailable(scope: &Scope, tls: &ServerTls) -> Option<&'static str> {
    let Credentials::Given { name, files, ca } = &tls.credentials else {
        return None;
    };
    let by_name = scope.key().certificates.user && !name.is_empty();
    if !by_name && files.is_none() {
        return Some(
            "needs credentialName, which this gateway does not follow; set USER_SDS in its metadata \
             (ISTIO_META_USER_SDS=true), or give files",
        );
    }
    (!by_name && tls.mutual && ca.is_empty()).then_some(
        "verifies clients by credentialName, which this gateway does not follow; set USER_SDS in its \
         metadata (ISTIO_META_USER_SDS=true), or give caCertificates",
    )
}

/// The transport socket of a server's chains.
pub(in crate::generate) fn server(scope: &Scope, tls: &ServerTls) -> core::TransportSocket {
    let (own, ca) = match &tls.credentials {
        Credentials::Mesh => {
            let (own, root) = super::workload(scope, &scope.key().certificates.server);
            (Some(own), Some(root))
        }
        Credentials::Given { name, ca, .. }
            if scope.key().certificates.user && !name.is_empty() =>
        {
            let ca = if tls.mutual {
                Some(super::credential(scope, names::client_ca_secret(name)))
            } else {
                root(scope, ca)
            };
            (Some(super::credential(scope, name.clone())), ca)
        }
        Credentials::Given { files, ca, .. } => {
            let own = files.as_ref().map(|files| super::pair(scope, files));
            (own, root(scope, ca))
        }
    };
    let verify = Verify {
        ca,
        names: &tls.subject_alt_names,
        spki: &tls.spki,
        hashes: &tls.hashes,
    };
    let mut common = super::common(own, verify, &ALPN);
    common.tls_params = parameters(tls);
    super::socket(&DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: envoy::boolean(tls.mutual),
        ..Default::default()
    })
}

fn root(scope: &Scope, path: &str) -> Option<SdsSecretConfig> {
    (!path.is_empty()).then(|| super::root(scope, path))
}

fn parameters(tls: &ServerTls) -> Option<TlsParameters> {
    let version = |version: Option<TlsVersion>| match version {
        None => TlsProtocol::TlsAuto,
        Some(TlsVersion::V1_0) => TlsProtocol::TlSv10,
        Some(TlsVersion::V1_1) => TlsProtocol::TlSv11,
        Some(TlsVersion::V1_2) => TlsProtocol::TlSv12,
        Some(TlsVersion::V1_3) => TlsProtocol::TlSv13,
    };
    let parameters = TlsParameters {
        tls_minimum_protocol_version: version(tls.min).into(),
        tls_maximum_protocol_version: version(tls.max).into(),
        cipher_suites: tls.cipher_suites.clone(),
        ..Default::default()
    };
    (parameters != TlsParameters::default()).then_some(parameters)
}
