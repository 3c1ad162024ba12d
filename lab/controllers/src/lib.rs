//! The controllers of the lab: everything that turns what users ask for into pods and addresses.
//!
//! [`run`] starts one watch per kind, shared by all controllers (`context`), and one keyed work queue per controller
//! (`runtime`). Handlers of changes only put keys into queues; a worker takes a key, reads the stores, decides with pure
//! functions and writes through the API server, so that admission, validation and optimistic concurrency apply to
//! controllers as to anybody. Nothing polls: timers exist only for back-off, deadlines, the autoscaler's period and the
//! life of events. What a controller knows is in the API server; it can be restarted at any moment.

mod autoscaler;
mod context;
mod daemon_set;
mod deployment;
mod disruption;
mod endpoints;
mod error;
mod event_ttl;
mod garbage;
mod inventory;
mod job;
mod namespaces;
mod owners;
mod pod_control;
mod pods;
mod replica_set;
mod runtime;
mod scheduler;
mod service_accounts;
mod stateful_set;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use runtime::driver::spawn;

pub use error::{Error, Result};

/// Settings of the controllers.
#[derive(Clone, Debug)]
pub struct Config {
    /// Certificate authority of the API server, PEM; published in every namespace as `kube-root-ca.crt`.
    pub cluster_ca_pem: String,
    /// How often each HorizontalPodAutoscaler is evaluated.
    pub hpa_sync_period: Duration,
    /// How long events are kept.
    pub event_ttl: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster_ca_pem: String::new(),
            hpa_sync_period: Duration::from_secs(15),
            event_ttl: Duration::from_secs(3600),
        }
    }
}

/// Runs all controllers until `shutdown`.
///
/// They start working once every store has a complete picture; an API server that is not there yet, or goes away, is
/// waited for with back-off.
pub async fn run(client: Client, config: Config, shutdown: CancellationToken) -> Result<()> {
    let (recorder, event_writer) = runtime::events::channel(client.clone());
    let context = Arc::new(context::Context {
        client,
        config,
        stores: context::Stores::new(),
        recorder,
    });

    // Handlers first, watches second: no change may pass before somebody listens.
    let inventory = inventory::Inventory::new(context.client.clone());
    feed(&inventory, &context.stores);
    let garbage = Arc::new(garbage::GarbageCollector::new(
        context.clone(),
        inventory.clone(),
    ));
    let namespaces = Arc::new(namespaces::Namespaces::new(
        context.clone(),
        inventory.clone(),
    ));
    let autoscalers = Arc::new(autoscaler::Autoscalers::new(
        context.clone(),
        inventory.clone(),
    ));
    let deployments = Arc::new(deployment::Deployments::new(context.clone()));
    let replica_sets = Arc::new(replica_set::ReplicaSets::new(context.clone()));
    let endpoints = Arc::new(endpoints::EndpointsController::new(context.clone()));
    let scheduler = Arc::new(scheduler::Scheduler::new(context.clone()));
    let daemon_sets = Arc::new(daemon_set::DaemonSets::new(context.clone()));
    let jobs = Arc::new(job::Jobs::new(context.clone()));
    let stateful_sets = Arc::new(stateful_set::StatefulSets::new(context.clone()));
    let budgets = Arc::new(disruption::Budgets::new(context.clone()));
    let furniture = Arc::new(service_accounts::NamespaceFurniture::new(context.clone()));
    let token_secrets = Arc::new(service_accounts::TokenSecrets::new(context.clone()));

    let mut tasks = JoinSet::new();
    tasks.spawn(event_writer.run(shutdown.clone()));
    context
        .stores
        .follow(&mut tasks, &context.client, &shutdown);
    tasks.spawn(inventory.run(shutdown.clone()));
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = context.stores.synced() => {}
    }
    tracing::info!("controllers have a complete picture and start working");
    spawn(&mut tasks, furniture, &shutdown);
    spawn(&mut tasks, scheduler, &shutdown);
    spawn(&mut tasks, endpoints, &shutdown);
    spawn(&mut tasks, replica_sets, &shutdown);
    spawn(&mut tasks, deployments, &shutdown);
    spawn(&mut tasks, token_secrets, &shutdown);
    spawn(&mut tasks, garbage, &shutdown);
    spawn(&mut tasks, namespaces, &shutdown);
    spawn(&mut tasks, autoscalers, &shutdown);
    spawn(&mut tasks, budgets, &shutdown);
    spawn(&mut tasks, daemon_sets, &shutdown);
    spawn(&mut tasks, jobs, &shutdown);
    spawn(&mut tasks, stateful_sets, &shutdown);
    tasks.spawn(event_ttl::run(context.clone(), shutdown.clone()));
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Kinds with a complete shared store need no second watch for the inventory.
fn feed(inventory: &Arc<inventory::Inventory>, stores: &context::Stores) {
    inventory.feed(&stores.pods, true);
    inventory.feed(&stores.services, true);
    inventory.feed(&stores.endpoints, true);
    inventory.feed(&stores.slices, true);
    inventory.feed(&stores.replica_sets, true);
    inventory.feed(&stores.deployments, true);
    inventory.feed(&stores.stateful_sets, true);
    inventory.feed(&stores.daemon_sets, true);
    inventory.feed(&stores.revisions, true);
    inventory.feed(&stores.jobs, true);
    inventory.feed(&stores.autoscalers, true);
    inventory.feed(&stores.budgets, true);
    inventory.feed(&stores.nodes, false);
    inventory.feed(&stores.namespaces, false);
    inventory.feed(&stores.service_accounts, true);
}
