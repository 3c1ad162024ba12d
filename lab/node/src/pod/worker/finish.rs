//! The end of a pod: stop its containers, say how they ended, take down its sandbox, and give up the object.

use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, Preconditions},
};

use super::{Happening, Verdict, Worker};
use crate::{
    container::runtime,
    pod::{
        cleanup,
        container_state::{Ended, State},
        plan::run_dir,
        stop::stop,
    },
};

/// How long pods get when the lab goes down.
const DOWN_GRACE: Duration = Duration::from_secs(5);

impl Worker {
    /// Ends the pod's processes, and the pod with them if it was deleted.
    pub(super) async fn finish(mut self, verdict: Verdict) {
        self.take_update();
        for container in &mut self.containers {
            container.probes = None;
        }
        self.settle_starts().await;
        let grace = match verdict {
            Verdict::Gone => Duration::ZERO,
            Verdict::Down => self.grace().min(DOWN_GRACE),
            _ => self.deletion_grace(),
        };
        self.stop_all(grace, verdict).await;
        self.collect();
        if verdict == Verdict::Delete {
            self.publish().await;
        }
        if let Some(sandbox) = self.sandbox.take() {
            sandbox.pause.kill().await;
            if !sandbox.host_network {
                self.context.addresses.release(sandbox.ip);
            }
        }
        let (namespace, name, uid) = (
            self.namespace().to_owned(),
            self.name().to_owned(),
            self.uid().to_owned(),
        );
        self.context.table.remove(&namespace, &name, &uid);
        if verdict == Verdict::Delete {
            self.delete_object(&namespace, &name, &uid).await;
        }
        let logs = self
            .context
            .state
            .logs()
            .join(format!("{namespace}_{name}_{uid}"));
        let dir = self.dir.clone();
        let keep_logs = verdict == Verdict::Down;
        let removal = tokio::task::spawn_blocking(move || {
            cleanup::remove(&dir, (!keep_logs).then_some(logs.as_path()))
        });
        if removal.await.is_err() {
            tracing::warn!(pod = %format!("{namespace}/{name}"), "cleaning up after the pod panicked");
        }
    }

    /// Containers that are just being started must be known before they can be stopped.
    async fn settle_starts(&mut self) {
        while self
            .containers
            .iter()
            .any(|c| matches!(c.state, State::Starting))
        {
            match tokio::time::timeout(Duration::from_secs(10), self.inbox.recv()).await {
                Ok(Some(Happening::Started {
                    index,
                    attempt,
                    result,
                })) if self.containers[index].attempt == attempt => {
                    self.containers[index].state = match result {
                        Ok(running) => State::Running(running),
                        Err(exit) => State::Ended(Ended {
                            attempt,
                            exit,
                            message: None,
                        }),
                    };
                }
                Ok(Some(Happening::Exited {
                    index,
                    attempt,
                    exit,
                })) if self.containers[index].attempt == attempt => {
                    self.containers[index].state = State::Ended(Ended {
                        attempt,
                        exit,
                        message: None,
                    });
                }
                Ok(Some(_)) => {}
                _ => return,
            }
        }
    }

    fn deletion_grace(&self) -> Duration {
        let asked = self
            .updates
            .borrow()
            .pod
            .metadata
            .deletion_grace_period_seconds;
        asked.map_or_else(
            || self.grace(),
            |seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
        )
    }

    /// Stops all containers side by side. A second, shorter deletion (or a forced one) shortens the wait.
    async fn stop_all(&mut self, grace: Duration, verdict: Verdict) {
        for container in &mut self.containers {
            // One that is being stopped after a failed probe is stopped again, by the pod's own deadline.
            container.stopping = false;
        }
        let stops: Vec<_> = (0..self.containers.len())
            .filter_map(|index| {
                let message = format!("Stopping container {}", self.containers[index].spec.name);
                self.stop_task(index, message)
            })
            .collect();
        let running: Vec<_> = stops.iter().map(|stop| stop.running.clone()).collect();
        if running.is_empty() {
            return;
        }
        tracing::debug!(pod = self.name(), ?grace, ?verdict, "stopping");
        let mut all = std::pin::pin!(join_all(stops.into_iter().map(|task| stop(task, grace))));
        let mut listening = true;
        loop {
            tokio::select! {
                _ = &mut all => return,
                changed = self.updates.changed(), if listening => {
                    if changed.is_err() {
                        listening = false;
                        continue;
                    }
                    let update = self.updates.borrow_and_update().clone();
                    let left = update.pod.metadata.deletion_grace_period_seconds.unwrap_or(i64::MAX);
                    let shorter = u64::try_from(left).is_ok_and(|left| Duration::from_secs(left) < grace);
                    if update.gone || update.down || shorter {
                        let wait = if update.gone { Duration::ZERO } else { Duration::from_secs(u64::try_from(left.clamp(0, 5)).unwrap_or(0)) };
                        let ended = join_all(running.iter().map(|running| running.state.shim.exited()));
                        if tokio::time::timeout(wait, ended).await.is_err() {
                            for running in &running {
                                running.state.init.signal(rustix::process::Signal::KILL);
                            }
                        }
                        listening = false;
                    }
                }
            }
        }
    }

    /// Records how the containers ended.
    fn collect(&mut self) {
        for container in &mut self.containers {
            if container.running().is_some() {
                let dir = run_dir(&self.dir, &container.spec.name, container.attempt);
                if let Some(runtime::Found::Exited(exit)) = runtime::find(&dir) {
                    container.state = State::Ended(Ended {
                        attempt: container.attempt,
                        exit,
                        message: None,
                    });
                }
                container.ready = false;
            } else if let (State::Waiting { .. }, Some(last)) = (&container.state, &container.last)
            {
                // It will not be restarted any more.
                container.state = State::Ended(last.clone());
            }
        }
    }

    /// Tells the API server that nothing of the pod is left here.
    async fn delete_object(&self, namespace: &str, name: &str, uid: &str) {
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), namespace);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            ..Default::default()
        };
        let mut wait = Duration::from_millis(100);
        loop {
            match api.delete(name, &params).await {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
                Err(error) => {
                    tracing::warn!(pod = %format!("{namespace}/{name}"), %error, "deleting the finished pod failed, retrying");
                    if self.updates.borrow().gone || self.updates.borrow().down {
                        return;
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(5));
                }
            }
        }
    }
}
