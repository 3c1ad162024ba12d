//! Mesh settings and networks from a file or from a ConfigMap, kept current.
//!
//! Written by the task that runs the source; readers hold a `watch` receiver. What cannot be read or is invalid changes
//! nothing: the settings in use stay, and the reason is shown. A ConfigMap that does not exist (any more), or a file
//! that never was, means Istio's defaults: for networks, none.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use mesh_config::mesh::{MeshNetworks, networks_from_yaml};
use mesh_config::{ConfigError, MeshConfig};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::files;
use crate::kubernetes::{RETRY_MAX, RETRY_MIN, backoff, chain};

/// A file is looked at this often even without a notification.
const POLL: Duration = Duration::from_secs(10);
/// Quiet time after a change of the file.
const SETTLE: Duration = Duration::from_millis(100);

/// Where settings are.
#[derive(Clone)]
#[allow(missing_debug_implementations)] // kube::Client has none.
pub enum MeshLocation {
    /// A YAML file.
    File(PathBuf),
    /// A key of a ConfigMap.
    ConfigMap {
        /// How to reach the API.
        client: kube::Client,
        /// Namespace of the ConfigMap.
        namespace: String,
        /// Its name; Istio's is `istio`.
        name: String,
        /// The key; Istio's is `mesh`.
        key: String,
    },
}

/// How reading settings goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeshStatus {
    /// Whether it is known what the settings are (or that there are none).
    pub synced: bool,
    /// Why the newest text is not in use, or the source cannot be reached.
    pub error: Option<String>,
}

/// Settings that are read as one text.
pub trait Settings: Default + PartialEq + Send + Sync + 'static {
    /// As messages call them.
    const NAME: &'static str;

    /// Reads and validates the text; `place` says in messages where it is from.
    fn read(text: &str, place: &str) -> Result<Self, Vec<ConfigError>>;
}

impl Settings for MeshConfig {
    const NAME: &'static str = "mesh settings";

    fn read(text: &str, place: &str) -> Result<Self, Vec<ConfigError>> {
        Self::from_yaml(text, place)
    }
}

impl Settings for MeshNetworks {
    const NAME: &'static str = "mesh networks";

    fn read(text: &str, place: &str) -> Result<Self, Vec<ConfigError>> {
        networks_from_yaml(text, place)
    }
}

/// Mesh settings, kept current.
pub type MeshSource = SettingsSource<MeshConfig>;

/// Networks of the mesh, kept current.
pub type NetworksSource = SettingsSource<MeshNetworks>;

/// Settings, kept current.
#[derive(Debug)]
pub struct SettingsSource<T> {
    sender: watch::Sender<Arc<T>>,
    status: watch::Sender<MeshStatus>,
}

impl<T: Settings> Default for SettingsSource<T> {
    fn default() -> Self {
        Self {
            sender: watch::Sender::new(Arc::default()),
            status: watch::Sender::default(),
        }
    }
}

impl<T: Settings> SettingsSource<T> {
    /// A source with Istio's defaults, until it runs.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The settings, now and later. They are the defaults before the source has synced.
    pub fn subscribe(&self) -> watch::Receiver<Arc<T>> {
        self.sender.subscribe()
    }

    /// How it goes.
    pub fn status(&self) -> MeshStatus {
        self.status.borrow().clone()
    }

    /// Reads and publishes until `shutdown`. Run once.
    pub async fn run(self: Arc<Self>, location: MeshLocation, shutdown: CancellationToken) {
        let reading = async {
            match location {
                MeshLocation::File(path) => self.follow_file(&path).await,
                MeshLocation::ConfigMap {
                    client,
                    namespace,
                    name,
                    key,
                } => {
                    let api = Api::namespaced(client, &namespace);
                    self.follow_config_map(api, &name, &key).await;
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = reading => {}
        }
    }

    async fn follow_file(&self, path: &Path) {
        let mut news = files::News::new();
        // The folder, not the file: a mounted ConfigMap changes by replacing links beside the file.
        let folder = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let (mut watcher, mut seen) = (None, false);
        loop {
            if watcher.is_none() {
                watcher = news.watch(folder);
            }
            let owned = path.to_path_buf();
            match tokio::task::spawn_blocking(move || files::load(&owned)).await {
                Ok(Ok(text)) => {
                    seen = true;
                    self.take(Some(&text), &path.display().to_string());
                }
                // One that was there and is gone is an accident: what it said stays.
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound && !seen => {
                    if !self.status().synced {
                        tracing::info!(file = %path.display(), "no {} there; Istio's defaults apply", T::NAME);
                    }
                    self.take(None, "");
                }
                Ok(Err(error)) => self.fail(format!("{}: {error}", path.display())),
                Err(error) => self.fail(format!("{}: {error}", path.display())),
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = news.settled(SETTLE) => {}
            }
        }
    }

    async fn follow_config_map(&self, api: Api<ConfigMap>, name: &str, key: &str) {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut events = watcher::watcher(api, config)
            .backoff(backoff(RETRY_MIN, RETRY_MAX))
            .boxed();
        let mut listed = None;
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed = None,
                Ok(Event::InitApply(map)) => listed = Some(map),
                Ok(Event::InitDone) => self.take_map(listed.take(), name, key),
                Ok(Event::Apply(map)) => self.take_map(Some(map), name, key),
                Ok(Event::Delete(_)) => self.take_map(None, name, key),
                Err(error) => self.fail(format!("ConfigMap {name}: {}", chain(&error))),
            }
        }
    }

