//! Configuration of the mesh as values: kinds, objects, snapshots, mesh settings. No IO happens here.
//!
//! - [`kinds`] and [`ConfigKind`]: the table of kinds, with group, version and plural;
//! - [`parse`]: YAML and JSON to [`TypedObject`]s; errors name file, line, object and field, and never stop others;
//! - [`validate`]: the rules of each kind;
//! - [`envoy_patch`]: the values of EnvoyFilters as messages of Envoy's API;
//! - [`MeshConfig`] and [`ProxyConfig`]: settings of the mesh with Istio's defaults;
//! - [`ingress`]: Kubernetes' Ingress, which Pilot makes Gateways and VirtualServices of;
//! - [`Store`]: where a source collects objects; yields immutable [`Configs`] and [`ChangeSet`]s.
//!
//! Sources write (`mesh-sources`), services read.

pub mod envoy_patch;
pub mod error;
pub mod ingress;
mod kind;
pub mod mesh;
mod meta;
pub mod parse;
mod path;
mod store;
pub mod validate;
mod yaml;

pub use error::{ConfigError, Place};
pub use kind::{ConfigKind, Configs, Kind, Scope, TypedObject, kinds};
pub use mesh::{MeshConfig, OutboundTrafficPolicy, ProxyConfig};
pub use meta::{Meta, Object, ObjectKey};
pub use path::{FieldPath, Segment};
pub use store::{Change, ChangeSet, Store};
pub use yaml::MAX_DOCUMENT_BYTES;
