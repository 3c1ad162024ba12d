//! Keys and certificates: one CA per lab, a serving certificate, the admin's client certificate and
//! the key that signs service-account tokens. Made once, read at every later start.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::{Config, Error};

/// Years certificates are valid; a lab is thrown away long before.
const YEARS: i32 = 10;

/// Everything secret and everything signed.
pub(crate) struct Pki {
    pub(crate) ca_pem: String,
    ca_key: String,
    admin_pem: String,
    admin_key: String,
    pub(crate) token_key: RsaKeyPair,
    san_ips: Vec<IpAddr>,
}

impl Pki {
    pub(crate) fn open(config: &Config) -> Result<Self, Error> {
        Self::load(config).map_err(|message| Error::Pki {
            dir: config.pki_dir.clone(),
            message,
        })
    }

    fn load(config: &Config) -> Result<Self, String> {
        let dir = &config.pki_dir;
        fs::create_dir_all(dir).map_err(|e| e.to_string())?;
        let ca_key = keep(&dir.join("ca.key"), true, || Ok(new_key()?.serialize_pem()))?;
        let ca_pem = keep(&dir.join("ca.crt"), false, || {
            ca_parameters()?
                .self_signed(&key(&ca_key)?)
                .map(|c| c.pem())
                .map_err(|e| e.to_string())
        })?;
        let admin_key = keep(&dir.join("admin.key"), true, || {
            Ok(new_key()?.serialize_pem())
        })?;
        let admin_pem = keep(&dir.join("admin.crt"), false, || {
            let parameters = client_parameters("kubernetes-admin", "system:masters")?;
            sign(parameters, &key(&admin_key)?, &ca_pem, &ca_key)
        })?;
        let sa = keep(&dir.join("sa.key"), true, || {
            let pair = RsaKeyPair::generate(KeySize::Rsa2048).map_err(|e| e.to_string())?;
            let der = pair.as_der().map_err(|e| e.to_string())?;
            Ok(pem("PRIVATE KEY", der.as_ref()))
        })?;
        let der =
            PrivateKeyDer::from_pem_slice(sa.as_bytes()).map_err(|e| format!("sa.key: {e}"))?;
        let token_key =
            RsaKeyPair::from_pkcs8(der.secret_der()).map_err(|e| format!("sa.key: {e}"))?;
        let first = config.service_cidr.hosts().next();
        let mut san_ips: Vec<IpAddr> =
            vec![[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()];
        san_ips.extend(first.map(IpAddr::from));
        san_ips.extend(config.advertise.map(|a| a.ip()));
        san_ips.extend(&config.extra_sans);
        Ok(Self {
            ca_pem,
            ca_key,
            admin_pem,
            admin_key,
            token_key,
            san_ips,
        })
    }

    /// A fresh serving certificate, and the check of client certificates against the CA.
    pub(crate) fn server_config(&self) -> Result<rustls::ServerConfig, String> {
        let key_pair = new_key()?;
        let mut names: Vec<SanType> = Vec::new();
        for name in [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ] {
            names.push(SanType::DnsName(
                name.try_into().map_err(|e| format!("{name}: {e}"))?,
            ));
        }
        names.extend(self.san_ips.iter().copied().map(SanType::IpAddress));
        let mut parameters = leaf("kube-apiserver", ExtendedKeyUsagePurpose::ServerAuth)?;
        parameters.subject_alt_names = names;
        let certificate = sign(parameters, &key_pair, &self.ca_pem, &self.ca_key)?;
        let chain: Vec<CertificateDer<'static>> = vec![
            CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|e| e.to_string())?,
            CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).map_err(|e| e.to_string())?,
        ];
        let key = PrivateKeyDer::from_pem_slice(key_pair.serialize_pem().as_bytes())
            .map_err(|e| e.to_string())?;
        let mut roots = RootCertStore::empty();
        roots.add(chain[1].clone()).map_err(|e| e.to_string())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .allow_unauthenticated()
                .build()
                .map_err(|e| e.to_string())?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|e| e.to_string())?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// A kubeconfig holding the admin's credentials.
    pub(crate) fn kubeconfig(&self, server: &str) -> String {
        use base64::Engine;
        let b64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: lab\n  cluster:\n    server: {server}\n    \
             certificate-authority-data: {}\ncontexts:\n- name: lab\n  context:\n    cluster: lab\n    user: admin\n\
             current-context: lab\nusers:\n- name: admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
            b64(&self.ca_pem),
            b64(&self.admin_pem),
            b64(&self.admin_key)
        )
    }
}

/// Reads a file, or makes it. Private files are readable by their owner only.
fn keep(
    path: &Path,
    private: bool,
    make: impl FnOnce() -> Result<String, String>,
) -> Result<String, String> {
    match fs::read_to_string(path) {
        Ok(text) => return Ok(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(format!("{}: {e}", path.display())),
    }
    let text = make()?;
    let partial = path.with_extension("new");
    let describe = |e: std::io::Error| format!("{}: {e}", partial.display());
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(if private { 0o600 } else { 0o644 })
        .open(&partial)
        .map_err(describe)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(describe)?;
    fs::rename(&partial, path).map_err(describe)?;
    Ok(text)
}

fn new_key() -> Result<KeyPair, String> {
    KeyPair::generate().map_err(|e| e.to_string())
}

fn key(pem: &str) -> Result<KeyPair, String> {
    KeyPair::from_pem(pem).map_err(|e| e.to_string())
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for chunk in body.as_bytes().chunks(64) {
        out.push_str(std::str::from_utf8(chunk).unwrap_or_default());
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

fn base(name: &str) -> Result<CertificateParams, String> {
    let mut parameters = CertificateParams::new(Vec::new()).map_err(|e| e.to_string())?;
    let mut dn = DistinguishedName::new();
    dn.push(DnType::CommonName, name);
    parameters.distinguished_name = dn;
    let year = i32::from(jiff::Zoned::now().year());
    parameters.not_before = rcgen::date_time_ymd(year - 1, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(year + YEARS, 1, 1);
    Ok(parameters)
}

fn ca_parameters() -> Result<CertificateParams, String> {
    let mut parameters = base("kubernetes")?;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::CrlSign,
    ];
    Ok(parameters)
}

fn leaf(name: &str, usage: ExtendedKeyUsagePurpose) -> Result<CertificateParams, String> {
    let mut parameters = base(name)?;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![usage];
    Ok(parameters)
}

fn client_parameters(name: &str, group: &str) -> Result<CertificateParams, String> {
    let mut parameters = leaf(name, ExtendedKeyUsagePurpose::ClientAuth)?;
    parameters
        .distinguished_name
        .push(DnType::OrganizationName, group);
    Ok(parameters)
}

fn sign(
    parameters: CertificateParams,
    subject: &KeyPair,
    ca_pem: &str,
    ca_key: &str,
) -> Result<String, String> {
    let issuer = Issuer::from_ca_cert_pem(ca_pem, key(ca_key)?).map_err(|e| e.to_string())?;
    parameters
        .signed_by(subject, &issuer)
        .map(|c| c.pem())
        .map_err(|e| e.to_string())
}
