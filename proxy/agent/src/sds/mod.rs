//! Secret discovery for this pod's Envoy, over a Unix socket: SDS v3, state of the world and delta.
//!
//! ```text
//! Kubernetes Secrets (gateways) ──┐
//! certificate files ──────────────┼─ SecretSource ──> Keeper ── worlds ──> xDS engine ──> socket ──> Envoy
//! later: Citadel (default, ROOTCA)┘                   last good version of each secret
//! ```
//!
//! Who writes: sources, when something changes. Who reads: Envoy, one stream per secret, through the bootstrap cluster
//! `sds-grpc`. Pilot knows from the metadata `AGENT_SDS` that secrets can be had so, and names them:
//!
//! | Name | Content | Source |
//! |---|---|---|
//! | `file-cert:CHAIN~KEY` | certificate and key | files |
//! | `file-root:PATH` | CA certificates | a file |
//! | `NAME` | certificate and key | the Kubernetes Secret NAME |
//! | `NAME-cacert` | CA certificates | the Secret NAME-cacert, or the same entry of NAME |
//!
//! Rules: a secret that turns bad, or goes, never replaces a good one. A secret that is not there is said to be so at once
//! (delta), so that Envoy goes on without it; it is sent when it comes. Key material is never logged; the
//! socket is for the agent's user alone, which is Envoy's.
//!
//! Cost: nothing while nothing changes, except for one `stat` per certificate file and second.

mod files;
mod keeper;
mod kubernetes;
mod material;
mod server;

use std::{sync::Arc, time::Duration};

pub use files::Files;
pub use keeper::{Keeper, SecretSource};
pub use kubernetes::KubernetesSecrets;
pub use material::{Material, Problem};
pub use server::serve;

use crate::{
    Environment,
    args::{ProxyArgs, Role},
};

/// How long streams are kept waiting for the first list of Secrets. Afterwards they are told what is known.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether this gateway's users name their certificates (`USER_SDS`).
pub fn is_user_sds(role: Role, environment: &Environment) -> bool {
    let set = environment.get("ISTIO_META_USER_SDS");
    role == Role::Router && set.is_some_and(|value| matches!(value.as_str(), "true" | "1"))
}

/// Where the socket is: at the place that Istio's gateways have it, else beside the bootstrap.
pub fn socket(args: &ProxyArgs, environment: &Environment) -> std::path::PathBuf {
    if !args.sds_socket.is_empty() {
        return (&args.sds_socket).into();
    }
    if is_user_sds(args.role, environment) {
        return "/var/run/ingress_gateway/sds".into();
    }
    args.config_path.join("sds")
}

/// Starts everything: the sources that this proxy has, and the server.
pub async fn start(args: &ProxyArgs, environment: &Environment) -> anyhow::Result<()> {
    let files = Arc::new(Files::default());
    let mut sources: Vec<Arc<dyn SecretSource>> = vec![files.clone()];
    let secrets = if is_user_sds(args.role, environment) {
        kubernetes::configured(environment).await
    } else {
        None
    };
    sources.extend(secrets.clone().map(|(s, _)| s as Arc<dyn SecretSource>));
    let keeper = Keeper::new(sources);
    server::serve(&socket(args, environment), keeper.clone())?;
    tokio::spawn(files.follow(keeper.clone()));
    let Some((secrets, client)) = secrets else {
        keeper.open();
        return Ok(());
    };
    tokio::spawn(secrets.clone().follow(client, keeper.clone()));
    tokio::spawn(async move {
        if tokio::time::timeout(PATIENCE, secrets.listed())
            .await
            .is_err()
        {
            tracing::warn!(
                seconds = PATIENCE.as_secs(),
                "the Kubernetes API has not listed Secrets yet; servers that need them refuse connections until it does"
            );
        }
        keeper.open();
    });
    Ok(())
}
