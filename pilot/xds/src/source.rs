//! What the engine asks of its owner.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;

use crate::resource::{Collection, Resource, ResourceType};

/// A node that cannot be served; closes its stream with `INVALID_ARGUMENT`.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct NodeError(pub String);

/// Which resources of a type a change may have touched, for one proxy.
///
/// May name too much (the engine compares versions before anything travels), never too little.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// None of them.
    Nothing,
    /// Only these.
    Names(Arc<ahash::HashSet<Arc<str>>>),
    /// Any of them.
    Everything,
}

/// A description of what happened between two worlds; sets of it unite.
pub trait Change: Clone + Send + Sync + 'static {
    /// Takes in what another change touches.
    fn merge(&mut self, other: Self);

    /// Whether only endpoints changed: then the change overtakes config that is still settling.
    fn is_endpoints_only(&self) -> bool;
}

/// Translates worlds into resources.
///
/// Implemented by the owner over immutable worlds; called from every stream's task, so it must be cheap where nothing
/// changed: hand out shared [`Collection`]s and [`Resource`]s from a cache.
pub trait ResourceSource: Send + Sync + 'static {
    /// An immutable snapshot of everything.
    type World: Send + Sync + 'static;
    /// What distinguishes two worlds.
    type Change: Send + Sync + 'static;
    /// What is known of one connected proxy.
    type Proxy: Send + Sync + 'static;

    /// Recognises a node at the start of its stream.
    fn attach(&self, world: &Self::World, node: &Node) -> Result<Self::Proxy, NodeError>;

    /// Looks at the proxy again in a new world; `Some` if it is another one now (labels, address, services of its own),
    /// and then everything is generated anew for it.
    fn reattach(
        &self,
        world: &Self::World,
        proxy: &Self::Proxy,
        change: &Self::Change,
    ) -> Option<Self::Proxy> {
        let _ = (world, proxy, change);
        None
    }

    /// What `change` may have touched among the resources of `ty` that `proxy` sees.
    fn touched(&self, proxy: &Self::Proxy, ty: ResourceType, change: &Self::Change) -> Touched;

    /// All resources of a wildcard subscription.
    fn collection(
        &self,
        world: &Self::World,
        proxy: &Self::Proxy,
        ty: ResourceType,
    ) -> Arc<Collection>;

    /// The resources of these names, in the order of the names. `None`: no such resource, which a delta client is told
    /// and a state-of-the-world client cannot be told. Endpoints and routes that Envoy waits for should exist, empty.
    fn named(
        &self,
        world: &Self::World,
        proxy: &Self::Proxy,
        ty: ResourceType,
        names: &[Arc<str>],
    ) -> Vec<Option<Resource>>;
}
