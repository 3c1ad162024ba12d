//! Mesh settings and config: which source they come from, and the tasks that carry them to the slots.

use std::{path::PathBuf, sync::Arc, time::Duration};

use kube::Client;
use mesh_config::MeshConfig;
use mesh_service::{Condition, Drain};
use mesh_sources::{
    ConfigSource, DirectoryOptions, DirectorySource, KubernetesOptions, KubernetesSource,
    MeshLocation, MeshSource,
};
use pilot_generate::registry::kubernetes::Context;
use tokio::sync::watch;

use crate::{inputs::Intake, metrics::Metrics};

/// The file if there is one, else the ConfigMap, else (no file, no API) the file that never was: defaults.
pub(crate) fn mesh_location(
    file: PathBuf,
    client: Option<&Client>,
    namespace: &str,
    key: &str,
) -> MeshLocation {
    match client {
        Some(client) if !file.exists() => MeshLocation::ConfigMap {
            client: client.clone(),
            namespace: namespace.to_owned(),
            name: "istio".to_owned(),
            key: key.to_owned(),
        },
        _ => MeshLocation::File(file),
    }
}

/// What registries have to know of the mesh, but for the name of the cluster. `flag` is `--trust-domain`; without it the mesh settings decide.
fn registry_context(mesh: &MeshConfig, domain: &str, flag: &str) -> Context {
    let candidates = [flag, &mesh.trust_domain, domain];
    let trust_domain = candidates.into_iter().find(|text| !text.is_empty());
    Context {
        cluster: Arc::default(),
        domain: domain.to_owned(),
        trust_domain: trust_domain.unwrap_or_default().to_owned(),
        default_export_to: mesh.default_service_export_to.clone(),
    }
}

/// Carries mesh settings to the slots, and to registries what concerns them.
pub(crate) struct MeshFollower {
    pub(crate) source: Arc<MeshSource>,
    pub(crate) intake: Intake,
    pub(crate) contexts: watch::Sender<Option<Context>>,
    pub(crate) domain: String,
    pub(crate) trust_domain: String,
    pub(crate) condition: Condition,
}

impl MeshFollower {
    pub(crate) async fn run(self, drain: Drain) {
        let mut meshes = self.source.subscribe();
        let mut known: Option<Arc<MeshConfig>> = None;
        loop {
            let status = self.source.status();
            let mesh = meshes.borrow_and_update().clone();
            let is_new = known
                .as_ref()
                .is_none_or(|known| !Arc::ptr_eq(known, &mesh));
            if status.synced && is_new {
                self.take(&mesh);
                known = Some(mesh);
            }
            match status.error {
                None if status.synced => self.condition.met(),
                // Settings that are not as written: those in use stay.
                Some(error) if status.synced => self.condition.degraded(error),
                error => self
                    .condition
                    .missing(error.unwrap_or_else(|| "not read yet".to_owned())),
            }
            // That there are none, or that they are wrong, is a status, not a change.
            let look = if known.is_some() { 1000 } else { 100 };
            tokio::select! {
                changed = meshes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(Duration::from_millis(look)) => {}
                () = drain.begun() => return,
            }
        }
    }

    fn take(&self, mesh: &Arc<MeshConfig>) {
        self.intake.set_mesh(mesh.clone());
        let context = registry_context(mesh, &self.domain, &self.trust_domain);
        self.contexts.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&context);
            if changed {
                *known = Some(context);
            }
            changed
        });
    }
}

pub(crate) fn config_source(
    config_dir: Option<PathBuf>,
    client: Option<&Client>,
    app_namespace: &str,
    drain: &Drain,
) -> Arc<dyn ConfigSource> {
    match (config_dir, client) {
        (None, Some(client)) => {
            let source = KubernetesSource::new(KubernetesOptions {
                namespace: (!app_namespace.is_empty()).then(|| app_namespace.to_owned()),
                kinds: mesh_config::ConfigKind::ALL.to_vec(),
                ..KubernetesOptions::default()
            });
            drain.spawn(source.clone().run(client.clone(), drain.token()));
            source
        }
        (directory, _) => {
            let source = DirectorySource::new(DirectoryOptions::new(directory.unwrap_or_default()));
            drain.spawn(source.clone().run(drain.token()));
            source
        }
    }
}

/// Carries config to its slot.
pub(crate) async fn follow_configs(
    source: Arc<dyn ConfigSource>,
    intake: Intake,
    metrics: Metrics,
    condition: Condition,
    drain: Drain,
) {
    let mut subscription = source.subscribe();
    let mut rejections = 0;
    let mut look = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            update = subscription.next() => match update {
                Ok(update) => {
                    for (key, change) in update.changes.iter() {
                        metrics.config_event(key.kind.kind(), match change {
                            mesh_config::Change::Added => "add",
                            mesh_config::Change::Updated => "update",
                            mesh_config::Change::Removed => "delete",
                        });
                    }
                    intake.set_configs(update.configs);
                }
                // The source ends with the drain.
                Err(_) => return,
            },
            _ = look.tick() => {}
            () = drain.begun() => return,
        }
        let status = source.status();
        let complaints = status.complaints();
        match (status.synced, complaints.is_empty()) {
            (true, true) => condition.met(),
            (true, false) => condition.degraded(complaints.join("; ")),
            (false, _) => condition.missing(complaints.join("; ")),
        }
        metrics
            .object_errors
            .inc_by(status.rejections.saturating_sub(rejections));
        rejections = status.rejections;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_then_the_mesh_then_the_domain_is_the_trust_domain() {
        let mut mesh = MeshConfig::default();
        let of =
            |mesh: &MeshConfig, flag| registry_context(mesh, "cluster.local", flag).trust_domain;
        assert_eq!(of(&mesh, ""), "cluster.local");
        mesh.trust_domain = "example.com".to_owned();
        assert_eq!(of(&mesh, ""), "example.com");
        assert_eq!(of(&mesh, "flag"), "flag");
    }
}
