//! Where a proxy gets its certificates from, as its metadata tells.
//!
//! Written by pilot-agent (and by who deploys a gateway), read by the generators of TLS settings. Proxies that were deployed
//! alike have equal values, so it may stand in the key of a scope.

use std::sync::Arc;

use crate::envoy::safe;

const CERT_CHAIN: &str = "/etc/certs/cert-chain.pem";
const KEY: &str = "/etc/certs/key.pem";
const ROOT_CERT: &str = "/etc/certs/root-cert.pem";
/// Where the kubelet mounts the projected token that the secret discovery of workloads asks for.
const TOKEN: &str = "/var/run/secrets/tokens/istio-token";

/// Certificate chain, key and root of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct CertificateFiles {
    pub chain: Arc<str>,
    pub key: Arc<str>,
    pub root: Arc<str>,
}

/// See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CertificateSources {
    /// The workload's own files where it is the server (`TLS_SERVER_*`).
    pub server: CertificateFiles,
    /// The workload's own files where it is the client (`TLS_CLIENT_*`).
    pub client: CertificateFiles,
    /// pilot-agent serves secrets to its Envoy, through the cluster [`crate::names::SDS_CLUSTER`] (`AGENT_SDS`).
    pub agent: bool,
    /// A gateway that gets user secrets by name (`USER_SDS`).
    pub user: bool,
    /// File of the token shown to the mesh's secret discovery (`SDS_TOKEN_PATH`).
    pub token: Arc<str>,
}

impl Default for CertificateSources {
    fn default() -> Self {
        Self::of(|_| None)
    }
}

impl CertificateSources {
    pub(super) fn of(metadata: impl Fn(&str) -> Option<String>) -> Self {
        let or = |key: &str, default: &str| -> Arc<str> {
            let given = metadata(key).filter(|path| safe::certificate_file(path).is_ok());
            given.map_or_else(|| default.into(), Into::into)
        };
        let files = |side: &str| CertificateFiles {
            chain: or(&format!("TLS_{side}_CERT_CHAIN"), CERT_CHAIN),
            key: or(&format!("TLS_{side}_KEY"), KEY),
            root: or(&format!("TLS_{side}_ROOT_CERT"), ROOT_CERT),
        };
        let set = |key: &str| matches!(metadata(key).as_deref(), Some("true" | "1"));
        Self {
            server: files("SERVER"),
            client: files("CLIENT"),
            agent: set("AGENT_SDS"),
            user: set("USER_SDS"),
            token: or("SDS_TOKEN_PATH", TOKEN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_overrides_paths_one_by_one() {
        let sources = CertificateSources::of(|key| match key {
            "TLS_CLIENT_KEY" => Some("/my/key.pem".to_owned()),
            "TLS_SERVER_KEY" => Some("/odd~key".to_owned()),
            "USER_SDS" => Some("true".to_owned()),
            _ => None,
        });
        assert_eq!(
            (&*sources.client.key, &*sources.client.chain),
            ("/my/key.pem", CERT_CHAIN)
        );
        assert_eq!(&*sources.server.key, KEY);
        assert!(sources.user && !sources.agent);
    }
}
