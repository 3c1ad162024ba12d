//! The commands and their flags. Exit status: 0 success, 64 for a command line that makes no sense, 1 for the rest.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::output::Paint;
use crate::{chaos, demo, experimental, lab, proxy, validate, version};

/// Control a service mesh: bring up a lab on this machine, break its control plane on purpose, and look into every proxy.
#[derive(Debug, Parser)]
#[command(name = "istioctl", version, max_term_width = 110)]
#[command(after_help = "\
Begin here:
  istioctl lab up              a mesh with Bookinfo on this machine, in namespaces of its own
  istioctl chaos run --all     break it, one component at a time, and see what holds
  istioctl lab down            take it all away again")]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Kubernetes configuration file [default: $KUBECONFIG, else the running lab, else ~/.kube/config].
    #[arg(short = 'c', long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Namespace of the objects [default: that of the context].
    #[arg(short = 'n', long, global = true, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// Namespace of the control plane.
    #[arg(
        short = 'i',
        long = "istioNamespace",
        env = "ISTIO_NAMESPACE",
        global = true,
        default_value = "istio-system",
        value_name = "NAMESPACE"
    )]
    pub(crate) istio_namespace: String,
    /// Directory of the lab [default: $XDG_STATE_HOME/mesozoic/lab].
    #[arg(long, env = "MESOZOIC_LAB", global = true, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// What this program logs, on stderr.
    #[arg(
        long,
        env = "LOG_LEVEL",
        global = true,
        default_value = "warn,kube_client=off",
        value_name = "FILTER"
    )]
    pub(crate) log_level: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A mesh on this machine: its own small Kubernetes, the control plane, real sidecars, Bookinfo.
    #[command(subcommand)]
    Lab(lab::Command),
    /// Failure experiments against the lab or any cluster.
    #[command(subcommand)]
    Chaos(chaos::Command),
    /// Bring up a lab, run all experiments, write a report, take the lab down.
    Demo(demo::DemoArgs),
    /// Which proxies are connected to which Pilot, and whether they have acknowledged their configuration.
    #[command(visible_alias = "ps")]
    ProxyStatus(proxy::StatusArgs),
    /// What a proxy has: clusters, listeners, routes, endpoints, bootstrap.
    #[command(visible_alias = "pc", subcommand)]
    ProxyConfig(proxy::ConfigCommand),
    /// Check configuration files without a cluster.
    Validate(validate::ValidateArgs),
    /// Commands that may change.
    #[command(visible_alias = "x", alias = "exp", subcommand)]
    Experimental(experimental::Command),
    /// Versions of this program, the control plane and the proxies.
    Version(version::VersionArgs),
}

impl Cli {
    /// Runs the chosen command.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let Self { global, command } = self;
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::try_new(&global.log_level)?)
            .with_writer(std::io::stderr)
            .with_ansi(Paint::stderr().is_on())
            .init();
        // Becoming a daemon replaces this process: it must happen before there are threads.
        if let Command::Lab(lab::Command::Daemonize(args)) = command {
            return Err(lab::daemonize(args));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let code = runtime.block_on(async {
            match command {
                Command::Lab(command) => lab::run(&global, command).await,
                Command::Chaos(command) => chaos::run(&global, command).await,
                Command::Demo(args) => demo::run(&global, args).await,
                Command::ProxyStatus(args) => proxy::status(&global, args).await,
                Command::ProxyConfig(command) => proxy::config(&global, command).await,
                Command::Validate(args) => validate::run(&args),
                Command::Experimental(command) => experimental::run(&global, command).await,
                Command::Version(args) => version::run(&global, args).await,
            }
        });
        // A read from a terminal's stdin cannot be cancelled; do not wait for it.
        runtime.shutdown_background();
        code
    }
}

/// Prints what is wrong with the command line, or the help or version that was asked for.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // Nothing to do about a closed stdout.
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::from(64)
    } else {
        ExitCode::SUCCESS
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_work_after_the_subcommand() {
        let cli = Cli::try_parse_from([
            "istioctl",
            "ps",
            "-i",
            "mesh",
            "--state-dir",
            "/d",
            "-n",
            "a",
        ])
        .expect("accepted");
        assert_eq!(cli.global.istio_namespace, "mesh");
        assert_eq!(cli.global.namespace.as_deref(), Some("a"));
        assert_eq!(cli.global.state_dir, Some("/d".into()));
    }

    #[test]
    fn a_wrong_flag_is_named_and_a_close_one_suggested() {
        let error = Cli::try_parse_from(["istioctl", "chaos", "run", "--reprot", "x"])
            .expect_err("there is no such flag");
        let text = error.to_string();
        assert!(
            text.contains("--reprot") && text.contains("--report"),
            "{text}"
        );
        assert_eq!(usage(&error), ExitCode::from(64));
    }
}
