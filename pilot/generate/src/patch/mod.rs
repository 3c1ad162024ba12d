//! EnvoyFilters: patches to what the generators made.
//!
//! # The way of a patch
//!
//! [`EnvoyFilterConfig::compile`] reads an EnvoyFilter once per change: selector, conditions, and values as messages of
//! Envoy's API. [`PatchSet::of`] says which patches apply to a proxy; that set is part of the
//! [`ScopeKey`](crate::ScopeKey), so proxies with the same patches share what is generated for them, and proxies without any
//! (nearly all) share as if there were no EnvoyFilters. [`clusters`], [`listeners`] and [`routes`] then take a
//! generator's list and give it back encoded, patched where a patch applies.
//!
//! # Order
//!
//! EnvoyFilters of the root namespace come first, then those of the proxy's namespace, each by creation. Within a
//! resource, what removes, merges and replaces comes before what adds, outer parts before inner ones ([`stage`]); what a patch
//! adds is therefore not touched by other patches, except that filters may be placed relative to it.
//!
//! # Never worse than without
//!
//! A patched resource is looked at as Envoy will look at it ([`check`]): it decodes, keeps its name, obeys the rules of
//! Envoy's API, each chain of filters ends with the one filter that must be its last, no two chains match the same, no
//! two virtual hosts claim a domain, regular expressions compile. If not, its patches are tried one by one, and those
//! that spoil it are left out *for this resource* and reported. A bug that panics counts as one that spoils it. Sizes are bounded:
//! [`MAX_GROWTH`] per resource, [`MAX_TOTAL_GROWTH`] per list.
//!
//! What cannot be foreseen is what only Envoy's own code knows: whether a Lua script or a Wasm module loads, a file
//! exists, a cluster that a tracer names is there, a combination makes sense. Envoy then refuses that resource, keeps the
//! former one, takes the others, and says so in its NACK.
//!
//! # Where this differs from Istio 1.4
//!
//! - Merging replaces durations and wrapped values instead of adding them up field by field (`proto_envoy::merge`).
//! - `ADD` and `INSERT_AFTER` never place a filter behind the one that must be last: `ADD` places it before that.
//! - `INSERT_*` place HTTP routes, too. `INSERT_FIRST` and `REPLACE` are those of later versions.
//! - `MERGE` without a filter to match merges into filters of the value's type, not into all; `REMOVE` and `REPLACE` must match one.
//! - Chains of `virtualInbound` answer to the name and port of the listener they were copied from as well as to its own.
//! - `portName` of a listener, `name` and `applicationProtocols` of a chain, and `gateway` and `portName` of a
//!   gateway's plain HTTP routes are looked at.
//!
//! # Cost
//!
//! None without patches but one look at an empty list. With patches: each resource that one concerns is cloned, encoded,
//! decoded and checked once, linear in its size.

mod check;
mod cluster;
mod compile;
mod condition;
mod deprecated;
mod filter;
mod listener;
mod route;
mod run;
mod select;

use proto_networking::networking::envoy_filter::{ApplyTo, patch::Operation};

pub use cluster::clusters;
pub use compile::EnvoyFilterConfig;
pub use listener::listeners;
pub use route::routes;
pub use select::{FilterIndex, PatchSet};

/// Bytes by which patches may make one resource larger.
pub const MAX_GROWTH: usize = 2 << 20;
/// Bytes by which patches may make one list of resources larger.
pub const MAX_TOTAL_GROWTH: usize = 32 << 20;

/// A message and the bytes to send for it. Equal messages have equal bytes here, whatever the order of their maps.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded<M> {
    /// The message.
    pub message: M,
    /// Its encoded form.
    pub body: Vec<u8>,
}

impl<M: prost::Message> Encoded<M> {
    /// A generator's message as it is: generators take care of the order of their maps.
    pub(crate) fn plain(message: M) -> Encoded<M> {
        let body = message.encode_to_vec();
        Encoded { message, body }
    }
}

impl<M> std::ops::Deref for Encoded<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.message
    }
}

/// Which side of a proxy a resource is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Of a sidecar, towards its workload.
    Inbound,
    /// Of a sidecar, from its workload.
    Outbound,
    /// Of a router.
    Gateway,
}

/// When a patch is applied within one resource: stages come one after the other.
fn stage(apply_to: ApplyTo, operation: Operation) -> usize {
    use ApplyTo::{
        Cluster, FilterChain, HttpFilter, HttpRoute, Invalid, Listener, NetworkFilter,
        RouteConfiguration, VirtualHost,
    };
    const CHANGES: [ApplyTo; 8] = [
        Cluster,
        Listener,
        FilterChain,
        NetworkFilter,
        HttpFilter,
        RouteConfiguration,
        VirtualHost,
        HttpRoute,
    ];
    const ADDITIONS: [ApplyTo; 9] = [
        HttpRoute,
        VirtualHost,
        HttpFilter,
        NetworkFilter,
        FilterChain,
        Listener,
        Cluster,
        RouteConfiguration,
        Invalid,
    ];
    let place = |list: &[ApplyTo]| {
        list.iter()
            .position(|a| *a == apply_to)
            .unwrap_or(list.len())
    };
    match operation {
        Operation::Merge | Operation::Remove | Operation::Replace => place(&CHANGES),
        _ => CHANGES.len() + 1 + place(&ADDITIONS),
    }
}
