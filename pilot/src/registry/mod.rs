//! Service registries: one file per platform.
//!
//! Adding a platform is adding a file with a [`Platform`] and naming that in [`PLATFORMS`]. A registry reads its server
//! for ever and gives out complete [`Shard`](pilot_generate::Shard)s through its [`Outlet`]; what the mesh settings say of
//! registries reaches it through [`Setup::context`], also while it runs.

mod kubernetes;
mod mock;
mod outlet;

use futures::future::BoxFuture;
use kube::Client;
use mesh_service::{Drain, Health};
use pilot_generate::{model, registry::kubernetes::Context};
use tokio::sync::watch;

use self::outlet::Outlet;
use crate::{inputs::Intake, metrics::Metrics};

/// Every platform that `--registries` may name.
const PLATFORMS: [&Platform; 2] = [&kubernetes::PLATFORM, &mock::PLATFORM];

/// A kind of registry.
pub(crate) struct Platform {
    /// Its name on the command line, and that of its registry.
    pub(crate) name: &'static str,
    /// The origin of its services.
    registry: model::Registry,
    /// Whether it needs the Kubernetes API.
    pub(crate) needs_kubernetes: bool,
    make: fn(&Setup) -> anyhow::Result<Box<dyn Registry>>,
}

/// What registries are made with.
pub(crate) struct Setup {
    /// The Kubernetes API, if there is one.
    pub(crate) client: Option<Client>,
    /// Only this namespace; empty: all.
    pub(crate) namespace: String,
    /// What the mesh says; the first value comes when its settings have been read.
    pub(crate) context: watch::Receiver<Option<Context>>,
    pub(crate) metrics: Metrics,
}

/// Something that knows services, their endpoints and the workloads behind them.
trait Registry: Send {
    /// Reads for ever: gives out a complete state once everything has been listed, then every change. Keeps trying when
    /// its server is away, and tells the outlet so.
    fn run(self: Box<Self>, outlet: Outlet, drain: Drain) -> BoxFuture<'static, ()>;
}

/// The platforms of these names, each once. No names: those of `default`.
pub(crate) fn platforms(
    names: &[String],
    default: &'static str,
) -> anyhow::Result<Vec<&'static Platform>> {
    let mut found: Vec<&Platform> = Vec::new();
    let given = names
        .iter()
        .map(|name| name.trim())
        .filter(|name| !name.is_empty());
    let mut wanted: Vec<&str> = given.collect();
    if wanted.is_empty() {
        wanted.push(default);
    }
    for name in wanted {
        let Some(platform) = PLATFORMS.into_iter().find(|p| p.name == name) else {
            let known: Vec<&str> = PLATFORMS.iter().map(|p| p.name).collect();
            anyhow::bail!(
                "--registries: {name:?} is not known; known are {}",
                known.join(", ")
            );
        };
        if !found.iter().any(|p| p.name == name) {
            found.push(platform);
        }
    }
    Ok(found)
}

/// Makes and starts the registries, in this order.
pub(crate) fn start(
    platforms: &[&Platform],
    setup: &Setup,
    intake: &Intake,
    health: &Health,
    drain: &Drain,
) -> anyhow::Result<()> {
    for (rank, platform) in platforms.iter().enumerate() {
        let registry = (platform.make)(setup)?;
        let Some(slot) = intake.registry(platform.name, platform.registry, rank) else {
            continue;
        };
        let condition = health.condition(format!("registry {}", platform.name));
        let outlet = Outlet::new(slot, condition, setup.metrics.clone());
        tracing::info!(registry = platform.name, "service registry");
        drain.spawn(registry.run(outlet, drain.clone()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(given: &[&str]) -> Result<Vec<&'static str>, String> {
        let given: Vec<String> = given.iter().map(|s| (*s).to_owned()).collect();
        match platforms(&given, "Kubernetes") {
            Ok(found) => Ok(found.iter().map(|p| p.name).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn platforms_are_named_and_unknown_ones_refused() {
        assert_eq!(names(&[]).unwrap(), ["Kubernetes"]);
        assert_eq!(names(&[""]).unwrap(), ["Kubernetes"]);
        let order = ["Mock", " Kubernetes", "Mock"];
        assert_eq!(names(&order).unwrap(), ["Mock", "Kubernetes"]);
        let error = names(&["Kubernetes", "Eureka"]).unwrap_err();
        assert!(
            error.contains("\"Eureka\"") && error.contains("Mock"),
            "{error}"
        );
    }
}
