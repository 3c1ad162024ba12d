//! Pilot's own metrics, under Istio's names. Those of the xDS engine are in `pilot_xds::Metrics`.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use pilot_generate::{Report, Snapshot, report::metric};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabel {
    version: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabel {
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabel {
    r#type: &'static str,
    event: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RegistryLabel {
    registry: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RejectedLabel {
    r#type: &'static str,
    name: String,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    services: Gauge,
    virtual_services: Gauge,
    inbound: Family<TypeLabel, Counter>,
    registry_events: Family<EventLabel, Counter>,
    config_events: Family<EventLabel, Counter>,
    registries_up: Family<RegistryLabel, Gauge>,
    registry_errors: Family<RegistryLabel, Counter>,
    /// `pilot_k8s_endpoints_with_no_pods`
    pub(crate) endpoints_without_pod: Counter,
    /// `pilot_k8s_object_errors`
    pub(crate) object_errors: Counter,
    /// `pilot_xds_push_context_errors`
    pub(crate) build_errors: Counter,
    build_time: Histogram,
    push_gauges: Arc<Vec<(&'static str, Gauge)>>,
    rejected: Family<RejectedLabel, Gauge>,
    rejected_before: Arc<Mutex<Vec<RejectedLabel>>>,
}

impl Metrics {
    pub(crate) fn new(metrics: &mesh_service::Metrics) -> Self {
        let info = metrics.register(
            "pilot_info",
            "The version of this Pilot",
            Family::<VersionLabel, Gauge>::default(),
        );
        info.get_or_create(&VersionLabel {
            version: env!("CARGO_PKG_VERSION"),
        })
        .set(1);
        let gauge = |name: &'static str| {
            (
                name,
                metrics.register(
                    name,
                    "Findings of the last push; see /debug/push_status",
                    Gauge::default(),
                ),
            )
        };
        Self {
            services: metrics.register("pilot_services", "Services known", Gauge::default()),
            virtual_services: metrics.register(
                "pilot_virt_services",
                "VirtualServices known",
                Gauge::default(),
            ),
            inbound: metrics.register(
                "pilot_inbound_updates",
                "Updates from sources, by type",
                Family::default(),
            ),
            registry_events: metrics.register(
                "pilot_k8s_reg_events",
                "Events of the Kubernetes registry",
                Family::default(),
            ),
            config_events: metrics.register(
                "pilot_k8s_cfg_events",
                "Config objects added, updated and deleted",
                Family::default(),
            ),
            registries_up: metrics.register(
                "pilot_registry_up",
                "1 if a registry has been read completely and its server answers",
                Family::default(),
            ),
            registry_errors: metrics.register(
                "pilot_registry_errors",
                "Failed tries to read from a registry's server",
                Family::default(),
            ),
            endpoints_without_pod: metrics.register(
                "pilot_k8s_endpoints_with_no_pods",
                "Endpoints left out because their pod was not known",
                Counter::default(),
            ),
            object_errors: metrics.register(
                "pilot_k8s_object_errors",
                "Config objects that could not be used as written",
                Counter::default(),
            ),
            build_errors: metrics.register(
                "pilot_xds_push_context_errors",
                "Snapshots that could not be built",
                Counter::default(),
            ),
            build_time: metrics.register(
                "pilot_snapshot_build_time",
                "Seconds to build a snapshot",
                Histogram::new([0.001, 0.01, 0.1, 1.0, 3.0, 10.0]),
            ),
            push_gauges: Arc::new(metric::ALL.into_iter().map(gauge).collect()),
            rejected: metrics.register(
                metric::REJECTED_CONFIGS,
                "Config objects of which a part is not used",
                Family::default(),
            ),
            rejected_before: Arc::default(),
        }
    }

    pub(crate) fn inbound(&self, kind: &'static str) {
        self.inbound
            .get_or_create(&TypeLabel { r#type: kind })
            .inc();
    }

    pub(crate) fn registry_event(&self, kind: &'static str, event: &'static str) {
        self.registry_events
            .get_or_create(&EventLabel {
                r#type: kind,
                event,
            })
            .inc();
    }

    pub(crate) fn registry_up(&self, registry: &str, up: bool) {
        let label = RegistryLabel {
            registry: registry.to_owned(),
        };
        self.registries_up.get_or_create(&label).set(up.into());
    }

    pub(crate) fn registry_error(&self, registry: &str) {
        let label = RegistryLabel {
            registry: registry.to_owned(),
        };
        self.registry_errors.get_or_create(&label).inc();
    }

    pub(crate) fn config_event(&self, kind: &'static str, event: &'static str) {
        self.config_events
            .get_or_create(&EventLabel {
                r#type: kind,
                event,
            })
            .inc();
    }

    /// A snapshot was built.
    pub(crate) fn world(&self, snapshot: &Snapshot, took: Duration) {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.services.set(count(snapshot.services().all().len()));
        self.virtual_services
            .set(count(snapshot.inputs().configs.virtual_services.len()));
        self.build_time.observe(took.as_secs_f64());
    }

    /// Sets the push gauges from what was found.
    pub(crate) fn report(&self, report: &Report) {
        for (name, gauge) in self.push_gauges.iter() {
            gauge.set(i64::try_from(report.count(name)).unwrap_or(i64::MAX));
        }
        let now: Vec<RejectedLabel> = report
            .rejections
            .iter()
            .map(|r| RejectedLabel {
                r#type: r.kind,
                name: format!("{}/{}", r.namespace, r.name),
            })
            .collect();
        let mut before = self.rejected_before.lock();
        for label in before.iter().filter(|label| !now.contains(label)) {
            self.rejected.remove(label);
        }
        for label in &now {
            self.rejected.get_or_create(label).set(1);
        }
        *before = now;
    }
}
