//! The life of one pod.
//!
//! A worker owns its pod's state and is the only one to change it: it takes a step (sandbox, volumes, containers as far
//! as they can go), publishes the status if that changed, and waits for the next reason to step: an update of the pod, a
//! happening in its inbox, a changed ConfigMap or Secret, or a deadline. Slow work (starting, stopping, probing) runs in
//! tasks that report to the inbox.

mod adopt;
mod finish;
mod ground;
mod happenings;
mod progress;
mod publish;
mod start;

use std::{path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodStatus};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    Context, container_state::ContainerState, manager::Update, probes::Finding, sandbox::Sandbox,
    status::Conditions,
};
use crate::{
    container::{Exit, runtime::Running},
    volumes::Volumes,
};

/// Retry of what may heal by itself.
const RETRY: Duration = Duration::from_secs(2);

/// Something that happened to the pod's processes.
#[derive(Debug)]
pub(crate) enum Happening {
    Started {
        index: usize,
        attempt: u32,
        result: Result<Running, Exit>,
    },
    Exited {
        index: usize,
        attempt: u32,
        exit: Exit,
    },
    Probed {
        index: usize,
        attempt: u32,
        finding: Finding,
    },
    /// The postStart hook failed.
    HookFailed {
        index: usize,
        attempt: u32,
        message: String,
    },
    SandboxDied,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Worker {
    context: Arc<Context>,
    updates: watch::Receiver<Update>,
    pod: Arc<Pod>,
    dir: PathBuf,
    sandbox: Option<Sandbox>,
    sandbox_retry: Option<(Instant, u32)>,
    volumes: Volumes,
    volumes_ready: bool,
    volumes_retry: Option<Instant>,
    containers: Vec<ContainerState>,
    inbox: mpsc::Receiver<Happening>,
    outbox: mpsc::Sender<Happening>,
    conditions: Conditions,
    started_at: Timestamp,
    published: Option<PodStatus>,
    publish_retry: Option<Instant>,
}

/// Whether the pod shall go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    GoOn,
    /// Deleted, with grace.
    Delete,
    /// Gone from the API: end it at once.
    Gone,
    /// The lab goes down; the object stays.
    Down,
}

impl Worker {
    /// A worker for the pod in the channel.
    pub(crate) fn new(context: Arc<Context>, updates: watch::Receiver<Update>) -> Self {
        let pod = updates.borrow().pod.clone();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let dir = context.state.pod(&uid);
        let (outbox, inbox) = mpsc::channel(64);
        Self {
            dir,
            sandbox: None,
            sandbox_retry: None,
            volumes: Volumes::default(),
            volumes_ready: false,
            volumes_retry: None,
            containers: adopt::containers(&pod),
            inbox,
            outbox,
            conditions: Conditions::adopt(&pod),
            started_at: pod
                .status
                .as_ref()
                .and_then(|status| status.start_time.as_ref())
                .map_or_else(Timestamp::now, |time| time.0),
            published: None,
            publish_retry: None,
            context,
            updates,
            pod,
        }
    }

    /// Adopts what an earlier daemon left, then runs until the pod is gone.
    pub(crate) async fn run(mut self) {
        let mut configs = self.context.objects.config_changed.clone();
        self.adopt().await;
        self.context.objects.ready().await;
        loop {
            match self.verdict() {
                Verdict::GoOn => {}
                verdict => return self.finish(verdict).await,
            }
            self.progress().await;
            self.publish().await;
            let deadline = self.deadline();
            tokio::select! {
                happening = self.inbox.recv() => if let Some(happening) = happening {
                    self.handle(happening);
                    while let Ok(happening) = self.inbox.try_recv() {
                        self.handle(happening);
                    }
                },
                changed = self.updates.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.take_update();
                }
                changed = configs.changed(), if self.uses_config() => {
                    if changed.is_err() {
                        return;
                    }
                    self.config_changed();
                }
                () = sleep_until(deadline) => {}
            }
        }
    }

    fn verdict(&self) -> Verdict {
        let update = self.updates.borrow();
        if update.gone {
            Verdict::Gone
        } else if update.pod.metadata.deletion_timestamp.is_some() {
            Verdict::Delete
        } else if update.down {
            Verdict::Down
        } else {
            Verdict::GoOn
        }
    }

    fn take_update(&mut self) {
        let pod = self.updates.borrow_and_update().pod.clone();
        let meta = |pod: &Pod| {
            (
                pod.metadata.labels.clone(),
                pod.metadata.annotations.clone(),
            )
        };
        if meta(&pod) != meta(&self.pod) {
            // Downward volumes show labels and annotations.
            self.volumes_ready = false;
        }
        self.pod = pod;
    }

    /// Whether any volume or environment of the pod may depend on ConfigMaps or Secrets.
    fn uses_config(&self) -> bool {
        !self.volumes_ready
            || self.waits_for_config()
            || self
                .pod
                .spec
                .as_ref()
                .and_then(|spec| spec.volumes.as_ref())
                .is_some_and(|volumes| {
                    volumes.iter().any(|v| {
                        v.config_map.is_some() || v.secret.is_some() || v.projected.is_some()
                    })
                })
    }

    /// The earliest time something is due.
    fn deadline(&self) -> Option<Instant> {
        let now = Timestamp::now();
        let renewal = self.volumes.next_renewal().map(|at| {
            let wait = Duration::try_from(at.duration_since(now)).unwrap_or_default();
            Instant::now() + wait.max(Duration::from_millis(100))
        });
        self.containers
            .iter()
            .filter_map(ContainerState::retry_at)
            .chain(
                self.sandbox_retry
                    .filter(|_| self.sandbox.is_none())
                    .map(|(at, _)| at),
            )
            .chain(self.volumes_retry.filter(|_| !self.volumes_ready))
            .chain(self.publish_retry)
            .chain(renewal)
            .min()
    }

    fn policy(&self) -> &str {
        self.pod
            .spec
            .as_ref()
            .and_then(|spec| spec.restart_policy.as_deref())
            .unwrap_or("Always")
    }

    /// The pod (or one of its containers) as events name it.
    fn reference(&self, index: Option<usize>) -> ObjectReference {
        let meta = &self.pod.metadata;
        let field_path = index
            .and_then(|index| self.containers.get(index))
            .map(|container| {
                let list = if container.role == super::container_state::Role::Main {
                    "containers"
                } else {
                    "initContainers"
                };
                format!("spec.{list}{{{}}}", container.spec.name)
            });
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path,
        }
    }

    fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or("default")
    }

    fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
