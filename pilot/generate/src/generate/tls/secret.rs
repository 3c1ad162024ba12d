//! Certificate files as secrets.
//!
//! Envoy refuses a listener or cluster that names a missing file: for a listener that is every server of the port. A secret
//! that is missing closes only those connections that need it. So files never stand in a resource; they stand
//! in the name of a secret, and who serves the secret reads them:
//!
//! - pilot-agent, for the Envoy it started (it watches the files and serves their content: a file that comes late, or is
//!   replaced, is taken up, and a bad one never replaces a good one);
//! - else Pilot itself, on the ADS stream: [`secret`] answers with the paths, and Envoy reads. It follows files that are moved
//!   into place. A certificate that comes late is taken up if its directory was there before; a CA that comes late only when
//!   the stream is made anew, since Envoy refuses it before it begins to watch.
//!
//! What Envoy 1.40 does with either, tried: a listener with a secret that does not exist serves its other chains at once if
//! its source says so (delta: a removed name), else after the initial fetch timeout; a secret that names a missing file is refused
//! alone, with the same result, if it travels alone: of a response with several Envoy takes none after the bad one.

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret::Type,
};

use crate::envoy::{core, safe};

const PAIR: &str = "file-cert:";
const ROOT: &str = "file-root:";

/// `file-cert:CHAIN~KEY`: certificate chain and key.
pub(super) fn pair_name(chain: &str, key: &str) -> String {
    format!("{PAIR}{chain}~{key}")
}

/// `file-root:PATH`: certificates of CAs.
pub(super) fn root_name(path: &str) -> String {
    format!("{ROOT}{path}")
}

/// The secret that a name of this module stands for; `None`: it is none of these.
pub fn secret(name: &str) -> Option<Secret> {
    let content = if let Some(paths) = name.strip_prefix(PAIR) {
        let (chain, key) = paths.split_once('~')?;
        Type::TlsCertificate(TlsCertificate {
            certificate_chain: Some(file(chain)?),
            private_key: Some(file(key)?),
            ..Default::default()
        })
    } else {
        let path = name.strip_prefix(ROOT)?;
        Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(file(path)?),
            ..Default::default()
        })
    };
    Some(Secret {
        name: name.to_owned(),
        r#type: Some(content),
    })
}

fn file(path: &str) -> Option<core::DataSource> {
    safe::certificate_file(path).ok()?;
    Some(core::DataSource {
        specifier: Some(core::data_source::Specifier::Filename(path.to_owned())),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_for_their_files() {
        let pair = secret(&pair_name("/a/chain.pem", "/a/key.pem")).and_then(|s| s.r#type);
        let Some(Type::TlsCertificate(pair)) = pair else {
            panic!("{pair:?}");
        };
        assert_eq!(pair.private_key, file("/a/key.pem"));
        assert!(secret(&root_name("/a/ca.pem")).is_some());
        for other in [
            "file-cert:/a",
            "file-cert:~/b",
            "file-cert:/a~/b~/c",
            "file-root:",
            "default",
        ] {
            assert_eq!(secret(other), None, "{other}");
        }
    }
}
