//! A keyed work queue: what a controller has to look at, each key at most once.
//!
//! Written by: the stores' change handlers (`add`), the driver (`retry`, `add_after`). Read by: the driver's workers
//! (`next`). A key that arrives while it is waiting is merged; one that arrives while it is being worked on is queued
//! again when the worker is done with it, so no two workers ever hold the same key and no change is lost.
//! Cost: O(log n) per operation; an idle queue holds no timer and wakes nobody.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// First retry of a failing key; doubles with every further failure (the client-go default).
const RETRY_BASE: Duration = Duration::from_millis(5);
/// Longest wait between two tries of a failing key, about 17 minutes (the client-go default).
const RETRY_MAX: Duration = Duration::from_secs(1000);

pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

struct State<T> {
    ready: VecDeque<T>,
    waiting: HashSet<T>,
    busy: HashSet<T>,
    /// Keys that changed while a worker held them.
    again: HashSet<T>,
    due: BTreeSet<(Instant, T)>,
    due_of: HashMap<T, Instant>,
    failures: HashMap<T, u32>,
}

impl<T: Clone + Eq + Hash + Ord> Queue<T> {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                waiting: HashSet::new(),
                busy: HashSet::new(),
                again: HashSet::new(),
                due: BTreeSet::new(),
                due_of: HashMap::new(),
                failures: HashMap::new(),
            }),
            wake: Notify::new(),
        }
    }

    /// Look at `key` as soon as a worker is free. Supersedes a later date for the same key.
    pub(crate) fn add(&self, key: T) {
        self.state.lock().enqueue(key);
        self.wake.notify_one();
    }

    /// Look at `key` after `delay`, or earlier if something else asks for it.
    pub(crate) fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.state.lock().schedule(key, Instant::now() + delay);
        self.wake.notify_one();
    }

    /// Give `key` back after a failure; the wait doubles with each failure in a row. Returns how many there were.
    pub(crate) fn retry(&self, key: &T) -> u32 {
        let mut state = self.state.lock();
        let failures = state.failures.entry(key.clone()).or_insert(0);
        let delay = backoff(*failures);
        *failures = failures.saturating_add(1).min(30);
        let count = *failures;
        state.release(key);
        if !state.waiting.contains(key) {
            state.schedule(key.clone(), Instant::now() + delay);
        }
        drop(state);
        self.wake.notify_one();
        count
    }

    /// Give `key` back after success; returns how many failures preceded it.
    pub(crate) fn done(&self, key: &T) -> u32 {
        let mut state = self.state.lock();
        let failures = state.failures.remove(key).unwrap_or(0);
        let again = state.release(key);
        drop(state);
        if again {
            self.wake.notify_one();
        }
        failures
    }

    /// The next key; it belongs to the caller until `done` or `retry`.
    pub(crate) async fn next(&self) -> T {
        loop {
            let notified = self.wake.notified();
            let next_due = {
                let mut state = self.state.lock();
                state.promote(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.waiting.remove(&key);
                    state.busy.insert(key.clone());
                    let more = !state.ready.is_empty();
                    drop(state);
                    if more {
                        // One notification may stand for several keys: pass it on to the next idle worker.
                        self.wake.notify_one();
                    }
                    return key;
                }
                state.due.first().map(|(at, _)| *at)
            };
            match next_due {
                Some(at) => {
                    tokio::select! { () = notified => {}, () = tokio::time::sleep_until(at) => {} }
                }
                None => notified.await,
            }
        }
    }
}

/// The wait after this many earlier failures in a row.
fn backoff(failures: u32) -> Duration {
    RETRY_BASE
        .saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX))
        .min(RETRY_MAX)
}

impl<T: Clone + Eq + Hash + Ord> State<T> {
    fn enqueue(&mut self, key: T) {
        self.unschedule(&key);
        if self.busy.contains(&key) {
            self.again.insert(key);
        } else if self.waiting.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn schedule(&mut self, key: T, at: Instant) {
        if self.waiting.contains(&key) || self.due_of.get(&key).is_some_and(|known| *known <= at) {
            return;
        }
        self.unschedule(&key);
        self.due.insert((at, key.clone()));
        self.due_of.insert(key, at);
    }

    fn unschedule(&mut self, key: &T) {
        if let Some(at) = self.due_of.remove(key) {
            self.due.remove(&(at, key.clone()));
        }
    }

    fn release(&mut self, key: &T) -> bool {
        self.busy.remove(key);
        let again = self.again.remove(key);
        if again {
            self.enqueue(key.clone());
        }
        again
    }

    fn promote(&mut self, now: Instant) {
        while let Some((at, key)) = self.due.first().cloned() {
            if at > now {
                break;
            }
            self.enqueue(key);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures::FutureExt;

    #[test]
    fn merges_and_keeps_changes_made_meanwhile() {
        let queue = Queue::new();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().now_or_never(), Some("a"));
        queue.add("a");
        assert_eq!(queue.next().now_or_never(), None, "a worker holds the key");
        queue.done(&"a");
        assert_eq!(queue.next().now_or_never(), Some("a"));
        queue.done(&"a");
        assert_eq!(queue.next().now_or_never(), None);
    }

    #[test]
    fn waits_grow_and_are_bounded() {
        let spent: Duration = (0..9).map(backoff).sum();
        // Ten tries within about 3 s, as the real controllers show.
        assert_eq!(spent, Duration::from_millis(2555));
        assert_eq!(backoff(18), RETRY_MAX);
        assert_eq!(backoff(40), RETRY_MAX);
    }

    #[tokio::test]
    async fn failures_are_counted_until_success() {
        let queue = Queue::new();
        queue.add(1);
        for expected in 1..=3 {
            assert_eq!(queue.next().await, 1);
            assert_eq!(queue.retry(&1), expected);
        }
        assert_eq!(queue.next().await, 1);
        assert_eq!(queue.done(&1), 3);
        queue.add(1);
        assert_eq!(queue.next().await, 1);
        assert_eq!(queue.retry(&1), 1);
    }

    #[tokio::test]
    async fn the_earliest_date_counts_and_now_beats_later() {
        let queue = Queue::new();
        queue.add_after("a", Duration::from_secs(600));
        queue.add_after("a", Duration::from_secs(900));
        queue.add("a");
        assert_eq!(queue.next().now_or_never(), Some("a"));
        queue.done(&"a");
        assert!(queue.state.lock().due.is_empty(), "the later date is void");
        queue.add_after("b", Duration::from_secs(600));
        queue.add_after("b", Duration::from_millis(1));
        assert_eq!(queue.next().await, "b");
    }

    #[tokio::test]
    async fn one_worker_wakes_the_next() {
        let queue = std::sync::Arc::new(Queue::new());
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.next().await })
            })
            .collect();
        tokio::task::yield_now().await;
        for key in ["a", "b", "c"] {
            queue.add(key);
        }
        let mut seen = Vec::new();
        for worker in workers {
            seen.push(worker.await.unwrap());
        }
        seen.sort_unstable();
        assert_eq!(seen, ["a", "b", "c"]);
    }
}
