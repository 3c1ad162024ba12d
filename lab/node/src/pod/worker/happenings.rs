//! What happens to containers that run: results of probes, failed hooks, ends; and what follows for the next run.

use std::time::Duration;

use tokio::time::Instant;

use super::{Happening, Worker};
use crate::{
    container::Exit,
    pod::{
        container_state::{Ended, State, print_duration},
        events::{NORMAL, WARNING},
        plan,
        probes::Finding,
        stop::{Stop, stop},
    },
};

impl Worker {
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
                        let reference = self.reference(Some(index));
                        let name = &self.containers[index].spec.name;
                        // One that ended before anybody looked did start.
                        let (kind, reason, message) = match &exit.start_error {
                            Some(error) => (WARNING, "Failed", format!("Error: {error}")),
                            None => (NORMAL, "Started", format!("Started container {name}")),
                        };
                        self.context.events.emit(&reference, kind, reason, message);
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
}
