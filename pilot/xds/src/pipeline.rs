//! From events to worlds: debouncing.
//!
//! Anyone may [`Changes::submit`]; events unite in place, so a storm of them costs one merged change and no queue. One
//! task runs [`run`]: it waits until the changes have been quiet for a while, or the first of them has waited long enough,
//! and applies them, never two at once.
//!
//! Two lanes. Config is worth waiting for: it comes in bursts, and a half-written burst is a broken mesh. An endpoint that
//! goes away is not: every millisecond that a proxy does not know is a request sent to a pod that is ending. So changes
//! of endpoints alone have their own, much shorter wait and overtake config that is still settling; if the config lane
//! runs first it takes them along.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::source::Change;

/// How long changes settle.
#[derive(Clone, Copy, Debug)]
pub struct Debounce {
    /// Quiet time before config is applied (`PILOT_DEBOUNCE_AFTER`).
    pub quiet: Duration,
    /// The longest that config waits (`PILOT_DEBOUNCE_MAX`).
    pub max: Duration,
    /// Quiet time before a change of endpoints alone is applied.
    pub endpoints_quiet: Duration,
    /// The longest that it waits.
    pub endpoints_max: Duration,
}

impl Default for Debounce {
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(100),
            max: Duration::from_secs(10),
            endpoints_quiet: Duration::from_millis(5),
            endpoints_max: Duration::from_millis(50),
        }
    }
}

struct Lane<C> {
    change: C,
    first: Instant,
    last: Instant,
}

impl<C> Lane<C> {
    fn due(&self, quiet: Duration, max: Duration) -> Instant {
        (self.last + quiet).min(self.first + max)
    }
}

struct Pending<C> {
    config: Option<Lane<C>>,
    endpoints: Option<Lane<C>>,
}

/// Where events come in. Cheap to clone.
pub struct Changes<C> {
    inner: Arc<(Mutex<Pending<C>>, Notify)>,
}

impl<C> Clone for Changes<C> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<C> Default for Changes<C> {
    fn default() -> Self {
        let pending = Pending {
            config: None,
            endpoints: None,
        };
        Self {
            inner: Arc::new((Mutex::new(pending), Notify::new())),
        }
    }
}

impl<C: Change> Changes<C> {
    /// Takes note of an event.
    pub fn submit(&self, change: C) {
        let (pending, notify) = &*self.inner;
        let mut pending = pending.lock();
        let lane = if change.is_endpoints_only() {
            &mut pending.endpoints
        } else {
            &mut pending.config
        };
        let now = Instant::now();
        match lane {
            Some(lane) => {
                lane.change.merge(change);
                lane.last = now;
            }
            None => {
                *lane = Some(Lane {
                    change,
                    first: now,
                    last: now,
                })
            }
        }
        notify.notify_one();
    }

    /// What is due now, or when to look again.
    fn take(&self, debounce: &Debounce) -> Result<C, Option<Instant>> {
        let mut pending = self.inner.0.lock();
        let now = Instant::now();
        let due_config = pending
            .config
            .as_ref()
            .map(|l| l.due(debounce.quiet, debounce.max));
        let due_endpoints = pending
            .endpoints
            .as_ref()
            .map(|l| l.due(debounce.endpoints_quiet, debounce.endpoints_max));
        let take_config = due_config.is_some_and(|due| due <= now);
        if !take_config && due_endpoints.is_none_or(|due| due > now) {
            return Err(due_config.into_iter().chain(due_endpoints).min());
        }
        let config = if take_config {
            pending.config.take()
        } else {
            None
        };
        match (config, pending.endpoints.take()) {
            (Some(mut config), Some(endpoints)) => {
                config.change.merge(endpoints.change);
                Ok(config.change)
            }
            (Some(lane), None) | (None, Some(lane)) => Ok(lane.change),
            // One of the two was due, see above.
            (None, None) => Err(None),
        }
    }
}

