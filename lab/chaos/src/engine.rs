//! Runs one experiment: steady state, load, fault, observation, undo, verdict.
//!
//! The script ([`Experiment::run`]) owns the [`Context`] while it runs. Three things can end it: its own return, the
//! abort condition of the definition, and the caller's stop token (Ctrl-C). In every case the undo list runs afterwards
//! in reverse order, with the load still flowing, so what the restoring breaks is counted too. An undo step that fails
//! is reported and the others still run.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::error::{ChaosError, Result};
use crate::load::{Connection, Load, Plan, Recorder, Summary};
use crate::mesh::Application;
use crate::model::{
    Abort, Definition, Event, Fault, Outcome, ProbeResult, Requests, Verdict, overall, settle,
};

/// The probe that the engine answers itself, from the load: declared by experiments, first in their list.
pub const TRAFFIC: &str = "traffic";
/// How often the abort condition looks.
const ABORT_EVERY: Duration = Duration::from_millis(250);
/// Good answers in a row that make a steady state.
const STEADY: usize = 20;
/// An undo step that takes longer is given up, so that Ctrl-C always ends.
const UNDO_LIMIT: Duration = Duration::from_secs(90);

/// Something to break, and what must be seen.
#[async_trait]
pub trait Experiment: Send + Sync {
    /// What it is about to do.
    fn definition(&self) -> &Definition;

    /// Breaks it and observes. Every change must first be put on the undo list. The engine may drop this future at any
    /// await point.
    async fn run(&self, cx: &mut Context) -> Result<()>;
}

/// Hears about progress while it happens.
pub trait Observer: Send + Sync {
    /// An experiment begins.
    fn started(&self, definition: &Definition);
    /// Something happened.
    fn event(&self, experiment: &str, t: Duration, event: &str);
    /// A probe has its verdict.
    fn probe(&self, experiment: &str, name: &str, verdict: Verdict, observed: &str);
    /// The experiment is over and everything is restored.
    fn finished(&self, outcome: &Outcome);
}

/// How the load is sent and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// The application behind the ingress gateway.
    pub application: Application,
    /// The load.
    pub load: Plan,
    /// How long to wait for a steady state before giving up.
    pub steady_timeout: Duration,
    /// How long to send load before the script begins and after it ends, so that there is a "before" and an "after".
    pub baseline: Duration,
}

