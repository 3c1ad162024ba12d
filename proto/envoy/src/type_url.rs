//! Type URLs of xDS resources, and their v2 and v3 names.
//!
//! A stream may speak either version; everything inside speaks v3. The bodies of the listed types are compatible on the
//! wire as far as fields exist in both.

use std::fmt;

/// What every type URL starts with.
pub const TYPE_PREFIX: &str = "type.googleapis.com/";

/// A kind of resource that discovery services hand out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoint,
    /// LDS.
    Listener,
    /// RDS.
    Route,
    /// SDS.
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
    pub const fn url(self) -> &'static str {
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

    /// The name used in metrics and logs.
    pub const fn short_name(self) -> &'static str {
        match self {
            Self::Cluster => "cds",
            Self::Endpoint => "eds",
            Self::Listener => "lds",
            Self::Route => "rds",
            Self::Secret => "sds",
        }
    }

    /// The type of a v3 or v2 URL.
    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|t| t.url() == url || t.v2_url() == url)
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short_name())
    }
}

/// The v3 URL of a v2 one; `None` if the URL is not one of the v2 resource types.
pub fn v2_to_v3(url: &str) -> Option<&'static str> {
    ResourceType::ALL
        .iter()
        .find(|t| t.v2_url() == url)
        .map(|t| t.url())
}

/// The v2 URL of a v3 one; `None` if the URL is not one of the v3 resource types.
pub fn v3_to_v2(url: &str) -> Option<&'static str> {
    ResourceType::ALL
        .iter()
        .find(|t| t.url() == url)
        .map(|t| t.v2_url())
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::{cluster, endpoint, listener, route};
    use envoy_types::pb::envoy::extensions::transport_sockets::tls;
    use prost::Name;

    use super::*;

    #[test]
    fn urls_are_those_of_the_messages() {
        assert_eq!(
            ResourceType::Cluster.url(),
            cluster::v3::Cluster::type_url()
        );
        assert_eq!(
            ResourceType::Endpoint.url(),
            endpoint::v3::ClusterLoadAssignment::type_url()
        );
        assert_eq!(
            ResourceType::Listener.url(),
            listener::v3::Listener::type_url()
        );
        assert_eq!(
            ResourceType::Route.url(),
            route::v3::RouteConfiguration::type_url()
        );
        assert_eq!(ResourceType::Secret.url(), tls::v3::Secret::type_url());
        for t in ResourceType::ALL {
            assert_eq!(ResourceType::from_url(t.url()), Some(t));
            assert_eq!(ResourceType::from_url(t.v2_url()), Some(t));
            assert_eq!(v2_to_v3(t.v2_url()), Some(t.url()));
            assert_eq!(v3_to_v2(t.url()), Some(t.v2_url()));
        }
        assert_eq!(ResourceType::from_url("type.googleapis.com/x"), None);
    }
}
