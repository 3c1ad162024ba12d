//! Where the mesh's config comes from.
//!
//! A [`ConfigSource`] learns of objects, keeps the valid ones, and publishes immutable snapshots; readers hold a
//! [`Subscription`] each and learn with every snapshot which objects changed since the one they saw last, however long
//! they slept. Sources: [`KubernetesSource`] (list and watch of every kind) and [`DirectorySource`] (YAML files).
//! [`MeshSource`] does the same for mesh settings, [`NetworksSource`] for networks.
//!
//! What all sources promise:
//! - Nothing is published before the first complete reading ("synced").
//! - An error of the source (API away, unreadable file, watch expired) changes nothing that was published.
//! - An invalid object never stops another. The last good version of it stays in use if there was one in the life of
//!   this process; otherwise the object is left out. Either way it is listed in [`Status::rejected`] with the reasons.

mod directory;
mod files;
mod kubernetes;
mod mesh;
mod publish;

pub use directory::{DirectoryOptions, DirectorySource};
pub use kubernetes::{KubernetesOptions, KubernetesSource};
pub use mesh::{MeshLocation, MeshSource, MeshStatus, NetworksSource, Settings, SettingsSource};
pub use publish::{ConfigSource, KindStatus, Rejected, SourceClosed, Status, Subscription, Update};
