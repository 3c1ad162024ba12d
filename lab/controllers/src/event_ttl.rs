//! Removes events that have not happened again for their time to live.
//!
//! One list per twelfth of that time; events are few and nobody else waits for this.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::{Api, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::error::{During, Result, unless_gone};

pub(crate) async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let period = (context.config.event_ttl / 12).max(Duration::from_secs(1));
    let mut failing = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(period) => {}
        }
        match sweep(&context).await {
            Ok(()) => failing = false,
            Err(error) if failing => tracing::debug!(%error, "old events stay"),
            Err(error) => {
                tracing::warn!(%error, "old events stay; trying again");
                failing = true;
            }
        }
    }
}

async fn sweep(context: &Context) -> Result<()> {
    let all: Api<Event> = Api::all(context.client.clone());
    let events = all
        .list(&ListParams::default())
        .await
        .during(|| "list events".to_owned())?;
    let limit = Timestamp::now()
        - jiff::SignedDuration::try_from(context.config.event_ttl).unwrap_or_default();
    for event in events
        .items
        .iter()
        .filter(|event| last_seen(event).is_some_and(|at| at < limit))
    {
        let namespace = event.namespace().unwrap_or_default();
        let name = event.name_any();
        let params = DeleteParams {
            // A repeat that arrives meanwhile gives the event a new life.
            preconditions: Some(Preconditions {
                uid: event.uid(),
                resource_version: event.resource_version(),
            }),
            ..DeleteParams::default()
        };
        let deleted = context
            .api::<Event>(&namespace)
            .delete(&name, &params)
            .await;
        match unless_gone(deleted.during(|| format!("delete Event {namespace}/{name}"))) {
            Err(error) if error.is_conflict() => {}
            other => drop(other?),
        }
    }
    Ok(())
}

fn last_seen(event: &Event) -> Option<Timestamp> {
    let series = event
        .series
        .as_ref()
        .and_then(|s| s.last_observed_time.as_ref())
        .map(|t| t.0);
    let times = [
        series,
        event.last_timestamp.as_ref().map(|t| t.0),
        event.event_time.as_ref().map(|t| t.0),
        event.creation_timestamp().map(|t| t.0),
    ];
    times.into_iter().flatten().max()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn the_last_occurrence_counts() {
        let event: Event = serde_json::from_value(json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "involvedObject": {},
            "lastTimestamp": "2026-01-01T00:30:00Z"}))
        .unwrap();
        assert_eq!(
            last_seen(&event),
            Some("2026-01-01T00:30:00Z".parse().unwrap())
        );
    }
}
