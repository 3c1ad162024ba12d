//! One container: a shim, and below it the container's processes in a PID namespace of their own.
//!
//! ```text
//! daemon ── shim (own session; copies output to the log; survives the daemon)
//!             └─ container-init → exec program   (PID 1 of the container: its end ends all)
//! daemon ── enter (for exec and probes) ── enter-exec → exec command
//! ```
//!
//! The daemon writes `spec.json` and starts the shim; the shim answers with `state.json` (running since when, which
//! process) and finally `exit.json`. Both are renamed into place, so a daemon that died in between misses nothing.

pub(crate) mod enter;
pub(crate) mod init;
pub(crate) mod log;
pub(crate) mod privileges;
pub(crate) mod rootfs;
pub(crate) mod runtime;
pub(crate) mod shim;

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::process::ProcId;
use privileges::Privileges;

/// Everything a shim needs to run one container once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerSpec {
    /// Program and arguments.
    pub(crate) argv: Vec<String>,
    /// The whole environment.
    pub(crate) env: Vec<(String, String)>,
    /// Working directory.
    pub(crate) cwd: String,
    /// User, groups, capabilities.
    pub(crate) privileges: Privileges,
    /// The root file system refuses writes (mounts do not).
    pub(crate) read_only_root: bool,
    /// Host binaries that appear as `/usr/local/bin/NAME`.
    pub(crate) binaries: Vec<Binary>,
    /// Volumes and the pod's own files in `/etc`, in mount order.
    pub(crate) mounts: Vec<Mount>,
    /// The pod's pause process, whose network, UTS and IPC namespaces are joined.
    pub(crate) pause: ProcId,
    /// This run's directory: `spec.json`, `state.json`, `exit.json`, `root/`.
    pub(crate) dir: PathBuf,
    /// Log file.
    pub(crate) log: PathBuf,
}

/// A host binary shown to a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Binary {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// One mount into a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
}

/// `state.json`: the container runs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct RunState {
    pub(crate) shim: ProcId,
    /// The container's first process, in the host's PID namespace.
    pub(crate) init: ProcId,
    pub(crate) started_at: Timestamp,
}

/// `exit.json`: the container has ended, or never began.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Exit {
    pub(crate) code: i32,
    /// Signal that ended it, if one did.
    pub(crate) signal: Option<i32>,
    /// Set if the program could not even be started.
    pub(crate) start_error: Option<String>,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Timestamp,
}
