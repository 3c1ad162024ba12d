//! Where sources put what they know.

use std::sync::Arc;

use mesh_config::{Configs, MeshConfig, mesh::MeshNetworks};
use parking_lot::Mutex;
use pilot_generate::{Inputs, Shard, model::Registry};
use pilot_xds::Changes;

use crate::{metrics::Metrics, source::Event};

struct RegistrySlot {
    /// Place in the order of registries.
    rank: usize,
    cluster: Arc<str>,
    shard: Option<Shard>,
}

#[derive(Default)]
struct Slots {
    mesh: Option<Arc<MeshConfig>>,
    networks: Option<Arc<MeshNetworks>>,
    configs: Option<Arc<Configs>>,
    /// By rank, then name.
    registries: Vec<RegistrySlot>,
}

/// The slots of all sources. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Intake {
    slots: Arc<Mutex<Slots>>,
    pub(super) changes: Changes<Event>,
    pub(super) metrics: Metrics,
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

    /// A slot for a registry, which is waited for from now on. `None` if there is one of this name.
    pub(crate) fn registry(&self, cluster: &str, registry: Registry, rank: usize) -> Option<Slot> {
        let mut slots = self.slots.lock();
        let known = slots
            .registries
            .iter()
            .any(|slot| &*slot.cluster == cluster);
        if known {
            return None;
        }
        let cluster: Arc<str> = cluster.into();
        slots.registries.push(RegistrySlot {
            rank,
            cluster: cluster.clone(),
            shard: None,
        });
        slots
            .registries
            .sort_by(|a, b| (a.rank, &a.cluster).cmp(&(b.rank, &b.cluster)));
        Some(Slot {
            intake: self.clone(),
            cluster,
            registry,
        })
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
    pub(super) fn missing(&self) -> Vec<String> {
        let slots = self.slots.lock();
        let registries = slots
            .registries
            .iter()
            .filter(|slot| slot.shard.is_none())
            .map(|slot| format!("registry {}", slot.cluster));
        let sources = [
            (slots.mesh.is_none(), "mesh settings"),
            (slots.networks.is_none(), "mesh networks"),
            (slots.configs.is_none(), "config"),
        ];
        sources
            .into_iter()
            .filter(|(missing, _)| *missing)
            .map(|(_, name)| name.to_owned())
            .chain(registries)
            .collect()
    }

    /// Takes what an event is about from the slots.
    pub(super) fn take(&self, event: Event, inputs: &mut Inputs) {
        let slots = self.slots.lock();
        let shards = slots
            .registries
            .iter()
            .filter_map(|slot| slot.shard.as_ref());
        if event == Event::Config {
            inputs.mesh = slots.mesh.clone().unwrap_or_default();
            inputs.networks = slots.networks.clone().unwrap_or_default();
            inputs.configs = slots.configs.clone().unwrap_or_default();
            inputs.shards = shards.cloned().collect();
            return;
        }
        for newest in shards {
            let known = inputs.shards.iter_mut();
            if let Some(shard) = known.into_iter().find(|s| s.cluster == newest.cluster) {
                let services = std::mem::take(&mut shard.services);
                *shard = Shard {
                    services,
                    ..newest.clone()
                };
            }
        }
    }
}

/// The slot of one registry: only its owner writes it.
pub(crate) struct Slot {
    intake: Intake,
    cluster: Arc<str>,
    registry: Registry,
}

impl Slot {
    /// The name of the registry.
    pub(crate) fn cluster(&self) -> &Arc<str> {
        &self.cluster
    }

    /// A shard of this registry that knows nothing.
    pub(crate) fn empty(&self) -> Shard {
        Shard::new(self.cluster.clone(), self.registry)
    }

    /// What the registry knows now, completely.
    pub(crate) fn set(&self, shard: Shard, event: Event) {
        self.change(|slot| slot.shard = Some(shard));
        let kind = match event {
            Event::Endpoints => "eds",
            Event::Config => "svc",
        };
        self.intake.note(kind, event);
    }

    fn change(&self, change: impl FnOnce(&mut RegistrySlot)) {
        let mut slots = self.intake.slots.lock();
        let mut all = slots.registries.iter_mut();
        if let Some(slot) = all.find(|slot| slot.cluster == self.cluster) {
            change(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn intake() -> Intake {
        Intake::new(Metrics::new(&mesh_service::Metrics::default()))
    }

    fn clusters(inputs: &Inputs) -> Vec<&str> {
        inputs.shards.iter().map(|s| &*s.cluster).collect()
    }

    #[test]
    fn registries_stand_in_their_order_and_every_one_is_waited_for() {
        let intake = intake();
        intake.set_mesh(Arc::default());
        intake.set_networks(Arc::default());
        intake.set_configs(Arc::default());
        let remote = intake.registry("west", Registry::Kubernetes, 9).unwrap();
        let consul = intake.registry("Consul", Registry::Consul, 1).unwrap();
        let primary = intake
            .registry("Kubernetes", Registry::Kubernetes, 0)
            .unwrap();
        assert!(intake.registry("west", Registry::Kubernetes, 9).is_none());
        assert_eq!(
            intake.missing(),
            ["registry Kubernetes", "registry Consul", "registry west"]
        );
        for slot in [&remote, &consul] {
            slot.set(slot.empty(), Event::Config);
        }
        assert_eq!(intake.missing(), ["registry Kubernetes"]);
        primary.set(primary.empty(), Event::Config);
        assert!(intake.missing().is_empty());
        let mut inputs = Inputs::default();
        intake.take(Event::Config, &mut inputs);
        assert_eq!(clusters(&inputs), ["Kubernetes", "Consul", "west"]);
    }

    #[test]
    fn endpoints_overtake_services_that_still_settle() {
        let intake = intake();
        let slot = intake.registry("a", Registry::Consul, 0).unwrap();
        slot.set(slot.empty(), Event::Config);
        let mut inputs = Inputs::default();
        intake.take(Event::Config, &mut inputs);
        let before = inputs.shards[0].clone();
        let newest = Shard {
            services: Arc::default(),
            endpoints: Arc::default(),
            ..slot.empty()
        };
        slot.set(newest.clone(), Event::Endpoints);
        let other = intake.registry("b", Registry::Consul, 1).unwrap();
        other.set(other.empty(), Event::Config);
        intake.take(Event::Endpoints, &mut inputs);
        assert_eq!(clusters(&inputs), ["a"], "a new registry is config");
        assert!(Arc::ptr_eq(&inputs.shards[0].services, &before.services));
        assert!(Arc::ptr_eq(&inputs.shards[0].endpoints, &newest.endpoints));
    }
}
