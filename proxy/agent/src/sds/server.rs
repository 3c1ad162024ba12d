//! The socket.
//!
//! It is made with mode 0600: whoever may open it may have every secret. A socket that an agent before this one left is
//! replaced.

use std::{fs, io, path::Path, sync::Arc};

use anyhow::Context as _;
use nix::sys::stat::{Mode, umask};
use pilot_xds::{Engine, Metrics, SecretDiscoveryService, Settings};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;

use super::{Keeper, keeper::Discovery};

/// Listens, and serves for as long as the process lives.
pub fn serve(socket: &Path, keeper: Arc<Keeper>) -> anyhow::Result<()> {
    let listener = bind(socket).with_context(|| {
        format!(
            "listening on {} for secret discovery; its directory must be one that this user may write to (--sdsSocket names another)",
            socket.display()
        )
    })?;
    let engine = Engine::new(
        Arc::new(Discovery::new(&keeper)),
        keeper.worlds(),
        Settings {
            identifier: "pilot-agent".to_owned(),
            ..Settings::default()
        },
        Metrics::new(&mut prometheus_client::registry::Registry::default()),
    );
    let server = tonic::transport::Server::builder()
        .add_service(SecretDiscoveryService::new(engine))
        .serve_with_incoming(UnixListenerStream::new(listener));
    tracing::info!(socket = %socket.display(), "secret discovery for Envoy");
    tokio::spawn(async move {
        // The worlds end with their keeper.
        let _keeper = keeper;
        if let Err(error) = server.await {
            tracing::error!(%error, "secret discovery ended; Envoy keeps the secrets it has");
        }
    });
    Ok(())
}

fn bind(socket: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = socket.parent() {
        fs::create_dir_all(directory)?;
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Not made open and closed afterwards: nobody may slip in between.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(socket);
    umask(before);
    listener
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn only_the_owner_may_open_the_socket_and_an_old_one_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper/sds");
        drop(bind(&path).unwrap());
        assert!(path.exists(), "as a dead agent leaves it");
        let _listener = bind(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}
