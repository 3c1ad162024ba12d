//! The lab's own namespaces: one network and one mount namespace per state directory.
//!
//! A tiny `holder` process keeps them alive, so that a daemon that was killed finds bridge, addresses, pods and memory
//! volumes as it left them. The daemon enters both before its runtime starts any thread; sockets that users reach are
//! made in the host's namespace by [`host::HostNet`]. Nothing is ever changed in the host's namespaces.

pub(crate) mod down;
pub(crate) mod holder;
pub(crate) mod host;
pub(crate) mod state;

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, setns};

use crate::{files, process::ProcId, tools};
use state::StateDir;

/// The binary that is running, also after it was replaced on disk.
pub(crate) const SELF: &str = "/proc/self/exe";

/// A daemon's place in the lab's namespaces.
#[derive(Debug)]
pub(crate) struct Lab {
    /// The network namespace the daemon came from.
    pub(crate) host_net: File,
    /// Whether the namespaces existed before this start.
    pub(crate) adopted: bool,
}

impl Lab {
    /// Enters the lab's namespaces, creating them if no holder is alive. The process must be single-threaded.
    pub(crate) fn enter(state: &StateDir) -> anyhow::Result<Self> {
        tools::check()?;
        check_privilege()?;
        let host_net =
            File::open("/proc/self/ns/net").context("opening the host's network namespace")?;
        let known: Option<ProcId> = files::read_json(&state.holder_json())?;
        let (holder, adopted) = match known.filter(|holder| holder.is_alive()) {
            Some(holder) => (holder, true),
            None => {
                // Whatever still runs is tied to namespaces that no longer have a bridge to anywhere.
                down::discard_pods(state);
                (start_holder(state)?, false)
            }
        };
        let net =
            File::open(holder.proc("ns/net")).context("opening the lab's network namespace")?;
        let mnt = File::open(holder.proc("ns/mnt")).context("opening the lab's mount namespace")?;
        setns(&net, CloneFlags::CLONE_NEWNET).context("entering the lab's network namespace")?;
        setns(&mnt, CloneFlags::CLONE_NEWNS).context("entering the lab's mount namespace")?;
        Ok(Self { host_net, adopted })
    }
}

/// Namespaces with real network devices and mounts need root.
pub(crate) fn check_privilege() -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let user_namespaces = std::fs::read_to_string("/proc/sys/user/max_user_namespaces")
        .ok()
        .and_then(|n| n.trim().parse::<u64>().ok())
        .unwrap_or(0);
    let hint = if user_namespaces == 0 {
        "this kernel forbids user namespaces (sysctl user.max_user_namespaces=0), so root is the only way"
    } else {
        "rootless operation needs a range of user ids (package uidmap, a line for you in /etc/subuid and /etc/subgid) \
         and is not supported yet"
    };
    bail!(
        "the lab creates network and mount namespaces and must run as root (sudo mesozoic-lab …); {hint}"
    )
}

fn start_holder(state: &StateDir) -> anyhow::Result<ProcId> {
    let mut child = Command::new(SELF)
        .arg("holder")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(state.process_log()?)
        .spawn()
        .context("starting the namespace holder")?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout)
            .read_line(&mut line)
            .context("waiting for the namespace holder")?;
    }
    if line.trim() != "ready" {
        let _ = child.kill();
        let _ = child.wait();
        bail!(
            "the lab's namespaces could not be made: {} (needed: CAP_SYS_ADMIN and CAP_NET_ADMIN, as root on a machine or in a container started with --privileged, and a kernel with bridge and veth)",
            line.trim()
        );
    }
    let pid = i32::try_from(child.id()).context("pid out of range")?;
    let holder = ProcId::of(pid).context("the namespace holder died at once")?;
    files::write_json(&state.holder_json(), &holder)?;
    Ok(holder)
}
