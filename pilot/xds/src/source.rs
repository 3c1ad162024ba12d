//! What the engine asks of its owner.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;

use crate::resource::{Collection, Resource, ResourceType};

/// A node that cannot be served; closes its stream with `INVALID_ARGUMENT`.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct NodeError(pub String);

/// Says of a name whether a change may have touched the resource.
pub type Predicate = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Which resources of a type a change may have touched, for one proxy.
///
/// May say too much (the engine compares versions before anything travels), never too little. Names are asked about, not
/// listed: who makes a change cannot know what clients will have subscribed to by the time they take it up.
#[derive(Clone)]
pub enum Touched {
    /// None of them.
    Nothing,
    /// Those of which one of these says so.
    Matching(Vec<Predicate>),
    /// Any of them.
    Everything,
}

impl Touched {
    /// More predicates than this cost more than looking at everything.
    const MANY: usize = 8;

    /// What one or the other touches.
    pub(crate) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Everything, _) | (_, Self::Everything) => Self::Everything,
            (Self::Nothing, other) | (other, Self::Nothing) => other,
            (Self::Matching(mut some), Self::Matching(more)) => {
                some.extend(more);
                if some.len() > Self::MANY {
                    Self::Everything
                } else {
                    Self::Matching(some)
                }
            }
        }
    }
}

impl std::fmt::Debug for Touched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => f.write_str("Nothing"),
            Self::Matching(predicates) => write!(f, "Matching({})", predicates.len()),
            Self::Everything => f.write_str("Everything"),
        }
    }
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
