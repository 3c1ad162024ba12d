//! Small builders for Envoy messages. No policy here: who calls them decides.

mod http;
pub mod regex;
pub mod safe;

use std::{collections::HashMap, net::IpAddr, time::Duration as StdDuration};

pub use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3 as cluster, core::v3 as core, endpoint::v3 as endpoint,
            listener::v3 as listener, route::v3 as route,
        },
        r#type::{matcher::v3 as matcher, v3 as kind},
    },
    google::protobuf::{
        Any, BoolValue, Duration, Struct, UInt32Value, UInt64Value, Value, value::Kind,
    },
};
pub(crate) use http::{Hcm, Routes, access_log, http_connection_manager, typed_filter};
use prost::{Message, Name};

/// Type URL and bytes of a message.
pub fn any<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

/// A wrapper value.
pub fn uint(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

/// A wrapper value.
pub fn boolean(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

/// A duration.
pub fn duration(value: StdDuration) -> Option<Duration> {
    Some(Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or(0),
    })
}

/// A TCP address.
pub fn socket_address(address: impl Into<String>, port: u32) -> core::Address {
    use core::{address, socket_address::PortSpecifier};
    core::Address {
        address: Some(address::Address::SocketAddress(core::SocketAddress {
            address: address.into(),
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..Default::default()
        })),
    }
}

/// A Unix socket.
pub fn pipe(path: impl Into<String>) -> core::Address {
    core::Address {
        address: Some(core::address::Address::Pipe(core::Pipe {
            path: path.into(),
            ..Default::default()
        })),
    }
}

/// A prefix of addresses.
pub fn cidr(address: IpAddr, prefix: u8) -> core::CidrRange {
    core::CidrRange {
        address_prefix: address.to_string(),
        prefix_len: uint(u32::from(prefix)),
    }
}

/// The whole address as a prefix.
pub fn host_cidr(address: IpAddr) -> core::CidrRange {
    cidr(address, if address.is_ipv4() { 32 } else { 128 })
}

/// Resources of this type come on the same stream.
pub fn ads(initial_fetch_timeout: Option<StdDuration>) -> core::ConfigSource {
    core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            Default::default(),
        )),
        initial_fetch_timeout: initial_fetch_timeout.and_then(duration),
        resource_api_version: core::ApiVersion::V3.into(),
        ..Default::default()
    }
}

/// A string value of a `Struct`.
pub fn string_value(text: impl Into<String>) -> Value {
    Value {
        kind: Some(Kind::StringValue(text.into())),
    }
}

/// A `Struct` from its fields.
pub fn structure<const N: usize>(fields: [(&str, Value); N]) -> Struct {
    Struct {
        fields: stable_map(fields.map(|(k, v)| (k.to_owned(), v))),
    }
}

/// A hash map that iterates in the order of its keys.
///
/// envoy-types keeps maps in `std::collections::HashMap`, whose order is random per instance, and prost encodes in that
/// order. Versions are content hashes, so equal content must give equal bytes. Our maps have one to three entries: rebuilding
/// until the order comes out sorted takes a few tries. Give up after 64 (chance under 10⁻⁵ with three entries).
pub fn stable_map<V: Clone>(entries: impl IntoIterator<Item = (String, V)>) -> HashMap<String, V> {
    let entries: Vec<(String, V)> = entries.into_iter().collect();
    let mut map: HashMap<String, V> = entries.iter().cloned().collect();
    for _ in 0..64 {
        if map.keys().is_sorted() {
            break;
        }
        map = entries.iter().cloned().collect();
    }
    map
}

/// Metadata of one namespace.
pub fn metadata(namespace: &str, fields: Struct) -> core::Metadata {
    core::Metadata {
        filter_metadata: stable_map([(namespace.to_owned(), fields)]),
        ..Default::default()
    }
}

/// `filter_metadata.istio.config`: which object a resource was made from.
pub fn config_metadata(path: &str) -> core::Metadata {
    metadata("istio", structure([("config", string_value(path))]))
}

/// A string matcher that compares the whole text.
pub fn exact(text: impl Into<String>) -> matcher::StringMatcher {
    matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Exact(text.into())),
        ..Default::default()
    }
}

/// A listener filter by its Envoy name.
pub fn listener_filter<M: Message + Name>(name: &str, config: &M) -> listener::ListenerFilter {
    listener::ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener::listener_filter::ConfigType::TypedConfig(any(
            config,
        ))),
        ..Default::default()
    }
}

/// A network filter by its Envoy name.
pub fn network_filter<M: Message + Name>(name: &str, config: &M) -> listener::Filter {
    listener::Filter {
        name: name.to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(any(config))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_maps_encode_equally() {
        let make = || {
            structure([
                ("a", string_value("1")),
                ("b", string_value("2")),
                ("c", string_value("3")),
            ])
        };
        let first = make().encode_to_vec();
        assert!((0..200).all(|_| make().encode_to_vec() == first));
    }

    #[test]
    fn type_urls_carry_the_host_part() {
        let any = any(&core::Node::default());
        assert_eq!(
            any.type_url,
            "type.googleapis.com/envoy.config.core.v3.Node"
        );
    }
}
