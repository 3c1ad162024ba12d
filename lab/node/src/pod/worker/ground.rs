//! The ground that containers stand on: the sandbox with the pod's network, and its volumes. What fails here may heal
//! by itself (a missing ConfigMap, sandbox trouble), so it is tried again.

use tokio::time::Instant;

use super::{Happening, RETRY, Worker};
use crate::{
    pod::{
        container_state::{Role, State},
        events::{NORMAL, WARNING},
        plan,
        sandbox::Sandbox,
    },
    volumes,
};

impl Worker {
    /// Makes the sandbox if that is due; says whether it is there.
    pub(super) async fn make_sandbox(&mut self) -> bool {
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

    /// Brings the volumes up to date, unless they failed just now.
    pub(super) async fn set_up_volumes(&mut self) {
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

    /// Without its pause process a pod has no network: everything starts over, with a new address.
    pub(super) fn sandbox_died(&mut self) {
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
