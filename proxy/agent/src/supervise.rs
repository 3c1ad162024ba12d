//! Envoy's life: start, exit rule, drain.
//!
//! ```text
//! start ──▶ running ──Envoy ends by itself──▶ the agent ends too (Istio 1.4), or --envoyRestarts with doubling waits
//!              │
//!           SIGTERM ──▶ draining ──at least 5 s, then until no request is under way, at most 25 s──▶ SIGTERM Envoy ──▶ 0
//! ```
//!
//! # The drain
//!
//! Istio 1.4 drains by hot-restarting into an empty configuration, whose listeners no longer accept: a client that has
//! not yet heard of the pod's end is refused. Here Envoy is told `POST /healthcheck/fail`. From then on every response
//! carries `Connection: close` (GOAWAY on HTTP/2), so clients leave by themselves, while new connections are still
//! accepted, inbound and outbound: what arrives before all clients know the endpoint is gone is still served, and an app
//! that finishes its last requests can still call others. Readiness turns 503 at once (Envoy says DRAINING).
//! `/drain_listeners?graceful` would close connections only with a probability rising over drainDuration (45 s), so most
//! would still be open when Envoy ends.
//!
//! After the minimum (TERMINATION_DRAIN_DURATION_SECONDS) Envoy is asked every quarter of a second how many requests are
//! under way; none: it ends. Long-lived TCP connections are cut, as in Istio. An Envoy that never was LIVE has served
//! nobody and is ended at once.
//!
//! # No hot restart
//!
//! Envoy hands no xDS config to its successor: a hot restart while Pilot is away takes every listener down. So it is
//! compiled out of the command line (`--disable-hot-restart`), which also frees pods from sharing `/dev/shm`. Epochs
//! therefore count restarts within one agent's life. Certificates rotate by SDS.
//!
//! # Who dies with whom
//!
//! Envoy is started through `pilot-agent exec-envoy`, which asks the kernel to kill it when the agent's thread dies: an
//! agent that is killed leaves no Envoy behind that nobody supervises. It is its own process group, so that Ctrl-C in a
//! terminal reaches the agent only, and Envoy is drained.

use std::{
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use mesh_service::Drain;
use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::{Pid, getppid},
};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::{
    admin::Admin,
    args::{ExecArgs, ProxyArgs},
    outputs,
};

/// First wait before a restart; doubles each time.
const RESTART_WAIT: Duration = Duration::from_millis(200);
/// How long an Envoy may take to end after SIGTERM.
const END_WAIT: Duration = Duration::from_secs(3);
/// How often a draining Envoy is asked for requests under way.
const DRAIN_POLL: Duration = Duration::from_millis(250);

/// What is needed to start an Envoy.
#[derive(Clone, Debug)]
pub struct Envoy {
    /// The program.
    pub binary: PathBuf,
    /// Arguments but for the epoch and the bootstrap file.
    pub arguments: Vec<String>,
    /// Its admin interface.
    pub admin: Admin,
    /// Restarts after an exit by itself.
    pub restarts: u32,
    /// Bounds of the drain.
    pub drain_bounds: (Duration, Duration),
}

/// How the supervision ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Drained after a signal.
    Drained,
    /// Envoy ended by itself.
    Exited(ExitStatus),
}

/// Envoy's arguments, without epoch and bootstrap file.
pub fn arguments(
    args: &ProxyArgs,
    node_id: &str,
    is_ipv6: bool,
    config_override: Option<String>,
) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut add = |flag: &str, value: String| {
        out.push(flag.to_owned());
        out.push(value);
    };
    add("--drain-time-s", args.drain_duration.as_secs().to_string());
    add(
        "--parent-shutdown-time-s",
        args.parent_shutdown_duration.as_secs().to_string(),
    );
    add("--service-cluster", args.service_cluster.clone());
    add("--service-node", node_id.to_owned());
    add(
        "--local-address-ip-version",
        if is_ipv6 { "v6" } else { "v4" }.to_owned(),
    );
    add("-l", args.proxy_log_level.clone());
    if !args.proxy_component_log_level.is_empty() {
        add(
            "--component-log-level",
            args.proxy_component_log_level.clone(),
        );
    }
    if let Some(text) = config_override {
        add("--config-yaml", text);
    }
    if args.concurrency > 0 {
        add("--concurrency", args.concurrency.to_string());
    }
    out.push("--disable-hot-restart".to_owned());
    out
}

impl Envoy {
    /// Runs Envoy until it ends by itself or the drain is over. `bootstrap` gives the configuration file of an epoch;
    /// `written` files are removed when their epoch ends.
    pub async fn run(
        &self,
        drain: &Drain,
        mut bootstrap: impl FnMut(u32) -> anyhow::Result<(PathBuf, bool)>,
    ) -> anyhow::Result<End> {
        let mut epoch = 0;
        let mut wait = RESTART_WAIT;
        loop {
            let (file, is_ours) = bootstrap(epoch)?;
            let mut child = self.start(epoch, &file)?;
            let end = self.watch(epoch, &mut child, drain).await?;
            if is_ours && let Err(error) = std::fs::remove_file(&file) {
                tracing::warn!(file = %file.display(), %error, "the bootstrap could not be removed");
            }
            match end {
                End::Exited(_) if epoch < self.restarts && !drain.has_begun() => {
                    epoch += 1;
                    tracing::warn!(epoch, wait_ms = wait.as_millis(), "starting Envoy again");
                    tokio::select! {
                        () = sleep(wait) => wait *= 2,
                        () = drain.begun() => return Ok(End::Drained),
                    }
                }
                end => return Ok(end),
            }
        }
    }

