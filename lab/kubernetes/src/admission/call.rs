//! The HTTPS call to a webhook, with the failure texts of the original.
//!
//! Each call dials afresh: admission is rare, endpoints come and go, and a dead webhook is exactly
//! what the lab wants to see at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::answer::Failure;
use crate::json;
use crate::server::Server;

/// Answers beyond this size are refused.
const MAX_ANSWER: usize = 3 * 1024 * 1024;

/// Where a webhook listens.
struct Target {
    /// As messages print it, without the query.
    url: String,
    host: String,
    path: String,
    address: Address,
}

enum Address {
    /// To be resolved by name.
    Name(String),
    Service {
        namespace: String,
        name: String,
        port: u16,
    },
}

/// Sends a review and gives back the body of the answer.
pub(super) async fn post(
    server: &Server,
    config: &Value,
    review: &Value,
) -> Result<Bytes, Failure> {
    let roots = roots(config).map_err(|why| {
        Failure::Invalid(format!(
            "could not get REST client: unable to load root certificates: {why}"
        ))
    })?;
    let target = target(config).map_err(Failure::Invalid)?;
    let seconds = json::int_at(config, &["timeoutSeconds"])
        .unwrap_or(10)
        .clamp(1, 30);
    let shown = format!("Post \"{}?timeout={seconds}s\": ", target.url);
    let failed = |why: String| Failure::Call(format!("{shown}{why}"));
    let exchange = exchange(server, &target, roots, seconds, review);
    match tokio::time::timeout(Duration::from_secs(seconds.unsigned_abs()), exchange).await {
        Err(_) => Err(failed("context deadline exceeded".to_owned())),
        Ok(Err(why)) => Err(failed(why)),
        Ok(Ok((status, body))) if status.is_success() => Ok(body),
        Ok(Ok((status, body))) => {
            let text = String::from_utf8_lossy(&body);
            let text = if text.trim().is_empty() {
                "unknown"
            } else {
                text.trim()
            };
            let text = text.chars().take(2048).collect::<String>();
            let why = match status.as_u16() {
                500.. => format!(
                    "an error on the server ({text:?}) has prevented the request from succeeding"
                ),
                404 => "the server could not find the requested resource".to_owned(),
                _ => format!("the server rejected our request ({text:?})"),
            };
            Err(Failure::Call(why))
        }
    }
}

fn target(config: &Value) -> Result<Target, String> {
    let text = |path: &[&str]| json::str_at(config, path).to_owned();
    if json::at(config, &["clientConfig", "service"]).is_some() {
        let service = |key| text(&["clientConfig", "service", key]);
        let port = json::int_at(config, &["clientConfig", "service", "port"])
            .and_then(|p| u16::try_from(p).ok())
            .unwrap_or(443);
        let path = match service("path") {
            p if p.starts_with('/') => p,
            p => format!("/{p}"),
        };
        let host = format!("{}.{}.svc", service("name"), service("namespace"));
        return Ok(Target {
            url: format!("https://{host}:{port}{path}"),
            host,
            path,
            address: Address::Service {
                namespace: service("namespace"),
                name: service("name"),
                port,
            },
        });
    }
    let url = text(&["clientConfig", "url"]);
    let parsed: http::Uri = url
        .parse()
        .map_err(|e| format!("could not get REST client: {e}"))?;
    let host = parsed
        .host()
        .unwrap_or_default()
        .trim_matches(['[', ']'])
        .to_owned();
    let port = parsed.port_u16().unwrap_or(443);
    let dial = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    let path = if parsed.path().is_empty() {
        "/".to_owned()
    } else {
        parsed.path().to_owned()
    };
    Ok(Target {
        url,
        host,
        path,
        address: Address::Name(dial),
    })
}

/// The address to dial for a target; a service is resolved to one of its ready endpoints.
async fn resolve(server: &Server, target: &Target) -> Result<SocketAddr, String> {
    match &target.address {
        Address::Name(dial) => {
            let unknown = || format!("dial tcp: lookup {}: no such host", target.host);
            tokio::net::lookup_host(dial)
                .await
                .map_err(|_| unknown())?
                .next()
                .ok_or_else(unknown)
        }
        Address::Service {
            namespace,
            name,
            port,
        } => resolve_service(server, namespace, name, *port),
    }
}

