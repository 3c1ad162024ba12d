//! Starting containers, and what begins with them: hooks, probes, waiting for their end.

use std::{net::Ipv4Addr, path::Path, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use tokio::{sync::mpsc, time::Instant};

use super::{Happening, RETRY, Worker};
use crate::{
    container::runtime::{self, Running},
    pod::{
        container_state::{State, Task, back_off, unknown_exit},
        events::{NORMAL, WARNING},
        hooks,
        plan::{self, PlanError, Request},
        probes,
    },
};

/// How long a postStart hook may take.
const HOOK_WITHIN: Duration = Duration::from_secs(120);

impl Worker {
    /// Plans a container and starts its shim in a task.
    pub(super) fn start(&mut self, index: usize) {
        let Some(sandbox) = self.sandbox.clone() else {
            return;
        };
        let (context, pod) = (self.context.clone(), self.pod.clone());
        let reference = self.reference(Some(index));
        let container = &mut self.containers[index];
        let request = Request {
            pod: &pod,
            container: &container.spec,
            attempt: container.attempt,
            sandbox: &sandbox,
            pod_dir: &self.dir,
        };
        let image = container.spec.image.clone().unwrap_or_default();
        let spec = match plan::plan(&context, request) {
            Ok((spec, found)) => {
                container.image_id = found.id();
                container.pulls = 0;
                let message = format!("Container image \"{image}\" already present on machine");
                context.events.emit(&reference, NORMAL, "Pulled", message);
                spec
            }
            Err(error) => return self.not_planned(index, error),
        };
        container.state = State::Starting;
        container.stopping = false;
        forget_old_runs(
            &self.dir,
            &container.spec.name,
            &spec.log,
            container.attempt,
        );
        let (attempt, outbox) = (container.attempt, self.outbox.clone());
        context.events.emit(
            &reference,
            NORMAL,
            "Created",
            format!("Created container: {}", container.spec.name),
        );
        tokio::spawn(async move {
            let result = match runtime::start(&context.state, &spec).await {
                Ok(result) => result,
                Err(error) => Err(unknown_exit(None, &format!("{error:#}"))),
            };
            let _ = outbox
                .send(Happening::Started {
                    index,
                    attempt,
                    result,
                })
                .await;
        });
    }

    /// A container that cannot be started as things are waits, and says what for.
    fn not_planned(&mut self, index: usize, error: PlanError) {
        let reference = self.reference(Some(index));
        let events = self.context.events.clone();
        let container = &mut self.containers[index];
        let image = container.spec.image.clone().unwrap_or_default();
        let failed = |message| events.emit(&reference, WARNING, "Failed", message);
        let (reason, message, wait) = match error {
            PlanError::Config(message) => {
                failed(format!("Error: {message}"));
                ("CreateContainerConfigError", message, RETRY * 5)
            }
            PlanError::Image(message) => {
                container.pulls += 1;
                failed(format!("Failed to pull image \"{image}\": {message}"));
                failed("Error: ErrImagePull".into());
                if container.pulls == 1 {
                    // Shown briefly, then the second look turns it into a back-off.
                    ("ErrImagePull", message, RETRY)
                } else {
                    let backing = format!("Back-off pulling image \"{image}\"");
                    events.emit(&reference, NORMAL, "BackOff", backing.clone());
                    let message = format!("{backing}: {message}");
                    ("ImagePullBackOff", message, back_off(container.pulls))
                }
            }
        };
        container.state = State::Waiting {
            reason,
            message: Some(message),
            retry_at: Some(Instant::now() + wait),
        };
    }

    /// A container runs: watches it, probes it, runs its postStart hook.
    pub(super) fn running(&mut self, index: usize, running: Running, adopted: bool) {
        let reference = self.reference(Some(index));
        let ip = self
            .sandbox
            .as_ref()
            .map_or(crate::network::GATEWAY, |sandbox| sandbox.ip);
        self.watch_exit(index, running.clone());
        let spec = self.containers[index].spec.clone();
        if !adopted {
            self.context.events.emit(
                &reference,
                NORMAL,
                "Started",
                format!("Started container {}", spec.name),
            );
            self.run_hook(index, &running, ip);
        }
        // An adopted container was ready or not as the API says; its probes will tell within a period.
        let before = adopted
            .then(|| reported(&self.pod, &spec.name))
            .flatten()
            .unwrap_or((false, false));
        let container = &mut self.containers[index];
        container.started = spec.startup_probe.is_none() || before.0;
        container.ready = (spec.readiness_probe.is_none() && container.started) || before.1;
        container.state = State::Running(running.clone());
        if spec.startup_probe.is_some()
            || spec.readiness_probe.is_some()
            || spec.liveness_probe.is_some()
        {
            let target = probes::Target {
                container: spec,
                running,
                ip,
                reference,
                events: self.context.events.clone(),
            };
            container.probes = Some(probe(target, index, container.attempt, self.outbox.clone()));
        }
    }

    /// Runs the postStart hook, if there is one, in a task.
    fn run_hook(&self, index: usize, running: &Running, ip: Ipv4Addr) {
        let container = &self.containers[index];
        let (attempt, spec, running) = (container.attempt, container.spec.clone(), running.clone());
        let hook = spec.lifecycle.as_ref().and_then(|l| l.post_start.clone());
        let (Some(hook), outbox) = (hook, self.outbox.clone()) else {
            return;
        };
        tokio::spawn(async move {
            if let Err(message) = hooks::run(&hook, &spec, &running, ip, HOOK_WITHIN).await {
                let failed = Happening::HookFailed {
                    index,
                    attempt,
                    message,
                };
                let _ = outbox.send(failed).await;
            }
        });
    }

    /// Reports the end of a container.
    pub(super) fn watch_exit(&self, index: usize, running: Running) {
        let (attempt, outbox) = (self.containers[index].attempt, self.outbox.clone());
        tokio::spawn(async move {
            tokio::select! {
                exit = running.wait() => { let _ = outbox.send(Happening::Exited { index, attempt, exit }).await; }
                () = outbox.closed() => {}
            }
        });
    }
}

/// Probes a container in a task; what is found goes to the inbox.
fn probe(
    target: probes::Target,
    index: usize,
    attempt: u32,
    outbox: mpsc::Sender<Happening>,
) -> Task {
    let (report, mut findings) = mpsc::channel(8);
    Task(tokio::spawn(async move {
        let forwarding = async {
            while let Some(finding) = findings.recv().await {
                let probed = Happening::Probed {
                    index,
                    attempt,
                    finding,
                };
                if outbox.send(probed).await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(probes::run(target, report), forwarding);
    }))
}

/// Of the runs of a container the last two are of interest: the current one and, for its status and log, the one before.
fn forget_old_runs(pod_dir: &Path, container: &str, log: &Path, attempt: u32) {
    let Some(old) = attempt.checked_sub(2) else {
        return;
    };
    // What cannot be removed now goes with the pod.
    let _ = std::fs::remove_dir_all(plan::run_dir(pod_dir, container, old));
    if let Some(logs) = log.parent() {
        let log = logs.join(format!("{old}.log"));
        let _ = std::fs::remove_file(crate::container::log::rotated(&log));
        let _ = std::fs::remove_file(log);
    }
}

/// (started, ready) of a container as the API has it.
fn reported(pod: &Pod, name: &str) -> Option<(bool, bool)> {
    let status = pod.status.as_ref()?;
    let all = status
        .container_statuses
        .iter()
        .flatten()
        .chain(status.init_container_statuses.iter().flatten());
    let status = all.into_iter().find(|status| status.name == name)?;
    Some((status.started.unwrap_or(false), status.ready))
}
