//! The daemon's side of a container: start its shim, find it again, wait for its end, run commands in it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use rustix::process::Signal;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, Command},
};

use super::{ContainerSpec, Exit, RunState, enter::EnterSpec};
use crate::{
    files,
    lab::{SELF, state::StateDir},
};

/// Message for a container whose shim vanished without a word.
pub(crate) const SHIM_LOST: &str =
    "the process that supervised the container was killed; its exit status is unknown";

/// A running container.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    /// The run's directory.
    pub(crate) dir: PathBuf,
    pub(crate) state: RunState,
}

/// What an earlier daemon left behind of one run.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    Running(Running),
    Exited(Exit),
}

/// Starts the container; returns when its program has been exec'd or could not be.
pub(crate) async fn start(
    state: &StateDir,
    spec: &ContainerSpec,
) -> anyhow::Result<Result<Running, Exit>> {
    fs::create_dir_all(&spec.dir).with_context(|| format!("creating {}", spec.dir.display()))?;
    let path = spec.dir.join("spec.json");
    files::write_json(&path, spec)?;
    let mut child = Command::new(SELF)
        .arg("shim")
        .arg(&path)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(state.process_log()?)
        .spawn()
        .context("starting the shim")?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        // End of file means that it ended early; exit.json says why.
        let _ = BufReader::new(stdout).read_line(&mut line).await;
    }
    reap(child);
    match find(&spec.dir) {
        Some(Found::Running(running)) => Ok(Ok(running)),
        Some(Found::Exited(exit)) => Ok(Err(exit)),
        None => bail!("the shim died before the container started"),
    }
}

/// Collects the shim's status while this daemon lives; a later daemon is not its parent and need not.
fn reap(mut child: Child) {
    tokio::spawn(async move {
        let _ = child.wait().await;
    });
}

/// Looks at what a run's directory says. `None`: it never got as far as starting.
pub(crate) fn find(dir: &Path) -> Option<Found> {
    if let Ok(Some(exit)) = files::read_json::<Exit>(&dir.join("exit.json")) {
        return Some(Found::Exited(exit));
    }
    let state: RunState = files::read_json(&dir.join("state.json")).ok()??;
    if state.shim.is_alive() {
        return Some(Found::Running(Running {
            dir: dir.to_owned(),
            state,
        }));
    }
    // It may have ended between the two looks.
    let exit = files::read_json(&dir.join("exit.json"))
        .ok()
        .flatten()
        .unwrap_or_else(|| Exit {
            code: 137,
            signal: Some(9),
            start_error: None,
            started_at: Some(state.started_at),
            finished_at: Timestamp::now(),
        });
    Some(Found::Exited(exit))
}

impl Running {
    /// Resolves with the exit status when the container has ended.
    pub(crate) async fn wait(&self) -> Exit {
        self.state.shim.exited().await;
        // The shim may have been killed by force, then its charge dies by signal a moment later.
        self.state.init.exited().await;
        match files::read_json::<Exit>(&self.dir.join("exit.json")) {
            Ok(Some(exit)) => exit,
            _ => {
                let exit = Exit {
                    code: 137,
                    signal: Some(9),
                    start_error: Some(SHIM_LOST.to_owned()),
                    started_at: Some(self.state.started_at),
                    finished_at: Timestamp::now(),
                };
                if let Err(error) = files::write_json(&self.dir.join("exit.json"), &exit) {
                    tracing::warn!("{error:#}");
                }
                exit
            }
        }
    }

    /// SIGTERM, then SIGKILL when `grace` is over or at once where SIGTERM has no effect.
    pub(crate) async fn terminate(&self, grace: Duration) {
        let init = self.state.init;
        if init.ignores_term_by_default() || !init.signal(Signal::TERM) {
            init.signal(Signal::KILL);
        }
        if tokio::time::timeout(grace, self.state.shim.exited())
            .await
            .is_err()
        {
            init.signal(Signal::KILL);
            self.state.shim.exited().await;
        }
    }

    /// The specification this run was started with.
    pub(crate) fn spec(&self) -> anyhow::Result<ContainerSpec> {
        files::read_json(&self.dir.join("spec.json"))?.context("the run's spec.json is gone")
    }

    /// A command inside the container, not yet spawned.
    pub(crate) fn command(&self, argv: Vec<String>, tty: bool) -> anyhow::Result<Command> {
        let spec = self.spec()?;
        let mut env = spec.env;
        if tty {
            env.push(("TERM".into(), "xterm".into()));
        }
        let enter = EnterSpec {
            target: self.state.init,
            argv,
            env,
            cwd: spec.cwd,
            privileges: spec.privileges,
            tty,
        };
        let mut command = Command::new(SELF);
        command
            .arg("enter")
            .arg(serde_json::to_string(&enter)?)
            .current_dir("/")
            .kill_on_drop(true);
        Ok(command)
    }

    /// Runs a command to its end. `Err` holds what to tell the user: output and status, or the timeout.
    pub(crate) async fn run(&self, argv: Vec<String>, limit: Duration) -> Result<(), String> {
        const MOST_OUTPUT: u64 = 10 * 1024;
        let mut command = self
            .command(argv, false)
            .map_err(|error| format!("{error:#}"))?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|error| format!("starting the command: {error}"))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let all = async {
            let mut text = Vec::new();
            if let Some(stdout) = stdout {
                let _ = stdout.take(MOST_OUTPUT).read_to_end(&mut text).await;
            }
            if let Some(stderr) = stderr {
                let _ = stderr.take(MOST_OUTPUT).read_to_end(&mut text).await;
            }
            (child.wait().await, text)
        };
        match tokio::time::timeout(limit, all).await {
            Err(_) => Err(format!("command timed out after {}s", limit.as_secs())),
            Ok((Ok(status), _)) if status.success() => Ok(()),
            Ok((Ok(status), text)) => {
                let text = String::from_utf8_lossy(&text).trim().to_owned();
                Err(if text.is_empty() {
                    format!("command exited with {}", status.code().unwrap_or(255))
                } else {
                    text
                })
            }
            Ok((Err(error), _)) => Err(format!("waiting for the command: {error}")),
        }
    }
}
