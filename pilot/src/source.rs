//! Pilot as a source of resources: worlds and proxies to what the xDS engine asks for.

use std::sync::Arc;

use pilot_generate::{ChangeSet, Proxy, envoy::core::Node, model::Client};
use pilot_xds::{
    Change, Collection, NodeError, Predicate, Resource, ResourceSource, ResourceType, Touched,
};

use prost::Message as _;

use crate::{proxy::PilotProxy, world::World};

/// Something happened in a source. What exactly is found out by comparing snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Endpoints, or the workloads behind them.
    Endpoints,
    /// Anything else.
    Config,
}

impl Change for Event {
    fn merge(&mut self, other: Self) {
        if other == Self::Config {
            *self = other;
        }
    }

    fn is_endpoints_only(&self) -> bool {
        *self == Self::Endpoints
    }
}

/// What separates two worlds.
pub(crate) struct Difference {
    pub(crate) set: Arc<ChangeSet>,
    endpoints: Predicate,
}

impl Difference {
    pub(crate) fn new(set: ChangeSet) -> Self {
        let set = Arc::new(set);
        let endpoints = set.clone();
        Self {
            set,
            endpoints: Arc::new(move |cluster| endpoints.touches_endpoints(cluster)),
        }
    }
}

/// A secret of files that Envoy reads itself.
fn secret(name: &Arc<str>) -> Option<Resource> {
    let secret = pilot_generate::generate::secret(name)?;
    Some(Resource::new(name.clone(), secret.encode_to_vec()))
}

/// See the [module](self). Holds nothing: worlds bring their caches along.
#[derive(Debug, Default)]
pub(crate) struct PilotSource;

impl ResourceSource for PilotSource {
    type World = World;
    type Change = Difference;
    type Proxy = PilotProxy;

    fn attach(&self, _: &World, node: &Node) -> Result<PilotProxy, NodeError> {
        Proxy::from_node(node)
            .map(PilotProxy::new)
            .map_err(|error| NodeError(error.to_string()))
    }

    fn reattach(
        &self,
        world: &World,
        proxy: &PilotProxy,
        change: &Difference,
    ) -> Option<PilotProxy> {
        change
            .set
            .touches_proxy(&world.snapshot, &proxy.proxy)
            .then(|| PilotProxy::new(proxy.proxy.clone()))
    }

    fn touched(&self, proxy: &PilotProxy, ty: ResourceType, change: &Difference) -> Touched {
        // What it saw last is enough to judge later changes too: one that made it see more is judged as well.
        let Some(view) = proxy.view() else {
            return Touched::Everything;
        };
        let affected = change.set.affected(&view);
        let grpc = proxy.proxy.client == Client::Grpc;
        let touched = match ty {
            // The list is the same object if nothing in it changed.
            ResourceType::Cluster => affected.clusters,
            ResourceType::Listener => affected.listeners || (grpc && affected.routes),
            ResourceType::Route => affected.routes,
            ResourceType::Endpoint if !affected.endpoints => false,
            ResourceType::Endpoint if change.set.touches_all(&view) => true,
            ResourceType::Endpoint => return Touched::Matching(vec![change.endpoints.clone()]),
            ResourceType::Secret => false,
        };
        if touched {
            Touched::Everything
        } else {
            Touched::Nothing
        }
    }

    fn collection(&self, world: &World, proxy: &PilotProxy, ty: ResourceType) -> Arc<Collection> {
        match ty {
            // gRPC has no use for what it did not name.
            _ if proxy.proxy.client == Client::Grpc => Arc::default(),
            ResourceType::Cluster => proxy.clusters(world),
            ResourceType::Listener => proxy.listeners(world),
            // The others are asked for by name only.
            _ => Arc::default(),
        }
    }

    fn named(
        &self,
        world: &World,
        proxy: &PilotProxy,
        ty: ResourceType,
        names: &[Arc<str>],
    ) -> Vec<Option<Resource>> {
        let find = |all: Arc<Collection>| names.iter().map(|name| all.get(name).cloned()).collect();
        let grpc = proxy.proxy.client == Client::Grpc;
        match ty {
            ResourceType::Cluster if grpc => proxy.scope(world).api_clusters(names),
            ResourceType::Listener if grpc => proxy.scope(world).api_listeners(names),
            ResourceType::Cluster | ResourceType::Listener => {
                find(self.collection(world, proxy, ty))
            }
            ResourceType::Endpoint => proxy.scope(world).endpoints(names),
            ResourceType::Route => proxy.scope(world).routes(names),
            // Paths of files in the proxy: the names say it all, so nothing can change them.
            ResourceType::Secret => names.iter().map(secret).collect(),
        }
    }
}
