//! Pods: one worker task per pod, fed by one watch on the pods of this node.
//!
//! ```text
//! API server ── watch ──> manager ── one channel each ──> worker ── status, events ──> API server
//!                                                        │  ├─ sandbox (pause process)
//!                                                        │  ├─ containers (shims)   ── exits ──┐
//!                                                        │  └─ probes               ── results ┤
//!                                                        └────────────── inbox <───────────────┘
//! ```
//! Nobody but its worker touches a pod's directory and processes, except those processes themselves.

pub(crate) mod cleanup;
pub(crate) mod container_state;
pub(crate) mod events;
pub(crate) mod hooks;
pub(crate) mod http;
pub(crate) mod manager;
pub(crate) mod plan;
pub(crate) mod probes;
pub(crate) mod sandbox;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod table;
pub(crate) mod worker;

use std::sync::Arc;

use kube::Client;
use tokio::sync::watch;

use crate::{
    images::Images,
    lab::state::StateDir,
    network::{addresses::Addresses, services::ServiceTable},
    objects::Objects,
};

/// What every worker shares.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) node_name: String,
    pub(crate) state: StateDir,
    pub(crate) images: Images,
    pub(crate) addresses: Addresses,
    pub(crate) objects: Arc<Objects>,
    pub(crate) services: watch::Receiver<Arc<ServiceTable>>,
    pub(crate) events: events::Recorder,
    pub(crate) table: table::PodTable,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Context")
            .field("node", &self.node_name)
            .finish_non_exhaustive()
    }
}
