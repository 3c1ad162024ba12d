//! Steady load: a fixed number of keep-alive HTTP/1.1 connections that together send a fixed rate of requests.
//!
//! Each connection is one task with its own schedule (`start + k · connections / rate`). It waits for the answer
//! before it sends again, so a slow mesh gets fewer requests instead of an ever longer queue; a slot that passed while
//! it waited is skipped, never made up for by a burst. What a user would notice counts as a failure: status 400 and
//! above, a refused or broken connection, no answer in time, and a page that says that a part of it is missing (an
//! application that hides a failed backend behind status 200 hides it from status counters, not from its users). A kept-alive connection that the server closed between
//! two requests is no failure: nothing was sent on it, and the next request opens a new one.

mod client;
mod histogram;
mod recorder;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use client::{Connection, Reply};
pub use recorder::{Bucket, Failure, Kind, Recorder, Summary};

/// What to send, and how fast.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `host:port` to connect to.
    pub address: String,
    /// `Host` header.
    pub host: String,
    /// Paths, taken in turn.
    pub paths: Vec<String>,
    /// Requests per second, all connections together.
    pub rate: f64,
    /// Connections.
    pub connections: usize,
    /// Texts that tell a page with a missing part, whatever its status.
    pub degraded: Vec<String>,
    /// No answer within this time is a failure.
    pub timeout: Duration,
}

impl Plan {
    /// A load that one machine with two cores carries beside a whole mesh.
    pub fn new(address: impl Into<String>, paths: Vec<String>) -> Self {
        let address = address.into();
        Self {
            host: address.clone(),
            address,
            paths,
            rate: 40.0,
            connections: 4,
            degraded: Vec::new(),
            timeout: Duration::from_secs(10),
        }
    }
}

/// A running load. Dropping it ends it without waiting for requests in flight; [`Load::stop`] waits.
#[derive(Debug)]
pub struct Load {
    recorder: Arc<Recorder>,
    stop: CancellationToken,
    workers: JoinSet<()>,
}

impl Load {
    /// Starts sending.
    pub fn start(plan: Plan) -> Self {
        let recorder = Arc::new(Recorder::new());
        let stop = CancellationToken::new();
        let plan = Arc::new(plan);
        let mut workers = JoinSet::new();
        for index in 0..plan.connections {
            workers.spawn(worker(
                plan.clone(),
                index,
                recorder.clone(),
                stop.child_token(),
            ));
        }
        Self {
            recorder,
            stop,
            workers,
        }
    }

    /// Where outcomes are counted.
    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// Sends no more, waits for the answers that are still to come, and returns what was counted.
    pub async fn stop(mut self) -> Summary {
        self.stop.cancel();
        while self.workers.join_next().await.is_some() {}
        self.recorder.summary()
    }
}

async fn worker(plan: Arc<Plan>, index: usize, recorder: Arc<Recorder>, stop: CancellationToken) {
    let interval = Duration::from_secs_f64(plan.connections as f64 / plan.rate.max(0.001));
    // Spread the connections over one interval, else they would all send at the same moment.
    let mut next = Instant::now() + interval.mul_f64(index as f64 / plan.connections as f64);
    let mut connection = Connection::new(plan.address.clone());
    let mut turn = index;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(next) => {}
        }
        let path = &plan.paths[turn % plan.paths.len()];
        turn += 1;
        let sent = Instant::now();
        let reply = tokio::time::timeout(plan.timeout, connection.get(&plan.host, path)).await;
        let failure = match reply {
            Ok(Ok(reply)) if reply.status < 400 => {
                missing_part(&reply, &plan.degraded).map(|text| (Kind::Degraded, text))
            }
            Ok(Ok(reply)) => Some((
                if reply.status < 500 {
                    Kind::ClientError
                } else {
                    Kind::ServerError
                },
                reply.describe(),
            )),
            Ok(Err(message)) => Some((Kind::Transport, message)),
            Err(_) => {
                connection.close();
                Some((
                    Kind::Transport,
                    format!("no answer within {} s", plan.timeout.as_secs_f64()),
                ))
            }
        };
        recorder.record(sent, sent.elapsed(), path, failure);
        next += interval;
        let now = Instant::now();
        if next < now {
            let missed = (now - next).as_secs_f64() / interval.as_secs_f64();
            next += interval.mul_f64(missed.ceil());
        }
    }
}

/// What the page says about its missing part: the sentence around the marker.
fn missing_part(reply: &Reply, markers: &[String]) -> Option<String> {
    let body = String::from_utf8_lossy(&reply.body);
    let at = markers.iter().find_map(|marker| body.find(marker))?;
    let from = body[..at].rfind(['>', '"', '\n']).map_or(0, |p| p + 1);
    let sentence: String = body[from..].chars().take(160).collect();
    Some(format!("status {}, but: {sentence}", reply.status))
}

#[cfg(test)]
mod tests;
