//! Change after change while proxies come and go: memory must stay flat, and in the end nobody may hold anything old.
//!
//! Every change is one small file of the config directory: endpoints of a service, a VirtualService that comes, changes
//! and goes, a service that comes and goes. Proxies are cut off as killed pods are, and others join in their place. At the
//! end every proxy that stayed is compared, resource by resource, with a twin that connects anew under the same identity:
//! what the twin is sent is the truth.
//!
//! Memory is read once a second. The base is the median of the readings around the end of the first minute; afterwards
//! the medians of ten seconds each must stay within a tenth of it.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde::Serialize;

use super::fleet::{Fleet, Plan};
use crate::{
    Output, generate, process,
    table::{Row, render},
};

/// How far memory may move after the first minute.
const FLAT: f64 = 0.10;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pilot's plaintext xDS address.
    #[arg(long, value_name = "HOST:PORT")]
    target: String,
    /// Read Pilot's CPU time and memory from this process.
    #[arg(long, value_name = "PID")]
    server_pid: u32,
    /// Pilot's --configDir, written by `meshload gen --single N`.
    #[arg(long, value_name = "DIR")]
    config_dir: PathBuf,
    /// Services from 0 on that have files of their own (`gen --single`): these are changed.
    #[arg(long, default_value_t = 100)]
    single: usize,
    /// How many proxies at any time.
    #[arg(long, default_value_t = 100)]
    proxies: usize,
    /// Namespaces the proxies are spread over.
    #[arg(long, default_value_t = 1)]
    namespaces: usize,
    /// Speak the incremental protocol.
    #[arg(long)]
    delta: bool,
    /// How long.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Changes a second.
    #[arg(long, default_value_t = 50)]
    changes: u32,
    /// Proxies replaced a second.
    #[arg(long, default_value_t = 2)]
    churn: u32,
    /// What is random is the same with the same seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How to print.
    #[arg(short, long, default_value = "table")]
    output: Output,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    seconds: u64,
    variant: &'static str,
    changes: u64,
    proxies_replaced: u64,
    responses: u64,
    server_cpu_seconds: f64,
    /// Medians of ten seconds each.
    rss_bytes: Vec<u64>,
    /// Around the end of the first minute.
    rss_base_bytes: u64,
    /// The window after it that is farthest from the base, as a share of the base.
    rss_drift: f64,
    /// After all proxies have left.
    rss_idle_bytes: u64,
    /// What a proxy held at the end that a new one is not sent.
    stale: Vec<String>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let plan = Plan {
        target: args.target.clone(),
        proxies: args.proxies,
        namespaces: args.namespaces,
        delta: args.delta,
        server: Some(args.server_pid),
        timeout: Duration::from_secs(120),
    };
    let mut fleet = Fleet::launch(&plan);
    let all = fleet.wait(Instant::now(), |progress| progress.complete);
    all.await.context("before the soak")?;
    let before = process::usage(args.server_pid)?;
    let mut report = Report {
        seconds: args.seconds,
        variant: if args.delta { "delta" } else { "sotw" },
        ..Report::default()
    };
    let samples = shake(&args, &mut fleet, &mut report).await?;
    fleet.quiet().await;
    report.responses = fleet.total().responses;
    report.server_cpu_seconds = process::usage(args.server_pid)?.cpu_seconds - before.cpu_seconds;
    report.take_memory(&samples);
    report.stale = stale(&plan, &mut fleet).await?;
    fleet.end().await;
    report.rss_idle_bytes = process::usage(args.server_pid)?.rss_bytes;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Table => println!("{}", report.table()),
    }
    anyhow::ensure!(
        report.stale.is_empty(),
        "proxies hold old config:\n{}",
        report.stale.join("\n")
    );
    anyhow::ensure!(
        report.rss_drift.abs() <= FLAT,
        "memory moved by {:+.1}% after the first minute; {:.0}% are accepted",
        report.rss_drift * 100.0,
        FLAT * 100.0
    );
    Ok(())
}

