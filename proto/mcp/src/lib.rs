//! The Mesh Configuration Protocol `istio.mcp.v1alpha1`, generated from `proto/`.
//!
//! A sink asks for collections and acknowledges each response by nonce; a source answers with resources whose bodies
//! are `google.protobuf.Any` of the config messages.

pub use generated::istio::mcp::v1alpha1 as mcp;
pub use pbjson_types::{Any, Timestamp};
pub use proto_wellknown::rpc;

#[allow(missing_docs, unreachable_pub, clippy::all, rustdoc::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use prost::Message as _;

    use super::mcp::{RequestResources, Resource, Resources, SinkNode};

    #[test]
    fn messages_on_the_wire() {
        let request = RequestResources {
            sink_node: Some(SinkNode {
                id: "n".to_owned(),
                ..Default::default()
            }),
            collection: "c".to_owned(),
            response_nonce: "1".to_owned(),
            error_detail: Some(super::rpc::Status {
                code: 3,
                ..Default::default()
            }),
            incremental: true,
            ..Default::default()
        };
        let bytes = [
            0x0a, 3, 0x0a, 1, b'n', 0x12, 1, b'c', 0x22, 1, b'1', 0x2a, 2, 0x08, 3, 0x30, 1,
        ];
        assert_eq!(request.encode_to_vec(), bytes);
        let response = Resources {
            resources: vec![Resource {
                body: Some(super::Any {
                    type_url: "t".to_owned(),
                    value: vec![1].into(),
                }),
                ..Default::default()
            }],
            nonce: "2".to_owned(),
            ..Default::default()
        };
        let bytes = [0x1a, 8, 0x12, 6, 0x0a, 1, b't', 0x12, 1, 1, 0x2a, 1, b'2'];
        assert_eq!(response.encode_to_vec(), bytes);
        assert_eq!(Resources::decode(&bytes[..]).unwrap(), response);
    }
}
