//! pilot-agent: the first process of a sidecar or gateway container; it looks after one Envoy.
//!
//! | Step | Module |
//! |---|---|
//! | flags of Istio 1.4, unknown ones ignored | [`args`] |
//! | who this proxy is: addresses, node ID, domain, metadata | [`identity`], [`metadata`] |
//! | Envoy's v3 bootstrap, written to `CONFIGPATH/envoy-rev<epoch>.json` | [`bootstrap`] |
//! | Envoy's life: start, exit rule, drain | [`supervise`] |
//! | secrets for Envoy over a Unix socket | [`sds`] |
//! | `/healthz/ready`, `/app-health`, `/quitquitquit` on 15020 | [`status`] |
//!
//! Who writes: the injector (flags, environment). Who reads: Envoy (bootstrap), the kubelet (readiness), Pilot (node ID
//! and metadata).
//!
//! Cost: one thread, a few MB; the agent sleeps unless it is probed. It is not in the way of any request.

pub mod admin;
pub mod args;
pub mod bootstrap;
pub mod duration;
pub mod identity;
pub mod metadata;
pub mod outputs;
pub mod sds;
pub mod status;
pub mod supervise;

mod certificates;
mod run;

use std::{collections::BTreeMap, ffi::OsString, process::ExitCode};

use anyhow::Context as _;

use crate::args::{Cli, Command};

/// The environment as the agent sees it: read once, passed down, so that tests can give their own.
pub type Environment = BTreeMap<String, String>;

/// Runs the program with these arguments, the first of which is its name.
pub fn main(argv: Vec<OsString>) -> anyhow::Result<ExitCode> {
    let (cli, ignored) = Cli::parse_leniently(argv);
    let Cli { command, log } = cli;
    if let Command::ExecEnvoy(exec) = command {
        return Err(supervise::exec_envoy(exec));
    }
    mesh_service::logging::init(&log)?;
    if !ignored.is_empty() {
        tracing::warn!(
            flags = ignored.join(" "),
            "ignoring flags that this version does not know"
        );
    }
    mesh_service::install_tls_provider();
    // One thread is plenty, and Envoy's parent-death signal is bound to the thread that starts it: this one, which lives
    // as long as the process.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let environment: Environment = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    runtime.block_on(async {
        match command {
            Command::Proxy(args) => run::proxy(args, environment).await,
            Command::Request(args) => run::request(args).await,
            Command::ExecEnvoy(_) => unreachable!("handled above"),
        }
    })
}
