//! Services, EndpointSlices (or Endpoints), Pods and Nodes of one Kubernetes cluster.
//!
//! One task owns the index. A list replaces what was known of its kind when it is complete, never before, so neither a lost
//! API server nor a slow relist empties anything. Events that are ready together become one state.
//!
//! When what the mesh says of registries changes (its trust domain, its default visibility), everything is listed anew and
//! converted by the new rules; the old state stays in use until that is complete.
//!
//! Cost: an event costs work in its own object, plus the endpoints of the services that list a changed pod's address. A
//! state shares everything that did not change with the one before.

mod index;
mod watch;

use std::{collections::BTreeMap, time::Duration};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use kube::Client;
use mesh_service::Drain;
use pilot_generate::{model, registry::kubernetes::Context};
use tokio::{sync::watch as channel, time::Instant};

use self::{
    index::Index,
    watch::{Change, Kind, RETRY_MAX},
};
use super::{Outlet, Platform, Registry, Setup};
use crate::metrics::Metrics;

/// Events taken into one state at most.
const BATCH: usize = 1024;

/// No try waits longer than twice the longest back-off. A watch that starts again after failures says nothing of it until
/// something changes, so silence is the sign of success.
const QUIET: Duration = Duration::from_secs(RETRY_MAX.as_secs() * 3);

pub(super) const PLATFORM: Platform = Platform {
    name: "Kubernetes",
    registry: model::Registry::Kubernetes,
    needs_kubernetes: true,
    make: |setup| match setup.client.clone() {
        Some(client) => Ok(Box::new(Kubernetes::new(client, setup))),
        None => anyhow::bail!("--registries Kubernetes needs a Kubernetes API"),
    },
};

/// The registry of one cluster.
pub(super) struct Kubernetes {
    cluster: Cluster,
    context: channel::Receiver<Option<Context>>,
}

struct Cluster {
    client: Client,
    /// Only this namespace; empty: all.
    namespace: String,
    metrics: Metrics,
}

impl Kubernetes {
    pub(super) fn new(client: Client, setup: &Setup) -> Self {
        Self {
            cluster: Cluster {
                client,
                namespace: setup.namespace.clone(),
                metrics: setup.metrics.clone(),
            },
            context: setup.context.clone(),
        }
    }
}

impl Registry for Kubernetes {
    fn run(self: Box<Self>, mut outlet: Outlet, drain: Drain) -> BoxFuture<'static, ()> {
        async move {
            let Self { cluster, context } = *self;
            tokio::select! {
                () = cluster.follow(context, &mut outlet) => {}
                () = drain.begun() => {}
            }
        }
        .boxed()
    }
}

impl Cluster {
    async fn follow(&self, mut settings: channel::Receiver<Option<Context>>, outlet: &mut Outlet) {
        let slices = self.has_slices(outlet).await;
        if !slices {
            tracing::info!("the API server knows no EndpointSlices; Endpoints are used instead");
        }
        // Ends when whoever reads the mesh settings does, with the process.
        while let Ok(context) = settings.wait_for(Option::is_some).await.map(|c| c.clone()) {
            tokio::select! {
                () = self.read(context.unwrap_or_default(), slices, outlet) => return,
                changed = settings.changed() => if changed.is_err() { return },
            }
            tracing::info!(
                registry = outlet.cluster(),
                "mesh settings changed: listing anew"
            );
        }
    }

    /// Follows the cluster for ever.
    async fn read(&self, context: Context, slices: bool, outlet: &mut Outlet) {
        let mut events = watch::watch(&self.client, &self.namespace, slices).ready_chunks(BATCH);
        let mut index = Index::new(context, outlet.empty(), self.metrics.clone());
        let mut failed: BTreeMap<Kind, Instant> = BTreeMap::new();
        let mut look = tokio::time::interval(RETRY_MAX);
        loop {
            let chunk = tokio::select! {
                chunk = events.next() => chunk,
                _ = look.tick() => {
                    failed.retain(|kind, at| {
                        let recovered = at.elapsed() > QUIET;
                        if recovered {
                            outlet.recovered(kind.name());
                        }
                        !recovered
                    });
                    continue;
                }
            };
            // Watchers do not end.
            let Some(chunk) = chunk else { return };
            for (kind, change) in chunk {
                match change {
                    Ok(change) => {
                        // Before each try to list there is an "Init".
                        if !matches!(change, Change::Init) {
                            failed.remove(&kind);
                            outlet.recovered(kind.name());
                        }
                        index.take(kind, change);
                    }
                    Err(error) => {
                        failed.insert(kind, Instant::now());
                        outlet.failed(kind.name(), chain(&error));
                    }
                }
            }
            if let Some((shard, event)) = index.publish() {
                outlet.publish(shard, event);
            }
        }
    }

    /// Whether the API server has `discovery.k8s.io/v1`. Asks until it answers.
    async fn has_slices(&self, outlet: &mut Outlet) -> bool {
        const WHAT: &str = "discovery.k8s.io/v1";
        let mut wait = Duration::from_millis(200);
        loop {
            let answer = match self.client.list_api_group_resources(WHAT).await {
                Ok(list) => Some(list.resources.iter().any(|r| r.name == "endpointslices")),
                Err(kube::Error::Api(status)) if status.code == 404 => Some(false),
                Err(error) => {
                    outlet.failed(WHAT, chain(&error));
                    None
                }
            };
            if let Some(answer) = answer {
                outlet.recovered(WHAT);
                return answer;
            }
            tokio::time::sleep(wait.mul_f64(rand::random_range(0.8..1.2))).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
