//! `istioctl lab …`: the mesh on this machine.
//!
//! The lab is one daemon (`mesozoic-lab`) and its state directory. This module starts and ends the daemon, applies the
//! manifests of deploy/ that are part of this program, and looks into the lab; all of the latter through the
//! Kubernetes API, as on any cluster.

mod apply;
mod binaries;
mod daemon;
mod down;
mod exec;
mod logs;
mod manifests;
mod state;
mod status;
mod up;

use std::process::ExitCode;

use clap::Subcommand;

pub(crate) use daemon::{DaemonizeArgs, daemonize};
pub(crate) use down::take_down;
pub(crate) use state::StateDir;
pub(crate) use up::{UpArgs, bring_up};

use crate::cli::Global;
use crate::output::{OutputArgs, print, print_json};

/// Subcommands of `lab`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the lab with the mesh and Bookinfo in it; does nothing twice.
    Up(UpArgs),
    /// End the lab and everything it runs.
    Down(down::DownArgs),
    /// What runs in the lab, and where its ingress is.
    Status(OutputArgs),
    /// Logs of a component, a pod, or of the lab itself.
    Logs(logs::LogsArgs),
    /// Run a command in a pod.
    Exec(exec::ExecArgs),
    /// Where the lab's kubeconfig is.
    Kubeconfig(KubeconfigArgs),
    #[command(hide = true)]
    Daemonize(DaemonizeArgs),
}

/// Arguments of `lab kubeconfig`.
#[derive(Debug, clap::Args)]
pub(crate) struct KubeconfigArgs {
    /// Print the file's content instead of its path.
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs a subcommand.
pub(crate) async fn run(global: &Global, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up(args) => up::run(global, args).await,
        Command::Down(args) => down::run(global, args).await,
        Command::Status(args) => status::run(global, args).await,
        Command::Logs(args) => logs::run(global, args).await,
        Command::Exec(args) => exec::run(global, args).await,
        Command::Kubeconfig(args) => kubeconfig(global, args),
        Command::Daemonize(_) => unreachable!("handled before there are threads"),
    }
}

fn kubeconfig(global: &Global, args: KubeconfigArgs) -> anyhow::Result<ExitCode> {
    let KubeconfigArgs { raw, output } = args;
    let lab = StateDir::of(global)?;
    lab.require_running()?;
    let path = lab.kubeconfig();
    if raw {
        print(&std::fs::read_to_string(&path)?);
    } else if output.is_json() {
        print_json(&serde_json::json!({ "kubeconfig": path }))?;
    } else {
        print(&format!("{}\n", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}
