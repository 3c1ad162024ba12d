//! Fake Envoys against Pilot.
//!
//! Each opens a connection and an aggregated stream, subscribes as Envoy does (clusters, then the endpoints of its EDS
//! clusters, then listeners, then the routes these name), accepts everything, and counts. The first figure is the time
//! until the last of them has everything; then single changes are made to the config directory, and the figure is the
//! time from the edit until the last proxy was sent the resource.
//!
//! Decoding reads the few fields that subscribing needs, so that the load does not eat the processor it measures.

mod lite;
mod proxy;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::Serialize;
use tokio::sync::watch;

use self::proxy::{Progress, Proxy};
use crate::{
    Output, generate,
    process::{self, Usage},
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

/// All proxies and their progress.
struct Fleet {
    progress: Vec<watch::Receiver<Progress>>,
    tasks: tokio::task::JoinSet<anyhow::Result<()>>,
    server: Option<u32>,
    timeout: Duration,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    // Reading its config is not what is measured.
    let serving = serving(&args.target);
    tokio::time::timeout(Duration::from_secs(args.timeout), serving)
        .await
        .with_context(|| format!("--target {}: not ready to serve", args.target))??;
    let before = args.server_pid.map(process::usage).transpose()?;
    let begun = Instant::now();
    let mut fleet = Fleet::launch(&args);
    let times = fleet.wait(begun, |progress| progress.complete).await?;
    let first_config = fleet.measured("first config", times, before, None)?;
    let totals = fleet.sum(|progress| progress.clone());
    let mut report = Report {
        target: args.target.clone(),
        proxies: args.proxies,
        variant: if args.delta { "delta" } else { "sotw" },
        clusters: totals.clusters / args.proxies.max(1) as u64,
        endpoint_resources: totals.endpoints / args.proxies.max(1) as u64,
        listeners: totals.listeners / args.proxies.max(1) as u64,
        routes: totals.routes / args.proxies.max(1) as u64,
        first_config,
        changes: Vec::new(),
    };
    // First config is followed by no further pushes; a change must not be mistaken for the tail of it.
    fleet.quiet().await;
    if let Some(dir) = &args.config_dir {
        let virtual_service = |round: u32| generate::write_virtual_service(dir, 5 + round);
        let measured = fleet.change(
            "one VirtualService changed",
            args.repeat,
            "rds",
            virtual_service,
        );
        report.changes.push(measured.await?);
        let endpoints = |round: u32| generate::write_first(dir, 3 + round as usize);
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
    fleet.tasks.shutdown().await;
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
    loop {
        match client.check(HealthCheckRequest::default()).await {
            Ok(response) if response.get_ref().status() == ServingStatus::Serving => return Ok(()),
            Err(status) if status.code() == tonic::Code::Unimplemented => return Ok(()),
            Ok(_) => {}
            Err(status) => anyhow::bail!("--target {target}: {status}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Fleet {
    fn launch(args: &Args) -> Self {
        let mut fleet = Self {
            progress: Vec::new(),
            tasks: tokio::task::JoinSet::new(),
            server: args.server_pid,
            timeout: Duration::from_secs(args.timeout),
        };
        for number in 0..args.proxies {
            let (sender, receiver) = watch::channel(Progress::default());
            let proxy = Proxy::new(
                number,
                args.namespaces,
                args.target.clone(),
                args.delta,
                sender,
            );
            fleet.tasks.spawn(proxy.run());
            fleet.progress.push(receiver);
        }
        fleet
    }

    /// When each proxy met the condition, as seconds since `begun`, sorted.
    async fn wait(
        &mut self,
        begun: Instant,
        condition: impl Fn(&Progress) -> bool + Send + Sync + 'static,
    ) -> anyhow::Result<Vec<f64>> {
        let condition = Arc::new(condition);
        let mut waiting = tokio::task::JoinSet::new();
        for (number, progress) in self.progress.iter().enumerate() {
            let (mut progress, condition) = (progress.clone(), condition.clone());
            waiting.spawn(async move {
                let met = progress.wait_for(|progress| condition(progress)).await;
                met.map(|progress| progress.at)
                    .map_err(|_| anyhow::anyhow!("proxy {number} lost its stream"))
            });
        }
        let mut times = Vec::new();
        let all = async {
            while let Some(met) = waiting.join_next().await {
                if let Some(at) = met?? {
                    times.push(at.saturating_duration_since(begun).as_secs_f64());
                }
            }
            anyhow::Ok(())
        };
        tokio::select! {
            // A stream that ended says why; that it is gone is only the consequence.
            biased;
            Some(ended) = self.tasks.join_next() => {
                ended??;
                anyhow::bail!("a proxy's stream ended");
            }
            done = tokio::time::timeout(self.timeout, all) => {
                done.with_context(|| format!("not all proxies got it within {:?}", self.timeout))??;
            }
        }
        times.sort_by(f64::total_cmp);
        Ok(times)
    }

    fn sum(&self, part: impl Fn(&Progress) -> Progress) -> Progress {
        self.progress
            .iter()
            .map(|progress| part(&progress.borrow()))
            .fold(Progress::default(), Progress::add)
    }

    fn measured(
        &self,
        what: &str,
        times: Vec<f64>,
        before: Option<Usage>,
        totals_before: Option<Progress>,
    ) -> anyhow::Result<Measured> {
        let after = self.server.map(process::usage).transpose()?;
        let totals = self.sum(Progress::clone);
        let former = totals_before.unwrap_or_default();
        Ok(Measured {
            what: what.to_owned(),
            seconds: times.last().copied().unwrap_or_default(),
            median_seconds: times.get(times.len() / 2).copied().unwrap_or_default(),
            server_cpu_seconds: before
                .zip(after)
                .map(|(b, a)| a.cpu_seconds - b.cpu_seconds),
            server_rss_bytes: after.map(|usage| usage.rss_bytes),
            server_peak_rss_bytes: after.map(|usage| usage.peak_rss_bytes),
            responses: totals.responses - former.responses,
            resources: totals.resources - former.resources,
            bytes: totals.bytes - former.bytes,
        })
    }

    /// Waits until no proxy has got anything for a while.
    async fn quiet(&self) {
        let mut last = self.sum(Progress::clone).responses;
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = self.sum(Progress::clone).responses;
            if now == last {
                return;
            }
            last = now;
        }
    }

    /// Makes a change several times; the round that took the middle time counts.
    async fn change(
        &mut self,
        what: &str,
        repeat: u32,
        service: &'static str,
        make: impl Fn(u32) -> anyhow::Result<()>,
    ) -> anyhow::Result<Measured> {
        let mut rounds = Vec::new();
        for round in 0..repeat.max(1) {
            let totals = self.sum(Progress::clone);
            let before = self.server.map(process::usage).transpose()?;
            // Each proxy is compared with its own count: one may have got more than another so far.
            let floors: Vec<u64> = self
                .progress
                .iter()
                .map(|progress| progress.borrow().count(service))
                .collect();
            let begun = Instant::now();
            make(round)?;
            let times = self.wait_beyond(begun, service, &floors).await?;
            // What trails behind (answers, freeing) is part of the cost.
            self.quiet().await;
            rounds.push(self.measured(what, times, before, Some(totals))?);
        }
        rounds.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        rounds
            .into_iter()
            .nth(repeat.max(1) as usize / 2)
            .context("no round was made")
    }

    async fn wait_beyond(
        &mut self,
        begun: Instant,
        service: &'static str,
        floors: &[u64],
    ) -> anyhow::Result<Vec<f64>> {
        let mut times = Vec::new();
        for (progress, floor) in self.progress.iter_mut().zip(floors) {
            let met = progress.wait_for(|progress| progress.count(service) > *floor);
            let met = tokio::time::timeout(self.timeout, met)
                .await
                .with_context(|| {
                    format!(
                        "a change did not reach every proxy within {:?}",
                        self.timeout
                    )
                })?;
            let at = met.context("a proxy lost its stream")?.at;
            times.extend(at.map(|at| at.saturating_duration_since(begun).as_secs_f64()));
        }
        times.sort_by(f64::total_cmp);
        Ok(times)
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
