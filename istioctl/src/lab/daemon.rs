//! Starting the lab's daemon so that it outlives this program: own session, no terminal, output to a file.
//!
//! Getting a session of one's own (`setsid`) must happen in the child between fork and exec, which safe Rust cannot
//! say. So this program starts itself with a hidden subcommand, which calls `setsid` and then becomes the daemon.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

use super::StateDir;
use super::binaries::Binaries;

/// Arguments of the hidden step.
#[derive(Debug, clap::Args)]
pub(crate) struct DaemonizeArgs {
    /// What to become.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// The hidden step: new session, then exec. Returns only on failure.
pub(crate) fn daemonize(args: DaemonizeArgs) -> anyhow::Error {
    // Fails only for a process-group leader, which has what it needs then.
    let _ = nix::unistd::setsid();
    let Some((program, arguments)) = args.command.split_first() else {
        return anyhow::anyhow!("nothing to become");
    };
    let error = Command::new(program).args(arguments).exec();
    anyhow::anyhow!("starting {program}: {error}")
}

/// Starts `mesozoic-lab daemon` for `lab`. The child is the daemon itself.
pub(super) fn spawn(
    lab: &StateDir,
    binaries: &Binaries,
    images: Option<&PathBuf>,
) -> anyhow::Result<Child> {
    std::fs::create_dir_all(lab.path())
        .with_context(|| format!("creating the state directory {}", lab.path().display()))?;
    let path = lab.log();
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["lab", "daemonize", "--"])
        .arg(binaries.dir.join("mesozoic-lab"))
        .arg("daemon")
        .arg("--state-dir")
        .arg(lab.path())
        .arg("--bin-dir")
        .arg(&binaries.dir)
        .arg("--envoy")
        .arg(&binaries.envoy);
    if let Some(images) = images {
        command.arg("--images").arg(std::path::absolute(images)?);
    }
    command
        // This program's own idea of what to log is not the daemon's.
        .env_remove("LOG_LEVEL")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting the lab's daemon")
}

/// The last lines of the daemon's log, for an error message.
pub(super) fn last_words(lab: &StateDir) -> String {
    let text = std::fs::read(lab.log()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n  ")
}
