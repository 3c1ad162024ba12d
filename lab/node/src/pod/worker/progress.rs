//! The order of the steps forward: sandbox, volumes, init containers one after the other, then all the rest at once.

use tokio::time::Instant;

use super::Worker;
use crate::pod::{
    container_state::{ContainerState, Role, State},
    status,
};

impl ContainerState {
    /// When a waiting container is tried again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { retry_at, .. } => retry_at,
            _ => None,
        }
    }

    fn due(&self) -> bool {
        matches!(self.state, State::Waiting { retry_at, .. } if retry_at.is_none_or(|at| at <= Instant::now()))
    }
}

impl Worker {
    /// Goes as far as possible without waiting for processes.
    pub(super) async fn progress(&mut self) {
        if matches!(
            status::phase(&self.containers, self.policy()),
            "Succeeded" | "Failed"
        ) {
            return;
        }
        if self.sandbox.is_none() && !self.make_sandbox().await {
            return;
        }
        let renewal_due = self
            .volumes
            .next_renewal()
            .is_some_and(|at| at <= jiff::Timestamp::now());
        if !self.volumes_ready || renewal_due {
            self.set_up_volumes().await;
        }
        if !self.volumes_ready
            && self
                .containers
                .iter()
                .all(|c| c.attempt == 0 && c.running().is_none())
        {
            return;
        }
        for index in 0..self.containers.len() {
            let container = &self.containers[index];
            if container.due() {
                self.start(index);
            }
            let container = &self.containers[index];
            if container.role != Role::Main && !container.done() {
                // The next ones wait for this one.
                return;
            }
        }
    }
}
