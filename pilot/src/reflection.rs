//! What gRPC reflection tells: the discovery services and the messages they speak of.

use std::collections::BTreeMap;

use prost::encoding::{WireType, encode_key, encode_varint};

/// A `FileDescriptorSet` of the v3 discovery services and everything that their files import, in wire form.
pub(crate) fn descriptors() -> Vec<u8> {
    let Some(pool) = proto_envoy::json::pool() else {
        return Vec::new();
    };
    let mut wanted: Vec<_> = pilot_xds::SERVICES
        .iter()
        .filter_map(|name| Some(pool.get_service_by_name(name)?.parent_file()))
        .collect();
    let mut files = BTreeMap::new();
    while let Some(file) = wanted.pop() {
        if !files.contains_key(file.name()) {
            wanted.extend(file.dependencies());
            files.insert(file.name().to_owned(), file);
        }
    }
    let mut set = Vec::new();
    for file in files.values() {
        let bytes = file.encode_to_vec();
        encode_key(1, WireType::LengthDelimited, &mut set);
        encode_varint(bytes.len() as u64, &mut set);
        set.extend(bytes);
    }
    set
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    #[test]
    fn services_are_described_with_what_they_import() {
        let set = super::descriptors();
        let built = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(&set)
            .build_v1();
        assert!(built.is_ok(), "{:?}", built.err());
        let text = String::from_utf8_lossy(&set);
        for name in [
            "AggregatedDiscoveryService",
            "RouteDiscoveryService",
            "DeltaDiscoveryRequest",
        ] {
            assert!(text.contains(name), "{name}");
        }
        assert!(set.len() < 1 << 20, "{} bytes", set.len());
    }
}
