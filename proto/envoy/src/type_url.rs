//! Type URLs of xDS resources, and their v2 and v3 names.
//!
//! A stream speaks either version of the API; everything behind it speaks v3. What is inside the resources is the
//! subject of [`crate::v2`].

use std::fmt;

/// What every type URL starts with.
pub const TYPE_PREFIX: &str = "type.googleapis.com/";

/// Which version of Envoy's API a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ApiVersion {
    /// `envoy.api.v2`, for Envoy before 1.18 and gRPC clients before 1.50.
    V2,
    /// `envoy.config.*.v3`.
    V3,
}

/// A kind of resource that discovery services hand out, in the order in which a push sends them.
///
/// Adding a kind means adding a variant and its rows in the tables below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// CDS: `envoy.config.cluster.v3.Cluster`.
    Cluster,
    /// EDS: `envoy.config.endpoint.v3.ClusterLoadAssignment`; a resource bears the name of the cluster it belongs to.
    Endpoint,
    /// LDS: `envoy.config.listener.v3.Listener`.
    Listener,
    /// RDS: `envoy.config.route.v3.RouteConfiguration`.
    Route,
    /// SDS: `envoy.extensions.transport_sockets.tls.v3.Secret`.
    Secret,
}

impl ResourceType {
    /// All of them in the order that makes before it breaks: what is referred to comes before what refers to it.
    pub const ALL: [Self; 5] = [
        Self::Cluster,
        Self::Endpoint,
        Self::Listener,
        Self::Route,
        Self::Secret,
    ];

    /// The v3 type URL.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        }
    }

    /// The v2 type URL.
    pub const fn v2_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.api.v2.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.api.v2.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.api.v2.Listener",
            Self::Route => "type.googleapis.com/envoy.api.v2.RouteConfiguration",
            Self::Secret => "type.googleapis.com/envoy.api.v2.auth.Secret",
        }
    }

    /// The type URL in a version of the API.
    pub const fn url(self, version: ApiVersion) -> &'static str {
        match version {
            ApiVersion::V2 => self.v2_url(),
            ApiVersion::V3 => self.type_url(),
        }
    }

    /// The name used in metrics and logs.
    pub const fn short(self) -> &'static str {
        match self {
            Self::Cluster => "cds",
            Self::Endpoint => "eds",
            Self::Listener => "lds",
            Self::Route => "rds",
            Self::Secret => "sds",
        }
    }

    /// The type of a v3 or v2 URL.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|t| t.type_url() == url || t.v2_url() == url)
    }

    /// Whether a client that names nothing means everything (clusters and listeners), and whether, in
    /// state-of-the-world, a response is the whole list: what is missing from it is removed by the client.
    pub const fn is_whole(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }

    /// The place in [`ResourceType::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::{cluster, endpoint, listener, route};
    use envoy_types::pb::envoy::extensions::transport_sockets::tls;
    use prost::Name;

    use super::*;

    #[test]
    fn urls_are_those_of_the_messages() {
        let urls = [
            cluster::v3::Cluster::type_url(),
            endpoint::v3::ClusterLoadAssignment::type_url(),
            listener::v3::Listener::type_url(),
            route::v3::RouteConfiguration::type_url(),
            tls::v3::Secret::type_url(),
        ];
        for (index, (ty, url)) in ResourceType::ALL.into_iter().zip(urls).enumerate() {
            assert_eq!(ty.type_url(), url);
            assert_eq!(ty.index(), index);
            for version in [ApiVersion::V2, ApiVersion::V3] {
                assert_eq!(ResourceType::from_type_url(ty.url(version)), Some(ty));
            }
        }
        assert_eq!(ResourceType::from_type_url("type.googleapis.com/x"), None);
    }
}
