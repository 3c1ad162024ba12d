//! Is this proxy fit to take traffic?
//!
//! Yes if Envoy has had one answer from Pilot for clusters and one for listeners (accepted or refused: a refused first
//! push proves that Pilot is there, and holding the pod back would not help), if a router listens on all its application
//! ports, and if Envoy is LIVE. The first two are remembered: a Pilot that goes away later makes no pod unready. The
//! third is asked every time, so a draining Envoy is not ready.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use axum::http::{Method, StatusCode};

use crate::admin::{Admin, AdminError};

const STATS: &str =
    "/stats?filter=^(cluster_manager.cds|listener_manager.lds).update_(success|rejected)$";

/// Answers of one kind so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Updates {
    successful: u64,
    rejected: u64,
}

/// Why the proxy is not ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// No config yet.
    #[error(
        "config not received from Pilot (is Pilot running?): cds updates: {} successful, {} rejected; lds updates: {} successful, {} \
         rejected (discovery address {address})",
        cds.successful, cds.rejected, lds.successful, lds.rejected
    )]
    NoConfig {
        /// Clusters.
        cds: Updates,
        /// Listeners.
        lds: Updates,
        /// Where Pilot should be.
        address: String,
    },
    /// A gateway without its listeners.
    #[error(
        "no listener on port {0} yet; is there a Gateway for this workload with a server on it?"
    )]
    NoListener(u16),
    /// Starting, or draining.
    #[error("server is not live, current state is: {0}")]
    NotLive(String),
    /// No answer from Envoy.
    #[error("{0}")]
    Admin(#[from] AdminError),
}

/// The readiness check.
#[derive(Debug)]
pub struct Readiness {
    admin: Admin,
    discovery_address: String,
    ports: Vec<u16>,
    configured: Latch,
    listening: Latch,
    last: Mutex<Option<String>>,
}

impl Readiness {
    /// A check of the Envoy behind `admin`; `ports` are those on which a router must listen.
    pub fn new(admin: Admin, discovery_address: &str, ports: Vec<u16>) -> Self {
        Self {
            admin,
            discovery_address: discovery_address.to_owned(),
            ports,
            configured: Latch::default(),
            listening: Latch::default(),
            last: Mutex::default(),
        }
    }

    /// Checks, and logs when the answer is another one than last time.
    pub async fn check(&self) -> Result<(), NotReady> {
        let outcome = self.evaluate().await;
        let reason = outcome.as_ref().err().map(ToString::to_string);
        // Empty: ready. None: never asked.
        let now = Some(reason.clone().unwrap_or_default());
        let changed = match self.last.lock() {
            Ok(mut last) => std::mem::replace(&mut *last, now.clone()) != now,
            Err(_) => false,
        };
        if changed {
            match reason {
                None => tracing::info!("Envoy proxy is ready"),
                Some(reason) => tracing::info!("Envoy proxy is NOT ready: {reason}"),
            }
        }
        outcome
    }

    async fn evaluate(&self) -> Result<(), NotReady> {
        if !self.configured.is_set() {
            let (cds, lds) = parse_updates(&self.admin.get(STATS).await?);
            if cds == Updates::default() || lds == Updates::default() {
                let address = self.discovery_address.clone();
                return Err(NotReady::NoConfig { cds, lds, address });
            }
            self.configured.set();
        }
        if !self.listening.is_set() && !self.ports.is_empty() {
            let bound = parse_listeners(&self.admin.get("/listeners?format=json").await?);
            if let Some(port) = self.ports.iter().find(|port| !bound.contains(port)) {
                return Err(NotReady::NoListener(*port));
            }
            self.listening.set();
        }
        match self.admin.call(Method::GET, "/ready").await? {
            (StatusCode::OK, _) => Ok(()),
            (_, state) => Err(NotReady::NotLive(state.trim().to_owned())),
        }
    }
}

fn parse_updates(stats: &str) -> (Updates, Updates) {
    let value = |name: &str| {
        let line = stats.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim_start_matches(':').trim().parse().ok())
            .unwrap_or(0)
    };
    let updates = |prefix: &str| Updates {
        successful: value(&format!("{prefix}.update_success")),
        rejected: value(&format!("{prefix}.update_rejected")),
    };
    (
        updates("cluster_manager.cds"),
        updates("listener_manager.lds"),
    )
}

/// Ports bound on a wildcard address.
fn parse_listeners(json: &str) -> Vec<u16> {
    let parsed: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let statuses = parsed["listener_statuses"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let bound = statuses.iter().filter_map(|status| {
        let address = &status["local_address"]["socket_address"];
        let is_wildcard = matches!(address["address"].as_str(), Some("0.0.0.0" | "::"));
        let port = address["port_value"].as_u64().filter(|_| is_wildcard)?;
        u16::try_from(port).ok()
    });
    bound.collect()
}

/// Set once, never unset.
#[derive(Debug, Default)]
struct Latch(AtomicBool);

impl Latch {
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoys_words() {
        let (cds, lds) = parse_updates(
            "cluster_manager.cds.update_rejected: 0\ncluster_manager.cds.update_success: 3\nlistener_manager.lds.update_rejected: 1\n",
        );
        assert_eq!((cds.successful, cds.rejected), (3, 0));
        assert_eq!((lds.successful, lds.rejected), (0, 1));
        let listeners = r#"{"listener_statuses":[{"name":"a","local_address":{"socket_address":{"address":"0.0.0.0","port_value":80}}},
            {"name":"b","local_address":{"socket_address":{"address":"10.0.0.1","port_value":81}}}]}"#;
        assert_eq!(parse_listeners(listeners), [80]);
    }

    #[test]
    fn the_documented_message() {
        let message = NotReady::NoConfig {
            cds: Updates::default(),
            lds: Updates::default(),
            address: "istio-pilot:15010".into(),
        };
        assert!(message.to_string().starts_with(
            "config not received from Pilot (is Pilot running?): cds updates: 0 successful, 0 rejected; lds updates: 0 successful, 0 rejected"
        ));
    }
}
