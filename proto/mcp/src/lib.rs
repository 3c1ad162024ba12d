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
