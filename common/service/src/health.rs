//! Readiness as named conditions.
//!
//! A service is ready when every condition that was declared is met. Components declare a condition when they are built
//! and hold its handle, so a dependency that is lost later turns `/ready` red with the reason, and back to green by itself.
//! A dependency that the service can do without for a while does not turn it red: its trouble is told beside "ready".

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::RwLock;
use tokio::sync::watch;

#[derive(Clone, Debug)]
enum State {
    Met,
    /// Met, but something is wrong.
    Degraded(String),
    Missing(String),
}

/// The set of conditions of one process. Cheap to clone; all clones see the same state.
#[derive(Clone, Debug)]
pub struct Health {
    conditions: Arc<RwLock<BTreeMap<String, State>>>,
    changed: Arc<watch::Sender<()>>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            conditions: Arc::default(),
            changed: Arc::new(watch::Sender::new(())),
        }
    }
}

/// The handle with which one component says whether its condition is met.
#[derive(Clone, Debug)]
pub struct Condition {
    name: String,
    health: Health,
}

impl Health {
    /// Declares a condition, not met so far. The name is what an operator reads in `/ready`.
    pub fn condition(&self, name: impl Into<String>) -> Condition {
        let condition = Condition {
            name: name.into(),
            health: self.clone(),
        };
        condition.missing("not yet");
        condition
    }

    /// The conditions that are missing, with the reason of each; empty means ready.
    pub fn missing(&self) -> Vec<(String, String)> {
        self.select(|state| match state {
            State::Missing(reason) => Some(reason),
            State::Met | State::Degraded(_) => None,
        })
    }

    /// The conditions that are met although something is wrong, with what it is.
    pub fn degraded(&self) -> Vec<(String, String)> {
        self.select(|state| match state {
            State::Degraded(trouble) => Some(trouble),
            State::Met | State::Missing(_) => None,
        })
    }

    fn select(&self, text: impl Fn(&State) -> Option<&String>) -> Vec<(String, String)> {
        let conditions = self.conditions.read();
        let named = |(name, state)| Some((String::clone(name), text(state)?.clone()));
        conditions.iter().filter_map(named).collect()
    }

    /// Whether every declared condition is met.
    pub fn is_ready(&self) -> bool {
        self.conditions
            .read()
            .values()
            .all(|state| !matches!(state, State::Missing(_)))
    }

    /// Waits until every declared condition is met.
    pub async fn ready(&self) {
        let mut changed = self.changed.subscribe();
        while !self.is_ready() {
            // The sender lives as long as `self`.
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    fn set(&self, name: &str, state: State) {
        self.conditions.write().insert(name.to_owned(), state);
        self.changed.send_replace(());
    }
}

impl Condition {
    /// The condition is met.
    pub fn met(&self) {
        self.health.set(&self.name, State::Met);
    }

    /// The condition is met, but something is wrong that an operator should know.
    pub fn degraded(&self, trouble: impl Into<String>) {
        self.health.set(&self.name, State::Degraded(trouble.into()));
    }

    /// The condition does not matter any more: what it was about is gone for good.
    pub fn withdraw(self) {
        self.health.conditions.write().remove(&self.name);
        self.health.changed.send_replace(());
    }

    /// The condition is not met (any more); `reason` names what is waited for.
    pub fn missing(&self, reason: impl Into<String>) {
        self.health.set(&self.name, State::Missing(reason.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_only_when_all_are_met() {
        let health = Health::default();
        assert!(health.is_ready(), "nothing declared, nothing missing");
        let (a, b) = (health.condition("config"), health.condition("registry"));
        a.met();
        b.missing("the API server answers 500");
        assert_eq!(
            health.missing(),
            [("registry".into(), "the API server answers 500".into())]
        );
        let waiter = tokio::spawn({
            let health = health.clone();
            async move { health.ready().await }
        });
        b.met();
        waiter.await.unwrap();
        a.missing("lost");
        assert!(!health.is_ready());
        a.degraded("slow");
        assert!(health.is_ready() && health.missing().is_empty());
        assert_eq!(health.degraded(), [("config".into(), "slow".into())]);
        a.missing("lost");
        a.withdraw();
        assert!(health.is_ready() && health.degraded().is_empty());
    }
}