    fn take_map(&self, map: Option<ConfigMap>, name: &str, key: &str) {
        let text = map
            .and_then(|m| m.data)
            .and_then(|mut data| data.remove(key));
        if text.is_none() {
            tracing::info!(
                config_map = name,
                key,
                "no {} there; Istio's defaults apply",
                T::NAME
            );
        }
        self.take(text.as_deref(), &format!("ConfigMap {name}, key {key}"));
    }

    fn take(&self, text: Option<&str>, place: &str) {
        let settings = match text.map_or(Ok(T::default()), |text| T::read(text, place)) {
            Ok(settings) => settings,
            Err(errors) => {
                let reasons: Vec<String> = errors.iter().map(ToString::to_string).collect();
                // Known, if wrong: waiting for better would keep the mesh down.
                self.status.send_modify(|status| status.synced = true);
                self.fail(reasons.join(" | "));
                return;
            }
        };
        self.status.send_replace(MeshStatus {
            synced: true,
            error: None,
        });
        self.sender.send_if_modified(|current| {
            let changed = **current != settings;
            if changed {
                tracing::info!(place, "{} changed", T::NAME);
                *current = Arc::new(settings);
            }
            changed
        });
    }

    fn fail(&self, error: String) {
        self.status.send_modify(|status| {
            if status.error.as_ref() != Some(&error) {
                tracing::warn!(%error, "{} are not as written; those in use stay", T::NAME);
            }
            status.error = Some(error);
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn a_file_is_followed_and_a_broken_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mesh");
        std::fs::write(&path, "trustDomain: one\n").unwrap();
        let source = MeshSource::new();
        let mut mesh = source.subscribe();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(
            Arc::clone(&source).run(MeshLocation::File(path.clone()), shutdown.clone()),
        );
        mesh.wait_for(|m| m.trust_domain == "one").await.unwrap();
        assert_eq!(
            source.status(),
            MeshStatus {
                synced: true,
                error: None
            }
        );

        std::fs::write(&path, "trustDomain: two\nconnectTimout: 1s\n").unwrap();
        let mut status = source.status.subscribe();
        status.wait_for(|s| s.error.is_some()).await.unwrap();
        assert!(source.status().error.unwrap().contains("connectTimout"));
        assert_eq!(mesh.borrow().trust_domain, "one");

        std::fs::write(&path, "trustDomain: three\n").unwrap();
        mesh.wait_for(|m| m.trust_domain == "three").await.unwrap();
        assert_eq!(source.status().error, None);
        shutdown.cancel();
        task.await.unwrap();
    }
    /// Time is virtual: the file is looked for several times.
    #[tokio::test(start_paused = true)]
    async fn a_file_that_never_was_is_no_error_and_may_come_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mesh");
        let source = MeshSource::new();
        let mut mesh = source.subscribe();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(
            Arc::clone(&source).run(MeshLocation::File(path.clone()), shutdown.clone()),
        );
        tokio::time::sleep(3 * POLL).await;
        assert_eq!(
            source.status(),
            MeshStatus {
                synced: true,
                error: None
            }
        );
        std::fs::write(&path, "trustDomain: late\n").unwrap();
        mesh.wait_for(|m| m.trust_domain == "late").await.unwrap();
        std::fs::remove_file(&path).unwrap();
        tokio::time::sleep(3 * POLL).await;
        assert!(source.status().error.is_some());
        assert_eq!(mesh.borrow().trust_domain, "late");
        shutdown.cancel();
        task.await.unwrap();
    }
}
