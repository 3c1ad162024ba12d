//! The state directory: everything a lab is, in files.
//!
//! | Path | Writer | Content |
//! |---|---|---|
//! | `lab.db`, `pki/` | API server | objects; certificate authority and keys |
//! | `lab.json`, `kubeconfig` | daemon | where the API is, who serves it |
//! | `holder.json` | daemon | the process that holds the namespaces |
//! | `daemon.lock` | daemon | one daemon at a time |
//! | `pods/UID/…` | pod workers and shims | sandbox, containers, volumes |
//! | `logs/NS_POD_UID/CONTAINER/N.log` | shims | container logs in CRI format |

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::process::ProcId;

/// What `lab.json` says to tools.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LabInfo {
    /// Process id of the daemon.
    pub(crate) pid: i32,
    /// Its start time, to tell it from a recycled pid.
    pub(crate) start_time: u64,
    /// URL of the API server.
    pub(crate) api_server: String,
    /// Absolute path of the state directory.
    pub(crate) state_dir: PathBuf,
    /// Absolute path of the admin kubeconfig.
    pub(crate) kubeconfig: PathBuf,
    /// Version of the daemon.
    pub(crate) version: String,
    /// Name of the node.
    pub(crate) node: String,
}

impl LabInfo {
    /// The daemon's identity.
    pub(crate) fn daemon(&self) -> ProcId {
        ProcId {
            pid: self.pid,
            start: self.start_time,
        }
    }
}

/// Paths of one lab.
#[derive(Clone, Debug)]
pub(crate) struct StateDir(PathBuf);

impl StateDir {
    /// Creates the directory (private to its owner) and makes its path absolute.
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        fs::create_dir_all(path)
            .with_context(|| format!("creating the state directory {}", path.display()))?;
        let root = path
            .canonicalize()
            .with_context(|| format!("resolving {}", path.display()))?;
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("restricting {}", root.display()))?;
        for sub in ["pods", "logs", "pki"] {
            fs::create_dir_all(root.join(sub))
                .with_context(|| format!("creating {}/{sub}", root.display()))?;
        }
        Ok(Self(root))
    }

    /// An existing state directory.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let root = path
            .canonicalize()
            .with_context(|| format!("there is no lab at {}", path.display()))?;
        Ok(Self(root))
    }

    /// `$XDG_STATE_HOME/mesozoic/lab` or `~/.local/state/mesozoic/lab`.
    pub(crate) fn default_path() -> PathBuf {
        std::env::var_os("XDG_STATE_HOME")
            .map(PathBuf::from)
            .or_else(|| {
                std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"))
            })
            .unwrap_or_else(|| PathBuf::from("/var/lib"))
            .join("mesozoic/lab")
    }

    pub(crate) fn root(&self) -> &Path {
        &self.0
    }
    pub(crate) fn db(&self) -> PathBuf {
        self.0.join("lab.db")
    }
    pub(crate) fn pki(&self) -> PathBuf {
        self.0.join("pki")
    }
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }
    pub(crate) fn lab_json(&self) -> PathBuf {
        self.0.join("lab.json")
    }
    pub(crate) fn holder_json(&self) -> PathBuf {
        self.0.join("holder.json")
    }
    pub(crate) fn pods(&self) -> PathBuf {
        self.0.join("pods")
    }
    pub(crate) fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }
    pub(crate) fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }
    /// Directory of one container's logs.
    pub(crate) fn container_logs(
        &self,
        namespace: &str,
        pod: &str,
        uid: &str,
        container: &str,
    ) -> PathBuf {
        self.logs()
            .join(format!("{namespace}_{pod}_{uid}"))
            .join(container)
    }

    /// Where processes that outlive the daemon write what they must say (normally nothing).
    pub(crate) fn process_log(&self) -> anyhow::Result<File> {
        let path = self.0.join("processes.log");
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))
    }

    /// Takes the lock that keeps a second daemon out; it is held as long as the file is.
    pub(crate) fn lock(&self) -> anyhow::Result<File> {
        let path = self.0.join("daemon.lock");
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        file.try_lock().map_err(|_| {
            anyhow::anyhow!("another daemon serves the lab at {}", self.0.display())
        })?;
        Ok(file)
    }
}
