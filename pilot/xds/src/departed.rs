//! What clients held when they left, for the moment until they are back.
//!
//! A state-of-the-world client that reconnects does not say which clusters it has, and removes those that are missing from
//! the first list it is sent, while its old routes still lead to them. So the list begins with what it had here before:
//! clusters that have gone meanwhile stay until it has the new routes, as they would have on one stream. (A delta client
//! says what it has.) A client that comes from another replica is not known here.
//!
//! Written by streams that end, taken by streams that begin. Holds pointers to lists that clients share, for
//! [`REMEMBERED_FOR`] and of at most [`REMEMBERED`] clients.

use std::{sync::Arc, time::Duration};

use ahash::HashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::resource::Collection;

/// Envoy is back within seconds.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);

const REMEMBERED: usize = 20_000;

#[derive(Default)]
struct State {
    clients: HashMap<String, (Arc<Collection>, Instant)>,
    swept: Option<Instant>,
}

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Departed(Mutex<State>);

impl Departed {
    /// Remembers the clusters of a node.
    pub(crate) fn leave(&self, node: &str, clusters: Arc<Collection>) {
        if clusters.resources().is_empty() {
            return;
        }
        let now = Instant::now();
        let mut state = self.0.lock();
        let due = state
            .swept
            .is_none_or(|swept| swept + REMEMBERED_FOR / 4 <= now);
        if due || state.clients.len() >= REMEMBERED {
            state
                .clients
                .retain(|_, (_, since)| *since + REMEMBERED_FOR > now);
            state.swept = Some(now);
        }
        if state.clients.len() < REMEMBERED {
            state.clients.insert(node.to_owned(), (clusters, now));
        }
    }

    /// What a node had, if it left a moment ago.
    pub(crate) fn take(&self, node: &str) -> Option<Arc<Collection>> {
        let (clusters, since) = self.0.lock().clients.remove(node)?;
        (since.elapsed() < REMEMBERED_FOR).then_some(clusters)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::resource::Resource;

    #[tokio::test(start_paused = true)]
    async fn a_client_is_remembered_for_a_while_and_taken_once() {
        let departed = Departed::default();
        let clusters = || Arc::new(Collection::new(vec![Resource::new("a", vec![1])]));
        departed.leave("x", clusters());
        departed.leave("nothing", Arc::default());
        assert!(departed.take("x").is_some());
        assert!(departed.take("x").is_none() && departed.take("nothing").is_none());
        departed.leave("x", clusters());
        tokio::time::advance(REMEMBERED_FOR).await;
        departed.leave("y", clusters());
        assert_eq!(departed.0.lock().clients.len(), 1, "the old one was swept");
        assert!(departed.take("x").is_none() && departed.take("y").is_some());
    }
}
