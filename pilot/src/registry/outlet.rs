//! Where a registry gives out what it knows, and says how it is doing.
//!
//! Trouble with the server is logged when it begins and when it ends, however often the registry tries meanwhile. Before
//! the first complete reading it keeps Pilot from being ready; afterwards `/ready` only tells of it, for what is known stays
//! in use and Pilot goes on serving. `pilot_registry_up` and `pilot_registry_errors` say the same.

use std::{collections::BTreeMap, fmt::Display};

use mesh_service::Condition;
use pilot_generate::Shard;

use crate::{inputs::Slot, metrics::Metrics, source::Event};

/// See the [module](self).
pub(super) struct Outlet {
    slot: Slot,
    condition: Condition,
    metrics: Metrics,
    synced: bool,
    /// What does not work at the moment, and the last error of each.
    trouble: BTreeMap<String, String>,
}

impl Outlet {
    pub(super) fn new(slot: Slot, condition: Condition, metrics: Metrics) -> Self {
        condition.missing("its server has not answered yet");
        metrics.registry_up(slot.cluster(), false);
        Self {
            slot,
            condition,
            metrics,
            synced: false,
            trouble: BTreeMap::new(),
        }
    }

    /// The name of the registry.
    pub(super) fn cluster(&self) -> &str {
        self.slot.cluster()
    }

    /// A shard that knows nothing.
    pub(super) fn empty(&self) -> Shard {
        self.slot.empty()
    }

    /// Gives out a complete state.
    pub(super) fn publish(&mut self, shard: Shard, event: Event) {
        if !std::mem::replace(&mut self.synced, true) {
            tracing::info!(
                registry = self.cluster(),
                services = shard.services.len(),
                workloads = shard.workloads.len(),
                "registry read completely"
            );
        }
        self.slot.set(shard, event);
        self.tell();
    }

    /// Something could not be read. Call it for every try.
    pub(super) fn failed(&mut self, what: &str, error: impl Display) {
        let first = self.trouble.is_empty();
        let error = error.to_string();
        self.metrics.registry_error(self.slot.cluster());
        if first {
            let meanwhile = match self.synced {
                true => "what is known stays in use",
                false => "nothing is served before it has been read",
            };
            tracing::warn!(
                registry = self.cluster(), what, %error, meanwhile,
                "registry does not answer; trying on"
            );
        }
        self.trouble.insert(what.to_owned(), error);
        self.tell();
    }

    /// It could be read again.
    pub(super) fn recovered(&mut self, what: &str) {
        if self.trouble.remove(what).is_none() {
            return;
        }
        if self.trouble.is_empty() {
            tracing::info!(registry = self.cluster(), "registry answers again");
        }
        self.tell();
    }

    fn tell(&self) {
        let up = self.synced && self.trouble.is_empty();
        self.metrics.registry_up(self.slot.cluster(), up);
        let trouble: Vec<String> = self
            .trouble
            .iter()
            .map(|(what, error)| format!("{what}: {error}"))
            .collect();
        let trouble = trouble.join("; ");
        match (self.synced, trouble.is_empty()) {
            (true, true) => self.condition.met(),
            (true, false) => self
                .condition
                .degraded(format!("what is known stays in use; {trouble}")),
            (false, true) => self.condition.missing("not read completely yet"),
            (false, false) => self.condition.missing(trouble),
        }
    }
}
