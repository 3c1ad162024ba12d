//! Fake Envoys against Pilot.
//!
//! Each opens a connection and an aggregated stream, subscribes as Envoy does (clusters, then the endpoints of its EDS
//! clusters, then listeners, then the routes these name), accepts everything, and counts. The first figure is the time
//! until the last of them has everything; then single changes are made to the config directory, and the figure is the
//! time from the edit until the last proxy was sent the resource.
//!
//! Decoding reads the few fields that subscribing needs, so that the load does not eat the processor it measures.

mod fleet;
mod holdings;
mod lite;
mod proxy;
mod soak;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::Serialize;

use self::fleet::Fleet;
pub(crate) use self::soak::{Args as SoakArgs, run as soak};
use crate::{
    Output, generate, process,
    table::{Row, render},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pilot's plaintext xDS address.
    #[arg(long, value_name = "HOST:PORT")]
    target: String,
    /// How many proxies.
    #[arg(long, default_value_t = 100)]
    proxies: usize,
    /// Speak the incremental protocol.
    #[arg(long)]
    delta: bool,
    /// Read Pilot's CPU time and memory from this process.
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// Pilot's --configDir, written by `meshload gen`: single changes are made here.
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// A command that makes one change; any response to every proxy counts as its arrival.
    #[arg(long, value_name = "SHELL COMMAND", conflicts_with = "config_dir")]
    change_cmd: Option<String>,
    /// How often each change is made; the middle result counts.
    #[arg(long, default_value_t = 3)]
    repeat: u32,
    /// Namespaces the proxies are spread over.
    #[arg(long, default_value_t = 1)]
    namespaces: usize,
    /// Give up after this.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    timeout: u64,
    /// How to print.
    #[arg(short, long, default_value = "table")]
    output: Output,
}

impl Args {
    fn fleet(&self) -> fleet::Plan {
        fleet::Plan {
            target: self.target.clone(),
            proxies: self.proxies,
            namespaces: self.namespaces,
            delta: self.delta,
            server: self.server_pid,
            timeout: Duration::from_secs(self.timeout),
        }
    }
}

/// What one step took.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Measured {
    what: String,
    /// Until the last proxy had it.
    seconds: f64,
    /// Until half of them had it.
    median_seconds: f64,
    server_cpu_seconds: Option<f64>,
    server_rss_bytes: Option<u64>,
    server_peak_rss_bytes: Option<u64>,
    responses: u64,
    resources: u64,
    bytes: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    target: String,
    proxies: usize,
    variant: &'static str,
    clusters: u64,
    endpoint_resources: u64,
    listeners: u64,
    routes: u64,
    first_config: Measured,
    changes: Vec<Measured>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    // Reading its config is not what is measured.
    let serving = serving(&args.target);
    tokio::time::timeout(Duration::from_secs(args.timeout), serving)
        .await
        .with_context(|| format!("--target {}: not ready to serve", args.target))??;
    let before = args.server_pid.map(process::usage).transpose()?;
    let begun = Instant::now();
    let mut fleet = Fleet::launch(&args.fleet());
    let times = fleet.wait(begun, |progress| progress.complete).await?;
    let first_config = fleet.measured("first config", times, before, None)?;
    let totals = fleet.total();
    let each = |index: usize| totals.held[index] / args.proxies.max(1) as u64;
    let mut report = Report {
        target: args.target.clone(),
        proxies: args.proxies,
        variant: if args.delta { "delta" } else { "sotw" },
        clusters: each(0),
        endpoint_resources: each(1),
        listeners: each(2),
        routes: each(3),
        first_config,
        changes: Vec::new(),
    };
    // First config is followed by no further pushes; a change must not be mistaken for the tail of it.
    fleet.quiet().await;
    if let Some(dir) = &args.config_dir {
        let virtual_service = |round: u32| generate::write_virtual_service(dir, 0, 5 + round);
        let measured = fleet.change(
            "one VirtualService changed",
            args.repeat,
            "rds",
            virtual_service,
        );
        report.changes.push(measured.await?);
        let endpoints = |round: u32| generate::write_service(dir, 0, 3 + round as usize);
        let measured = fleet.change("one endpoint changed", args.repeat, "eds", endpoints);
        report.changes.push(measured.await?);
    }
    if let Some(command) = &args.change_cmd {
        let shell = |_: u32| {
            let status = std::process::Command::new("sh")
                .arg("-c")
                .arg(command)
                .status()?;
            anyhow::ensure!(
                status.success(),
                "--change-cmd {command:?} failed: {status}"
            );
            Ok(())
        };
        report
            .changes
            .push(fleet.change("change", args.repeat, "", shell).await?);
    }
    fleet.end().await;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Table => println!("{}", table(&report)),
    }
    Ok(())
}

/// Waits until the server says by gRPC's health protocol that it serves; one that does not speak it is taken to.
async fn serving(target: &str) -> anyhow::Result<()> {
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
    };
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{target}"))
        .with_context(|| format!("--target {target:?}: expected HOST:PORT"))?;
    let channel = endpoint
        .connect()
        .await
        .with_context(|| format!("--target {target}: cannot connect"))?;
    let mut client = HealthClient::new(channel);
    let unhealthy = |status: tonic::Status| match status.code() {
        tonic::Code::Unimplemented => Ok(()),
        _ => Err(anyhow::anyhow!("--target {target}: {status}")),
    };
    let mut changes = match client.watch(HealthCheckRequest::default()).await {
        Ok(response) => response.into_inner(),
        Err(status) => return unhealthy(status),
    };
    loop {
        match changes.message().await {
            Ok(Some(now)) if now.status() == ServingStatus::Serving => return Ok(()),
            Ok(Some(_)) => {}
            Ok(None) => anyhow::bail!("--target {target}: ended while it was not serving yet"),
            Err(status) => return unhealthy(status),
        }
    }
}

/// The goals hold for 1000 services and 100 proxies; beside anything else they would mislead.
fn table(report: &Report) -> String {
    let goals = (900..=1100).contains(&report.clusters.saturating_sub(2)) && report.proxies == 100;
    let with = |row: Row, goal: f64| if goals { row.goal(goal) } else { row };
    let mut rows = Vec::new();
    let mut step = |measured: &Measured, seconds: f64, cpu: f64, memory: Option<f64>| {
        let what = &measured.what;
        rows.push(with(
            Row::new(format!("{what}: last proxy"), measured.seconds, "s"),
            seconds,
        ));
        if let Some(used) = measured.server_cpu_seconds {
            rows.push(with(
                Row::new(format!("{what}: server CPU"), used, "s"),
                cpu,
            ));
        }
        if let (Some(goal), Some(peak)) = (memory, measured.server_peak_rss_bytes) {
            let megabytes = peak as f64 / 1e6;
            rows.push(with(
                Row::new(format!("{what}: server memory, peak"), megabytes, "MB"),
                goal,
            ));
        }
        rows.push(Row::new(
            format!("{what}: sent"),
            measured.bytes as f64 / 1e6,
            "MB",
        ));
    };
    step(&report.first_config, 0.4, 0.6, Some(90.0));
    for change in &report.changes {
        step(change, 0.2, 0.05, None);
    }
    let title = format!(
        "Pilot at {}, {}: {} clusters, {} load assignments, {} listeners, {} routes × {} proxies",
        report.target,
        report.variant,
        report.clusters,
        report.endpoint_resources,
        report.listeners,
        report.routes,
        report.proxies
    );
    render(&title, &rows)
}
