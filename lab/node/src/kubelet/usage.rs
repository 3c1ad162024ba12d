//! CPU and memory of containers, from `/proc`.
//!
//! Every process belongs to the container whose PID namespace it is in. CPU is the difference of two samples (own time
//! and that of ended children) about ten seconds apart; memory is the resident set. One sample reads `/proc` once, a few
//! milliseconds for some hundred processes.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use lab_kubernetes::{ContainerUsage, PodUsage};
use nix::unistd::{SysconfVar, sysconf};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::pod::Context;

const EVERY: Duration = Duration::from_secs(10);

/// Keeps the latest usage of all containers.
#[derive(Debug, Default)]
pub(crate) struct Sampler(Mutex<Vec<PodUsage>>);

/// What a PID namespace has used.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    ticks: u64,
    pages: u64,
}

impl Sampler {
    /// The latest figures.
    pub(crate) fn current(&self) -> Vec<PodUsage> {
        self.0.lock().clone()
    }

    /// Samples every ten seconds until `stop`.
    pub(crate) async fn run(self: Arc<Self>, context: Arc<Context>, stop: CancellationToken) {
        let tick = unit(SysconfVar::CLK_TCK, 100);
        let page = unit(SysconfVar::PAGE_SIZE, 4096);
        let mut before: Option<(Instant, HashMap<u64, Sum>)> = None;
        // The first figures come early, so that a new lab soon has some.
        let mut wait = EVERY / 5;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let Ok(sums) = tokio::task::spawn_blocking(sample).await else {
                return;
            };
            let now = Instant::now();
            if let Some((then, old)) = &before {
                let elapsed = now.duration_since(*then);
                *self.0.lock() = usage(&context, &sums, old, elapsed, tick, page);
                wait = EVERY;
            }
            before = Some((now, sums));
        }
    }
}

fn unit(name: SysconfVar, default: u64) -> u64 {
    sysconf(name)
        .ok()
        .flatten()
        .and_then(|value| u64::try_from(value).ok())
        .unwrap_or(default)
}

/// Sums per PID namespace (inode number).
fn sample() -> HashMap<u64, Sum> {
    let mut sums: HashMap<u64, Sum> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name
            .to_str()
            .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        else {
            continue;
        };
        let Ok(namespace) = fs::metadata(format!("/proc/{pid}/ns/pid")) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let Some((_, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |index: usize| {
            fields
                .get(index)
                .and_then(|text| text.parse::<u64>().ok())
                .unwrap_or(0)
        };
        let sum = sums.entry(namespace.ino()).or_default();
        // utime, stime, cutime, cstime; rss. Field 3 of the file is index 0 here.
        sum.ticks += (11..15).map(number).sum::<u64>();
        sum.pages += number(21);
    }
    sums
}

fn usage(
    context: &Context,
    sums: &HashMap<u64, Sum>,
    before: &HashMap<u64, Sum>,
    elapsed: Duration,
    tick: u64,
    page: u64,
) -> Vec<PodUsage> {
    let pods = context.table.all();
    let pods = pods.iter().map(|pod| {
        let containers = pod.containers.iter().filter_map(|container| {
            let init = container.running.as_ref()?.state.init;
            let namespace = fs::metadata(init.proc("ns/pid")).ok()?.ino();
            let sum = sums.get(&namespace)?;
            // A container that is younger than the window has used all its time in it.
            let ticks = sum
                .ticks
                .saturating_sub(before.get(&namespace).map_or(0, |sum| sum.ticks));
            let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(tick);
            let rate = nanoseconds * 1_000_000_000 / elapsed.as_nanos().max(1);
            Some(ContainerUsage {
                name: container.name.clone(),
                cpu_nanocores: u64::try_from(rate).unwrap_or(u64::MAX),
                memory_bytes: sum.pages * page,
            })
        });
        PodUsage {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            window_seconds: elapsed.as_secs().max(1),
            containers: containers.collect(),
        }
    });
    pods.filter(|pod| !pod.containers.is_empty()).collect()
}
