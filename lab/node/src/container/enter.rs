//! Running a further command in a running container: `kubectl exec`, exec probes, hooks.
//!
//! `enter` joins the namespaces of the container's first process and starts `enter-exec`, which is then inside the PID
//! namespace, gives up privileges and execs. `enter` waits for it and exits with its status. If `enter` is killed, the
//! command goes with it.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{Command, ExitCode},
};

use anyhow::Context as _;
use nix::{
    sched::{CloneFlags, setns},
    sys::{prctl::set_pdeathsig, signal::Signal},
};
use serde::{Deserialize, Serialize};

use super::{init, privileges::Privileges};
use crate::{lab::SELF, process::ProcId};

/// What to run, and where; passed as one JSON argument.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EnterSpec {
    /// First process of the container.
    pub(crate) target: ProcId,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    pub(crate) privileges: Privileges,
    /// Standard input is a terminal that shall control the command.
    pub(crate) tty: bool,
}

/// Exit status for a command that could not be started, as shells use it.
const CANNOT_START: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Outside: joins the container's namespaces.
pub(crate) fn run(spec_json: &str) -> anyhow::Result<ExitCode> {
    let spec: EnterSpec = serde_json::from_str(spec_json).context("exec specification")?;
    let target = spec
        .target
        .open()
        .context("the container is no longer running")?;
    let namespaces = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS;
    setns(&target, namespaces).context("entering the container's namespaces")?;
    // Dies with the daemon or when the daemon gives up waiting.
    set_pdeathsig(Signal::SIGKILL).context("parent-death signal")?;
    let status = Command::new(SELF)
        .arg("enter-exec")
        .arg(spec_json)
        .current_dir("/")
        .status()
        .context("starting the command")?;
    let code = status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap_or(255);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(255)))
}

/// Inside: becomes the command.
pub(crate) fn run_exec(spec_json: &str) -> anyhow::Result<ExitCode> {
    let spec: EnterSpec = serde_json::from_str(spec_json).context("exec specification")?;
    if spec.tty {
        let _ = nix::unistd::setsid();
        rustix::process::ioctl_tiocsctty(std::io::stdin()).context("taking the terminal")?;
    }
    let error = match init::exec(&spec.argv, &spec.env, &spec.cwd, &spec.privileges) {
        Err(error) => error,
        Ok(never) => match never {},
    };
    eprintln!("{error:#}");
    let missing = error
        .root_cause()
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    Ok(ExitCode::from(if missing {
        NOT_FOUND
    } else {
        CANNOT_START
    }))
}
