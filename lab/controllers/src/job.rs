//! Job → Pods: so many successful ends, so many at a time, so many failures.
//!
//! Finished pods stay (their logs are the result) and are counted from the store, so the status needs no bookkeeping
//! of its own. Indexed completion, pod failure policies and elastic limits are not offered; such Jobs run as plain ones.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::ResourceExt;
use kube::api::{DeleteParams, Preconditions};

use crate::context::Context;
use crate::error::{During, Result, unless_gone};
use crate::owners::{claim_all, controller_key, controller_reference};
use crate::pod_control::{PodControl, pod_from};
use crate::pods;
use crate::runtime::driver::{Again, Controller};
use crate::runtime::events::Kind;
use crate::runtime::queue::Queue;
use crate::runtime::store::Key;

const COMPONENT: &str = "job-controller";
const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";

pub(crate) struct Jobs {
    context: Arc<Context>,
    queue: Arc<Queue<Key>>,
}

/// What a look at a Job leads to.
#[derive(Debug, PartialEq)]
struct Step {
    status: JobStatus,
    create: usize,
    /// Stop all active pods.
    stop: bool,
    again: Option<Duration>,
}

fn finished(status: &JobStatus) -> Option<&JobCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")
}

fn condition(kind: &str, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    JobCondition {
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
        message: Some(message.to_owned()),
        reason: Some(reason.to_owned()),
        status: "True".to_owned(),
        type_: kind.to_owned(),
    }
}

fn nonzero(n: usize) -> Option<i32> {
    i32::try_from(n).ok().filter(|n| *n > 0)
}

/// Decides on one Job. Pure.
fn step(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Step {
    let spec = job.spec.clone().unwrap_or_default();
    let mut status = job.status.clone().unwrap_or_default();
    let ends = |phase: &str| pods.iter().filter(|p| pods::phase(p) == phase).count();
    let (succeeded, failed) = (ends("Succeeded"), ends("Failed"));
    let active: Vec<_> = pods.iter().filter(|p| pods::is_active(p)).collect();
    let suspended = spec.suspend.unwrap_or(false);
    if !suspended && status.start_time.is_none() {
        status.start_time = Some(Time(now));
    }
    status.succeeded = nonzero(succeeded);
    status.failed = nonzero(failed);
    status.active = nonzero(active.len());
    status.ready =
        Some(i32::try_from(active.iter().filter(|p| pods::is_ready(p)).count()).unwrap_or(0));
    if finished(&status).is_some() {
        return Step {
            status,
            create: 0,
            stop: !active.is_empty(),
            again: None,
        };
    }
    let size =
        |n: Option<i32>, default: usize| n.map_or(default, |n| usize::try_from(n).unwrap_or(0));
    let parallelism = size(spec.parallelism, 1);
    // Without completions one success of any pod ends the Job once the others have ended too.
    let wanted = spec.completions.map(|n| usize::try_from(n).unwrap_or(0));
    let deadline = spec
        .active_deadline_seconds
        .zip(status.start_time.as_ref())
        .map(|(seconds, start)| SignedDuration::from_secs(seconds) - now.duration_since(start.0));
    let end = if failed > size(spec.backoff_limit, 6) {
        Some(condition(
            "Failed",
            "BackoffLimitExceeded",
            "Job has reached the specified backoff limit",
            now,
        ))
    } else if deadline.is_some_and(|left| left <= SignedDuration::ZERO) {
        Some(condition(
            "Failed",
            "DeadlineExceeded",
            "Job was active longer than specified deadline",
            now,
        ))
    } else if wanted.map_or(succeeded > 0 && active.is_empty(), |wanted| {
        succeeded >= wanted
    }) {
        status.completion_time = Some(Time(now));
        Some(condition(
            "Complete",
            "CompletionsReached",
            "Reached expected number of succeeded pods",
            now,
        ))
    } else {
        None
    };
    if let Some(end) = end {
        status.conditions.get_or_insert_default().push(end);
        return Step {
            status,
            create: 0,
            stop: !active.is_empty(),
            again: None,
        };
    }
    let again = deadline.and_then(|left| Duration::try_from(left).ok());
    if suspended {
        return Step {
            status,
            create: 0,
            stop: !active.is_empty(),
            again,
        };
    }
    let most = match wanted {
        Some(wanted) => parallelism.min(wanted - succeeded),
        // A success: no new pods, those that run may end.
        None if succeeded > 0 => active.len(),
        None => parallelism,
    };
    Step {
        status,
        create: most.saturating_sub(active.len()),
        stop: false,
        again,
    }
}

/// The Job's selector; one that came without is selected by its own UID, as the labels of its pods say.
fn selector(job: &Job) -> LabelSelector {
    let given = job
        .spec
        .as_ref()
        .and_then(|s| s.selector.clone())
        .filter(|s| !pods::is_empty(s));
    given.unwrap_or_else(|| LabelSelector {
        match_labels: Some([(CONTROLLER_UID.to_owned(), job.uid().unwrap_or_default())].into()),
        match_expressions: None,
    })
}

impl Jobs {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        let queue = Arc::new(Queue::new());
        let wake = queue.clone();
        context.stores.jobs.on_change(move |_, new| {
            if let Some(job) = new {
                wake.add(Key::of(job.as_ref()));
            }
        });
        let wake = queue.clone();
        context.stores.pods.on_change(move |old, new| {
            for pod in [old, new].into_iter().flatten() {
                if let Some(owner) = controller_key::<Pod, Job>(pod) {
                    wake.add(owner);
                }
            }
        });
        Self { context, queue }
    }

    async fn create(&self, key: &Key, job: &Job, count: usize) -> Result<()> {
        let Some(spec) = job.spec.as_ref() else {
            return Ok(());
        };
        let mut pod = pod_from(
            &spec.template,
            &format!("{}-", key.name),
            &key.namespace,
            controller_reference(job),
        );
        let labels = pod.labels_mut();
        labels.insert(CONTROLLER_UID.to_owned(), job.uid().unwrap_or_default());
        labels.insert(JOB_NAME.to_owned(), key.name.clone());
        // Older tools select by the short forms.
        labels.insert("controller-uid".to_owned(), job.uid().unwrap_or_default());
        labels.insert("job-name".to_owned(), key.name.clone());
        let control = self.control(job);
        for result in join_all((0..count).map(|_| control.create(&pod))).await {
            result?;
        }
        Ok(())
    }

    fn control<'a>(&'a self, job: &'a Job) -> PodControl<'a, Job> {
        PodControl {
            context: &self.context,
            component: COMPONENT,
            owner: job,
        }
    }

    async fn write(&self, job: &Job, status: JobStatus) -> Result<()> {
        if job.status.as_ref() == Some(&status) {
            return Ok(());
        }
        if let Some(end) =
            finished(&status).filter(|_| job.status.as_ref().and_then(finished).is_none())
        {
            let (kind, reason, text) = if end.type_ == "Complete" {
                (Kind::Normal, "Completed", "Job completed".to_owned())
            } else {
                (
                    Kind::Warning,
                    "Failed",
                    end.message.clone().unwrap_or_default(),
                )
            };
            self.context
                .recorder
                .record(job, COMPONENT, kind, reason, text);
        }
        let mut changed = job.clone();
        changed.status = Some(status);
        let stores = &self.context.stores;
        let written = self.context.write_status(&stores.jobs, &changed);
        written.await.map(drop)
    }

    /// Removes a finished Job when its time is over; says when that will be.
    async fn expire(&self, key: &Key, job: &Job) -> Result<Option<Duration>> {
        let ttl = job.spec.as_ref().and_then(|s| s.ttl_seconds_after_finished);
        let end = job
            .status
            .as_ref()
            .and_then(finished)
            .and_then(|c| c.last_transition_time.as_ref());
        let Some((ttl, end)) = ttl.zip(end) else {
            return Ok(None);
        };
        let left = SignedDuration::from_secs(ttl.into()) - Timestamp::now().duration_since(end.0);
        if left > SignedDuration::ZERO {
            return Ok(Duration::try_from(left).ok());
        }
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: job.uid(),
                resource_version: None,
            }),
            ..DeleteParams::background()
        };
        let api = self.context.api::<Job>(&key.namespace);
        unless_gone(
            api.delete(&key.name, &params)
                .await
                .during(|| format!("delete finished Job {key}")),
        )?;
        Ok(None)
    }
}

