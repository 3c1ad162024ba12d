//! Certificates and keys: checked before anybody is given them, never shown.

use envoy_types::pb::envoy::{
    config::core::v3::{DataSource, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, Secret, TlsCertificate, secret::Type,
    },
};
use prost::Message as _;
use rustls::{
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What a secret holds.
#[derive(Clone, PartialEq, Eq)]
pub enum Material {
    /// A certificate chain and its key, PEM.
    Pair {
        /// The leaf first.
        chain: Vec<u8>,
        /// The leaf's.
        key: Vec<u8>,
    },
    /// Certificates of CAs, PEM.
    Authorities(Vec<u8>),
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pair { .. } => "Pair(…)",
            Self::Authorities(_) => "Authorities(…)",
        })
    }
}

/// Why there is no (new) material. The text names the place and what would be accepted; never content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Nothing there.
    #[error("{0}")]
    Missing(String),
    /// Something there that cannot be used.
    #[error("{0}")]
    Bad(String),
}

impl Material {
    /// A certificate chain and its key, if they are ones and belong together. `place` says where they were found.
    pub fn pair(place: &str, chain: Vec<u8>, key: Vec<u8>) -> Result<Self, Problem> {
        let bad = |reason: String| Problem::Bad(format!("{place}: {reason}"));
        let certificates = certificates(&chain).map_err(bad)?;
        // The parser's own errors could quote the text.
        let private = PrivateKeyDer::from_pem_slice(&key).map_err(|_| {
            bad("the key is no unencrypted private key in PEM (PKCS#8, PKCS#1 or SEC1)".to_owned())
        })?;
        let signer = default_provider()
            .key_provider
            .load_private_key(private)
            .map_err(|_| bad("the key is of no usable kind; accepted: RSA of 2048 bits or more, ECDSA P-256, P-384, P-521".to_owned()))?;
        // "Unknown" would mean that a key cannot tell; all of ours can.
        CertifiedKey::new(certificates, signer)
            .keys_match()
            .map_err(|_| bad("the key does not belong to the certificate".to_owned()))?;
        Ok(Self::Pair { chain, key })
    }

    /// Certificates of CAs, if they are ones.
    pub fn authorities(place: &str, pem: Vec<u8>) -> Result<Self, Problem> {
        let parsed = certificates(&pem).and_then(|list| {
            let good = list
                .iter()
                .all(|der| X509Certificate::from_der(der).is_ok());
            if good {
                Ok(())
            } else {
                Err("it holds something that is no certificate".to_owned())
            }
        });
        parsed.map_err(|reason| Problem::Bad(format!("{place}: {reason}")))?;
        Ok(Self::Authorities(pem))
    }

    /// What a log may say of it: subject and end of the first certificate.
    pub(super) fn description(&self) -> String {
        let (Self::Pair { chain: pem, .. } | Self::Authorities(pem)) = self;
        let first = CertificateDer::from_pem_slice(pem).ok();
        let parsed = first
            .as_ref()
            .and_then(|der| X509Certificate::from_der(der).ok());
        parsed.map_or_else(String::new, |(_, certificate)| {
            let validity = certificate.validity();
            let now = if validity.is_valid() {
                ""
            } else {
                ", not valid now"
            };
            format!(
                "{} until {}{now}",
                certificate.subject(),
                validity.not_after
            )
        })
    }

    /// The secret as Envoy takes it.
    pub(super) fn encode(&self, name: &str) -> Vec<u8> {
        let inline = |bytes: &[u8]| {
            Some(DataSource {
                specifier: Some(Specifier::InlineBytes(bytes.to_vec())),
                ..Default::default()
            })
        };
        let content = match self {
            Self::Pair { chain, key } => Type::TlsCertificate(TlsCertificate {
                certificate_chain: inline(chain),
                private_key: inline(key),
                ..Default::default()
            }),
            Self::Authorities(pem) => Type::ValidationContext(CertificateValidationContext {
                trusted_ca: inline(pem),
                ..Default::default()
            }),
        };
        let secret = Secret {
            name: name.to_owned(),
            r#type: Some(content),
        };
        secret.encode_to_vec()
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let list = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| "the certificates are not valid PEM".to_owned())?;
    if list.is_empty() {
        return Err("it holds no certificate in PEM".to_owned());
    }
    Ok(list)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::sds) fn pem(name: &str) -> (Vec<u8>, Vec<u8>) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        (
            made.cert.pem().into_bytes(),
            made.signing_key.serialize_pem().into_bytes(),
        )
    }

    #[test]
    fn a_pair_must_belong_together() {
        let ((a, a_key), (_, b_key)) = (pem("a"), pem("b"));
        let good = Material::pair("here", a.clone(), a_key.clone()).unwrap();
        assert!(
            good.description().contains("until"),
            "{}",
            good.description()
        );
        assert_eq!(format!("{good:?}"), "Pair(…)");
        for (chain, key, reason) in [
            (a.clone(), b_key, "does not belong"),
            (
                a.clone(),
                b"nonsense".to_vec(),
                "no unencrypted private key",
            ),
            (b"nonsense".to_vec(), a_key.clone(), "no certificate"),
            (Vec::new(), a_key, "no certificate"),
        ] {
            let problem = Material::pair("here", chain, key).unwrap_err().to_string();
            assert!(
                problem.starts_with("here: ") && problem.contains(reason),
                "{problem}"
            );
        }
        assert!(Material::authorities("here", a).is_ok());
        assert!(Material::authorities("here", Vec::new()).is_err());
    }

    #[test]
    fn no_error_quotes_a_key() {
        let (chain, key) = pem("a");
        let broken = String::from_utf8(key)
            .unwrap()
            .replace("BEGIN PRIVATE", "BEGIN BROKEN");
        let secret = broken.lines().nth(1).unwrap().to_owned();
        let problem = Material::pair("here", chain, broken.into_bytes()).unwrap_err();
        assert!(!problem.to_string().contains(&secret));
    }
}
