//! One watch on the pods of this node, one worker per pod.
//!
//! A worker lives from the first sight of a pod until the pod is gone from the API and its processes are gone from the
//! machine. Pods are told apart by UID: a new pod of the same name gets its own worker at once.

use std::{collections::HashMap, fs, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Context, cleanup, sandbox::Sandbox, worker::Worker};
use crate::container::runtime::{Found, find};

/// Pause before a worker that panicked is replaced.
const AGAIN: Duration = Duration::from_secs(1);

/// What a worker is told.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    pub(crate) pod: Arc<Pod>,
    /// The pod is no longer in the API.
    pub(crate) gone: bool,
    /// The lab is going down: end the processes, leave the object.
    pub(crate) down: bool,
}

/// Runs until `stop`, then ends all pods' processes before it returns.
pub(crate) async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut workers: HashMap<String, watch::Sender<Update>> = HashMap::new();
    let tasks = TaskTracker::new();
    reserve_addresses(&context);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", context.node_name));
    let mut events = watcher(Api::<Pod>::all(context.client.clone()), config)
        .default_backoff()
        .boxed();
    let mut relisted: Option<Vec<String>> = None;
    let mut first_list = true;
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => break,
            event = events.next() => event,
        };
        workers.retain(|_, worker| !worker.is_closed());
        match event {
            Some(Ok(watcher::Event::Init)) => relisted = Some(Vec::new()),
            Some(Ok(watcher::Event::InitApply(pod))) => {
                if let (Some(list), Some(uid)) = (&mut relisted, &pod.metadata.uid) {
                    list.push(uid.clone());
                }
                apply(&context, &tasks, &mut workers, pod);
            }
            Some(Ok(watcher::Event::InitDone)) => {
                let present = relisted.take().unwrap_or_default();
                for (uid, worker) in &workers {
                    if !present.contains(uid) {
                        worker.send_modify(|update| update.gone = true);
                    }
                }
                if std::mem::take(&mut first_list) {
                    remove_orphans(&context, &present).await;
                }
            }
            Some(Ok(watcher::Event::Apply(pod))) => apply(&context, &tasks, &mut workers, pod),
            Some(Ok(watcher::Event::Delete(pod))) => {
                if let Some(worker) = pod.metadata.uid.as_ref().and_then(|uid| workers.get(uid)) {
                    worker.send_modify(|update| update.gone = true);
                }
            }
            Some(Err(error)) => tracing::warn!(%error, "watching pods failed, retrying"),
            None => break,
        }
    }
    for worker in workers.values() {
        worker.send_modify(|update| update.down = true);
    }
    tasks.close();
    tasks.wait().await;
}

fn apply(
    context: &Arc<Context>,
    tasks: &TaskTracker,
    workers: &mut HashMap<String, watch::Sender<Update>>,
    pod: Pod,
) {
    let Some(uid) = pod.metadata.uid.clone() else {
        return;
    };
    let update = Update {
        pod: Arc::new(pod),
        gone: false,
        down: false,
    };
    if let Some(worker) = workers.get(&uid) {
        worker.send_replace(update);
        return;
    }
    let (sender, receiver) = watch::channel(update);
    tasks.spawn(work(context.clone(), receiver));
    workers.insert(uid, sender);
}

/// Runs a pod's worker. One that panics concerns its pod alone and is followed by another, which takes the pod over from
/// its directory as after a restart of the daemon.
async fn work(context: Arc<Context>, updates: watch::Receiver<Update>) {
    loop {
        let worker = Worker::new(context.clone(), updates.clone());
        if AssertUnwindSafe(worker.run()).catch_unwind().await.is_ok() {
            return;
        }
        let pod = updates.borrow().pod.name_any();
        tracing::error!(
            pod,
            "the worker of this pod panicked, another one takes over"
        );
        tokio::time::sleep(AGAIN).await;
    }
}

/// Addresses of pods that still run must not be given to others.
fn reserve_addresses(context: &Context) {
    for entry in fs::read_dir(context.state.pods())
        .into_iter()
        .flatten()
        .flatten()
    {
        if let Some(sandbox) = Sandbox::adopt(&entry.path()) {
            context.addresses.reserve(sandbox.ip);
        }
    }
}

/// Ends what belongs to pods that were deleted while no daemon ran.
async fn remove_orphans(context: &Context, present: &[String]) {
    for entry in fs::read_dir(context.state.pods())
        .into_iter()
        .flatten()
        .flatten()
    {
        let uid = entry.file_name().to_string_lossy().into_owned();
        if present.contains(&uid) {
            continue;
        }
        tracing::info!(uid, "ending a pod that was deleted meanwhile");
        let dir = entry.path();
        for run in fs::read_dir(dir.join("containers"))
            .into_iter()
            .flatten()
            .flatten()
            .flat_map(|container| {
                fs::read_dir(container.path())
                    .into_iter()
                    .flatten()
                    .flatten()
            })
        {
            if let Some(Found::Running(running)) = find(&run.path()) {
                running.state.init.kill().await;
                running.state.shim.kill().await;
            }
        }
        if let Some(sandbox) = Sandbox::adopt(&dir) {
            sandbox.pause.kill().await;
            context.addresses.release(sandbox.ip);
        }
        cleanup::remove(&dir, None);
    }
    // Log directories end in the UID of their pod.
    for entry in fs::read_dir(context.state.logs())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name
            .rsplit('_')
            .next()
            .is_some_and(|uid| present.iter().any(|present| present == uid))
        {
            cleanup::remove(&entry.path(), None);
        }
    }
}
