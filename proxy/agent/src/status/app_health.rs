//! The app's probes, asked on the kubelet's behalf.
//!
//! With mTLS the kubelet cannot reach the app through Envoy, so the injector points the app's HTTP probes at the agent
//! and leaves the originals in ISTIO_KUBE_APP_PROBERS. The agent asks the app on localhost and gives back the status
//! code, nothing else.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    http::{HeaderMap, Request, StatusCode},
};
use http_body_util::Empty;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Deserialize;

/// How long the app may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A Kubernetes httpGet action; its headers are sent by the kubelet itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Prober {
    #[serde(default)]
    path: String,
    port: u16,
    #[serde(default)]
    scheme: String,
}

/// The probes of this pod's app.
#[derive(Clone, Debug)]
pub struct AppHealth {
    probers: BTreeMap<String, Prober>,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

impl AppHealth {
    /// Parses ISTIO_KUBE_APP_PROBERS.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let probers: BTreeMap<String, Prober> = match text {
            "" => BTreeMap::new(),
            text => serde_json::from_str(text).map_err(|error| {
                anyhow::anyhow!(
                    "ISTIO_KUBE_APP_PROBERS: {error}; give {{\"/app-health/CONTAINER/readyz\": {{\"path\": \"/\", \"port\": 8080}}}}"
                )
            })?,
        };
        for path in probers.keys() {
            let is_known = path
                .strip_prefix("/app-health/")
                .and_then(|rest| rest.split_once('/'))
                .is_some_and(|(container, kind)| {
                    !container.is_empty() && matches!(kind, "livez" | "readyz")
                });
            anyhow::ensure!(
                is_known,
                "ISTIO_KUBE_APP_PROBERS: {path:?} is not /app-health/CONTAINER/livez or /app-health/CONTAINER/readyz"
            );
        }
        // Like the kubelet, the agent does not verify the app's certificate: it would not know which name to expect.
        let tls = rustls::ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verify::Nothing::new()))
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        // A probe shall see whether the app accepts connections, so none is kept.
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(connector);
        Ok(Self { probers, client })
    }

    /// Asks the app. 400: no such probe. 500: the app does not answer.
    pub async fn probe(&self, path: &str, headers: HeaderMap) -> StatusCode {
        let Some(Prober { path, port, scheme }) = self.probers.get(path) else {
            return StatusCode::BAD_REQUEST;
        };
        let scheme = if scheme.eq_ignore_ascii_case("https") {
            "https"
        } else {
            "http"
        };
        let path = path.trim_start_matches('/');
        let request = Request::builder()
            .uri(format!("{scheme}://localhost:{port}/{path}"))
            .body(Empty::new());
        let Ok(mut request) = request else {
            return StatusCode::INTERNAL_SERVER_ERROR;
        };
        *request.headers_mut() = headers;
        match tokio::time::timeout(TIMEOUT, self.client.request(request)).await {
            Ok(Ok(answer)) => answer.status(),
            Ok(Err(error)) => {
                tracing::info!(port, path, %error, "the app does not answer its probe");
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Err(_) => {
                tracing::info!(port, path, "the app does not answer its probe in time");
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }
}

mod verify {
    use rustls::{
        DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{
            WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
        },
        pki_types::{CertificateDer, ServerName, UnixTime},
    };

    /// Accepts any certificate, but checks that the server holds its key.
    #[derive(Debug)]
    pub(super) struct Nothing(WebPkiSupportedAlgorithms);

    impl Nothing {
        pub(super) fn new() -> Self {
            Self(aws_lc_rs::default_provider().signature_verification_algorithms)
        }
    }

    impl ServerCertVerifier for Nothing {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, certificate, signature, &self.0)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signature, &self.0)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.supported_schemes()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_probes_are_taken() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        assert!(AppHealth::parse(r#"{"/app-health/a/readyz":{"path":"/x","port":1}}"#).is_ok());
        for text in [
            r#"{"/other":{"port":1}}"#,
            r#"{"/app-health//livez":{"port":1}}"#,
            "{",
        ] {
            let message = AppHealth::parse(text).unwrap_err().to_string();
            assert!(message.contains("ISTIO_KUBE_APP_PROBERS"), "{message}");
        }
    }
}
