//! All fake Envoys together.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::{sync::watch, task::AbortHandle};

use super::{
    Measured,
    holdings::Holdings,
    proxy::{Identity, Progress, Proxy},
};
use crate::process::{self, Usage};

/// How long silence lasts before everything counts as having arrived.
const SILENCE: Duration = Duration::from_millis(500);

/// Which proxies, against what.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) target: String,
    pub(super) proxies: usize,
    pub(super) namespaces: usize,
    pub(super) delta: bool,
    pub(super) server: Option<u32>,
    pub(super) timeout: Duration,
}

/// One proxy from outside.
pub(super) struct Member {
    pub(super) identity: Identity,
    pub(super) holdings: Arc<Mutex<Holdings>>,
    progress: watch::Receiver<Progress>,
    task: AbortHandle,
}

/// All proxies and their progress.
pub(super) struct Fleet {
    plan: Plan,
    pub(super) members: Vec<Member>,
    tasks: tokio::task::JoinSet<anyhow::Result<()>>,
}

impl Fleet {
    pub(super) fn launch(plan: &Plan) -> Self {
        let mut fleet = Self {
            plan: plan.clone(),
            members: Vec::new(),
            tasks: tokio::task::JoinSet::new(),
        };
        for number in 0..plan.proxies {
            fleet.join(Identity::new(
                number,
                plan.namespaces,
                &plan.target,
                plan.delta,
            ));
        }
        fleet
    }

    /// One more.
    pub(super) fn join(&mut self, identity: Identity) {
        let (sender, progress) = watch::channel(Progress::default());
        let holdings: Arc<Mutex<Holdings>> = Arc::default();
        let proxy = Proxy::new(identity.clone(), sender, holdings.clone());
        let task = self.tasks.spawn(proxy.run());
        self.members.push(Member {
            identity,
            holdings,
            progress,
            task,
        });
    }

    /// One less: its connection is cut as a killed pod's.
    pub(super) fn leave(&mut self, index: usize) -> Identity {
        let member = self.members.swap_remove(index);
        member.task.abort();
        member.identity
    }

    /// Fails if a stream ended that was not told to.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        while let Some(ended) = self.tasks.try_join_next() {
            match ended {
                Err(error) if error.is_cancelled() => {}
                other => other??,
            }
        }
        Ok(())
    }

    pub(super) async fn end(mut self) {
        self.tasks.shutdown().await;
    }

    /// When each proxy met the condition, as seconds since `begun`, sorted.
    pub(super) async fn wait(
        &mut self,
        begun: Instant,
        condition: impl Fn(&Progress) -> bool + Send + Sync + 'static,
    ) -> anyhow::Result<Vec<f64>> {
        let condition = Arc::new(condition);
        let mut waiting = tokio::task::JoinSet::new();
        for member in &self.members {
            let number = member.identity.number;
            let (mut progress, condition) = (member.progress.clone(), condition.clone());
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
        let timeout = self.plan.timeout;
        let done = tokio::time::timeout(timeout, all).await;
        // A stream that ended says why; that it is gone is only the consequence.
        self.check()?;
        done.with_context(|| format!("not all proxies got it within {timeout:?}"))??;
        times.sort_by(f64::total_cmp);
        Ok(times)
    }

    pub(super) fn total(&self) -> Progress {
        self.members
            .iter()
            .map(|member| member.progress.borrow().clone())
            .fold(Progress::default(), Progress::add)
    }

    pub(super) fn measured(
        &self,
        what: &str,
        times: Vec<f64>,
        before: Option<Usage>,
        totals_before: Option<Progress>,
    ) -> anyhow::Result<Measured> {
        let after = self.plan.server.map(process::usage).transpose()?;
        let totals = self.total();
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

    /// Waits until no proxy has got anything for half a second: silence has no event to wait for.
    pub(super) async fn quiet(&self) {
        let mut last = self.total().responses;
        loop {
            tokio::time::sleep(SILENCE).await;
            let now = self.total().responses;
            if now == last {
                return;
            }
            last = now;
        }
    }

    /// Makes a change several times; the round that took the middle time counts.
    pub(super) async fn change(
        &mut self,
        what: &str,
        repeat: u32,
        service: &'static str,
        make: impl Fn(u32) -> anyhow::Result<()>,
    ) -> anyhow::Result<Measured> {
        let mut rounds = Vec::new();
        for round in 0..repeat.max(1) {
            let totals = self.total();
            let before = self.plan.server.map(process::usage).transpose()?;
            // Each proxy is compared with its own count: one may have got more than another so far.
            let floors: Vec<u64> = self
                .members
                .iter()
                .map(|member| member.progress.borrow().count(service))
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
        let timeout = self.plan.timeout;
        for (member, floor) in self.members.iter_mut().zip(floors) {
            let progress = &mut member.progress;
            let met = progress.wait_for(|progress| progress.count(service) > *floor);
            let met = tokio::time::timeout(timeout, met).await.with_context(|| {
                format!("a change did not reach every proxy within {timeout:?}")
            })?;
            let at = met.context("a proxy lost its stream")?.at;
            times.extend(at.map(|at| at.saturating_duration_since(begun).as_secs_f64()));
        }
        times.sort_by(f64::total_cmp);
        Ok(times)
    }
}
