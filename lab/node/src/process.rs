//! Processes that may outlive the daemon, named so that a recycled pid is never mistaken for them.
//!
//! A pid alone is not an identity: between a daemon's death and its restart the number may belong to someone else. The
//! start time (field 22 of `/proc/PID/stat`, clock ticks since boot) settles it; a pidfd then pins the process.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::{Interest, unix::AsyncFd};

/// A process by pid and start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcId {
    /// Process id in the host's PID namespace.
    pub(crate) pid: i32,
    /// Start time in clock ticks since boot.
    pub(crate) start: u64,
}

impl ProcId {
    /// The identity of the process that has `pid` now; `None` if there is none.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command name may hold spaces and parentheses; fields resume after the last ')'.
        let rest = &stat[stat.rfind(')')? + 2..];
        let mut fields = rest.split(' ');
        if fields.next()? == "Z" {
            return None;
        }
        // `rest` starts at field 3, so field 22 is at index 19; one was taken above.
        let start = fields.nth(18)?.parse().ok()?;
        Some(Self { pid, start })
    }

    /// Whether this very process still runs (a zombie does not).
    pub(crate) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// A pidfd of this very process.
    pub(crate) fn open(self) -> Option<OwnedFd> {
        let fd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Checked after opening: from here on the fd cannot change its mind.
        self.is_alive().then_some(fd)
    }

    /// Sends a signal; false if the process is gone.
    pub(crate) fn signal(self, signal: Signal) -> bool {
        self.open()
            .is_some_and(|fd| pidfd_send_signal(fd.as_fd(), signal).is_ok())
    }

    /// Path below `/proc/PID`.
    pub(crate) fn proc(self, rest: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{rest}", self.pid))
    }

    /// Resolves when the process has exited (whether or not it is our child).
    pub(crate) async fn exited(self) {
        let Some(fd) = self.open() else { return };
        #[expect(
            deprecated,
            reason = "its successor is unsafe to call; an OwnedFd keeps its promise, always the same descriptor"
        )]
        let watched = AsyncFd::with_interest(fd, Interest::READABLE);
        match watched {
            Ok(fd) => {
                // An error means the reactor is shutting down: nobody is left to care.
                let _ = fd.readable().await;
            }
            Err(_) => {
                while self.is_alive() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Kills the process and waits until it is gone.
    pub(crate) async fn kill(self) {
        if self.signal(Signal::KILL) {
            self.exited().await;
        }
    }

    /// Whether SIGTERM would do nothing because nobody handles it: the kernel spares the first process of a PID
    /// namespace from default actions. Such a process is ended at once, as it would be outside a container.
    pub(crate) fn ignores_term_by_default(self) -> bool {
        const TERM: u64 = 1 << 14;
        let Ok(status) = fs::read_to_string(self.proc("status")) else {
            return false;
        };
        let mask = |key: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
                .unwrap_or(0)
        };
        (mask("SigCgt:") | mask("SigIgn:") | mask("SigBlk:")) & TERM == 0
    }
}
