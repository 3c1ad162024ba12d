//! Telling the world: the pod's status in the API, and the table for logs and exec.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use tokio::time::Instant;

use super::Worker;
use crate::pod::{
    container_state::State,
    status,
    table::{ContainerView, PodView},
};

impl Worker {
    /// Publishes the status if it differs from what was published last.
    pub(super) async fn publish(&mut self) {
        self.publish_view();
        let inputs = status::Inputs {
            pod: &self.pod,
            sandbox: self.sandbox.as_ref(),
            containers: &self.containers,
            started_at: self.started_at,
            policy: self
                .pod
                .spec
                .as_ref()
                .and_then(|spec| spec.restart_policy.as_deref())
                .unwrap_or("Always"),
        };
        let next = status::compute(&inputs, &mut self.conditions);
        if self.published.as_ref() == Some(&next) {
            self.publish_retry = None;
            return;
        }
        let mut body = serde_json::json!({ "metadata": { "uid": self.uid() }, "status": &next });
        // A merge patch keeps what it does not name: an address that is gone must be taken back.
        if let Some(status) = body["status"].as_object_mut() {
            for key in ["podIP", "podIPs", "reason", "message"] {
                status.entry(key).or_insert(serde_json::Value::Null);
            }
        }
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), self.namespace());
        match api
            .patch_status(self.name(), &PatchParams::default(), &Patch::Merge(&body))
            .await
        {
            Ok(_) => {
                self.published = Some(next);
                self.publish_retry = None;
            }
            // Deleted, or replaced by a namesake: the watch will say so.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                tracing::debug!(pod = self.name(), code = status.code, "status not written");
                self.publish_retry = Some(Instant::now() + Duration::from_secs(1));
            }
            Err(error) => {
                tracing::warn!(pod = %format!("{}/{}", self.namespace(), self.name()), %error, "writing the status failed, retrying");
                self.publish_retry = Some(Instant::now() + Duration::from_secs(1));
            }
        }
    }

    fn publish_view(&self) {
        let containers = self.containers.iter().map(|container| {
            let never = container.attempt == 0
                && matches!(container.state, State::Waiting { .. } | State::Starting);
            // While the next run waits, logs are those of the last one.
            let waiting_for_next = container.attempt > 0
                && matches!(container.state, State::Waiting { .. } | State::Starting);
            ContainerView {
                name: container.spec.name.clone(),
                attempt: (!never).then(|| container.attempt - u32::from(waiting_for_next)),
                running: container.running().cloned(),
                waiting: match &container.state {
                    State::Waiting { reason, .. } => Some((*reason).to_owned()),
                    State::Starting => Some("ContainerCreating".to_owned()),
                    _ => None,
                },
            }
        });
        self.context.table.put(PodView {
            namespace: self.namespace().to_owned(),
            name: self.name().to_owned(),
            uid: self.uid().to_owned(),
            sandbox: self.sandbox.clone(),
            containers: containers.collect(),
        });
    }
}
