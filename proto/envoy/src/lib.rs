//! Envoy's API as the rest of the mesh sees it.
//!
//! - [`envoy`], [`google`], [`xds`]: the v3 messages (from the envoy-types crate);
//! - [`ResourceType`]: the kinds of xDS resources with their v3 and v2 type URLs;
//! - [`json`]: any Envoy message to and from proto3 JSON, nested `Any`s included.

pub mod json;
mod type_url;

pub use envoy_types::pb::{envoy, google, xds};
pub use envoy_types::util::pack_any;
pub use type_url::{ResourceType, TYPE_PREFIX, v2_to_v3, v3_to_v2};
