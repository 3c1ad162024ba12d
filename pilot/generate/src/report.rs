//! What could not be used, and what collided.
//!
//! Generators never fail: they leave out the offending piece, as small as it can be cut, and write it down here. Pilot
//! shows a report at `/debug/push_status`, logs new entries, and turns the counts into the push gauges of Istio 1.4.
//! Two sources: [`crate::Snapshot::report`] (config that is wrong in itself, found once per change) and the `&mut
//! Report` that generators take (collisions that exist only for some proxies).

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

/// Names of push gauges, as Istio's dashboards know them.
pub mod metric {
    /// Services whose cluster name was already taken.
    pub const DUPLICATE_CLUSTERS: &str = "pilot_duplicate_envoy_clusters";
    /// Clusters without a single endpoint.
    pub const EDS_NO_INSTANCES: &str = "pilot_eds_no_instances";
    /// Virtual hosts or domains that were already taken.
    pub const VSERVICE_DUP_DOMAIN: &str = "pilot_vservice_dup_domain";
    /// Subsets declared twice for a host.
    pub const DESTRULE_SUBSETS: &str = "pilot_destrule_subsets";
    /// Two services that claim one address and port of a pod.
    pub const CONFLICT_INBOUND: &str = "pilot_conflict_inbound_listener";
    /// An HTTP service that met TCP (the name reads backwards, as upstream).
    pub const CONFLICT_TCP_OVER_HTTP: &str =
        "pilot_conflict_outbound_listener_tcp_over_current_http";
    /// A TCP service that met HTTP (likewise).
    pub const CONFLICT_HTTP_OVER_TCP: &str =
        "pilot_conflict_outbound_listener_http_over_current_tcp";
    /// A TCP service that met another one with the same match.
    pub const CONFLICT_TCP_OVER_TCP: &str = "pilot_conflict_outbound_listener_tcp_over_current_tcp";
    /// An HTTP service on port 443.
    pub const CONFLICT_HTTP_OVER_HTTPS: &str = "pilot_conflict_outbound_listener_http_over_https";
    /// Endpoints whose pod is not known (yet).
    pub const ENDPOINT_NO_POD: &str = "endpoint_no_pod";
    /// Proxies that no pod and no endpoint claims.
    pub const NO_IP: &str = "pilot_no_ip";
    /// Proxies whose endpoints are all unready.
    pub const ENDPOINT_NOT_READY: &str = "pilot_endpoint_not_ready";
    /// Config that was refused, by kind and name.
    pub const REJECTED_CONFIGS: &str = "pilot_total_rejected_configs";

    /// Services of a registry whose host an earlier registry has (ours, not Istio's).
    pub const DUPLICATE_HOSTS: &str = "pilot_registry_duplicate_hosts";
    /// Services that cannot have a listener.
    pub const INVALID_OUT_LISTENERS: &str = "pilot_invalid_out_listeners";
    /// Routes to hosts that no service has, or to subsets that no DestinationRule declares (ours, not Istio's): their
    /// requests get 503.
    pub const UNKNOWN_DESTINATION: &str = "pilot_vservice_unknown_destination";

    /// What rules ask for and gRPC clients cannot do (ours, not Istio's).
    pub const GRPC_UNSUPPORTED: &str = "pilot_grpc_unsupported_config";

    /// Every push gauge, so that a metric exists at zero before the first event.
    pub const ALL: [&str; 16] = [
        DUPLICATE_CLUSTERS,
        EDS_NO_INSTANCES,
        VSERVICE_DUP_DOMAIN,
        DESTRULE_SUBSETS,
        CONFLICT_INBOUND,
        CONFLICT_TCP_OVER_HTTP,
        CONFLICT_HTTP_OVER_TCP,
        CONFLICT_TCP_OVER_TCP,
        CONFLICT_HTTP_OVER_HTTPS,
        ENDPOINT_NO_POD,
        NO_IP,
        ENDPOINT_NOT_READY,
        INVALID_OUT_LISTENERS,
        UNKNOWN_DESTINATION,
        DUPLICATE_HOSTS,
        GRPC_UNSUPPORTED,
    ];
}

/// A piece of config that was left out because it cannot work.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Rejection {
    /// `VirtualService`, `DestinationRule`, …
    pub kind: &'static str,
    /// Of the object.
    pub namespace: Arc<str>,
    /// Of the object.
    pub name: Arc<str>,
    /// Path of the field, as in YAML: `http[0].match[1].uri.regex`.
    pub field: String,
    /// What is wrong, and what would be accepted.
    pub reason: String,
    /// What was done instead.
    pub action: &'static str,
}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            kind,
            namespace,
            name,
            field,
            reason,
            action,
        } = self;
        write!(f, "{kind} {namespace}/{name}: {field}: {reason}; {action}")
    }
}

/// One event of a push gauge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Node ID, where the event concerns one proxy.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub proxy: String,
    /// Details.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Collected findings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Config left out.
    pub rejections: Vec<Rejection>,
    /// Events by gauge name and key: the `ProxyStatus` of `/debug/push_status`. A gauge's value is its number of keys.
    pub events: BTreeMap<&'static str, BTreeMap<String, Event>>,
}

impl Report {
    /// Notes an event.
    pub fn event(
        &mut self,
        metric: &'static str,
        key: impl Into<String>,
        message: impl Into<String>,
    ) {
        let event = Event {
            proxy: String::new(),
            message: message.into(),
        };
        self.events
            .entry(metric)
            .or_default()
            .insert(key.into(), event);
    }

    /// Adds everything of another report.
    pub fn merge(&mut self, other: &Report) {
        self.rejections.extend(other.rejections.iter().cloned());
        for (metric, events) in &other.events {
            self.events
                .entry(metric)
                .or_default()
                .extend(events.iter().map(|(k, v)| (k.clone(), v.clone())));
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.rejections.is_empty() && self.events.is_empty()
    }

    /// The value of a push gauge.
    pub fn count(&self, metric: &str) -> usize {
        self.events.get(metric).map_or(0, BTreeMap::len)
    }
}

/// Writes rejections of one config object; knows who it is.
#[derive(Debug)]
pub(crate) struct Rejector<'a> {
    pub(crate) kind: &'static str,
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) out: &'a mut Vec<Rejection>,
}

impl Rejector<'_> {
    /// Notes that a field was left out.
    pub(crate) fn reject(
        &mut self,
        field: impl Into<String>,
        reason: impl Into<String>,
        action: &'static str,
    ) {
        self.out.push(Rejection {
            kind: self.kind,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            field: field.into(),
            reason: reason.into(),
            action,
        });
    }
}
