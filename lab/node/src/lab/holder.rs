//! The holder process: makes the lab's namespaces, sets up the bridge, and then only exists.

use std::io::Write as _;

use anyhow::Context as _;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{pause, setsid},
};

use crate::{
    network::{BRIDGE, DNS_IP, GATEWAY, KUBERNETES_IP, POD_PREFIX, SERVICE_CIDR},
    tools,
};

/// Runs the holder: prints `ready`, or what went wrong, and never returns in the first case.
pub(crate) fn run() -> anyhow::Result<()> {
    if let Err(error) = prepare() {
        println!("{error:#}");
        return Err(error);
    }
    println!("ready");
    std::io::stdout().flush().context("announcing readiness")?;
    detach_stdout()?;
    loop {
        pause();
    }
}

fn prepare() -> anyhow::Result<()> {
    // Fails only for a group leader, which a spawned process is not.
    let _ = setsid();
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .context("unshare(NEWNET, NEWNS)")?;
    // Slave: the lab sees what the host mounts later (a USB stick, a new build tree), never the other way round.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        None::<&str>,
    )
    .context("making mounts private to the lab")?;
    tools::ip_batch(&format!(
        "link set lo up\n\
         addr add {DNS_IP}/32 dev lo\n\
         addr add {KUBERNETES_IP}/32 dev lo\n\
         link add {BRIDGE} type bridge forward_delay 0 stp_state 0\n\
         addr add {GATEWAY}/{POD_PREFIX} dev {BRIDGE}\n\
         link set {BRIDGE} up\n\
         route add {SERVICE_CIDR} dev {BRIDGE} src {GATEWAY}\n"
    ))?;
    for (path, value) in [
        ("net/ipv4/ip_forward", "1"),
        // Pods reach each other through the gateway on one interface; redirects would teach them shortcuts past the VIP rules.
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/default/send_redirects", "0"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv4/ip_local_port_range", "32768 60999"),
    ] {
        tools::sysctl(path, value)?;
    }
    for path in [
        format!("net/ipv4/conf/{BRIDGE}/send_redirects"),
        format!("net/ipv4/conf/{BRIDGE}/rp_filter"),
    ] {
        tools::sysctl(&path, "0")?;
    }
    // A dead pod's address must be refused, not swallowed: with the kernel's defaults a client (an Envoy whose Pilot was
    // killed) would wait for its whole connect timeout. So forget neighbours within about a second.
    for (name, value) in [
        ("base_reachable_time_ms", "2000"),
        ("delay_first_probe_time", "1"),
        ("retrans_time_ms", "200"),
        ("ucast_solicit", "2"),
        ("mcast_solicit", "2"),
    ] {
        tools::sysctl(&format!("net/ipv4/neigh/{BRIDGE}/{name}"), value)?;
    }
    // Optional parts of the kernel: bridge netfilter would run our rules twice, IPv6 would only chatter.
    let _ = tools::sysctl("net/bridge/bridge-nf-call-iptables", "0");
    let _ = tools::sysctl(&format!("net/ipv6/conf/{BRIDGE}/disable_ipv6"), "1");
    let _ = tools::sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    Ok(())
}

/// Lets go of the pipe to the parent, which otherwise would stay open as long as the lab lives.
pub(crate) fn detach_stdout() -> anyhow::Result<()> {
    let null = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/null")
        .context("opening /dev/null")?;
    nix::unistd::dup2_stdout(&null).context("detaching standard output")
}
