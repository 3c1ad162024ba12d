//! Envoy's API as the rest of the mesh sees it.
//!
//! - [`envoy`], [`google`], [`xds`]: the v3 messages (from the envoy-types crate);
//! - [`ResourceType`]: the kinds of xDS resources with their v3 and v2 type URLs;
//! - [`downgrade()`]: resources as clients of the v2 API read them;
//! - [`json`]: any Envoy message to and from proto3 JSON, nested `Any`s included;
//! - [`read()`]: JSON as people write it, v2 forms included, with errors that say where and what would fit;
//! - [`rules`] and [`extensions`]: what Envoy would refuse a message for, as far as its API says;
//! - [`merge()`], [`canonical()`] and [`walk()`]: messages of any type merged, in comparable bytes, and looked through.

mod canonical;
mod downgrade;
pub mod extensions;
pub mod json;
mod merge;
mod read;
pub mod rules;
mod type_url;
pub mod v2;
mod walk;

pub use canonical::canonical;
pub use downgrade::downgrade;
pub use envoy_types::pb::{envoy, google, xds};
pub use envoy_types::util::pack_any;
pub use merge::merge;
/// Messages known by their descriptors only.
pub use prost_reflect::{DynamicMessage, ReflectMessage};
pub use read::{ReadError, read};
pub use type_url::{ApiVersion, ResourceType, TYPE_PREFIX};
pub use walk::{Finding, Path, Step, Visitor, walk};
