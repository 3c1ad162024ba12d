//! Istio's Pilot metrics that the engine itself knows about.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::resource::ResourceType;

/// A `type` label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TypeLabel {
    /// `cds`, `eds`, `lds`, `rds`, `sds`, or one of these with a suffix.
    pub r#type: &'static str,
}

/// The client and the reason of its last rejection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RejectLabel {
    /// The node ID.
    pub node: String,
    /// What Envoy wrote into `error_detail`.
    pub err: String,
}

/// The engine's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    /// `pilot_xds`
    pub clients: Gauge,
    /// `pilot_xds_pushes`
    pub pushes: Family<TypeLabel, Counter>,
    /// `pilot_xds_push_time`: generation and assembly of one response.
    pub push_time: Family<TypeLabel, Histogram>,
    /// `pilot_proxy_queue_time`: from the publication of a world until a stream takes it up.
    pub queue_time: Histogram,
    /// `pilot_proxy_convergence_time`: until a client has answered everything of a world.
    pub convergence_time: Histogram,
    rejects: [Family<RejectLabel, Gauge>; 5],
    /// `pilot_total_xds_rejects`
    pub total_rejects: Counter,
    /// `pilot_total_xds_internal_errors`
    pub internal_errors: Counter,
    /// `pilot_rds_expired_nonce` (Istio's name; counts every type)
    pub expired_nonce: Counter,
    /// `pilot_xds_write_timeout`
    pub write_timeout: Counter,
    /// `pilot_xds_resources_sent`
    pub resources: Family<TypeLabel, Counter>,
    /// `pilot_xds_bytes_sent`
    pub bytes: Family<TypeLabel, Counter>,
    /// `pilot_xds_connections_refused`
    pub connections_refused: Counter,
    /// `pilot_xds_unknown_type_requests`
    pub unknown_types: Counter,
}

fn seconds(buckets: &'static [f64]) -> Histogram {
    Histogram::new(buckets.iter().copied())
}

const PUSH: &[f64] = &[0.01, 0.1, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];
const QUEUE: &[f64] = &[0.1, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];
const CONVERGENCE: &[f64] = &[0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];

impl Metrics {
    /// Registers everything under Istio's names.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            clients: Gauge::default(),
            pushes: Family::default(),
            push_time: Family::new_with_constructor(|| seconds(PUSH)),
            queue_time: seconds(QUEUE),
            convergence_time: seconds(CONVERGENCE),
            rejects: Default::default(),
            total_rejects: Counter::default(),
            internal_errors: Counter::default(),
            expired_nonce: Counter::default(),
            write_timeout: Counter::default(),
            resources: Family::default(),
            bytes: Family::default(),
            connections_refused: Counter::default(),
            unknown_types: Counter::default(),
        };
        let m = metrics.clone();
        registry.register("pilot_xds", "Clients connected over xDS", m.clients);
        registry.register("pilot_xds_pushes", "Responses sent, by type", m.pushes);
        registry.register(
            "pilot_xds_push_time",
            "Seconds to make one response",
            m.push_time,
        );
        registry.register(
            "pilot_proxy_queue_time",
            "Seconds from a new world to a client's turn",
            m.queue_time,
        );
        registry.register(
            "pilot_proxy_convergence_time",
            "Seconds from a new world to the client's last answer",
            m.convergence_time,
        );
        for (ty, family) in ResourceType::ALL.into_iter().zip(m.rejects) {
            registry.register(
                format!("pilot_xds_{}_reject", ty.short()),
                "Clients whose last response of this type was refused, with the reason",
                family,
            );
        }
        registry.register(
            "pilot_total_xds_rejects",
            "Responses refused by clients",
            m.total_rejects,
        );
        registry.register(
            "pilot_total_xds_internal_errors",
            "Streams ended by an error of this server",
            m.internal_errors,
        );
        registry.register(
            "pilot_rds_expired_nonce",
            "Requests ignored because their nonce is not the last one sent",
            m.expired_nonce,
        );
        registry.register(
            "pilot_xds_write_timeout",
            "Streams closed because the client did not read",
            m.write_timeout,
        );
        registry.register(
            "pilot_xds_resources_sent",
            "Resources sent, by type",
            m.resources,
        );
        registry.register(
            "pilot_xds_bytes_sent",
            "Bytes of responses, by type",
            m.bytes,
        );
        registry.register(
            "pilot_xds_connections_refused",
            "Connections closed because they said nothing or there were too many",
            m.connections_refused,
        );
        registry.register(
            "pilot_xds_unknown_type_requests",
            "Requests ignored because their type URL is not served",
            m.unknown_types,
        );
        metrics
    }

    /// Notes, or with `None` clears, the rejection of a client. One series per client and type at most: the reason is
    /// shortened, and the former one goes.
    pub(crate) fn reject(
        &self,
        ty: ResourceType,
        node: &str,
        former: Option<&str>,
        reason: Option<&str>,
    ) {
        let family = &self.rejects[ty.index()];
        let label = |err: &str| RejectLabel {
            node: node.to_owned(),
            err: err.chars().take(200).collect(),
        };
        if let Some(former) = former {
            family.remove(&label(former));
        }
        if let Some(reason) = reason {
            family.get_or_create(&label(reason)).set(1);
            self.total_rejects.inc();
        }
    }
}
