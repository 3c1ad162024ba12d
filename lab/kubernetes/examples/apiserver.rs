//! The API server alone, for trying kubectl against it: no controllers, no node.
//!
//! `cargo run -p lab-kubernetes --example apiserver -- STATE_DIR` prints the path of a kubeconfig and
//! serves until interrupted.

use std::path::PathBuf;

use lab_kubernetes::{ApiServer, Config};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let dir = std::env::args_os()
        .nth(1)
        .map_or_else(|| PathBuf::from("target/apiserver"), PathBuf::from);
    std::fs::create_dir_all(&dir)?;
    let server = ApiServer::open(Config::new(&dir)).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let kubeconfig = dir.join("kubeconfig");
    std::fs::write(&kubeconfig, server.admin_kubeconfig(listener.local_addr()?))?;
    println!("{}", kubeconfig.display());
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn({
        let (server, shutdown) = (server.clone(), shutdown.clone());
        async move { server.serve(listener, shutdown).await }
    });
    tokio::signal::ctrl_c().await?;
    server.stop();
    shutdown.cancel();
    serving.await??;
    Ok(())
}
