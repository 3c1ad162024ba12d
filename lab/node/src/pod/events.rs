//! Events of the node: what `kubectl describe pod` shows.
//!
//! Emitting never waits: a bounded queue feeds one task that creates events or raises the count of an equal one. When
//! the queue is full the event is dropped and counted; the next one that gets through says how many were lost.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use tokio::sync::mpsc;

const QUEUE: usize = 1024;
/// Remembered events for counting repeats; then the memory starts anew.
const REMEMBERED: usize = 4096;

/// Handle for emitting events.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Note>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Note {
    about: ObjectReference,
    kind: &'static str,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

/// Event type for what is expected.
pub(crate) const NORMAL: &str = "Normal";
/// Event type for what is not.
pub(crate) const WARNING: &str = "Warning";

impl Recorder {
    /// A recorder and the task that must run for it.
    pub(crate) fn new(client: Client, node: String) -> (Self, impl Future<Output = ()>) {
        let (queue, inbox) = mpsc::channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        (
            Self {
                queue,
                dropped: dropped.clone(),
            },
            write(client, node, inbox, dropped),
        )
    }

    /// Emits an event.
    pub(crate) fn emit(
        &self,
        about: &ObjectReference,
        kind: &'static str,
        reason: &'static str,
        message: String,
    ) {
        let note = Note {
            about: about.clone(),
            kind,
            reason,
            message,
            at: Timestamp::now(),
        };
        if self.queue.try_send(note).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn write(
    client: Client,
    node: String,
    mut inbox: mpsc::Receiver<Note>,
    dropped: Arc<AtomicU64>,
) {
    let mut seen: HashMap<(String, String, String, String), (String, i32)> = HashMap::new();
    while let Some(note) = inbox.recv().await {
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(
                lost,
                "events were dropped because the API server was slower than they came"
            );
        }
        if seen.len() >= REMEMBERED {
            seen.clear();
        }
        let key = (
            note.about.uid.clone().unwrap_or_default(),
            note.about.field_path.clone().unwrap_or_default(),
            note.reason.to_owned(),
            note.message.clone(),
        );
        let namespace = note
            .about
            .namespace
            .clone()
            .unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        if let Some((name, count)) = seen.get_mut(&key) {
            *count += 1;
            let patch = serde_json::json!({"count": *count, "lastTimestamp": Time(note.at)});
            if api
                .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
                .await
                .is_ok()
            {
                continue;
            }
        }
        let event = event(&note, &namespace, &node);
        let name = event.metadata.name.clone().unwrap_or_default();
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                seen.insert(key, (name, 1));
            }
            // The namespace is going away, or the server is: an event is not worth more.
            Err(error) => tracing::debug!(reason = note.reason, %error, "event not recorded"),
        }
    }
}

fn event(note: &Note, namespace: &str, node: &str) -> Event {
    let object = note.about.name.clone().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{object}.{:016x}", rand::random::<u64>())),
            namespace: Some(namespace.to_owned()),
            ..Default::default()
        },
        involved_object: note.about.clone(),
        type_: Some(note.kind.into()),
        reason: Some(note.reason.into()),
        message: Some(note.message.clone()),
        count: Some(1),
        first_timestamp: Some(Time(note.at)),
        last_timestamp: Some(Time(note.at)),
        source: Some(EventSource {
            component: Some("kubelet".into()),
            host: Some(node.to_owned()),
        }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(node.to_owned()),
        ..Default::default()
    }
}
