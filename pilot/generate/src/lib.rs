//! Pilot's pure core: from registries and config to Envoy v3 messages. No IO, no clock, no runtime.
//!
//! # The way through
//!
//! ```text
//! registries ─ registry::kubernetes ─ Shards ─┐
//! Configs, MeshConfig ────────────────────────┴─> Inputs ── Snapshot::build(&inputs, previous) ──> Snapshot (immutable)
//! Envoy Node ── Proxy::from_node ──> Proxy ── ScopeKey::of(&snapshot, &proxy) ──> ScopeKey
//! Snapshot + ScopeKey ── Scope::build ──> Scope ── generate::{clusters, endpoints, listeners, route} ──> Envoy v3
//! two Snapshots ── ChangeSet::between ──> what a change touches
//! ```
//!
//! Who writes: Pilot's registries give out a [`Shard`] each; the snapshot is rebuilt after each debounced change.
//! Who reads: the xDS side, which keeps encoded resources by `(ScopeKey, name)`.
//!
//! # Sharing
//!
//! A [`ScopeKey`] holds everything of a proxy that its *shared* configuration depends on (namespace, DNS domain, the
//! labels that some VirtualService asks for, capture mode …): proxies with equal keys get equal outbound clusters,
//! endpoints, routes and outbound listeners, so these are generated and encoded once per scope, not once per proxy.
//! What depends on the one proxy is small and separate: [`generate::inbound_clusters`],
//! [`generate::inbound_listeners`], and the chain [`generate::own_address_chain`] that wildcard listeners have
//! as their first one. `clusters` and `listeners` put both parts together.
//!
//! # Cost
//!
//! With S services, C config objects and E endpoints: building a snapshot costs O(S + C) pointer work for the parts whose inputs
//! changed (a part whose input `Arc` is the same as before is taken over as it is; parsed objects are taken over one by
//! one); endpoints are never walked. A scope costs O(S + C) once per key and snapshot. Generation is linear in its output.
//!
//! # Bad input
//!
//! Nothing that a user can write may make Envoy refuse a resource, because a refused resource would stop the config of
//! everybody else in it. What cannot be expressed is left out, as small a piece as possible, and named in a [`Report`].
//!
//! # Tests
//!
//! `testdata/in/NAME.yaml` (Kubernetes objects, config, mesh settings, a proxy's node) gives
//! `testdata/out/NAME.{clusters,listeners,routes,endpoints,report}.yaml`; `UPDATE_GOLDEN=1 cargo test -p pilot-generate`
//! rewrites them. Everything in them is loaded by the real Envoy, as are random mixtures of bad config.

pub mod compile;
pub mod envoy;
pub mod generate;
pub mod model;
pub mod names;
mod options;
pub mod patch;
pub mod registry;
pub mod report;
pub mod snapshot;

pub use model::{NodeError, Proxy, ProxyKind};
pub use options::Options;
pub use report::{Rejection, Report};
pub use snapshot::{ChangeSet, Inputs, Scope, ScopeKey, Shard, Snapshot, View, ViewKey};
