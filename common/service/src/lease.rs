//! Leader election by a `coordination.k8s.io/v1` Lease.
//!
//! The protocol is client-go's: who finds the lease free or expired writes itself in with the resourceVersion it read,
//! so that of two writers one gets a conflict and stays a follower; the holder renews at a third of the duration. Expiry
//! is judged by the local clock since the last change seen, never by comparing clocks of two machines. A holder that
//! could not renew for two thirds of the duration gives up before others may take over.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease as LeaseObject, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{sync::watch, time::Instant};

use crate::Drain;

/// What a lease is called and how long it lasts.
#[derive(Clone, Debug)]
pub struct LeaseConfig {
    /// Namespace of the Lease object.
    pub namespace: String,
    /// Name of the Lease object.
    pub name: String,
    /// Who we are; unique among the candidates (the pod name).
    pub identity: String,
    /// How long a silent holder keeps the lease; Kubernetes components use 15 s.
    pub duration: Duration,
}

/// A candidate for one lease.
#[derive(Clone, Debug)]
pub struct Lease {
    api: Api<LeaseObject>,
    config: LeaseConfig,
}

/// The last state of the lease that this candidate saw, and when it saw it change.
#[derive(Debug)]
struct Observed {
    spec: Option<LeaseSpec>,
    at: Instant,
}

impl Lease {
    /// A candidate that does nothing yet.
    pub fn new(client: Client, config: LeaseConfig) -> Self {
        Self {
            api: Api::namespaced(client, &config.namespace),
            config,
        }
    }

    /// Runs for the lease until the drain begins. The receiver tells whether this process holds it; it turns false
    /// before anybody else may hold it. On drain the lease is given back, so a successor need not wait.
    pub fn run(self, drain: &Drain) -> watch::Receiver<bool> {
        let (leading, receiver) = watch::channel(false);
        let task = drain.clone();
        drain.spawn(async move { self.campaign(&leading, &task).await });
        receiver
    }

    async fn campaign(self, leading: &watch::Sender<bool>, drain: &Drain) {
        let mut observed = Observed {
            spec: None,
            at: Instant::now(),
        };
        let mut renewed = Instant::now();
        loop {
            match tokio::time::timeout(self.config.duration / 3, self.attempt(&mut observed)).await
            {
                Ok(Ok(held)) => {
                    renewed = Instant::now();
                    self.publish(leading, held);
                }
                outcome => {
                    if let Ok(Err(error)) = outcome {
                        tracing::debug!(lease = self.config.name, %error, "lease not reached");
                    }
                    if renewed.elapsed() >= self.config.duration * 2 / 3 {
                        self.publish(leading, false);
                    }
                }
            }
            let pause = self.config.duration.mul_f64(rand::random_range(0.10..0.20));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = drain.begun() => break,
            }
        }
        if leading.send_replace(false) {
            self.release().await;
        }
    }

    fn publish(&self, leading: &watch::Sender<bool>, held: bool) {
        let changed = leading.send_if_modified(|now| std::mem::replace(now, held) != held);
        if changed {
            tracing::info!(
                lease = self.config.name,
                identity = self.config.identity,
                held,
                "leadership changed"
            );
        }
    }

    /// One round: true when we hold the lease afterwards. A conflict means that somebody else was first.
    async fn attempt(&self, observed: &mut Observed) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.config.name).await? else {
            let created = self
                .api
                .create(&PostParams::default(), &self.object(None, 0))
                .await;
            return won(created);
        };
        if lease.spec != observed.spec {
            *observed = Observed {
                spec: lease.spec.clone(),
                at: Instant::now(),
            };
        }
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let ours = holder == self.config.identity;
        let lasts = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(self.config.duration, Duration::from_secs);
        if !ours && !holder.is_empty() && observed.at.elapsed() < lasts {
            return Ok(false);
        }
        let transitions = spec.lease_transitions.unwrap_or(0) + i32::from(!ours);
        let mut wanted = self.object(ours.then_some(spec.acquire_time).flatten(), transitions);
        std::mem::swap(&mut lease.spec, &mut wanted.spec);
        let replaced = self
            .api
            .replace(&self.config.name, &PostParams::default(), &lease)
            .await;
        won(replaced)
    }

    fn object(&self, acquired: Option<MicroTime>, transitions: i32) -> LeaseObject {
        let now = MicroTime(jiff::Timestamp::now());
        LeaseObject {
            metadata: ObjectMeta {
                name: Some(self.config.name.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.config.identity.clone()),
                lease_duration_seconds: i32::try_from(self.config.duration.as_secs().max(1)).ok(),
                acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
                renew_time: Some(now),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }

    /// Gives the lease back; best effort, as it runs out by itself.
    async fn release(&self) {
        let Ok(Some(mut lease)) = self.api.get_opt(&self.config.name).await else {
            return;
        };
        if let Some(spec) = &mut lease.spec
            && spec.holder_identity.as_deref() == Some(&self.config.identity)
        {
            spec.holder_identity = Some(String::new());
            let _ = self
                .api
                .replace(&self.config.name, &PostParams::default(), &lease)
                .await;
        }
    }
}

fn won(outcome: Result<LeaseObject, kube::Error>) -> Result<bool, kube::Error> {
    match outcome {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