impl Controller for Jobs {
    const NAME: &'static str = "job";
    type Key = Key;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> Result<Again> {
        let Some(job) = self.context.stores.jobs.get(key) else {
            return Ok(Again::Never);
        };
        if job.metadata.deletion_timestamp.is_some() {
            return Ok(Again::Never);
        }
        let selector = selector(&job);
        let pods = claim_all(
            &self.context.client,
            &self.context.stores.pods,
            job.as_ref(),
            &selector,
            |_| true,
        )
        .await?;
        let step = step(&job, &pods, crate::error::now().0);
        if step.stop {
            let active: Vec<_> = pods.iter().filter(|p| pods::is_active(p)).collect();
            self.control(&job).delete_all(&active).await?;
        }
        let created = self.create(key, &job, step.create).await;
        self.write(&job, step.status).await?;
        created?;
        let expiry = self.expire(key, &job).await?;
        Ok(Again::after(expiry.or(step.again)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn job(spec: Value) -> Job {
        let mut spec = spec;
        spec["template"] = json!({});
        serde_json::from_value(json!({"metadata": {"name": "j"}, "spec": spec})).unwrap()
    }

    fn pods(phases: &[&str]) -> Vec<Arc<Pod>> {
        let pod = |phase: &&str| {
            Arc::new(
                serde_json::from_value(json!({"metadata": {}, "status": {"phase": phase}}))
                    .unwrap(),
            )
        };
        phases.iter().map(pod).collect()
    }

    #[test]
    fn steps() {
        let now = Timestamp::UNIX_EPOCH;
        for (spec, phases, create, end) in [
            (json!({"completions": 1}), vec![], 1, None),
            (
                json!({"completions": 3, "parallelism": 2}),
                vec!["Running"],
                1,
                None,
            ),
            (
                json!({"completions": 3, "parallelism": 2}),
                vec!["Succeeded", "Succeeded"],
                1,
                None,
            ),
            (
                json!({"completions": 1}),
                vec!["Succeeded"],
                0,
                Some("CompletionsReached"),
            ),
            (
                json!({"completions": 1, "backoffLimit": 1}),
                vec!["Failed"],
                1,
                None,
            ),
            (
                json!({"completions": 1, "backoffLimit": 0}),
                vec!["Failed"],
                0,
                Some("BackoffLimitExceeded"),
            ),
            (json!({"completions": 1, "suspend": true}), vec![], 0, None),
            (
                json!({"parallelism": 2}),
                vec!["Succeeded", "Running"],
                0,
                None,
            ),
            (
                json!({"parallelism": 2}),
                vec!["Succeeded", "Succeeded"],
                0,
                Some("CompletionsReached"),
            ),
            (
                json!({"completions": 1, "activeDeadlineSeconds": 0}),
                vec!["Running"],
                0,
                Some("DeadlineExceeded"),
            ),
        ] {
            let step = step(&job(spec.clone()), &pods(&phases), now);
            let shown = finished(&step.status).and_then(|c| c.reason.as_deref());
            assert_eq!((step.create, shown), (create, end), "{spec} {phases:?}");
        }
    }
}
