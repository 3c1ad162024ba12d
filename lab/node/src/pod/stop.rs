//! Stopping containers: preStop hook, SIGTERM, and SIGKILL when the grace period is over.

use std::{net::Ipv4Addr, time::Duration};

use k8s_openapi::api::core::v1::{Container, ObjectReference};

use super::{
    events::{NORMAL, Recorder, WARNING},
    hooks,
};
use crate::container::runtime::Running;

/// What is stopped.
#[derive(Debug)]
pub(crate) struct Stop {
    pub(crate) container: Container,
    pub(crate) running: Running,
    pub(crate) ip: Ipv4Addr,
    pub(crate) reference: ObjectReference,
    pub(crate) events: Recorder,
    pub(crate) message: String,
}

/// After a hook has used up the grace period, a container still gets this much.
const LEAST: Duration = Duration::from_secs(2);

/// Stops a container; returns when it has ended.
pub(crate) async fn stop(stop: Stop, grace: Duration) {
    let Stop {
        container,
        running,
        ip,
        reference,
        events,
        message,
    } = stop;
    events.emit(&reference, NORMAL, "Killing", message);
    let began = tokio::time::Instant::now();
    let hook = container
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    if let Some(hook) = hook.filter(|_| !grace.is_zero()) {
        tokio::select! {
            () = running.state.shim.exited() => return,
            result = hooks::run(hook, &container, &running, ip, grace) => if let Err(error) = result {
                events.emit(&reference, WARNING, "FailedPreStopHook", format!("PreStopHook failed: {error}"));
            }
        }
    }
    let rest = if grace.is_zero() {
        grace
    } else {
        grace.saturating_sub(began.elapsed()).max(LEAST)
    };
    running.terminate(rest).await;
}
