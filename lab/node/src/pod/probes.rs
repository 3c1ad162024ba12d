//! Probes of one running container: startup first, then readiness and liveness side by side.
//!
//! The first probe comes as soon as the initial delay is over, not a period later. Until readiness (or startup) has
//! succeeded once, probes are repeated quickly (50 ms, doubling to 500 ms, never slower than the period), so that a
//! container is known to be ready soon after it is; such early failures count towards no threshold. Once per period a
//! failure counts, as documented by Kubernetes.

use std::{net::Ipv4Addr, time::Duration};

use k8s_openapi::api::core::v1::{Container, ObjectReference, Probe};
use tokio::{sync::mpsc, time::Instant};

use super::{
    events::{Recorder, WARNING},
    http,
};
use crate::container::runtime::Running;

const QUICKEST: Duration = Duration::from_millis(50);
const QUICK_LIMIT: Duration = Duration::from_millis(500);
/// How long quick repetition goes on; something that is not ready by then is not about to be.
const QUICK_FOR: Duration = Duration::from_secs(120);

/// What probes found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// The startup probe passed.
    Started,
    Ready(bool),
    /// The startup or liveness probe failed for good.
    Dead(&'static str),
}

/// What is probed.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) container: Container,
    pub(crate) running: Running,
    pub(crate) ip: Ipv4Addr,
    pub(crate) reference: ObjectReference,
    pub(crate) events: Recorder,
}

/// Probes until dropped; findings go to `report`.
pub(crate) async fn run(target: Target, report: mpsc::Sender<Finding>) {
    if let Some(probe) = &target.container.startup_probe {
        let Some(()) = until_started(&target, probe, &report).await else {
            return;
        };
    }
    tokio::join!(readiness(&target, &report), liveness(&target, &report));
}

struct Schedule {
    period: Duration,
    timeout: Duration,
    success: u32,
    failure: u32,
}

impl Schedule {
    fn of(probe: &Probe) -> Self {
        let positive = |value: Option<i32>, default: u32| {
            value
                .and_then(|v| u32::try_from(v).ok())
                .filter(|v| *v > 0)
                .unwrap_or(default)
        };
        Self {
            period: Duration::from_secs(positive(probe.period_seconds, 10).into()),
            timeout: Duration::from_secs(positive(probe.timeout_seconds, 1).into()),
            success: positive(probe.success_threshold, 1),
            failure: positive(probe.failure_threshold, 3),
        }
    }
}

async fn initial_delay(probe: &Probe) {
    let delay = probe
        .initial_delay_seconds
        .and_then(|s| u64::try_from(s).ok())
        .unwrap_or(0);
    tokio::time::sleep(Duration::from_secs(delay)).await;
}

/// Quick repetition before the first success; says when a failure counts.
struct Quick {
    began: Instant,
    wait: Duration,
    counted: u32,
}

impl Quick {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            wait: QUICKEST,
            counted: 0,
        }
    }

    /// Whether this failure is the one of its period.
    fn counts(&mut self, period: Duration) -> bool {
        let counts = self.began.elapsed() >= period * self.counted;
        if counts {
            self.counted += 1;
        }
        counts
    }

    fn next_wait(&mut self, period: Duration) -> Duration {
        if self.began.elapsed() > QUICK_FOR {
            return period;
        }
        let wait = self.wait.min(period);
        self.wait = (self.wait * 2).min(QUICK_LIMIT);
        wait
    }
}

async fn until_started(
    target: &Target,
    probe: &Probe,
    report: &mpsc::Sender<Finding>,
) -> Option<()> {
    let schedule = Schedule::of(probe);
    initial_delay(probe).await;
    let mut quick = Quick::new();
    let mut failures = 0;
    loop {
        match check(target, probe, schedule.timeout).await {
            Ok(()) => {
                report.send(Finding::Started).await.ok()?;
                return Some(());
            }
            Err(message) => {
                if quick.counts(schedule.period) && quick.counted > 1 {
                    failures += 1;
                    unhealthy(target, "Startup", &message);
                }
                if failures >= schedule.failure {
                    report.send(Finding::Dead("startup")).await.ok()?;
                    return None;
                }
            }
        }
        tokio::time::sleep(quick.next_wait(schedule.period)).await;
    }
}

async fn readiness(target: &Target, report: &mpsc::Sender<Finding>) {
    let Some(probe) = &target.container.readiness_probe else {
        return;
    };
    let schedule = Schedule::of(probe);
    initial_delay(probe).await;
    let mut quick = Quick::new();
    let mut ready = false;
    let mut ever = false;
    let (mut good, mut bad) = (0, 0);
    loop {
        let mut wait = schedule.period;
        match check(target, probe, schedule.timeout).await {
            Ok(()) => {
                (good, bad) = (good + 1, 0);
                if !ready && good >= schedule.success {
                    (ready, ever) = (true, true);
                    if report.send(Finding::Ready(true)).await.is_err() {
                        return;
                    }
                }
            }
            Err(message) => {
                good = 0;
                if ever || quick.counts(schedule.period) {
                    bad += 1;
                    // The very first look at a container that has just been started tells nobody anything.
                    if ever || quick.counted > 1 {
                        unhealthy(target, "Readiness", &message);
                    }
                }
                if ready && bad >= schedule.failure {
                    ready = false;
                    if report.send(Finding::Ready(false)).await.is_err() {
                        return;
                    }
                }
            }
        }
        if !ever {
            wait = quick.next_wait(schedule.period);
        }
        tokio::time::sleep(wait).await;
    }
}

async fn liveness(target: &Target, report: &mpsc::Sender<Finding>) {
    let Some(probe) = &target.container.liveness_probe else {
        return;
    };
    let schedule = Schedule::of(probe);
    initial_delay(probe).await;
    let mut bad = 0;
    loop {
        match check(target, probe, schedule.timeout).await {
            Ok(()) => bad = 0,
            Err(message) => {
                bad += 1;
                unhealthy(target, "Liveness", &message);
                if bad >= schedule.failure {
                    // The container is stopped now; whether that succeeds is the worker's business.
                    let _ = report.send(Finding::Dead("liveness")).await;
                    return;
                }
            }
        }
        tokio::time::sleep(schedule.period).await;
    }
}

fn unhealthy(target: &Target, kind: &str, message: &str) {
    target.events.emit(
        &target.reference,
        WARNING,
        "Unhealthy",
        format!("{kind} probe failed: {message}"),
    );
}

/// One probe.
async fn check(target: &Target, probe: &Probe, timeout: Duration) -> Result<(), String> {
    if let Some(exec) = &probe.exec {
        return target
            .running
            .run(exec.command.clone().unwrap_or_default(), timeout)
            .await;
    }
    let attempt = async {
        if let Some(action) = &probe.http_get {
            http::get(&target.container, target.ip, action).await
        } else if let Some(action) = &probe.tcp_socket {
            let host = action
                .host
                .clone()
                .filter(|host| !host.is_empty())
                .unwrap_or_else(|| target.ip.to_string());
            http::tcp(&host, http::port(&target.container, &action.port)?).await
        } else if let Some(action) = &probe.grpc {
            let port = u16::try_from(action.port)
                .map_err(|_| format!("port {} is out of range", action.port))?;
            http::grpc_health(
                (target.ip, port).into(),
                action.service.as_deref().unwrap_or(""),
            )
            .await
        } else {
            Err("a probe needs one of exec, httpGet, tcpSocket, grpc".to_owned())
        }
    };
    match tokio::time::timeout(timeout, attempt).await {
        Ok(result) => result,
        Err(_) => {
            Err("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".into())
        }
    }
}