/// What a script works with.
pub struct Context {
    /// The cluster.
    pub cluster: Cluster,
    /// The application behind the ingress gateway.
    pub application: Application,
    /// `host:port` of the ingress gateway.
    pub ingress: String,
    definition: Definition,
    recorder: Arc<Recorder>,
    observer: Arc<dyn Observer>,
    start: Instant,
    events: Vec<Event>,
    seen: Vec<(&'static str, Verdict, String)>,
    undo: Vec<(String, BoxFuture<'static, Result<()>>)>,
    recovery: Option<Duration>,
    fault: (Option<Duration>, Option<Duration>),
}

impl Context {
    /// Notes that something happened, for the timeline.
    pub fn event(&mut self, event: impl Into<String>) {
        let event = event.into();
        let t = self.start.elapsed();
        self.observer.event(self.definition.name, t, &event);
        self.events.push(Event {
            t: rounded(t),
            event,
        });
    }

    /// Answers a declared probe. Answering twice keeps the first failure.
    pub fn observe(&mut self, probe: &'static str, ok: bool, observed: impl Into<String>) {
        let (verdict, observed) = (Verdict::from_ok(ok), observed.into());
        debug_assert!(
            self.definition.probes.iter().any(|p| p.name == probe),
            "{probe} is not declared"
        );
        self.observer
            .probe(self.definition.name, probe, verdict, &observed);
        match self.seen.iter_mut().find(|(name, ..)| *name == probe) {
            Some(earlier) if earlier.1 == Verdict::Pass => {
                *earlier = (probe, verdict, observed);
            }
            Some(_) => {}
            None => self.seen.push((probe, verdict, observed)),
        }
    }

    /// Puts a step on the undo list. `step` runs when the experiment is over, whatever ended it; it must be harmless
    /// when there is nothing (left) to undo.
    pub fn undo(
        &mut self,
        what: impl Into<String>,
        step: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        self.undo.push((what.into(), Box::pin(step)));
    }

    /// From now on something is broken.
    pub fn fault_begins(&mut self) {
        self.fault.0.get_or_insert(self.start.elapsed());
    }

    /// Nothing is kept broken any more; recovery begins.
    pub fn fault_ends(&mut self) {
        self.fault.1 = Some(self.start.elapsed());
    }

    /// The mesh is as it should be again; the fault ended at `since`.
    pub fn recovered(&mut self, since: Instant) {
        self.recovery = Some(since.elapsed());
    }

    /// Where the load's outcomes are counted.
    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }
}

enum Ended {
    Done(Result<()>),
    Stopped(String),
}

/// Runs one experiment to its outcome. Never fails: what goes wrong is part of the outcome.
pub async fn run(
    experiment: &dyn Experiment,
    cluster: &Cluster,
    options: &Options,
    observer: Arc<dyn Observer>,
    stop: &CancellationToken,
) -> Outcome {
    let definition = experiment.definition().clone();
    let started_at = jiff::Timestamp::now();
    observer.started(&definition);
    let steady = tokio::select! {
        () = stop.cancelled() => Ended::Stopped("stopped before it began".to_owned()),
        steady = steady_state(options) => Ended::Done(steady),
    };
    let load = Load::start(options.load.clone());
    let mut cx = Context {
        cluster: cluster.clone(),
        application: options.application.clone(),
        ingress: options.load.address.clone(),
        recorder: load.recorder().clone(),
        start: load.recorder().start(),
        definition,
        observer,
        events: Vec::new(),
        seen: Vec::new(),
        undo: Vec::new(),
        recovery: None,
        fault: (None, None),
    };
    let ended = match steady {
        Ended::Done(Ok(())) => {
            cx.event(format!(
                "steady load: {}/s over {} connections to {}",
                options.load.rate, options.load.connections, options.load.address
            ));
            tokio::select! {
                biased;
                () = stop.cancelled() => Ended::Stopped("stopped by the user".to_owned()),
                why = abort_watch(load.recorder(), cx.definition.abort) => Ended::Stopped(why),
                done = play(experiment, &mut cx, options.baseline) => Ended::Done(done),
            }
        }
        early => early,
    };
    let (mut error, fallback) = match ended {
        Ended::Done(Ok(())) => (None, Verdict::Fail),
        Ended::Done(Err(e)) => (Some(e.to_string()), Verdict::Fail),
        Ended::Stopped(why) => (Some(why), Verdict::Stopped),
    };
    if let Some(why) = &error {
        cx.event(format!("ended early: {why}"));
    }
    let unrestored = restore(&mut cx).await;
    let summary = load.stop().await;
    let stopped = fallback == Verdict::Stopped;
    answer_traffic(&mut cx, &summary, stopped);
    if !unrestored.is_empty() {
        let problem = format!("not restored: {}", unrestored.join("; "));
        error = Some(match error {
            Some(first) => format!("{first}; {problem}"),
            None => problem,
        });
    }
    outcome(cx, started_at, fallback, error, stopped, summary)
}

async fn play(experiment: &dyn Experiment, cx: &mut Context, baseline: Duration) -> Result<()> {
    tokio::time::sleep(baseline).await;
    experiment.run(cx).await?;
    tokio::time::sleep(baseline).await;
    Ok(())
}

fn outcome(
    cx: Context,
    started_at: jiff::Timestamp,
    fallback: Verdict,
    error: Option<String>,
    stopped: bool,
    load: Summary,
) -> Outcome {
    let probes: Vec<ProbeResult> = settle(&cx.definition.probes, cx.seen, fallback);
    let ok = load.total - load.failed;
    let outcome = Outcome {
        name: cx.definition.name,
        target: cx.definition.target.to_string(),
        action: cx.definition.action.to_owned(),
        verdict: overall(&probes, error.is_some() && !stopped),
        recovery_seconds: cx.recovery.map(rounded),
        probes,
        timeline: cx.events,
        fault: cx.fault.0.map(|from| Fault {
            from: rounded(from),
            // An experiment that ended early kept it until the undo list was done.
            to: rounded(cx.fault.1.unwrap_or(cx.start.elapsed())),
        }),
        summary: cx.definition.summary,
        started_at,
        seconds: rounded(cx.start.elapsed()),
        requests: Requests {
            total: load.total,
            ok,
            failed: load.failed,
            error_budget: cx.definition.error_budget,
            failed_share: share(load.failed, load.total),
            p50_ms: milliseconds(load.p50),
            p99_ms: milliseconds(load.p99),
        },
        error,
        load,
    };
    cx.observer.finished(&outcome);
    outcome
}

/// Waits until the application answers [`STEADY`] times in a row without a failure.
async fn steady_state(options: &Options) -> Result<()> {
    let plan = &options.load;
    let mut connection = Connection::new(plan.address.clone());
    let began = Instant::now();
    let (mut good, mut turn, mut last) = (0, 0, "no answer yet".to_owned());
    while good < STEADY.max(plan.paths.len()) {
        if began.elapsed() > options.steady_timeout {
            return Err(ChaosError::Timeout {
                what: format!(
                    "steady state before the experiment: {STEADY} good answers in a row from http://{}{}",
                    plan.address,
                    plan.paths.join(", ")
                ),
                waited: options.steady_timeout,
                last,
            });
        }
        let path = &plan.paths[turn % plan.paths.len()];
        turn += 1;
        let reply = tokio::time::timeout(plan.timeout, connection.get(&plan.host, path)).await;
        match reply {
            Ok(Ok(reply)) if reply.status < 400 => {
                good += 1;
                continue;
            }
            Ok(Ok(reply)) => last = format!("{path}: {}", reply.describe()),
            Ok(Err(message)) => last = format!("{path}: {message}"),
            Err(_) => {
                connection.close();
                last = format!("{path}: no answer within {} s", plan.timeout.as_secs());
            }
        }
        good = 0;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(())
}

/// Returns only when the abort condition holds. Fewer than ten requests in the window say nothing.
async fn abort_watch(recorder: &Recorder, abort: Abort) -> String {
    let mut look = tokio::time::interval(ABORT_EVERY);
    loop {
        look.tick().await;
        let from = Instant::now()
            .checked_sub(abort.window)
            .unwrap_or_else(|| recorder.start());
        let sum = recorder.since(from);
        if sum.total() >= 10 && share(sum.failed().into(), sum.total().into()) >= abort.failed_share
        {
            return format!(
                "abort condition: {} of {} requests failed within {} s",
                sum.failed(),
                sum.total(),
                abort.window.as_secs_f64()
            );
        }
    }
}

/// Runs the undo list backwards; returns what could not be undone.
async fn restore(cx: &mut Context) -> Vec<String> {
    let mut problems = Vec::new();
    while let Some((what, step)) = cx.undo.pop() {
        match tokio::time::timeout(UNDO_LIMIT, step).await {
            Ok(Ok(())) => cx.event(format!("restored: {what}")),
            Ok(Err(e)) => problems.push(format!("{what}: {e}")),
            Err(_) => problems.push(format!("{what}: not within {} s", UNDO_LIMIT.as_secs())),
        }
    }
    for problem in &problems {
        cx.event(format!("could not restore {problem}"));
    }
    problems
}

fn answer_traffic(cx: &mut Context, load: &Summary, stopped: bool) {
    if !cx.definition.probes.iter().any(|p| p.name == TRAFFIC) {
        return;
    }
    let within = share(load.failed, load.total) <= cx.definition.error_budget;
    // A stopped experiment has not seen enough to say that traffic is fine, but a failure it saw is a failure.
    if load.total == 0 || (stopped && within) {
        return;
    }
    let mut observed = format!("{} of {} requests failed", load.failed, load.total);
    if let Some(first) = load.failures.first() {
        observed.push_str(&format!(
            "; first at {:.1} s, {}: {}",
            first.t, first.path, first.message
        ));
    }
    cx.observe(TRAFFIC, within, observed);
}

/// Seconds, to the millisecond.
fn rounded(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

/// Milliseconds, to a tenth: the histogram knows no more.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

#[cfg(test)]
mod tests;
