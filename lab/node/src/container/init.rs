//! The container's first process, before it becomes the program.
//!
//! Runs inside the pod's namespaces and a fresh PID namespace: builds the root file system, gives up privileges, and
//! execs. Whatever goes wrong is written to the status channel (standard input), which exec closes.

use std::{
    fs::File, io::Write as _, os::unix::process::CommandExt as _, path::Path, process::Command,
};

use anyhow::Context as _;
use nix::{
    sched::{CloneFlags, unshare},
    sys::{prctl::set_pdeathsig, signal::Signal},
};
use std::os::fd::AsFd as _;

use super::{ContainerSpec, rootfs};
use crate::files;

/// Becomes the program of the specification at `path`; returns only on failure.
pub(crate) fn run(path: &Path) -> anyhow::Result<()> {
    let status = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .context("status channel")?;
    let mut status = File::from(status);
    let error = match become_program(path) {
        Err(error) => error,
        Ok(never) => match never {},
    };
    // The shim may be dead; then nobody asks.
    let _ = status.write_all(format!("{error:#}").as_bytes());
    Err(error)
}

fn become_program(path: &Path) -> anyhow::Result<std::convert::Infallible> {
    let spec: ContainerSpec =
        files::read_json(path)?.with_context(|| format!("{} does not exist", path.display()))?;
    let null = File::open("/dev/null").context("opening /dev/null")?;
    nix::unistd::dup2_stdin(&null).context("detaching standard input")?;
    unshare(CloneFlags::CLONE_NEWNS).context("unshare(NEWNS)")?;
    rootfs::build(&spec)?;
    exec(&spec.argv, &spec.env, &spec.cwd, &spec.privileges)
}

/// Gives up privileges and execs; shared with `enter-exec`.
pub(crate) fn exec(
    argv: &[String],
    env: &[(String, String)],
    cwd: &str,
    privileges: &super::privileges::Privileges,
) -> anyhow::Result<std::convert::Infallible> {
    let (program, args) = argv
        .split_first()
        .context("no command: the container has neither command nor entrypoint")?;
    std::env::set_current_dir(cwd).with_context(|| format!("working directory {cwd}"))?;
    privileges.apply()?;
    // After the change of user, which clears it.
    set_pdeathsig(Signal::SIGKILL).context("parent-death signal")?;
    let error = Command::new(program)
        .args(args)
        .env_clear()
        .envs(env.iter().map(|(k, v)| (k, v)))
        .exec();
    Err(error).with_context(|| format!("exec: \"{program}\""))
}
