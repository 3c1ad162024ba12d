//! Events are kept for an hour.

use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::Value;

use crate::json;
use crate::server::Server;
use crate::store::Object;

const EVERY: Duration = Duration::from_secs(300);
const KEEP_SECONDS: i64 = 3600;

/// Removes old events now and then, as long as the server lives.
pub(crate) fn spawn(server: &Arc<Server>) {
    let server: Weak<Server> = Arc::downgrade(server);
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(EVERY);
        loop {
            ticks.tick().await;
            let Some(server) = server.upgrade() else {
                return;
            };
            expire(&server).await;
        }
    });
}

async fn expire(server: &Server) {
    let events = server.store.collection("events");
    let now = jiff::Timestamp::now().as_second();
    for event in events
        .list(None, 0)
        .0
        .iter()
        .filter(|e| last_seen(e).is_some_and(|t| now - t > KEEP_SECONDS))
    {
        let key = (event.namespace.clone(), event.name.clone());
        if let Err(error) = server.store.delete(&events, key, event.rv, None).await {
            // It was written again meanwhile, or it is tried again at the next tick.
            tracing::debug!(namespace = event.namespace, name = event.name, %error, "an old event stays");
        }
    }
}

fn last_seen(event: &Object) -> Option<i64> {
    let time = |v: &Value, path: &[&str]| json::str_at(v, path).parse::<jiff::Timestamp>().ok();
    [
        &["lastTimestamp"][..],
        &["series", "lastObservedTime"],
        &["eventTime"],
        &["metadata", "creationTimestamp"],
    ]
    .iter()
    .find_map(|path| time(&event.value, path))
    .map(jiff::Timestamp::as_second)
}
