//! Outcomes over time, in bounded memory.
//!
//! Writers are the load's connections, one short lock per request. Readers are the abort watch and, at the end, the
//! report. A bucket covers 100 ms; when there are more than [`LIMIT`] of them, neighbours are merged and the width
//! doubles, so an experiment of any length costs the same memory.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::histogram::Histogram;

/// Most buckets that are kept: ten minutes at full resolution.
const LIMIT: usize = 6000;
/// Failures that are kept as text.
const FAILURES: usize = 50;

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Status below 400, but the page says that a part of it is missing.
    Degraded,
    /// Status 400 to 499.
    ClientError,
    /// Status 500 and above.
    ServerError,
    /// Refused, broken or timed out.
    Transport,
}

/// Outcomes of the requests that were sent within one bucket's time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Answered below 400.
    pub ok: u32,
    /// Answered below 400, but the page says that a part of it is missing.
    pub degraded: u32,
    /// Answered 400 to 499.
    pub client_error: u32,
    /// Answered 500 and above.
    pub server_error: u32,
    /// Refused, broken or timed out.
    pub transport: u32,
    /// The slowest answer, in milliseconds.
    pub slowest_ms: u32,
}

impl Bucket {
    /// Requests that did not end well.
    pub fn failed(&self) -> u32 {
        self.degraded + self.client_error + self.server_error + self.transport
    }

    /// All requests.
    pub fn total(&self) -> u32 {
        self.ok + self.failed()
    }

    /// Adds another bucket's counts.
    pub fn add(&mut self, other: &Self) {
        self.ok += other.ok;
        self.degraded += other.degraded;
        self.client_error += other.client_error;
        self.server_error += other.server_error;
        self.transport += other.transport;
        self.slowest_ms = self.slowest_ms.max(other.slowest_ms);
    }
}

/// A failed request.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Failure {
    /// When it was sent, in seconds after the start of the load.
    pub t: f64,
    /// The path asked for.
    pub path: String,
    /// What came back.
    pub message: String,
}

/// Everything that was counted.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Outcomes over time.
    pub buckets: Vec<Bucket>,
    /// Time covered by one bucket.
    pub width: Duration,
    /// Sum of all buckets.
    pub total: u64,
    /// Failed requests.
    pub failed: u64,
    /// The first failures, as text.
    pub failures: Vec<Failure>,
    /// Median latency.
    pub p50: Duration,
    /// 99th percentile.
    pub p99: Duration,
}

impl Summary {
    /// Nothing sent, nothing failed.
    pub fn empty() -> Self {
        Recorder::new().summary()
    }
}

/// Counts outcomes.
#[derive(Debug)]
pub struct Recorder {
    start: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    buckets: Vec<Bucket>,
    width: Duration,
    latencies: Histogram,
    failures: Vec<Failure>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Recorder {
    /// Time starts now.
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            inner: Mutex::new(Inner {
                buckets: Vec::new(),
                width: Duration::from_millis(100),
                latencies: Histogram::new(),
                failures: Vec::new(),
            }),
        }
    }

    /// When time started.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// Counts one request that was sent at `sent` and took `latency`.
    pub fn record(
        &self,
        sent: Instant,
        latency: Duration,
        path: &str,
        failure: Option<(Kind, String)>,
    ) {
        let at = sent.saturating_duration_since(self.start);
        let mut inner = self.lock();
        let bucket = inner.bucket(at);
        let slowest = u32::try_from(latency.as_millis()).unwrap_or(u32::MAX);
        bucket.slowest_ms = bucket.slowest_ms.max(slowest);
        match &failure {
            None => bucket.ok += 1,
            Some((Kind::Degraded, _)) => bucket.degraded += 1,
            Some((Kind::ClientError, _)) => bucket.client_error += 1,
            Some((Kind::ServerError, _)) => bucket.server_error += 1,
            Some((Kind::Transport, _)) => bucket.transport += 1,
        }
        inner.latencies.record(latency);
        if let Some((_, message)) = failure
            && inner.failures.len() < FAILURES
        {
            inner.failures.push(Failure {
                t: at.as_secs_f64(),
                path: path.to_owned(),
                message,
            });
        }
    }

    /// Sum of the buckets that began at `from` or later.
    pub fn since(&self, from: Instant) -> Bucket {
        let inner = self.lock();
        let from = from.saturating_duration_since(self.start);
        let first = (from.as_nanos() / inner.width.as_nanos()) as usize;
        let mut sum = Bucket::default();
        inner.buckets.iter().skip(first).for_each(|b| sum.add(b));
        sum
    }

    /// Everything counted so far.
    pub fn summary(&self) -> Summary {
        let inner = self.lock();
        Summary {
            total: inner.buckets.iter().map(|b| u64::from(b.total())).sum(),
            failed: inner.buckets.iter().map(|b| u64::from(b.failed())).sum(),
            buckets: inner.buckets.clone(),
            width: inner.width,
            failures: inner.failures.clone(),
            p50: inner.latencies.quantile(0.5),
            p99: inner.latencies.quantile(0.99),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic while counting leaves numbers, not a broken invariant.
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Inner {
    fn bucket(&mut self, at: Duration) -> &mut Bucket {
        let mut index = (at.as_nanos() / self.width.as_nanos()) as usize;
        while index >= LIMIT {
            self.buckets = self
                .buckets
                .chunks(2)
                .map(|pair| {
                    let mut merged = pair[0];
                    pair.iter().skip(1).for_each(|b| merged.add(b));
                    merged
                })
                .collect();
            self.width *= 2;
            index /= 2;
        }
        if self.buckets.len() <= index {
            self.buckets.resize(index + 1, Bucket::default());
        }
        &mut self.buckets[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_nothing_is_lost() {
        let recorder = Recorder::new();
        for second in 0..3600 {
            let at = recorder.start() + Duration::from_secs(second);
            let failure = (second % 10 == 0).then(|| (Kind::ServerError, "status 503".to_owned()));
            recorder.record(at, Duration::from_millis(second), "/", failure);
        }
        let summary = recorder.summary();
        assert!(summary.buckets.len() <= LIMIT);
        assert_eq!(summary.total, 3600);
        assert_eq!(summary.failed, 360);
        assert_eq!(summary.failures.len(), FAILURES);
        assert!(summary.width > Duration::from_millis(100));
        assert_eq!(
            summary.buckets.iter().map(|b| b.slowest_ms).max(),
            Some(3599)
        );
    }

    #[test]
    fn a_window_holds_only_what_was_sent_in_it() {
        let recorder = Recorder::new();
        let start = recorder.start();
        for (second, failed) in [(1, true), (2, false), (3, true)] {
            let failure = failed.then(|| (Kind::Transport, "refused".to_owned()));
            let sent = start + Duration::from_secs(second);
            recorder.record(sent, Duration::from_millis(1), "/", failure);
        }
        let window = recorder.since(start + Duration::from_secs(2));
        assert_eq!((window.total(), window.failed()), (2, 1));
        assert_eq!(recorder.since(start).total(), 3);
    }
}
