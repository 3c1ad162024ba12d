//! The routes every process has: `/healthz`, `/ready`, `/metrics`, `/version`.

use axum::{
    Json, Router,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde::Serialize;

use crate::{Health, Metrics, metrics};

/// What `/version` tells.
#[derive(Clone, Debug, Serialize)]
pub struct BuildInfo {
    /// The component, e.g. `pilot-discovery`.
    pub component: &'static str,
    /// Its version, `major.minor.patch`.
    pub version: &'static str,
    /// The version of Istio whose behaviour it has.
    pub compatibility: &'static str,
}

impl BuildInfo {
    /// The build info of `component`; pass `env!("CARGO_PKG_VERSION")`.
    pub const fn new(component: &'static str, version: &'static str) -> Self {
        Self {
            component,
            version,
            compatibility: "istio 1.4.10",
        }
    }
}

/// The common routes. Services merge their own into it.
///
/// `/healthz` says that the process runs; `/ready` is 200 when every condition of `health` is met, otherwise 503 with a
/// line per missing condition. What is wrong without keeping the service from its work is told in further lines.
pub fn router(health: &Health, metrics: &Metrics, build: BuildInfo) -> Router {
    let (health, metrics) = (health.clone(), metrics.clone());
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/ready", get(move || async move { ready(&health) }))
        .route(
            "/metrics",
            get(move || async move {
                (
                    [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)],
                    metrics.encode(),
                )
            }),
        )
        .route("/version", get(move || async move { Json(build) }))
}

fn ready(health: &Health) -> Response {
    let missing = health.missing();
    let lines = |conditions: &[(String, String)]| -> String {
        let line = |(name, reason): &(String, String)| format!("{name}: {reason}\n");
        conditions.iter().map(line).collect()
    };
    if missing.is_empty() {
        return format!("ready\n{}", lines(&health.degraded())).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, lines(&missing)).into_response()
}
