//! `pilot-discovery`: service registries and mesh config in, Envoy configuration over xDS out.

use clap::Parser as _;

mod api;
mod app;
mod args;
mod debug;
mod inputs;
mod introduced;
mod metrics;
mod named;
mod networks;
mod proxy;
mod reflection;
mod registry;
mod scope_cache;
mod secure;
mod source;
mod sources;
mod world;

// Snapshots are many small allocations that die together; jemalloc gives their pages back.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    mesh_service::install_tls_provider();
    let args::Cli { log, command } = args::Cli::parse();
    mesh_service::logging::init(&log)?;
    match command {
        args::Command::Discovery(args) => app::run(*args).await,
        args::Command::Version => {
            println!(
                "pilot-discovery {} (compatible with Istio 1.4.10)",
                env!("CARGO_PKG_VERSION")
            );
            Ok(())
        }
    }
}
