//! TLS from files that may change under us.
//!
//! [`ReloadingTls`] reads certificate chain, key and (for client authentication) roots, and looks at the files again
//! every few seconds. Contents are compared by digest, so a symlink swap of a mounted secret is one change. A set that
//! does not load is reported once and the last good one stays in force.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::Drain;

/// Where the parts of a server's identity are.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// PEM chain, leaf first.
    pub cert_chain: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
    /// PEM roots that client certificates must chain to; absent: clients need none.
    pub client_roots: Option<PathBuf>,
    /// ALPN protocols, most wanted first.
    pub alpn: Vec<Vec<u8>>,
}

/// Why a TLS identity could not be loaded. Key material never appears in it.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file holds no usable PEM section.
    #[error("{path}: no usable {wanted} in PEM form: {message}", path = path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        wanted: &'static str,
        /// What the parser says.
        message: String,
    },
    /// The parts do not fit together.
    #[error("{path}: {message}", path = path.display())]
    Config {
        /// The certificate chain's file.
        path: PathBuf,
        /// What rustls says.
        message: String,
    },
}

/// A server identity that follows its files.
#[derive(Debug)]
pub struct ReloadingTls {
    files: TlsFiles,
    digest: [u8; 32],
    sender: watch::Sender<Arc<ServerConfig>>,
}

impl ReloadingTls {
    /// Loads the identity for the first time.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let digest = digest(&files)?;
        let sender = watch::Sender::new(Arc::new(server_config(&files)?));
        Ok(Self {
            files,
            digest,
            sender,
        })
    }

    /// The identity in force, for accept loops.
    pub fn subscribe(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.sender.subscribe()
    }

    /// Looks at the files every `interval` until the drain begins.
    pub async fn run(mut self, interval: Duration, drain: Drain) {
        let mut ticks = tokio::time::interval(interval);
        let mut broken = String::new();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = drain.begun() => return,
            }
            match self.reload() {
                Ok(true) => {
                    broken.clear();
                    tracing::info!(chain = %self.files.cert_chain.display(), "TLS identity reloaded");
                }
                Ok(false) => {}
                Err(error) => {
                    let message = error.to_string();
                    if message != broken {
                        tracing::error!(%error, "TLS identity not reloaded; the last good one stays in force");
                        broken = message;
                    }
                }
            }
        }
    }

    /// Reloads if the files' contents changed; says whether they did.
    pub fn reload(&mut self) -> Result<bool, TlsError> {
        let digest = digest(&self.files)?;
        if digest == self.digest {
            return Ok(false);
        }
        self.sender
            .send_replace(Arc::new(server_config(&self.files)?));
        self.digest = digest;
        Ok(true)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

fn digest(files: &TlsFiles) -> Result<[u8; 32], TlsError> {
    let mut hash = Sha256::new();
    for path in [
        Some(&files.cert_chain),
        Some(&files.key),
        files.client_roots.as_ref(),
    ]
    .into_iter()
    .flatten()
    {
        let contents = read(path)?;
        hash.update((contents.len() as u64).to_le_bytes());
        hash.update(contents);
    }
    Ok(hash.finalize().into())
}

/// The certificates of a PEM file; at least one.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |message: String| TlsError::Pem {
        path: path.to_owned(),
        wanted: "certificate",
        message,
    };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| pem(error.to_string()))?;
    if certificates.is_empty() {
        return Err(pem("the file holds none".into()));
    }
    Ok(certificates)
}

/// The roots of a PEM file.
pub fn read_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).map_err(|error| TlsError::Config {
            path: path.to_owned(),
            message: error.to_string(),
        })?;
    }
    Ok(roots)
}

fn server_config(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let config = |error: &dyn std::fmt::Display| TlsError::Config {
        path: files.cert_chain.clone(),
        message: error.to_string(),
    };
    let chain = read_certificates(&files.cert_chain)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|error| TlsError::Pem {
        path: files.key.clone(),
        wanted: "private key",
        message: error.to_string(),
    })?;
    let builder = ServerConfig::builder();
    let builder = match &files.client_roots {
        None => builder.with_no_client_auth(),
        Some(path) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder(Arc::new(read_roots(path)?))
                .build()
                .map_err(|error| config(&error))?,
        ),
    };
    let mut server = builder
        .with_single_cert(chain, key)
        .map_err(|error| config(&error))?;
    server.alpn_protocols.clone_from(&files.alpn);
    Ok(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_identity(folder: &Path) -> TlsFiles {
        let identity = rcgen::generate_simple_self_signed(["pilot.test".to_owned()]).unwrap();
        let files = TlsFiles {
            cert_chain: folder.join("cert-chain.pem"),
            key: folder.join("key.pem"),
            client_roots: None,
            alpn: vec![b"h2".to_vec()],
        };
        std::fs::write(&files.cert_chain, identity.cert.pem()).unwrap();
        std::fs::write(&files.key, identity.signing_key.serialize_pem()).unwrap();
        files
    }

    #[test]
    fn a_changed_identity_is_taken_and_a_broken_one_is_not() {
        crate::install_tls_provider();
        let folder = tempfile::tempdir().unwrap();
        let mut tls = ReloadingTls::load(write_identity(folder.path())).unwrap();
        let config = tls.subscribe();
        assert!(!tls.reload().unwrap(), "nothing changed");
        let first = config.borrow().clone();
        write_identity(folder.path());
        assert!(tls.reload().unwrap());
        let second = config.borrow().clone();
        assert!(!Arc::ptr_eq(&first, &second));
        std::fs::write(folder.path().join("key.pem"), "rubbish").unwrap();
        let message = tls.reload().unwrap_err().to_string();
        assert!(
            message.contains("key.pem") && message.contains("private key"),
            "{message}"
        );
        assert!(
            Arc::ptr_eq(&second, &config.borrow()),
            "the last good identity stays"
        );
    }
}
