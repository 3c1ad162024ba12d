//! The sandbox of a pod: a pause process whose network, UTS and IPC namespaces all containers share.
//!
//! The pause process sets up the pod's end of the veth itself, the daemon only plugs the other end into the bridge. It
//! lives in a session of its own and survives the daemon; `sandbox.json` tells the next daemon where it is.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::Ipv4Addr,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{pause, sethostname, setsid},
};
use serde::{Deserialize, Serialize};

use crate::{
    files,
    lab::{SELF, holder, state::StateDir},
    network::{BRIDGE, GATEWAY},
    process::ProcId,
    tools,
};

/// What a pause process must know; passed as one JSON argument.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PauseSpec {
    pub(crate) hostname: String,
    /// `None`: the pod shares the node's network.
    pub(crate) network: Option<PauseNetwork>,
}

/// The pod's own network.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PauseNetwork {
    pub(crate) ip: Ipv4Addr,
    /// Name of the bridge's end of the veth.
    pub(crate) veth: String,
    /// A process in the lab's network namespace.
    pub(crate) lab_pid: i32,
}

/// A running sandbox, as `sandbox.json` records it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sandbox {
    pub(crate) pause: ProcId,
    pub(crate) ip: Ipv4Addr,
    pub(crate) host_network: bool,
}

impl Sandbox {
    /// Makes a sandbox. Blocking (some milliseconds); run it off the runtime's threads.
    pub(crate) fn create(
        state: &StateDir,
        pod_dir: &Path,
        hostname: &str,
        ip: Ipv4Addr,
        host_network: bool,
    ) -> anyhow::Result<Self> {
        // Unique because the address is.
        let veth = format!("v{:08x}", u32::from(ip));
        // This process lives in the lab's network namespace.
        let lab_pid = i32::try_from(std::process::id()).context("pid out of range")?;
        let network = (!host_network).then(|| PauseNetwork {
            ip,
            veth: veth.clone(),
            lab_pid,
        });
        let spec = serde_json::to_string(&PauseSpec {
            hostname: hostname.to_owned(),
            network,
        })?;
        let mut child = Command::new(SELF)
            .arg("pause")
            .arg(&spec)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(state.process_log()?)
            .spawn()
            .context("starting the pause process")?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout)
                .read_line(&mut line)
                .context("waiting for the pause process")?;
        }
        let pause = i32::try_from(child.id()).ok().and_then(ProcId::of);
        let ready = line.trim() == "ready";
        let plugged = if ready && !host_network {
            tools::ip_batch(&format!("link set {veth} master {BRIDGE} up\n"))
        } else {
            Ok(())
        };
        let (Some(pause), true, Ok(())) = (pause, ready, &plugged) else {
            let _ = child.kill();
            let _ = child.wait();
            plugged?;
            bail!(
                "the pod's network namespace could not be made: {}",
                line.trim()
            );
        };
        // Reaps the process when it ends while this daemon lives.
        std::thread::Builder::new()
            .name("reap".into())
            .stack_size(64 * 1024)
            .spawn(move || {
                let _ = child.wait();
            })
            .context("starting the reaper")?;
        let sandbox = Self {
            pause,
            ip,
            host_network,
        };
        files::write_json(&pod_dir.join("sandbox.json"), &sandbox)?;
        Ok(sandbox)
    }

    /// The sandbox an earlier daemon left, if it still lives.
    pub(crate) fn adopt(pod_dir: &Path) -> Option<Self> {
        let sandbox: Self = files::read_json(&pod_dir.join("sandbox.json")).ok()??;
        sandbox.pause.is_alive().then_some(sandbox)
    }

    /// The pod's network namespace.
    pub(crate) fn net(&self) -> std::io::Result<std::fs::File> {
        std::fs::File::open(self.pause.proc("ns/net"))
    }
}

/// The pause process.
pub(crate) fn run_pause(spec: &str) -> anyhow::Result<()> {
    if let Err(error) = prepare(spec) {
        println!("{}", format!("{error:#}").replace('\n', " "));
        return Err(error);
    }
    println!("ready");
    std::io::stdout().flush().context("announcing readiness")?;
    holder::detach_stdout()?;
    loop {
        pause();
    }
}

fn prepare(spec: &str) -> anyhow::Result<()> {
    let spec: PauseSpec = serde_json::from_str(spec).context("pause specification")?;
    let _ = setsid();
    let mut flags = CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    if spec.network.is_some() {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    unshare(flags).context("unshare")?;
    sethostname(&spec.hostname).context("setting the host name")?;
    let Some(PauseNetwork { ip, veth, lab_pid }) = spec.network else {
        return Ok(());
    };
    // As container runtimes do: a pod's port 80 needs no privilege, its network is its own.
    tools::sysctl("net/ipv4/ip_unprivileged_port_start", "0")?;
    let _ = tools::sysctl("net/ipv4/ping_group_range", "0 2147483647");
    let _ = tools::sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    tools::ip_batch(&format!(
        "link set lo up\n\
         link add eth0 type veth peer name {veth} netns {lab_pid}\n\
         addr add {ip}/32 dev eth0\n\
         link set eth0 up\n\
         route add {GATEWAY} dev eth0 scope link src {ip}\n\
         route add default via {GATEWAY} dev eth0 src {ip}\n"
    ))
}
