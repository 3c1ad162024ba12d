//! Where Envoy's certificates for the connection to Pilot come from.
//!
//! From SDS if it is enabled, the pod's token is there and the socket is there; otherwise from files, for each of which
//! the agent waits up to two minutes, as a secret may be made while the pod starts.

use std::{path::Path, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    Environment,
    args::ProxyArgs,
    bootstrap::{Certificates, is_mutual_tls},
};

const TOKEN: &str = "/var/run/secrets/tokens/istio-token";
const FILES: [&str; 3] = [
    "/etc/certs/cert-chain.pem",
    "/etc/certs/key.pem",
    "/etc/certs/root-cert.pem",
];
const POLL: Duration = Duration::from_millis(500);

/// Decides, waiting for what is expected to appear.
pub(crate) async fn choose(args: &ProxyArgs, environment: &Environment) -> Certificates {
    let is_true = |key: &str| environment.get(key).is_some_and(|value| value == "true");
    if is_true("SDS_ENABLED") && Path::new(TOKEN).exists() {
        let socket = environment
            .get("SDS_UDS_PATH")
            .map_or("unix:/var/run/sds/uds_path", String::as_str);
        let patience = match args.control_plane_bootstrap {
            true => Duration::from_secs(60),
            false => Duration::ZERO,
        };
        match socket.strip_prefix("unix:") {
            None => return Certificates::Sds(socket.to_owned()),
            Some(path) if appears(Path::new(path), patience).await => {
                return Certificates::Sds(socket.to_owned());
            }
            Some(path) => tracing::warn!(
                path,
                "no secret discovery service here, using certificate files"
            ),
        }
    }
    if is_mutual_tls(args) || is_true("ISTIO_AUTO_MTLS_ENABLED") {
        for file in FILES {
            if !appears(Path::new(file), Duration::from_secs(120)).await {
                tracing::warn!(
                    file,
                    "this certificate file did not appear, going on without it"
                );
            }
        }
    }
    Certificates::Files
}

async fn appears(path: &Path, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    if !path.exists() && !patience.is_zero() {
        tracing::info!(path = %path.display(), seconds = patience.as_secs(), "waiting for a file");
    }
    while !path.exists() {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(POLL).await;
    }
    true
}
