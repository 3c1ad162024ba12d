//! Runs a controller: takes keys from its queue, reconciles them, retries failures with back-off.
//!
//! A failure or a panic concerns one key only: it is logged once (and once more when it is over), the key is retried
//! with growing delay, all other keys go on. A conflict is no failure: the newer object is already on its way.

use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::queue::Queue;
use crate::error::Result;

/// When to look at a key again although nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    Never,
    After(Duration),
}

impl Again {
    pub(crate) fn after(delay: Option<Duration>) -> Self {
        delay.map_or(Self::Never, Self::After)
    }
}

/// One controller: brings the world in line with one key at a time.
pub(crate) trait Controller: Send + Sync + 'static {
    /// As it appears in logs.
    const NAME: &'static str;
    /// How many keys may be worked on at the same time.
    const WORKERS: usize = 1;
    type Key: Clone + Eq + Hash + Ord + Display + Send + Sync + 'static;

    fn queue(&self) -> &Queue<Self::Key>;
    fn reconcile(&self, key: &Self::Key) -> impl Future<Output = Result<Again>> + Send;
}

/// Starts the workers of `controller`; they end on shutdown.
pub(crate) fn spawn<C: Controller>(
    tasks: &mut JoinSet<()>,
    controller: Arc<C>,
    shutdown: &CancellationToken,
) {
    for _ in 0..C::WORKERS {
        let (controller, shutdown) = (controller.clone(), shutdown.clone());
        tasks.spawn(async move {
            loop {
                let key = tokio::select! {
                    () = shutdown.cancelled() => return,
                    key = controller.queue().next() => key,
                };
                step(controller.as_ref(), key).await;
            }
        });
    }
}

async fn step<C: Controller>(controller: &C, key: C::Key) {
    let queue = controller.queue();
    match AssertUnwindSafe(controller.reconcile(&key))
        .catch_unwind()
        .await
    {
        Ok(Ok(again)) => {
            let failures = queue.done(&key);
            // Two failures in a row may be a race that heals itself; more were logged, so say that it is over.
            if failures >= LOGGED_AFTER {
                tracing::info!(controller = C::NAME, %key, failures, "works again");
            }
            if let Again::After(delay) = again {
                queue.add_after(key, delay);
            }
        }
        Ok(Err(error)) if error.is_conflict() => {
            tracing::debug!(controller = C::NAME, %key, %error, "looking again");
            queue.retry(&key);
        }
        Ok(Err(error)) => {
            let failures = queue.retry(&key);
            if failures == LOGGED_AFTER {
                tracing::warn!(controller = C::NAME, %key, %error, "fails, retrying with growing delay");
            } else {
                tracing::debug!(controller = C::NAME, %key, %error, failures, "failed");
            }
        }
        Err(_panic) => {
            let failures = queue.retry(&key);
            if failures == 1 {
                tracing::error!(controller = C::NAME, %key, "panicked on this key, retrying with growing delay");
            }
        }
    }
}

/// A failure is worth a log line from this try on.
const LOGGED_AFTER: u32 = 3;
