//! From slots to worlds.

use std::{sync::Arc, time::Instant};

use mesh_service::Condition;
use pilot_generate::{ChangeSet, Inputs, Snapshot};
use pilot_xds::{Debounce, Publisher, pipeline};

use super::Intake;
use crate::{
    metrics::Metrics,
    source::{Difference, Event, PilotSource},
    world::World,
};

/// Makes worlds for ever.
pub(crate) async fn rebuild(
    intake: Intake,
    options: Arc<pilot_generate::Options>,
    debounce: Debounce,
    publisher: Arc<Publisher<PilotSource>>,
    ready: Condition,
) {
    let mut inputs = Inputs {
        options,
        ..Inputs::default()
    };
    let mut logged = Logged::default();
    let changes = intake.changes.clone();
    pipeline::run(changes, debounce, async move |event| {
        let first = publisher.current().is_none();
        let missing = intake.missing();
        // A registry that is added later is waited for by nobody.
        if first && !missing.is_empty() {
            ready.missing(format!(
                "waiting for the first complete reading of: {}",
                missing.join(", ")
            ));
            return;
        }
        intake.take(if first { Event::Config } else { event }, &mut inputs);
        let (inputs, publisher, metrics) =
            (inputs.clone(), publisher.clone(), intake.metrics.clone());
        let built = tokio::task::spawn_blocking(move || build(&inputs, &publisher, &metrics)).await;
        match built {
            Ok(report) => {
                ready.met();
                if let Some(report) = report {
                    logged.log(&report);
                }
            }
            // A bug in building must not end the service: the last world stays, and the next change is a new try.
            Err(error) => {
                intake.metrics.build_errors.inc();
                tracing::error!(%error, "building a snapshot failed; the last one stays in use");
            }
        }
    })
    .await;
}

/// Builds and publishes; returns what is wrong in the config if that may have changed.
fn build(
    inputs: &Inputs,
    publisher: &Publisher<PilotSource>,
    metrics: &Metrics,
) -> Option<pilot_generate::Report> {
    let begun = Instant::now();
    let former = publisher.current();
    let former_world = former.as_ref().map(|published| published.world.clone());
    let snapshot = Snapshot::build(inputs, former_world.as_ref().map(|world| &*world.snapshot));
    let (world, difference) = match &former_world {
        None => (
            World::first(Arc::new(snapshot)),
            Difference::new(ChangeSet::everything()),
        ),
        Some(former) => {
            let set = ChangeSet::between(&former.snapshot, &snapshot);
            if set.is_empty() && std::ptr::eq(former.snapshot.report(), snapshot.report()) {
                return None;
            }
            let world = former.next(Arc::new(snapshot), &set);
            (world, Difference::new(set))
        }
    };
    let endpoints_only = difference.set.endpoints_only();
    let report = (!endpoints_only).then(|| world.snapshot.report().clone());
    metrics.world(&world.snapshot, begun.elapsed());
    let number = publisher.publish(Arc::new(world), difference);
    tracing::debug!(number, endpoints_only, took = ?begun.elapsed(), "new world");
    report
}

/// Says each rejection once.
#[derive(Default)]
struct Logged(std::collections::BTreeSet<pilot_generate::Rejection>);

impl Logged {
    fn log(&mut self, report: &pilot_generate::Report) {
        let now: std::collections::BTreeSet<_> = report.rejections.iter().cloned().collect();
        for rejection in now.difference(&self.0) {
            tracing::warn!(%rejection, "part of a config object is not used");
        }
        self.0 = now;
    }
}
