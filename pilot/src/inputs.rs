//! The newest state of every source, and the task that makes worlds of it.
//!
//! Sources write their own slot and submit an event; the pipeline settles events; [`rebuild`] takes what is in the
//! slots, builds a snapshot, compares it with the last one and publishes a world if anything differs. Nothing is
//! published before every source has been read completely once, and a source that loses its server leaves its slot as it
//! is: no world ever shrinks because somebody could not be reached.
//!
//! An endpoint event overtakes config that is still settling, so it takes only endpoints and workloads from the slots.

use std::{sync::Arc, time::Instant};

use ahash::AHashMap;
use mesh_config::{Configs, MeshConfig, mesh::MeshNetworks};
use mesh_service::Condition;
use parking_lot::Mutex;
use pilot_generate::{
    ChangeSet, Inputs, Snapshot,
    model::{EndpointMap, Service, ServiceKey, WorkloadMap},
};
use pilot_xds::{Changes, Debounce, Publisher, pipeline};

use crate::{
    metrics::Metrics,
    source::{Difference, Event, PilotSource},
    world::World,
};

/// What a service registry knows. Immutable: a change is a new value with new parts.
#[derive(Clone, Debug, Default)]
pub(crate) struct RegistryState {
    pub(crate) services: Arc<AHashMap<ServiceKey, Arc<Service>>>,
    pub(crate) endpoints: Arc<EndpointMap>,
    pub(crate) workloads: Arc<WorkloadMap>,
}

#[derive(Default)]
struct Slots {
    mesh: Option<Arc<MeshConfig>>,
    networks: Option<Arc<MeshNetworks>>,
    configs: Option<Arc<Configs>>,
    registry: Option<RegistryState>,
}

/// Where sources put what they know. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Intake {
    slots: Arc<Mutex<Slots>>,
    changes: Changes<Event>,
    metrics: Metrics,
}

impl Intake {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self {
            slots: Arc::default(),
            changes: Changes::default(),
            metrics,
        }
    }

    pub(crate) fn set_mesh(&self, mesh: Arc<MeshConfig>) {
        self.slots.lock().mesh = Some(mesh);
        self.note("config", Event::Config);
    }

    pub(crate) fn set_networks(&self, networks: Arc<MeshNetworks>) {
        self.slots.lock().networks = Some(networks);
        self.note("config", Event::Config);
    }

    pub(crate) fn set_configs(&self, configs: Arc<Configs>) {
        self.slots.lock().configs = Some(configs);
        self.note("config", Event::Config);
    }

    pub(crate) fn set_registry(&self, state: RegistryState, event: Event) {
        self.slots.lock().registry = Some(state);
        let kind = if event == Event::Endpoints {
            "eds"
        } else {
            "svc"
        };
        self.note(kind, event);
    }

    /// Builds a world even if nothing seems to have changed (`?push=1`).
    pub(crate) fn poke(&self) {
        self.changes.submit(Event::Config);
    }

    fn note(&self, kind: &'static str, event: Event) {
        self.metrics.inbound(kind);
        self.changes.submit(event);
    }

    /// The sources that have not been read completely so far.
    fn missing(&self) -> Vec<&'static str> {
        let slots = self.slots.lock();
        [
            (slots.mesh.is_none(), "mesh settings"),
            (slots.networks.is_none(), "mesh networks"),
            (slots.configs.is_none(), "config"),
            (slots.registry.is_none(), "service registry"),
        ]
        .into_iter()
        .filter_map(|(missing, name)| missing.then_some(name))
        .collect()
    }
}

/// Makes worlds for ever.
pub(crate) async fn rebuild(
    intake: Intake,
    options: Arc<pilot_generate::Options>,
    debounce: Debounce,
    publisher: Arc<Publisher<PilotSource>>,
    ready: Condition,
) {
    let mut inputs = Inputs {
        options,
        ..Inputs::default()
    };
    let mut logged = Logged::default();
    let changes = intake.changes.clone();
    pipeline::run(changes, debounce, async move |event| {
        let missing = intake.missing();
        if !missing.is_empty() {
            ready.missing(format!(
                "waiting for the first complete reading of: {}",
                missing.join(", ")
            ));
            return;
        }
        {
            let slots = intake.slots.lock();
            let first = publisher.current().is_none();
            if let Some(registry) = &slots.registry {
                inputs.endpoints = registry.endpoints.clone();
                inputs.workloads = registry.workloads.clone();
                if first || event == Event::Config {
                    inputs.services = registry.services.clone();
                }
            }
            if first || event == Event::Config {
                inputs.mesh = slots.mesh.clone().unwrap_or_default();
                inputs.networks = slots.networks.clone().unwrap_or_default();
                inputs.configs = slots.configs.clone().unwrap_or_default();
            }
        }
        let (inputs, publisher, metrics) =
            (inputs.clone(), publisher.clone(), intake.metrics.clone());
        let built = tokio::task::spawn_blocking(move || build(&inputs, &publisher, &metrics)).await;
        match built {
            Ok(report) => {
                ready.met();
                if let Some(report) = report {
                    logged.log(&report);
                }
            }
            // A bug in building must not end the service: the last world stays, and the next change is a new try.
            Err(error) => {
                intake.metrics.build_errors.inc();
                tracing::error!(%error, "building a snapshot failed; the last one stays in use");
            }
        }
    })
    .await;
}

/// Builds and publishes; returns what is wrong in the config if that may have changed.
fn build(
    inputs: &Inputs,
    publisher: &Publisher<PilotSource>,
    metrics: &Metrics,
) -> Option<pilot_generate::Report> {
    let begun = Instant::now();
    let former = publisher.current();
    let former_world = former.as_ref().map(|published| published.world.clone());
    let snapshot = Snapshot::build(inputs, former_world.as_ref().map(|world| &*world.snapshot));
    let (world, difference) = match &former_world {
        None => (
            World::first(Arc::new(snapshot)),
            Difference::new(ChangeSet::everything()),
        ),
        Some(former) => {
            let set = ChangeSet::between(&former.snapshot, &snapshot);
            if set.is_empty() {
                return None;
            }
            let world = former.next(Arc::new(snapshot), &set);
            (world, Difference::new(set))
        }
    };
    let endpoints_only = difference.set.endpoints_only();
    let report = (!endpoints_only).then(|| world.snapshot.report().clone());
    metrics.world(&world.snapshot, begun.elapsed());
    let number = publisher.publish(Arc::new(world), difference);
    tracing::debug!(number, endpoints_only, took = ?begun.elapsed(), "new world");
    report
}

/// Says each rejection once.
#[derive(Default)]
struct Logged(std::collections::BTreeSet<pilot_generate::Rejection>);

impl Logged {
    fn log(&mut self, report: &pilot_generate::Report) {
        let now: std::collections::BTreeSet<_> = report.rejections.iter().cloned().collect();
        for rejection in now.difference(&self.0) {
            tracing::warn!(%rejection, "part of a config object is not used");
        }
        self.0 = now;
    }
}
