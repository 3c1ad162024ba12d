//! `mesozoic-lab down`: ends everything of a lab, whether or not its daemon is alive.
//!
//! Shims, pauses and the daemon all live in the lab's mount namespace, so the sweep is: every process whose mount
//! namespace is the holder's. Containers have namespaces of their own, but die with their shim.

use std::{fs, os::unix::fs::MetadataExt as _, time::Duration};

use anyhow::Context as _;
use rustix::process::Signal;

use super::state::{LabInfo, StateDir};
use crate::{container::RunState, files, pod::sandbox::Sandbox, process::ProcId};

/// Ends the lab; with `purge` its directory goes, too.
pub(crate) async fn run(state: &StateDir, purge: bool) -> anyhow::Result<()> {
    let info: Option<LabInfo> = files::read_json(&state.lab_json()).unwrap_or(None);
    if let Some(daemon) = info.map(|info| info.daemon())
        && daemon.signal(Signal::TERM)
        && tokio::time::timeout(Duration::from_secs(20), daemon.exited())
            .await
            .is_err()
    {
        daemon.kill().await;
    }
    sweep(state).await?;
    clean(state, purge)
}

/// Kills every process in the lab's mount namespace, the holder last.
pub(crate) async fn sweep(state: &StateDir) -> anyhow::Result<()> {
    let holder: Option<ProcId> = files::read_json(&state.holder_json()).unwrap_or(None);
    let Some(holder) = holder.filter(|holder| holder.is_alive()) else {
        return Ok(());
    };
    let lab = namespace_of(holder.pid).context("reading the lab's mount namespace")?;
    let me = i32::try_from(std::process::id()).unwrap_or(0);
    // A process may be forking while it is killed: look until nobody is left.
    for _ in 0..50 {
        let members: Vec<_> = processes()
            .filter(|pid| *pid != me && *pid != holder.pid && namespace_of(*pid) == Some(lab))
            .filter_map(ProcId::of)
            .collect();
        if members.is_empty() {
            break;
        }
        for member in &members {
            member.signal(Signal::KILL);
        }
        for member in members {
            let _ = tokio::time::timeout(Duration::from_secs(5), member.exited()).await;
        }
    }
    holder.kill().await;
    Ok(())
}

/// Kills the pods of a lab whose holder is gone, by what their state files say, and forgets them.
pub(crate) fn discard_pods(state: &StateDir) {
    for pod in fs::read_dir(state.pods()).into_iter().flatten().flatten() {
        let dir = pod.path();
        let runs = fs::read_dir(dir.join("containers"))
            .into_iter()
            .flatten()
            .flatten()
            .flat_map(|container| {
                fs::read_dir(container.path())
                    .into_iter()
                    .flatten()
                    .flatten()
            });
        for run in runs {
            if let Ok(Some(running)) = files::read_json::<RunState>(&run.path().join("state.json"))
            {
                running.init.signal(Signal::KILL);
                running.shim.signal(Signal::KILL);
            }
        }
        if let Some(sandbox) = Sandbox::adopt(&dir) {
            sandbox.pause.signal(Signal::KILL);
        }
        if let Err(error) = fs::remove_dir_all(&dir) {
            tracing::warn!("{} stays behind: {error}", dir.display());
        }
    }
}

/// Removes what belongs to processes that no longer exist; objects stay unless `purge`.
pub(crate) fn clean(state: &StateDir, purge: bool) -> anyhow::Result<()> {
    let remove = |path: std::path::PathBuf| -> anyhow::Result<()> {
        match if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        } {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", path.display()))
            }
            _ => Ok(()),
        }
    };
    if purge {
        return remove(state.root().to_owned());
    }
    remove(state.holder_json())?;
    remove(state.lab_json())?;
    remove(state.pods())
}

fn processes() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn namespace_of(pid: i32) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/mnt"))
        .ok()
        .map(|meta| meta.ino())
}