/// Applies what settles, for ever. While `apply` runs, events go on uniting.
pub async fn run<C: Change, F: AsyncFnMut(C)>(
    changes: Changes<C>,
    debounce: Debounce,
    mut apply: F,
) {
    loop {
        match changes.take(&debounce) {
            Ok(change) => apply(change).await,
            Err(Some(due)) => {
                tokio::select! {
                    () = tokio::time::sleep_until(due) => {}
                    () = changes.inner.1.notified() => {}
                }
            }
            Err(None) => changes.inner.1.notified().await,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::sync::mpsc;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Event {
        names: Vec<&'static str>,
        endpoints_only: bool,
    }

    impl Change for Event {
        fn merge(&mut self, other: Self) {
            self.names.extend(other.names);
            self.endpoints_only &= other.endpoints_only;
        }
        fn is_endpoints_only(&self) -> bool {
            self.endpoints_only
        }
    }

    fn config(name: &'static str) -> Event {
        Event {
            names: vec![name],
            endpoints_only: false,
        }
    }

    fn endpoints(name: &'static str) -> Event {
        Event {
            names: vec![name],
            endpoints_only: true,
        }
    }

    /// Runs the pipeline; each applied change arrives with the milliseconds since the start.
    fn start() -> (Changes<Event>, mpsc::UnboundedReceiver<(u128, Event)>) {
        let changes = Changes::default();
        let (sender, receiver) = mpsc::unbounded_channel();
        let begin = Instant::now();
        tokio::spawn(run(
            changes.clone(),
            Debounce::default(),
            async move |change| {
                let _ = sender.send((begin.elapsed().as_millis(), change));
            },
        ));
        (changes, receiver)
    }

    async fn pass(milliseconds: u64) {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn config_waits_for_quiet() {
        let (changes, mut applied) = start();
        changes.submit(config("a"));
        pass(60).await;
        changes.submit(config("b"));
        let (at, change) = applied.recv().await.unwrap();
        assert_eq!(change.names, ["a", "b"]);
        assert!((160..165).contains(&at), "{at}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_is_applied_after_ten_seconds() {
        let (changes, mut applied) = start();
        let storm = changes.clone();
        tokio::spawn(async move {
            loop {
                storm.submit(config("x"));
                pass(50).await;
            }
        });
        let (at, change) = applied.recv().await.unwrap();
        assert!((10_000..10_060).contains(&at), "{at}");
        assert!(change.names.len() >= 200, "{}", change.names.len());
    }

    #[tokio::test(start_paused = true)]
    async fn endpoints_overtake_config_that_settles() {
        let (changes, mut applied) = start();
        changes.submit(config("a"));
        pass(20).await;
        changes.submit(endpoints("pod"));
        let (at, change) = applied.recv().await.unwrap();
        assert_eq!(change.names, ["pod"]);
        assert!((25..30).contains(&at), "{at}");
        let (at, change) = applied.recv().await.unwrap();
        assert_eq!(change.names, ["a"]);
        assert!((100..105).contains(&at), "{at}");
    }

    #[tokio::test(start_paused = true)]
    async fn config_takes_endpoints_along() {
        let (changes, mut applied) = start();
        changes.submit(config("a"));
        pass(98).await;
        changes.submit(endpoints("pod"));
        let (_, change) = applied.recv().await.unwrap();
        assert_eq!(change.names, ["a", "pod"]);
        assert!(!change.is_endpoints_only());
    }

    #[tokio::test(start_paused = true)]
    async fn never_two_at_once() {
        let changes = Changes::default();
        let (sender, mut applied) = mpsc::unbounded_channel();
        tokio::spawn(run(
            changes.clone(),
            Debounce::default(),
            async move |change: Event| {
                let _ = sender.send(("begin", change.names.clone()));
                pass(1000).await;
                let _ = sender.send(("end", change.names));
            },
        ));
        changes.submit(config("a"));
        pass(200).await;
        changes.submit(config("b"));
        changes.submit(endpoints("c"));
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(applied.recv().await.unwrap());
        }
        assert_eq!(seen[0], ("begin", vec!["a"]));
        assert_eq!(seen[1], ("end", vec!["a"]));
        assert_eq!(seen[2], ("begin", vec!["b", "c"]));
        assert_eq!(seen[3], ("end", vec!["b", "c"]));
    }
}