fn resolve_service(
    server: &Server,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<SocketAddr, String> {
    let service = server
        .store
        .collection("services")
        .get(namespace, name)
        .ok_or_else(|| format!("service \"{name}\" not found"))?;
    if json::str_at(&service.value, &["spec", "type"]) == "ExternalName" {
        return Err(format!(
            "service \"{name}\" is of type ExternalName, which has no endpoints"
        ));
    }
    let wanted = json::list_at(&service.value, &["spec", "ports"])
        .iter()
        .find(|p| json::int_at(p, &["port"]) == Some(i64::from(port)))
        .ok_or_else(|| format!("no service port {port} found for service \"{name}\""))?;
    let port_name = json::str_at(wanted, &["name"]);
    let none = || format!("no endpoints available for service \"{name}\"");
    let endpoints = server
        .store
        .collection("endpoints")
        .get(namespace, name)
        .ok_or_else(none)?;
    let mut found = Vec::new();
    for subset in json::list_at(&endpoints.value, &["subsets"]) {
        let ports = json::list_at(subset, &["ports"]);
        let Some(number) = ports
            .iter()
            .find(|p| json::str_at(p, &["name"]) == port_name)
            .and_then(|p| json::int_at(p, &["port"]))
        else {
            continue;
        };
        for address in json::list_at(subset, &["addresses"]) {
            let ip = json::str_at(address, &["ip"]).parse::<std::net::IpAddr>();
            if let (Ok(ip), Ok(port)) = (ip, u16::try_from(number)) {
                found.push(SocketAddr::new(ip, port));
            }
        }
    }
    if found.is_empty() {
        return Err(none());
    }
    let pick = rand::Rng::random_range(&mut rand::rng(), 0..found.len());
    Ok(found[pick])
}

async fn exchange(
    server: &Server,
    target: &Target,
    roots: Vec<CertificateDer<'static>>,
    seconds: i64,
    review: &Value,
) -> Result<(StatusCode, Bytes), String> {
    let address = resolve(server, target).await?;
    let stream = TcpStream::connect(address)
        .await
        .map_err(|e| format!("dial tcp {address}: connect: {}", os_text(&e)))?;
    drop(stream.set_nodelay(true));
    let name = ServerName::try_from(target.host.clone()).map_err(|e| e.to_string())?;
    let config = tls(roots)?;
    let tls = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|e| tls_text(&e, &target.host))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
        .await
        .map_err(|e| io_text(&e))?;
    let driver = tokio::spawn(async move { drop(connection.await) });
    let request = Request::post(format!("{}?timeout={seconds}s", target.path))
        .header(header::HOST, &target.host)
        .header(header::USER_AGENT, "kube-apiserver-admission")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json, */*")
        .body(Full::new(Bytes::from(review.to_string())))
        .map_err(|e| e.to_string())?;
    let answer = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| io_text(&e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| e.to_string())?;
        Ok((status, body.to_bytes()))
    }
    .await;
    driver.abort();
    answer
}

fn io_text(error: &hyper::Error) -> String {
    if error.is_incomplete_message() || error.is_canceled() {
        "EOF".to_owned()
    } else {
        error.to_string()
    }
}

fn os_text(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
        std::io::ErrorKind::TimedOut => "connection timed out".to_owned(),
        _ => error.to_string(),
    }
}

/// The certificates of `caBundle`; none at all means that nothing is trusted.
fn roots(config: &Value) -> Result<Vec<CertificateDer<'static>>, String> {
    let bundle = json::str_at(config, &["clientConfig", "caBundle"]);
    if bundle.is_empty() {
        return Ok(Vec::new());
    }
    let no_pem = || "unable to parse bytes as PEM block".to_owned();
    let pem = base64::engine::general_purpose::STANDARD
        .decode(bundle)
        .map_err(|e| e.to_string())?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|_| no_pem())?;
    if certificates.is_empty() {
        Err(no_pem())
    } else {
        Ok(certificates)
    }
}

fn tls(roots: Vec<CertificateDer<'static>>) -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots.iter().cloned());
    let inner = if store.is_empty() {
        None
    } else {
        Some(
            WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone())
                .build()
                .map_err(|e| e.to_string())?,
        )
    };
    let schemes = provider.signature_verification_algorithms;
    let verifier = Arc::new(Verifier {
        inner,
        pinned: roots,
        schemes,
    });
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

/// WebPKI, plus one thing the original's TLS library accepts: a server certificate that is itself in
/// the bundle (self-signed), provided its name fits.
#[derive(Debug)]
struct Verifier {
    inner: Option<Arc<WebPkiServerVerifier>>,
    pinned: Vec<CertificateDer<'static>>,
    schemes: rustls::crypto::WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let Some(inner) = &self.inner else {
            return Err(unknown);
        };
        let verdict = inner.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        if verdict.is_ok()
            || !self
                .pinned
                .iter()
                .any(|p| p.as_ref() == end_entity.as_ref())
        {
            return verdict;
        }
        rustls::client::verify_server_name(
            &rustls::server::ParsedCertificate::try_from(end_entity)?,
            name,
        )?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(end_entity.as_ref()).map_err(|_| unknown)?;
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let validity = parsed.validity();
        if seconds < validity.not_before.timestamp() || seconds > validity.not_after.timestamp() {
            return Err(rustls::Error::InvalidCertificate(CertificateError::Expired));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.schemes)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.supported_schemes()
    }
}

/// A failed handshake in the words users know.
fn tls_text(error: &std::io::Error, host: &str) -> String {
    let inner = error
        .get_ref()
        .and_then(|e| e.downcast_ref::<rustls::Error>());
    let Some(inner) = inner else {
        return match error.kind() {
            std::io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
            std::io::ErrorKind::ConnectionReset => "read: connection reset by peer".to_owned(),
            _ => error.to_string(),
        };
    };
    let x509 = |why: String| format!("tls: failed to verify certificate: x509: {why}");
    match inner {
        rustls::Error::InvalidCertificate(why) => x509(match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "certificate signed by unknown authority".to_owned()
            }
            CertificateError::NotValidForName => {
                format!("certificate is not valid for any names, but wanted to match {host}")
            }
            CertificateError::NotValidForNameContext { presented, .. } => {
                wrong_name(presented, host)
            }
            CertificateError::ExpiredContext { time, not_after } => format!(
                "certificate has expired or is not yet valid: current time {} is after {}",
                unix(*time),
                unix(*not_after)
            ),
            CertificateError::NotValidYetContext { time, not_before } => format!(
                "certificate has expired or is not yet valid: current time {} is before {}",
                unix(*time),
                unix(*not_before)
            ),
            CertificateError::Expired | CertificateError::NotValidYet => {
                "certificate has expired or is not yet valid".to_owned()
            }
            other => format!("{other:?}"),
        }),
        rustls::Error::InvalidMessage(_) => {
            "http: server gave HTTP response to HTTPS client".to_owned()
        }
        rustls::Error::AlertReceived(alert) => format!("remote error: tls: {alert:?}"),
        other => other.to_string(),
    }
}

fn unix(time: UnixTime) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|s| jiff::Timestamp::from_second(s).ok())
        .map_or_else(String::new, |t| t.to_string())
}

/// `presented` holds names as the verifier prints them: `DnsName("a.b")`, `IpAddress(…)`.
fn wrong_name(presented: &[String], host: &str) -> String {
    let names: Vec<&str> = presented
        .iter()
        .filter_map(|p| p.strip_prefix("DnsName(\""))
        .filter_map(|p| p.strip_suffix("\")"))
        .collect();
    let is_ip = host.parse::<std::net::IpAddr>().is_ok();
    match names.as_slice() {
        _ if is_ip && !presented.iter().any(|p| p.starts_with("IpAddress")) => {
            format!("cannot validate certificate for {host} because it doesn't contain any IP SANs")
        }
        [] => format!("certificate is not valid for any names, but wanted to match {host}"),
        names => format!("certificate is valid for {}, not {host}", names.join(", ")),
    }
}
