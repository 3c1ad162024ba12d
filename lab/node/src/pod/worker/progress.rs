//! The steps forward: sandbox, volumes, init containers one after the other, then all the rest at once.

use std::{path::Path, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use tokio::{sync::mpsc, time::Instant};

use super::{Happening, Worker};
use crate::{
    container::{
        Exit,
        runtime::{self, Running},
    },
    pod::{
        container_state::{ContainerState, Ended, Role, State, Task, back_off, print_duration},
        events::{NORMAL, WARNING},
        hooks,
        plan::{self, PlanError, Request},
        probes::{self, Finding},
        sandbox::Sandbox,
        status,
        stop::{Stop, stop},
    },
    volumes,
};

/// Retry of what may heal by itself (missing ConfigMap, sandbox trouble).
const RETRY: Duration = Duration::from_secs(2);

impl ContainerState {
    /// When a waiting container is tried again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { retry_at, .. } => retry_at,
            _ => None,
        }
    }

    fn due(&self) -> bool {
        matches!(self.state, State::Waiting { retry_at, .. } if retry_at.is_none_or(|at| at <= Instant::now()))
    }
}

impl Worker {
    /// Goes as far as possible without waiting for processes.
    pub(super) async fn progress(&mut self) {
        if matches!(
            status::phase(&self.containers, self.policy()),
            "Succeeded" | "Failed"
        ) {
            return;
        }
        if self.sandbox.is_none() && !self.make_sandbox().await {
            return;
        }
        let renewal_due = self
            .volumes
            .next_renewal()
            .is_some_and(|at| at <= jiff::Timestamp::now());
        if !self.volumes_ready || renewal_due {
            self.set_up_volumes().await;
        }
        if !self.volumes_ready
            && self
                .containers
                .iter()
                .all(|c| c.attempt == 0 && c.running().is_none())
        {
            return;
        }
        for index in 0..self.containers.len() {
            let container = &self.containers[index];
            if container.due() {
                self.start(index);
            }
            let container = &self.containers[index];
            if container.role != Role::Main && !container.done() {
                // The next ones wait for this one.
                return;
            }
        }
    }

    async fn make_sandbox(&mut self) -> bool {
        let (due, failures) = self.sandbox_retry.unwrap_or((Instant::now(), 0));
        if due > Instant::now()
            || self
                .containers
                .iter()
                .any(|c| matches!(c.state, State::Starting))
        {
            return false;
        }
        match self.try_sandbox().await {
            Ok(()) => {
                self.sandbox_retry = None;
                true
            }
            Err(error) => {
                let message = format!("Failed to create pod sandbox: {error:#}");
                self.context.events.emit(
                    &self.reference(None),
                    WARNING,
                    "FailedCreatePodSandBox",
                    message,
                );
                let wait = RETRY.saturating_mul(1 << failures.min(3));
                self.sandbox_retry = Some((Instant::now() + wait, failures + 1));
                false
            }
        }
    }

