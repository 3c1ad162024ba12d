//! Taking over what an earlier daemon left of a pod.

use std::{fs, path::Path, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::Worker;
use crate::{
    container::{
        Exit,
        runtime::{Found, find},
    },
    pod::{
        container_state::{ContainerState, Ended, Role, State, unknown_exit},
        plan::run_dir,
        sandbox::Sandbox,
    },
};

/// The pod's containers, none of them started.
pub(super) fn containers(pod: &Pod) -> Vec<ContainerState> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let init = spec.init_containers.iter().flatten().map(|container| {
        let role = if container.restart_policy.as_deref() == Some("Always") {
            Role::Sidecar
        } else {
            Role::Init
        };
        ContainerState::new(container.clone(), role)
    });
    let has_init = spec
        .init_containers
        .as_ref()
        .is_some_and(|list| !list.is_empty());
    let main = spec.containers.iter().map(|container| {
        let mut state = ContainerState::new(container.clone(), Role::Main);
        if has_init {
            state.state = State::Waiting {
                reason: "PodInitializing",
                message: None,
                retry_at: None,
            };
        }
        state
    });
    init.chain(main).collect()
}

/// What a run came to. The daemon may have died just after it had started a shim: that one is given time to say so.
async fn settled(dir: &Path) -> Option<Found> {
    let spec = dir.join("spec.json");
    for _ in 0..100 {
        let found = find(dir);
        if found.is_some() || !spec.exists() || !has_shim(&spec) {
            return found.or_else(|| find(dir));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    find(dir)
}

/// Whether some process is the shim of this specification.
fn has_shim(spec: &Path) -> bool {
    let argument = spec.as_os_str().as_encoded_bytes();
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .iter()
                .all(u8::is_ascii_digit)
        })
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .any(|command| {
            command
                .split(|byte| *byte == 0)
                .any(|word| word == argument)
        })
}

impl Worker {
    /// Finds the sandbox and the containers that still run, and how the others ended.
    pub(super) async fn adopt(&mut self) {
        self.sandbox = Sandbox::adopt(&self.dir);
        if let Some(sandbox) = &self.sandbox {
            self.context.addresses.reserve(sandbox.ip);
            self.watch_sandbox();
        }
        if !self.dir.join("containers").exists() {
            return self.adopt_from_status();
        }
        for index in 0..self.containers.len() {
            let name = self.containers[index].spec.name.clone();
            let attempts = fs::read_dir(self.dir.join("containers").join(&name))
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
            let Some(attempt) = attempts.max() else {
                continue;
            };
            let image = self.context.images.resolve(
                self.containers[index]
                    .spec
                    .image
                    .as_deref()
                    .unwrap_or_default(),
            );
            let container = &mut self.containers[index];
            container.attempt = attempt;
            container.restarts = attempt;
            container.image_id = image.map(|image| image.id()).unwrap_or_default();
            if attempt > 0
                && let Some(Found::Exited(exit)) = find(&run_dir(&self.dir, &name, attempt - 1))
            {
                container.last = Some(Ended {
                    attempt: attempt - 1,
                    exit,
                    message: None,
                });
            }
            match settled(&run_dir(&self.dir, &name, attempt)).await {
                // A container without its sandbox has no network any more.
                Some(Found::Running(running)) if self.sandbox.is_some() => {
                    tracing::info!(pod = %format!("{}/{}", self.namespace(), self.name()), container = name, "adopted");
                    self.running(index, running, true);
                }
                Some(Found::Running(running)) => {
                    running.state.init.signal(rustix::process::Signal::KILL);
                    self.containers[index].state = State::Starting;
                    self.watch_exit(index, running);
                }
                Some(Found::Exited(exit)) => {
                    self.containers[index].state = State::Starting;
                    self.exited(index, attempt, exit);
                }
                // Planned but never started: the same number is used again.
                None => {}
            }
        }
    }

    /// Nothing is left on this machine (the lab was taken down, or the machine restarted): the API knows how far the pod
    /// had come. A finished pod stays finished, any other starts over with its restarts counted on.
    fn adopt_from_status(&mut self) {
        let Some(status) = self.pod.status.clone() else {
            return;
        };
        let policy = self.policy().to_owned();
        let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let reported: Vec<_> = status
            .init_container_statuses
            .into_iter()
            .flatten()
            .chain(status.container_statuses.into_iter().flatten())
            .collect();
        for container in &mut self.containers {
            let Some(status) = reported
                .iter()
                .find(|status| status.name == container.spec.name)
            else {
                continue;
            };
            let attempt = u32::try_from(status.restart_count).unwrap_or(0);
            let terminated = status
                .state
                .as_ref()
                .and_then(|state| state.terminated.as_ref());
            container.image_id.clone_from(&status.image_id);
            let ended = Ended {
                attempt,
                exit: match terminated {
                    Some(terminated) => Exit {
                        code: terminated.exit_code,
                        signal: None,
                        start_error: None,
                        started_at: terminated.started_at.as_ref().map(|time| time.0),
                        finished_at: terminated
                            .finished_at
                            .as_ref()
                            .map_or_else(Timestamp::now, |time| time.0),
                    },
                    None => unknown_exit(None, "the container was lost when the lab went down"),
                },
                message: terminated.and_then(|terminated| terminated.message.clone()),
            };
            // Without restarts a lost container is the end of it.
            let over = container.role == Role::Main
                && status.container_id.is_some()
                && !container.restarts_after(&ended.exit, &policy);
            if finished || over {
                container.attempt = attempt;
                container.state = State::Ended(ended);
            } else if status.container_id.is_some() {
                container.attempt = attempt + 1;
                container.last = Some(ended);
            }
        }
    }
}
