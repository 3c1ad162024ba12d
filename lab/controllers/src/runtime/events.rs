//! Writes core/v1 Events as `kubectl describe` and `kubectl get events` know them.
//!
//! Written by: controllers, without waiting (a bounded channel; when it is full, events are dropped and counted in the
//! log, never the work). Read by: one task that creates an Event or raises the count of the one it made before.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::now;

/// Events waiting to be written; beyond this they are dropped.
const BACKLOG: usize = 1024;
/// How many earlier events are remembered for counting repeats.
const REMEMBERED: usize = 4096;

/// Severity, as the API spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Normal,
    Warning,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// How a component dates its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// count, firstTimestamp, lastTimestamp
    Counted,
    /// eventTime and action, as the scheduler does
    Dated(&'static str),
}

#[derive(Debug)]
struct Note {
    about: ObjectReference,
    component: &'static str,
    kind: Kind,
    reason: &'static str,
    message: String,
    style: Style,
}

/// Handle for recording; cheap to clone.
#[derive(Clone)]
pub(crate) struct Recorder {
    notes: mpsc::Sender<Note>,
}

/// The writing end, to be run as a task.
pub(crate) struct Writer {
    client: Client,
    notes: mpsc::Receiver<Note>,
    known: HashMap<Identity, Written>,
}

#[derive(PartialEq, Eq, Hash)]
struct Identity {
    uid: String,
    component: &'static str,
    reason: &'static str,
    message: String,
}

struct Written {
    name: String,
    count: i32,
}

pub(crate) fn channel(client: Client) -> (Recorder, Writer) {
    let (sender, notes) = mpsc::channel(BACKLOG);
    (
        Recorder { notes: sender },
        Writer {
            client,
            notes,
            known: HashMap::new(),
        },
    )
}

/// A reference to `object`, as events carry it.
pub(crate) fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: object.namespace(),
        name: object.meta().name.clone(),
        uid: object.uid(),
        resource_version: object.resource_version(),
        field_path: None,
    }
}

impl Recorder {
    pub(crate) fn record<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        component: &'static str,
        kind: Kind,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.send(Note {
            about: reference(object),
            component,
            kind,
            reason,
            message: message.into(),
            style: Style::Counted,
        });
    }

    /// An event in the scheduler's form: eventTime and action, no count.
    pub(crate) fn record_dated<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        component: &'static str,
        kind: Kind,
        reason: &'static str,
        action: &'static str,
        message: impl Into<String>,
    ) {
        self.send(Note {
            about: reference(object),
            component,
            kind,
            reason,
            message: message.into(),
            style: Style::Dated(action),
        });
    }

    fn send(&self, note: Note) {
        if let Err(error) = self.notes.try_send(note) {
            tracing::debug!(%error, "event dropped: the backlog is full or the lab is stopping");
        }
    }
}

impl Writer {
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let note = tokio::select! {
                () = shutdown.cancelled() => return,
                note = self.notes.recv() => note,
            };
            let Some(note) = note else { return };
            if let Err(error) = self.write(note).await {
                // Typical: the namespace is being deleted. Events are a courtesy, the work itself is done.
                tracing::debug!(%error, "event not written");
            }
        }
    }

    async fn write(&mut self, note: Note) -> Result<(), kube::Error> {
        let namespace = note
            .about
            .namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let identity = Identity {
            uid: note.about.uid.clone().unwrap_or_default(),
            component: note.component,
            reason: note.reason,
            message: note.message.clone(),
        };
        if note.style == Style::Counted
            && let Some(written) = self.known.get_mut(&identity)
        {
            let count = written.count + 1;
            let patch = json!({"count": count, "lastTimestamp": now()});
            match api
                .patch(&written.name, &PatchParams::default(), &Patch::Merge(patch))
                .await
            {
                Ok(_) => {
                    written.count = count;
                    return Ok(());
                }
                // It has aged out: begin a new one.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        let event = build(&note, &namespace);
        let name = event.name_any();
        api.create(&PostParams::default(), &event).await?;
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        self.known.insert(identity, Written { name, count: 1 });
        Ok(())
    }
}

fn build(note: &Note, namespace: &str) -> Event {
    let about = note.about.name.as_deref().unwrap_or("unknown");
    let mut event = Event {
        metadata: ObjectMeta {
            name: Some(format!("{about}.{:016x}", rand::random::<u64>())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: note.about.clone(),
        message: Some(note.message.clone()),
        reason: Some(note.reason.to_owned()),
        reporting_component: Some(note.component.to_owned()),
        reporting_instance: Some(String::new()),
        type_: Some(note.kind.as_str().to_owned()),
        ..Event::default()
    };
    match note.style {
        Style::Counted => {
            event.source = Some(EventSource {
                component: Some(note.component.to_owned()),
                host: None,
            });
            event.count = Some(1);
            event.first_timestamp = Some(now());
            event.last_timestamp = event.first_timestamp.clone();
        }
        Style::Dated(action) => {
            event.action = Some(action.to_owned());
            event.event_time = Some(MicroTime(jiff::Timestamp::now()));
            event.reporting_instance = Some(format!("{}-lab", note.component));
        }
    }
    event
}