    async fn try_sandbox(&mut self) -> anyhow::Result<()> {
        let host_network = self
            .pod
            .spec
            .as_ref()
            .and_then(|spec| spec.host_network)
            .unwrap_or(false);
        let ip = if host_network {
            crate::network::GATEWAY
        } else {
            self.context
                .addresses
                .allocate()
                .ok_or_else(|| anyhow::anyhow!("all pod addresses are taken"))?
        };
        let (context, dir, pod) = (self.context.clone(), self.dir.clone(), self.pod.clone());
        let made = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&dir)?;
            plan::write_etc(&pod, ip, &dir)?;
            Sandbox::create(&context.state, &dir, plan::hostname(&pod), ip, host_network)
        })
        .await?;
        match made {
            Ok(sandbox) => {
                self.sandbox = Some(sandbox);
                self.watch_sandbox();
                // Downward volumes may show the address.
                self.volumes_ready = false;
                Ok(())
            }
            Err(error) => {
                self.context.addresses.release(ip);
                Err(error)
            }
        }
    }

    /// Reports the end of the pause process.
    pub(super) fn watch_sandbox(&self) {
        if let Some(sandbox) = &self.sandbox {
            let (pause, outbox) = (sandbox.pause, self.outbox.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = pause.exited() => { let _ = outbox.send(Happening::SandboxDied).await; }
                    () = outbox.closed() => {}
                }
            });
        }
    }

    async fn set_up_volumes(&mut self) {
        if self.volumes_retry.is_some_and(|at| at > Instant::now()) {
            return;
        }
        let Some(sandbox) = &self.sandbox else { return };
        let inputs = volumes::Inputs {
            pod: &self.pod,
            ip: sandbox.ip,
            objects: &self.context.objects,
            client: &self.context.client,
            pod_dir: &self.dir,
        };
        match self.volumes.sync(&inputs).await {
            Ok(()) => {
                self.volumes_ready = true;
                self.volumes_retry = None;
            }
            Err(error) => {
                self.context.events.emit(
                    &self.reference(None),
                    WARNING,
                    "FailedMount",
                    error.to_string(),
                );
                self.volumes_ready = false;
                self.volumes_retry = Some(Instant::now() + RETRY);
            }
        }
    }

    /// A ConfigMap or Secret changed somewhere: look again, at once.
    pub(super) fn config_changed(&mut self) {
        self.volumes_ready = false;
        self.volumes_retry = None;
        for container in &mut self.containers {
            if let State::Waiting {
                reason: "CreateContainerConfigError",
                retry_at,
                ..
            } = &mut container.state
            {
                *retry_at = None;
            }
        }
    }

    pub(super) fn waits_for_config(&self) -> bool {
        self.containers.iter().any(|c| {
            matches!(
                c.state,
                State::Waiting {
                    reason: "CreateContainerConfigError",
                    ..
                }
            )
        })
    }

    /// Plans a container and starts its shim in a task.
    fn start(&mut self, index: usize) {
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
            Err(PlanError::Image(message)) => {
                let first = container.pulls == 0
                    || matches!(
                        container.state,
                        State::Waiting {
                            reason: "ImagePullBackOff",
                            ..
                        }
                    );
                container.pulls += 1;
                let wait = back_off(container.pulls);
                context.events.emit(
                    &reference,
                    WARNING,
                    "Failed",
                    format!("Failed to pull image \"{image}\": {message}"),
                );
                context
                    .events
                    .emit(&reference, WARNING, "Failed", "Error: ErrImagePull".into());
                let reason = if first {
                    "ErrImagePull"
                } else {
                    "ImagePullBackOff"
                };
                container.state = if container.pulls > 1 {
                    context.events.emit(
                        &reference,
                        NORMAL,
                        "BackOff",
                        format!("Back-off pulling image \"{image}\""),
                    );
                    let message = format!("Back-off pulling image \"{image}\": {message}");
                    State::Waiting {
                        reason: "ImagePullBackOff",
                        message: Some(message),
                        retry_at: Some(Instant::now() + wait),
                    }
                } else {
                    // Shown briefly, then the second look turns it into a back-off.
                    State::Waiting {
                        reason,
                        message: Some(message),
                        retry_at: Some(Instant::now() + RETRY),
                    }
                };
                return;
            }
            Err(PlanError::Config(message)) => {
                context
                    .events
                    .emit(&reference, WARNING, "Failed", format!("Error: {message}"));
                container.state = State::Waiting {
                    reason: "CreateContainerConfigError",
                    message: Some(message),
                    retry_at: Some(Instant::now() + RETRY * 5),
                };
                return;
            }
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
                Err(error) => Err(crate::pod::container_state::unknown_exit(
                    None,
                    &format!("{error:#}"),
                )),
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

    /// Takes note of something that happened.
    pub(super) fn handle(&mut self, happening: Happening) {
        match happening {
            Happening::Started {
                index,
                attempt,
                result,
            } => {
                if self.containers[index].attempt != attempt {
                    return;
                }
                match result {
                    Ok(running) => self.running(index, running, false),
                    Err(exit) => {
                        let message = exit.start_error.clone().unwrap_or_default();
                        self.context.events.emit(
                            &self.reference(Some(index)),
                            WARNING,
                            "Failed",
                            format!("Error: {message}"),
                        );
                        self.exited(index, attempt, exit);
                    }
                }
            }
            Happening::Exited {
                index,
                attempt,
                exit,
            } => self.exited(index, attempt, exit),
            Happening::Probed {
                index,
                attempt,
                finding,
            } => self.probed(index, attempt, finding),
            Happening::HookFailed {
                index,
                attempt,
                message,
            } => {
                if self.containers[index].attempt == attempt {
                    let message = format!("PostStartHook failed: {message}");
                    self.context.events.emit(
                        &self.reference(Some(index)),
                        WARNING,
                        "FailedPostStartHook",
                        message.clone(),
                    );
                    self.stop_one(index, message);
                }
            }
            Happening::SandboxDied => self.sandbox_died(),
        }
    }

    /// A container runs: watches it, probes it, runs its postStart hook.
    pub(super) fn running(&mut self, index: usize, running: Running, adopted: bool) {
        let reference = self.reference(Some(index));
        let ip = self
            .sandbox
            .as_ref()
            .map_or(crate::network::GATEWAY, |sandbox| sandbox.ip);
        self.watch_exit(index, running.clone());
        let container = &mut self.containers[index];
        let attempt = container.attempt;
        let spec = container.spec.clone();
        if !adopted {
            self.context.events.emit(
                &reference,
                NORMAL,
                "Started",
                format!("Started container {}", spec.name),
            );
            if let Some(hook) = spec
                .lifecycle
                .as_ref()
                .and_then(|lifecycle| lifecycle.post_start.clone())
            {
                let (outbox, running, spec) = (self.outbox.clone(), running.clone(), spec.clone());
                tokio::spawn(async move {
                    if let Err(message) =
                        hooks::run(&hook, &spec, &running, ip, Duration::from_secs(120)).await
                    {
                        let _ = outbox
                            .send(Happening::HookFailed {
                                index,
                                attempt,
                                message,
                            })
                            .await;
                    }
                });
            }
        }
        // An adopted container was ready or not as the API says; its probes will tell within a period.
        let before = adopted
            .then(|| reported(&self.pod, &spec.name))
            .flatten()
            .unwrap_or((false, false));
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
            let (report, mut findings) = mpsc::channel(8);
            let outbox = self.outbox.clone();
            let task = tokio::spawn(async move {
                let probing = probes::run(target, report);
                let forwarding = async {
                    while let Some(finding) = findings.recv().await {
                        if outbox
                            .send(Happening::Probed {
                                index,
                                attempt,
                                finding,
                            })
                            .await
                            .is_err()
                        {
                            return;
                        }
                    }
                };
                tokio::join!(probing, forwarding);
            });
            container.probes = Some(Task(task));
        }
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

    /// A container has ended: decides whether and when it runs again.
    pub(super) fn exited(&mut self, index: usize, attempt: u32, exit: Exit) {
        if self.containers[index].attempt != attempt || self.containers[index].ended().is_some() {
            return;
        }
        let policy = self.policy().to_owned();
        let message = self.termination_message(index, attempt);
        let reference = self.reference(Some(index));
        let identity = format!("{}_{}({})", self.name(), self.namespace(), self.uid());
        let container = &mut self.containers[index];
        container.probes = None;
        container.ready = false;
        container.started = false;
        let ended = Ended {
            attempt,
            exit: exit.clone(),
            message,
        };
        if !container.restarts_after(&exit, &policy) {
            container.state = State::Ended(ended);
            return;
        }
        let wait = container.next_back_off(&exit);
        container.last = Some(ended);
        container.attempt += 1;
        let name = &container.spec.name;
        container.state = if wait.is_zero() {
            State::Waiting {
                reason: "ContainerCreating",
                message: None,
                retry_at: None,
            }
        } else {
            let message = format!("Back-off restarting failed container {name} in pod {identity}");
            self.context
                .events
                .emit(&reference, WARNING, "BackOff", message);
            State::Waiting {
                reason: "CrashLoopBackOff",
                message: Some(format!(
                    "back-off {} restarting failed container={name} pod={identity}",
                    print_duration(wait)
                )),
                retry_at: Some(Instant::now() + wait),
            }
        };
    }

    /// What the container left in its termination log, or the end of its log if it asks for that.
    fn termination_message(&self, index: usize, attempt: u32) -> Option<String> {
        const MOST: usize = 4096;
        let spec = &self.containers[index].spec;
        let file = plan::run_dir(&self.dir, &spec.name, attempt).join("termination-log");
        let text = std::fs::read(file).unwrap_or_default();
        if !text.is_empty() {
            return Some(String::from_utf8_lossy(&text[..text.len().min(MOST)]).into_owned());
        }
        if spec.termination_message_policy.as_deref() != Some("FallbackToLogsOnError") {
            return None;
        }
        let log = std::fs::read_to_string(plan::log_path(
            &self.context,
            &self.pod,
            &spec.name,
            attempt,
        ))
        .ok()?;
        let lines: Vec<&str> = log
            .lines()
            .filter_map(|line| line.splitn(4, ' ').nth(3))
            .collect();
        let tail = &lines[lines.len().saturating_sub(20)..];
        Some(tail.join("\n"))
    }

    fn probed(&mut self, index: usize, attempt: u32, finding: Finding) {
        let container = &mut self.containers[index];
        if container.attempt != attempt || container.running().is_none() {
            return;
        }
        match finding {
            Finding::Started => {
                container.started = true;
                container.ready = container.ready || container.spec.readiness_probe.is_none();
            }
            Finding::Ready(ready) => container.ready = ready,
            Finding::Dead(kind) => {
                let message = format!(
                    "Container {} failed {kind} probe, will be restarted",
                    container.spec.name
                );
                self.stop_one(index, message);
            }
        }
    }

    /// Stops a running container in a task; its end arrives as any other.
    fn stop_one(&mut self, index: usize, message: String) {
        let grace = self.grace();
        let Some(task) = self.stop_task(index, message) else {
            return;
        };
        self.containers[index].stopping = true;
        tokio::spawn(stop(task, grace));
    }

    /// How to stop a container, if it runs and is not being stopped already.
    pub(super) fn stop_task(&self, index: usize, message: String) -> Option<Stop> {
        let container = &self.containers[index];
        let running = container.running().filter(|_| !container.stopping)?.clone();
        Some(Stop {
            container: container.spec.clone(),
            running,
            ip: self
                .sandbox
                .as_ref()
                .map_or(crate::network::GATEWAY, |sandbox| sandbox.ip),
            reference: self.reference(Some(index)),
            events: self.context.events.clone(),
            message,
        })
    }

    /// The pod's termination grace period.
    pub(super) fn grace(&self) -> Duration {
        let seconds = self
            .pod
            .spec
            .as_ref()
            .and_then(|spec| spec.termination_grace_period_seconds)
            .unwrap_or(30);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    /// Without its pause process a pod has no network: everything starts over, with a new address.
    fn sandbox_died(&mut self) {
        let Some(sandbox) = self.sandbox.take_if(|sandbox| !sandbox.pause.is_alive()) else {
            return;
        };
        self.context.addresses.release(sandbox.ip);
        let message = "Pod sandbox changed, it will be killed and re-created.".to_owned();
        self.context
            .events
            .emit(&self.reference(None), NORMAL, "SandboxChanged", message);
        self.volumes_ready = false;
        for container in &mut self.containers {
            if let Some(running) = container.running() {
                running.state.init.signal(rustix::process::Signal::KILL);
            }
            if container.role == Role::Init && container.ended().is_some() {
                container.attempt += 1;
                container.state = State::Waiting {
                    reason: "PodInitializing",
                    message: None,
                    retry_at: None,
                };
            }
        }
    }
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