/// The soak itself; memory, once a second.
async fn shake(args: &Args, fleet: &mut Fleet, report: &mut Report) -> anyhow::Result<Vec<u64>> {
    let mut random = StdRng::seed_from_u64(args.seed);
    let mut change = tokio::time::interval(Duration::from_secs(1) / args.changes.max(1));
    let mut second = tokio::time::interval(Duration::from_secs(1));
    let end = tokio::time::Instant::now() + Duration::from_secs(args.seconds);
    let mut samples = Vec::new();
    let mut next = args.proxies;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(end) => return Ok(samples),
            _ = change.tick() => {
                make_change(args, &mut random)?;
                report.changes += 1;
            }
            _ = second.tick() => {
                samples.push(process::usage(args.server_pid)?.rss_bytes);
                progress(args, samples.len() as u64);
                fleet.check()?;
                for _ in 0..args.churn.min(u32::try_from(args.proxies).unwrap_or(u32::MAX)) {
                    let mut identity = fleet.leave(random.random_range(0..fleet.members.len()));
                    // Half of them come back as themselves, as after a broken connection.
                    if random.random_bool(0.5) {
                        identity.number = next;
                        next += 1;
                    }
                    fleet.join(identity);
                    report.proxies_replaced += 1;
                }
            }
        }
    }
}

fn progress(args: &Args, seconds: u64) {
    use std::io::IsTerminal as _;
    if std::io::stderr().is_terminal() {
        eprint!("\r{seconds} of {} s", args.seconds);
    } else if seconds.is_multiple_of(60) {
        eprintln!("{seconds} of {} s", args.seconds);
    }
}

fn make_change(args: &Args, random: &mut StdRng) -> anyhow::Result<()> {
    let (dir, number) = (&args.config_dir, random.random_range(0..args.single));
    match random.random_range(0..10) {
        0..6 => generate::write_service(dir, number, random.random_range(1..6)),
        6..8 => generate::write_virtual_service(dir, number, random.random_range(1..60)),
        8 => generate::remove_virtual_service(dir, number),
        _ => generate::remove_service(dir, number),
    }
}

/// Compares each proxy with a twin that connects anew.
async fn stale(plan: &Plan, fleet: &mut Fleet) -> anyhow::Result<Vec<String>> {
    let mut twins = Fleet::launch(&Plan {
        proxies: 0,
        ..plan.clone()
    });
    for member in &fleet.members {
        twins.join(member.identity.clone());
    }
    let all = twins.wait(Instant::now(), |progress| progress.complete);
    all.await.context("the twins at the end")?;
    twins.quiet().await;
    let mut out = Vec::new();
    for (member, twin) in fleet.members.iter().zip(&twins.members) {
        let differences = member.holdings.lock().differences(&twin.holdings.lock());
        let of = |what| format!("proxy-{}: {what}", member.identity.number);
        out.extend(differences.into_iter().map(of));
    }
    fleet.check()?;
    twins.end().await;
    Ok(out)
}

fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

impl Report {
    fn take_memory(&mut self, samples: &[u64]) {
        self.rss_bytes = samples.chunks(10).map(median).collect();
        // A run of less than a minute and a half has its base at two thirds.
        let minute = 60.min(samples.len() * 2 / 3);
        let around = minute.saturating_sub(10)..(minute + 10).min(samples.len());
        self.rss_base_bytes = median(&samples[around.start.min(samples.len())..around.end]);
        let base = self.rss_base_bytes as f64;
        let drift = |rss: u64| (rss as f64 - base) / base.max(1.0);
        let later = samples.get(minute..).unwrap_or_default();
        self.rss_drift = later
            .chunks(10)
            .map(|window| drift(median(window)))
            .max_by(|a, b| a.abs().total_cmp(&b.abs()))
            .unwrap_or_default();
    }

    fn table(&self) -> String {
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let rows = [
            Row::new("changes made", self.changes as f64, ""),
            Row::new("proxies replaced", self.proxies_replaced as f64, ""),
            Row::new("responses to those that stayed", self.responses as f64, ""),
            Row::new("server CPU", self.server_cpu_seconds, "s"),
            Row::new(
                "server memory after a minute",
                megabytes(self.rss_base_bytes),
                "MB",
            ),
            Row::new(
                "its largest move from there",
                self.rss_drift.abs() * 100.0,
                "%",
            )
            .goal(FLAT * 100.0),
            Row::new(
                "server memory, all proxies gone",
                megabytes(self.rss_idle_bytes),
                "MB",
            ),
            Row::new("old config in proxies", self.stale.len() as f64, "").goal(0.0),
        ];
        let title = format!("Soak of {} s, {}", self.seconds, self.variant);
        render(&title, &rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_after_the_first_minute_is_told() {
        let mut report = Report::default();
        let mut samples: Vec<u64> = vec![50; 50];
        samples.extend(vec![100; 100]);
        report.take_memory(&samples);
        assert_eq!((report.rss_base_bytes, report.rss_drift), (100, 0.0));
        samples.extend(vec![120; 10]);
        report.take_memory(&samples);
        assert_eq!(report.rss_drift, 0.2);
    }
}
