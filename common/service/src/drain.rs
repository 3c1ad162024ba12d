//! Shutdown as a value.
//!
//! A [`Drain`] is handed to everything that runs for long. It is triggered once, by a signal or by a task that died;
//! whoever holds it stops taking new work and finishes what is under way; [`Drain::finish`] waits for the tasks, with a
//! bound. The process then exits 0 after a signal, 1 after a dead task.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The shutdown of one process: a token to watch and the tasks to wait for.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    token: CancellationToken,
    tasks: TaskTracker,
    failure: Arc<Mutex<Option<String>>>,
}

/// How a drained process ended.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// A task that must run for the life of the process ended.
    #[error("{0}")]
    TaskEnded(String),
}

impl Drain {
    /// A drain that begins on SIGTERM or SIGINT.
    pub fn on_signals() -> std::io::Result<Self> {
        let drain = Self::default();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let token = drain.token.clone();
        tokio::spawn(async move {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                () = token.cancelled() => return,
            };
            tracing::info!(signal = name, "draining");
            token.cancel();
        });
        Ok(drain)
    }

    /// Begins the drain. Harmless when it has begun.
    pub fn begin(&self) {
        self.token.cancel();
    }

    /// Whether the drain has begun.
    pub fn has_begun(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Completes when the drain begins.
    pub async fn begun(&self) {
        self.token.cancelled().await;
    }

    /// The token behind it, for APIs that take one.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Runs a task that the drain waits for.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// Runs a task without which the process is of no use: if it ends before the drain, the drain begins and
    /// [`Drain::finish`] reports it.
    pub fn spawn_essential<F, E>(&self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        let drain = self.clone();
        self.tasks.spawn(async move {
            let outcome =
                tokio::spawn(async move { task.await.map_err(|error| error.to_string()) }).await;
            let reason = match outcome {
                Ok(Ok(())) if drain.has_begun() => return,
                Ok(Ok(())) => "ended by itself".to_owned(),
                Ok(Err(error)) => error,
                Err(panic) => panic.to_string(),
            };
            tracing::error!(
                task = name,
                reason,
                "an essential task ended; stopping the process"
            );
            drain
                .failure
                .lock()
                .get_or_insert(format!("{name}: {reason}"));
            drain.begin();
        });
    }

    /// Waits until the drain has begun and its tasks are done, at most `limit` after it began.
    pub async fn finish(&self, limit: Duration) -> Result<(), DrainError> {
        self.token.cancelled().await;
        self.tasks.close();
        if tokio::time::timeout(limit, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                tasks = self.tasks.len(),
                seconds = limit.as_secs_f64(),
                "the drain ran out of time"
            );
        }
        match self.failure.lock().take() {
            Some(reason) => Err(DrainError::TaskEnded(reason)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn finish_waits_for_tasks() {
        let drain = Drain::default();
        let (done, finished) = tokio::sync::oneshot::channel();
        let task = drain.clone();
        drain.spawn(async move {
            task.begun().await;
            let _ = done.send(());
        });
        drain.begin();
        drain.finish(Duration::from_secs(5)).await.unwrap();
        finished.await.unwrap();
    }

    #[tokio::test]
    async fn a_dead_essential_task_begins_the_drain() {
        let drain = Drain::default();
        drain.spawn_essential("listener", async { Err::<(), _>("address in use") });
        let error = drain.finish(Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(error.to_string(), "listener: address in use");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_task_does_not_hold_the_process() {
        let drain = Drain::default();
        drain.spawn(std::future::pending::<()>());
        drain.begin();
        drain.finish(Duration::from_secs(10)).await.unwrap();
    }
}
