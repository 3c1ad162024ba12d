//! Arguments and their dispatch. The hidden subcommands are steps of the daemon in processes of their own.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{container, daemon, lab, pod};

/// A small Kubernetes for one Linux machine: API server, controllers and node in one process.
#[derive(Debug, Parser)]
#[command(name = "mesozoic-lab", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a lab in the foreground until SIGTERM; pods survive SIGKILL and are adopted by the next start.
    Daemon(DaemonArgs),
    /// End a lab and everything it runs, also if its daemon is dead. Objects stay unless --purge is given.
    Down(DownArgs),
    #[command(hide = true)]
    Holder,
    #[command(hide = true)]
    Pause { spec: String },
    #[command(hide = true)]
    Shim { spec: PathBuf },
    #[command(hide = true)]
    ContainerInit { spec: PathBuf },
    #[command(hide = true)]
    Enter { spec: String },
    #[command(hide = true)]
    EnterExec { spec: String },
}

/// Arguments of `daemon`.
#[derive(Debug, clap::Args)]
pub(crate) struct DaemonArgs {
    /// Directory with everything the lab is: objects, keys, logs, pods.
    #[arg(long, env = "MESOZOIC_LAB_STATE_DIR", default_value_os_t = lab::state::StateDir::default_path())]
    pub(crate) state_dir: PathBuf,
    /// Directory of the mesh's binaries [default: that of this program].
    #[arg(long, env = "MESOZOIC_LAB_BIN_DIR")]
    pub(crate) bin_dir: Option<PathBuf>,
    /// The Envoy binary that the image proxyv2 carries [default: envoy in --bin-dir, in .tools above it, or on PATH].
    #[arg(long, env = "MESOZOIC_LAB_ENVOY")]
    pub(crate) envoy: Option<PathBuf>,
    /// YAML map of image name to program path.
    #[arg(long, env = "MESOZOIC_LAB_IMAGES")]
    pub(crate) images: Option<PathBuf>,
    /// Address of the API server on the host; port 0 keeps the port of the previous start, or picks one.
    #[arg(long, env = "MESOZOIC_LAB_LISTEN", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Name of the node.
    #[arg(long, env = "MESOZOIC_LAB_NODE_NAME", default_value = "node0")]
    pub(crate) node_name: String,
    #[command(flatten)]
    pub(crate) log: mesh_service::logging::LogArgs,
}

/// Arguments of `down`.
#[derive(Debug, clap::Args)]
struct DownArgs {
    /// Directory of the lab.
    #[arg(long, env = "MESOZOIC_LAB_STATE_DIR", default_value_os_t = lab::state::StateDir::default_path())]
    state_dir: PathBuf,
    /// Also remove the directory, with all objects and logs.
    #[arg(long)]
    purge: bool,
}

impl Cli {
    /// Runs the chosen command.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Daemon(args) => daemon::run(args),
            Command::Down(DownArgs { state_dir, purge }) => {
                let state = lab::state::StateDir::open(&state_dir)?;
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime
                    .block_on(lab::down::run(&state, purge))
                    .map(|()| ExitCode::SUCCESS)
            }
            Command::Holder => lab::holder::run().map(|()| ExitCode::SUCCESS),
            Command::Pause { spec } => pod::sandbox::run_pause(&spec).map(|()| ExitCode::SUCCESS),
            Command::Shim { spec } => container::shim::run(&spec).map(|()| ExitCode::SUCCESS),
            Command::ContainerInit { spec } => {
                container::init::run(&spec).map(|()| ExitCode::SUCCESS)
            }
            Command::Enter { spec } => container::enter::run(&spec),
            Command::EnterExec { spec } => container::enter::run_exec(&spec),
        }
    }
}
