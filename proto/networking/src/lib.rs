//! Types of Istio 1.4's configuration APIs, generated from `proto/`: wire format (prost) and proto3 JSON (serde).
//!
//! JSON accepts camelCase and snake_case field names, enum values by name or number, and Go durations; it refuses
//! unknown fields. Field-level documentation is in the `.proto` files. Defaults and validation are `mesh-config`'s.

pub use generated::istio::authentication::v1alpha1 as authentication;
pub use generated::istio::mesh::v1alpha1 as mesh;
pub use generated::istio::networking::v1alpha3 as networking;
pub use generated::istio::rbac::v1alpha1 as rbac;
pub use generated::istio::security::v1beta1 as security;
pub use generated::istio::r#type::v1beta1 as selector;
/// What a [`Value`] of a [`Struct`] may be.
pub use pbjson_types::value::Kind;
pub use pbjson_types::{BoolValue, Int64Value, ListValue, Struct, Timestamp, UInt32Value, Value};
pub use proto_wellknown::Duration;

#[allow(missing_docs, unreachable_pub, clippy::all, rustdoc::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

#[cfg(test)]
mod tests;
