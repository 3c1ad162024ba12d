//! Envoy's messages, reduced to the fields that subscribing needs. Everything else is skipped while decoding.
//!
//! Names are `bytes` here where Envoy has `string`: the same on the wire, and shared with the message instead of copied.

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::Node;
use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Any {
    #[prost(string, tag = "1")]
    pub(super) type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct DiscoveryRequest {
    #[prost(string, tag = "1")]
    pub(super) version_info: String,
    #[prost(message, optional, tag = "2")]
    pub(super) node: Option<Node>,
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub(super) resource_names: Vec<Bytes>,
    #[prost(string, tag = "4")]
    pub(super) type_url: String,
    #[prost(string, tag = "5")]
    pub(super) response_nonce: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct DeltaDiscoveryRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) node: Option<Node>,
    #[prost(string, tag = "2")]
    pub(super) type_url: String,
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub(super) resource_names_subscribe: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "4")]
    pub(super) resource_names_unsubscribe: Vec<Bytes>,
    #[prost(string, tag = "6")]
    pub(super) response_nonce: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct DiscoveryResponse {
    #[prost(string, tag = "1")]
    pub(super) version_info: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) resources: Vec<Any>,
    #[prost(string, tag = "4")]
    pub(super) type_url: String,
    #[prost(string, tag = "5")]
    pub(super) nonce: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct DeltaResource {
    #[prost(message, optional, tag = "2")]
    pub(super) resource: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct DeltaDiscoveryResponse {
    #[prost(message, repeated, tag = "2")]
    pub(super) resources: Vec<DeltaResource>,
    #[prost(string, tag = "4")]
    pub(super) type_url: String,
    #[prost(string, tag = "5")]
    pub(super) nonce: String,
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub(super) removed_resources: Vec<Bytes>,
}

/// `envoy.config.cluster.v3.Cluster`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Cluster {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) name: Bytes,
    #[prost(int32, tag = "2")]
    pub(super) discovery_type: i32,
}

/// `Cluster.DiscoveryType.EDS`
pub(super) const EDS: i32 = 3;

/// `envoy.config.endpoint.v3.ClusterLoadAssignment`
#[derive(Clone, PartialEq, Message)]
pub(super) struct ClusterLoadAssignment {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) cluster_name: Bytes,
}

/// `envoy.config.route.v3.RouteConfiguration`
#[derive(Clone, PartialEq, Message)]
pub(super) struct RouteConfiguration {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) name: Bytes,
}

/// `envoy.config.listener.v3.Listener`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Listener {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) name: Bytes,
    #[prost(message, repeated, tag = "3")]
    pub(super) filter_chains: Vec<FilterChain>,
    #[prost(message, optional, tag = "25")]
    pub(super) default_filter_chain: Option<FilterChain>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct FilterChain {
    #[prost(message, repeated, tag = "3")]
    pub(super) filters: Vec<Filter>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Filter {
    #[prost(message, optional, tag = "4")]
    pub(super) typed_config: Option<Any>,
}

const HCM: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

#[derive(Clone, PartialEq, Message)]
pub(super) struct HttpConnectionManager {
    #[prost(message, optional, tag = "3")]
    pub(super) rds: Option<Rds>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Rds {
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) route_config_name: Bytes,
}

impl Listener {
    /// The route configurations its connection managers ask for.
    pub(super) fn routes(&self) -> impl Iterator<Item = Bytes> {
        self.filter_chains
            .iter()
            .chain(&self.default_filter_chain)
            .flat_map(|chain| &chain.filters)
            .filter_map(|filter| filter.typed_config.as_ref())
            .filter(|config| config.type_url == HCM)
            .filter_map(|config| {
                HttpConnectionManager::decode(config.value.clone())
                    .ok()?
                    .rds
            })
            .map(|rds| rds.route_config_name)
    }
}
