//! Certificates, and TLS at both ends of a proxy.

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    server::WebPkiClientVerifier,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A certificate authority of its own.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key.
pub(crate) struct Identity {
    pub certificate_pem: String,
    pub key_pem: String,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// For servers and clients; `names` are DNS names or URIs (SPIFFE).
    pub(crate) fn issue(&self, names: &[&str]) -> Identity {
        let mut params = CertificateParams::default();
        for name in names {
            params.subject_alt_names.push(if name.contains("://") {
                SanType::URI((*name).try_into().unwrap())
            } else {
                SanType::DnsName((*name).try_into().unwrap())
            });
        }
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            certificate: certificate.der().clone(),
            key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        }
    }

    /// The PEM files of a server: `NAME.pem`, `NAME.key` of a certificate for `names`, and `NAME-ca.pem` of this authority.
    pub(crate) fn files(&self, folder: &Files, name: &str, names: &[&str]) {
        let identity = self.issue(names);
        folder.write(&format!("{name}.key"), &identity.key_pem);
        folder.write(&format!("{name}.pem"), &identity.certificate_pem);
        folder.write(&format!("{name}-ca.pem"), &self.pem());
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        roots
    }
}

/// A folder of certificate files that Envoy's user may read.
pub(crate) struct Files(tempfile::TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// Writes or replaces a file in one step.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let partial = self.path(&format!(".{name}"));
        std::fs::write(&partial, text).unwrap();
        std::fs::set_permissions(&partial, Permissions::from_mode(0o644)).unwrap();
        std::fs::rename(partial, self.path(name)).unwrap();
    }
}

/// For [`super::Backend::https`]: shows `identity`, and asks for a certificate of `clients` if that is given.
pub(crate) fn server_tls(identity: &Identity, clients: Option<&Authority>) -> ServerConfig {
    let builder = ServerConfig::builder();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder(Arc::new(authority.roots()))
                .build()
                .unwrap(),
        ),
    };
    let mut config = builder
        .with_single_cert(vec![identity.certificate.clone()], identity.key.clone_key())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// A request over TLS on a new connection; the certificate must be one of `authority` for `sni`.
pub(crate) async fn ask_tls(
    to: (std::net::Ipv4Addr, u16),
    sni: &str,
    authority: &Authority,
    identity: Option<&Identity>,
    request: super::Request,
) -> Result<super::Response, String> {
    let stream = TcpStream::connect(to).await;
    let stream = stream.map_err(|error| format!("{to:?}: {error}"))?;
    let stream = tls(stream, sni, authority, identity, &["http/1.1"]).await;
    super::send(stream.map_err(|e| format!("{sni}: {e}"))?, request).await
}

/// A TLS client's handshake over a connection: trusts `authority` only, sends `sni`, shows `identity` if asked for one.
pub(crate) async fn tls(
    stream: TcpStream,
    sni: &str,
    authority: &Authority,
    identity: Option<&Identity>,
    alpn: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let builder = ClientConfig::builder().with_root_certificates(authority.roots());
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder
            .with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key())
            .unwrap(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(sni.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}
