//! The state directory of a lab, as far as its users must know it. The daemon writes it, see `mesozoic-lab`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::cli::Global;

/// What the daemon says about itself in `lab.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LabInfo {
    /// Process id of the daemon.
    pub(crate) pid: i32,
    /// Its start time in clock ticks after boot, which tells it from another process with the same id.
    #[serde(default)]
    pub(crate) start_time: Option<u64>,
    /// URL of the API server.
    pub(crate) api_server: String,
    /// Version of the daemon.
    #[serde(default)]
    pub(crate) version: String,
}

/// Paths of one lab.
#[derive(Debug, Clone)]
pub(crate) struct StateDir(PathBuf);

impl StateDir {
    /// The one that `--state-dir` or `MESOZOIC_LAB` names, else the default of this user.
    pub(crate) fn of(global: &Global) -> anyhow::Result<Self> {
        match &global.state_dir {
            Some(path) => Self::at(path),
            None => Self::at(&default_path()),
        }
    }

    /// The one at `path`; it need not exist.
    pub(crate) fn at(path: &Path) -> anyhow::Result<Self> {
        let absolute = std::path::absolute(path)
            .with_context(|| format!("state directory {}", path.display()))?;
        Ok(Self(absolute))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }

    /// What the daemon itself prints.
    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("lab.log")
    }

    /// The daemon, if it is alive.
    pub(crate) fn running(&self) -> Option<LabInfo> {
        let text = std::fs::read_to_string(self.0.join("lab.json")).ok()?;
        let info: LabInfo = serde_json::from_str(&text).ok()?;
        let now = start_time(info.pid)?;
        (info.start_time.is_none_or(|then| then == now) && self.kubeconfig().exists())
            .then_some(info)
    }

    /// Like [`StateDir::running`], with an error that says what to do.
    pub(crate) fn require_running(&self) -> anyhow::Result<LabInfo> {
        self.running().with_context(|| {
            format!(
                "no lab runs in {}; start it with `istioctl lab up`, or name another with --state-dir",
                self.0.display()
            )
        })
    }
}

fn default_path() -> PathBuf {
    std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state")))
        .unwrap_or_else(|| PathBuf::from("/var/lib"))
        .join("mesozoic/lab")
}

/// Field 22 of `/proc/PID/stat`; `None` when there is no such process or it is a zombie.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command may contain blanks and parentheses: count from behind its last parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, pid: u32, start: u64) {
        let info = serde_json::json!({
            "pid": pid, "startTime": start, "apiServer": "https://127.0.0.1:1", "version": "0",
        });
        std::fs::write(dir.join("lab.json"), info.to_string()).expect("written");
    }

    #[test]
    fn a_lab_runs_only_if_that_very_process_lives() {
        let dir = tempfile::tempdir().expect("a directory");
        let lab = StateDir::at(dir.path()).expect("a path");
        assert!(lab.running().is_none(), "nothing there");
        std::fs::write(lab.kubeconfig(), "").expect("written");
        let me = std::process::id();
        let start = start_time(me as i32).expect("this process lives");
        write(dir.path(), me, start);
        assert!(lab.running().is_some());
        write(dir.path(), me, start + 1);
        assert!(
            lab.running().is_none(),
            "another process with a recycled id"
        );
        let error = lab.require_running().expect_err("not running").to_string();
        assert!(error.contains("istioctl lab up"), "{error}");
    }
}