    fn start(&self, epoch: u32, bootstrap: &Path) -> anyhow::Result<Child> {
        anyhow::ensure!(
            self.binary.is_file(),
            "--binaryPath {}: no such file; give the path of an Envoy 1.40",
            self.binary.display()
        );
        let own = std::env::current_exe().context("finding the agent's own binary")?;
        let mut command = Command::new(own);
        command
            .arg("exec-envoy")
            .arg(format!("--agent={}", std::process::id()))
            .arg(&self.binary)
            .arg("--")
            .arg("-c")
            .arg(bootstrap)
            .args(["--restart-epoch", "0"])
            .args([
                "--log-format",
                &format!("[Envoy (Epoch {epoch})] [%Y-%m-%d %T.%e][%t][%l][%n] %v"),
            ])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        let relay = outputs::need_relay();
        if relay {
            outputs::pipe(&mut command);
        }
        let mut child = command.spawn().context("starting Envoy")?;
        if relay {
            outputs::relay(&mut child);
        }
        tracing::info!(epoch, pid = child.id(), bootstrap = %bootstrap.display(), relay, "Envoy started");
        Ok(child)
    }

    async fn watch(&self, epoch: u32, child: &mut Child, drain: &Drain) -> anyhow::Result<End> {
        tokio::select! {
            status = child.wait() => {
                let status = status.context("waiting for Envoy")?;
                report(epoch, status);
                return Ok(End::Exited(status));
            }
            () = drain.begun() => {}
        }
        tokio::select! {
            status = child.wait() => {
                let status = status.context("waiting for Envoy")?;
                tracing::warn!(epoch, %status, "Envoy ended during its drain");
                return Ok(End::Drained);
            }
            () = self.drain(epoch) => {}
        }
        self.end(epoch, child).await?;
        Ok(End::Drained)
    }

    async fn drain(&self, epoch: u32) {
        let (least, most) = self.drain_bounds;
        match self.admin.get("/ready").await {
            Ok(_) => {}
            Err(reason) => {
                tracing::info!(epoch, %reason, "Envoy is not live, there is nothing to drain");
                return;
            }
        }
        let started = Instant::now();
        if let Err(error) = self.admin.post("/healthcheck/fail").await {
            tracing::warn!(epoch, %error, "Envoy could not be told to drain");
        }
        tracing::info!(
            epoch,
            least_s = least.as_secs(),
            most_s = most.as_secs(),
            "Envoy drains"
        );
        sleep(least).await;
        loop {
            match self.requests_under_way().await {
                Ok(0) => break,
                Ok(requests) if started.elapsed() >= most => {
                    tracing::warn!(
                        epoch,
                        requests,
                        "the drain ran out of time, these requests are cut"
                    );
                    break;
                }
                Ok(_) => sleep(DRAIN_POLL).await,
                Err(error) => {
                    tracing::warn!(epoch, %error, "Envoy does not say what is under way");
                    break;
                }
            }
        }
        tracing::info!(
            epoch,
            seconds = started.elapsed().as_secs_f64(),
            "Envoy is drained"
        );
    }

    /// HTTP requests that Envoy is serving, this one and scrapes excepted.
    async fn requests_under_way(&self) -> anyhow::Result<u64> {
        let text = self
            .admin
            .get("/stats?filter=downstream_rq_active$")
            .await?;
        Ok(count_requests(&text))
    }

    async fn end(&self, epoch: u32, child: &mut Child) -> anyhow::Result<()> {
        let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) else {
            return Ok(());
        };
        // An error means that it has just ended.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        match timeout(END_WAIT, child.wait()).await {
            Ok(status) => {
                tracing::info!(epoch, status = %status.context("waiting for Envoy")?, "Envoy ended")
            }
            Err(_) => {
                tracing::warn!(epoch, "Envoy does not end, killing it");
                child.kill().await.context("killing Envoy")?;
            }
        }
        Ok(())
    }
}

fn count_requests(stats: &str) -> u64 {
    stats
        .lines()
        .filter_map(|line| line.split_once(": "))
        .filter(|(name, _)| !name.starts_with("http.admin.") && !name.starts_with("http.stats."))
        .filter_map(|(_, value)| value.trim().parse::<u64>().ok())
        .sum()
}

fn report(epoch: u32, status: ExitStatus) {
    match status.signal() {
        Some(9) => tracing::error!(
            epoch,
            "Envoy was killed (SIGKILL), possibly for want of memory"
        ),
        Some(signal) => tracing::error!(epoch, signal, "Envoy was ended by a signal"),
        None if status.success() => tracing::info!(epoch, "Envoy ended normally"),
        None => tracing::error!(epoch, %status, "Envoy ended with an error; its own log says why"),
    }
}

/// Becomes Envoy; returns only if that fails.
pub fn exec_envoy(args: ExecArgs) -> anyhow::Error {
    let ExecArgs {
        agent,
        program,
        args,
    } = args;
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGKILL) {
        return anyhow::Error::new(error).context("binding Envoy's life to the agent's");
    }
    // The agent may have died before the line above.
    if getppid().as_raw() != agent {
        return anyhow::anyhow!("the agent that wanted this Envoy is gone");
    }
    let error = std::process::Command::new(&program).args(args).exec();
    anyhow::Error::new(error).context(format!("executing {}", program.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_of_others_count() {
        let stats = "http.admin.downstream_rq_active: 1\nhttp.stats.downstream_rq_active: 1\n\
                     http.inbound_10.0.0.1_9080.downstream_rq_active: 2\nhttp.outbound_0.0.0.0_9080.downstream_rq_active: 1\n";
        assert_eq!(count_requests(stats), 3);
    }
}
