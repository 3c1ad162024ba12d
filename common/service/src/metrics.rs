//! Metrics under their exact names.
//!
//! `prometheus-client` writes OpenMetrics, in which every counter sample ends in `_total`. Istio's counters do not
//! (`pilot_xds_pushes`), and the dashboards of its users ask for the names as they are. [`Metrics::encode`] therefore
//! writes the classic Prometheus text format (version 0.0.4), where a counter's samples bear the name it was registered
//! under, and nothing else. Cost: one pass over the text at scrape time.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::registry::{Metric, Registry};

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics of one process. Cheap to clone; components register their own at construction.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// Registers `metric` under exactly this name and hands it back.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        self.registry.lock().register(name, help, metric.clone());
        metric
    }

    /// Access to the registry itself, for collectors and sub-registries.
    pub fn with_registry<R>(&self, f: impl FnOnce(&mut Registry) -> R) -> R {
        f(&mut self.registry.lock())
    }

    /// The Prometheus text of all metrics.
    pub fn encode(&self) -> String {
        let mut open_metrics = String::new();
        // Writing to a String cannot fail; a collector that fails leaves what was written before it.
        if let Err(error) =
            prometheus_client::encoding::text::encode(&mut open_metrics, &self.registry.lock())
        {
            tracing::error!(%error, "a metric collector failed");
        }
        classic(&open_metrics)
    }
}

/// OpenMetrics text to the classic format: counters lose the added `_total`, units and the end mark go.
fn classic(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut counter = String::new();
    for line in open_metrics.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
            counter.clear();
            if kind == "counter" {
                counter.push_str(name);
            }
            // The classic format says "untyped" where OpenMetrics says "unknown".
            let kind = if kind == "unknown" { "untyped" } else { kind };
            out.extend(["# TYPE ", name, " ", kind, "\n"]);
            continue;
        }
        let sample = (!counter.is_empty())
            .then(|| line.strip_prefix(counter.as_str())?.strip_prefix("_total"))
            .flatten();
        match sample {
            Some(rest) => out.extend([counter.as_str(), rest, "\n"]),
            None => out.extend([line, "\n"]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};

    use super::*;

    #[test]
    fn names_are_exact() {
        let metrics = Metrics::default();
        let pushes = metrics.register(
            "pilot_xds_pushes",
            "Pushes by type",
            Family::<Vec<(String, String)>, Counter>::default(),
        );
        pushes
            .get_or_create(&vec![("type".into(), "cds".into())])
            .inc_by(3);
        metrics
            .register("jwks_fetch_total", "Fetches", Counter::<u64>::default())
            .inc();
        metrics
            .register("pilot_xds", "Connected clients", Gauge::<i64>::default())
            .set(2);
        let text = metrics.encode();
        assert!(
            text.contains("# TYPE pilot_xds_pushes counter\npilot_xds_pushes{type=\"cds\"} 3\n"),
            "{text}"
        );
        assert!(text.contains("\njwks_fetch_total 1\n"), "{text}");
        assert!(text.contains("\npilot_xds 2\n"), "{text}");
        assert!(!text.contains("EOF"), "{text}");
    }
}
