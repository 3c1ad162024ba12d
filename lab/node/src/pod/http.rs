//! A small HTTP client for probes and hooks: one request per connection, no redirects, no certificate checks (a probe asks
//! whether a server answers, not who it is).

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::{Request, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// Most that is read of an answer's body.
const BODY_LIMIT: usize = 10 * 1024;

/// The number of a port that may be given by name.
pub(crate) fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    match port {
        IntOrString::Int(number) => {
            u16::try_from(*number).map_err(|_| format!("port {number} is out of range"))
        }
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(name))
            .and_then(|port| u16::try_from(port.container_port).ok())
            .or_else(|| name.parse().ok())
            .ok_or_else(|| format!("the container has no port named \"{name}\"")),
    }
}

/// `GET` as a probe does it: status 200 to 399 is success.
pub(crate) async fn get(
    container: &Container,
    ip: std::net::Ipv4Addr,
    action: &HTTPGetAction,
) -> Result<(), String> {
    let port = port(container, &action.port)?;
    let host = action
        .host
        .clone()
        .filter(|host| !host.is_empty())
        .unwrap_or_else(|| ip.to_string());
    let tls = action.scheme.as_deref() == Some("HTTPS");
    let scheme = if tls { "https" } else { "http" };
    let path = action
        .path
        .as_deref()
        .filter(|path| !path.is_empty())
        .unwrap_or("/");
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    let url = format!("{scheme}://{host}:{port}{path}");
    let failed = |text: String| format!("Get \"{url}\": {text}");

    let mut request = Request::get(path.as_str())
        .header("user-agent", "kube-probe/1.33")
        .header("connection", "close");
    let mut named_host = format!("{host}:{port}");
    for header in action.http_headers.iter().flatten() {
        if header.name.eq_ignore_ascii_case("host") {
            named_host.clone_from(&header.value);
        } else {
            request = request.header(&header.name, &header.value);
        }
    }
    let request = request
        .header("host", named_host)
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(error.to_string()))?;
    let stream = dial(&host, port).await.map_err(&failed)?;
    let status = if tls {
        let name = ServerName::try_from(host.clone()).map_err(|error| failed(error.to_string()))?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(trusting()))
            .connect(name, stream)
            .await
            .map_err(|error| failed(error.to_string()))?;
        exchange(stream, request).await
    } else {
        exchange(stream, request).await
    };
    match status.map_err(|error| failed(error.to_string()))? {
        200..400 => Ok(()),
        status => Err(format!("HTTP probe failed with statuscode: {status}")),
    }
}

/// Opens and closes a connection.
pub(crate) async fn tcp(host: &str, port: u16) -> Result<(), String> {
    dial(host, port).await.map(drop)
}

async fn dial(host: &str, port: u16) -> Result<TcpStream, String> {
    let target = format!("{host}:{port}");
    TcpStream::connect(&target)
        .await
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::ConnectionRefused => {
                format!("dial tcp {target}: connect: connection refused")
            }
            _ => format!("dial tcp {target}: {error}"),
        })
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<u16, hyper::Error> {
    let (mut sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await;
    let status = match response {
        Ok(response) => {
            let status = response.status().as_u16();
            // Read a little, so that the server's write is not cut off in the usual case.
            let _ = Limited::new(response.into_body(), BODY_LIMIT)
                .collect()
                .await;
            Ok(status)
        }
        Err(error) => Err(error),
    };
    connection.abort();
    status
}

/// `grpc.health.v1.Health/Check`.
pub(crate) async fn grpc_health(address: SocketAddr, service: &str) -> Result<(), String> {
    let stream = dial(&address.ip().to_string(), address.port()).await?;
    let (mut sender, connection) =
        conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(health_request(service)))
        .map_err(|error| error.to_string())?;
    let result = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let headers = response.headers().clone();
        let body = Limited::new(response.into_body(), BODY_LIMIT)
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        let code = trailers
            .get("grpc-status")
            .or(headers.get("grpc-status"))
            .map(|value| value.as_bytes().to_vec());
        match (code.as_deref(), body.to_bytes().get(5..)) {
            // HealthCheckResponse{status: SERVING}
            (Some(b"0"), Some([0x08, 0x01, ..])) => Ok(()),
            (Some(b"0"), _) => Err("service unhealthy (responded with \"NOT_SERVING\")".to_owned()),
            (code, _) => Err(format!(
                "health rpc failed: grpc-status {}",
                String::from_utf8_lossy(code.unwrap_or(b"missing"))
            )),
        }
    }
    .await;
    connection.abort();
    result
}

/// The gRPC frame of `HealthCheckRequest{service}`.
fn health_request(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() && service.len() < 128 {
        message.push(0x0a);
        message.push(u8::try_from(service.len()).unwrap_or(0));
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    frame.extend(message);
    frame.into()
}

fn trusting() -> ClientConfig {
    ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth()
}

/// Accepts every certificate.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
