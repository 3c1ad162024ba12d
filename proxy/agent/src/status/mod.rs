//! The HTTP server on the status port (15020).
//!
//! | Path | Answer |
//! |---|---|
//! | `/healthz/ready` | 200, or 503 with the reason in the body |
//! | `/app-health/CONTAINER/livez`, `…/readyz` | the app's own answer to its probe, see [`app_health`] |
//! | `POST /quitquitquit` | from loopback: drains and ends, as SIGTERM does |
//! | anything else | 404 |

pub mod app_health;
pub mod ready;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{ConnectInfo, Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use mesh_service::Drain;

use app_health::AppHealth;
use ready::Readiness;

#[derive(Debug)]
struct Status {
    readiness: Readiness,
    app_health: AppHealth,
    drain: Drain,
}

/// The routes; `drain` is begun by `/quitquitquit`.
pub fn router(readiness: Readiness, app_health: AppHealth, drain: Drain) -> Router {
    let status = Arc::new(Status {
        readiness,
        app_health,
        drain,
    });
    Router::new()
        .route("/healthz/ready", get(is_ready))
        .route("/app-health/{*rest}", get(app))
        .route("/quitquitquit", post(quit))
        .with_state(status)
}

async fn is_ready(State(status): State<Arc<Status>>) -> Response {
    match status.readiness.check().await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(reason) => {
            let body = format!("Envoy proxy is NOT ready: {reason}\n");
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

async fn app(
    State(status): State<Arc<Status>>,
    Path(rest): Path<String>,
    headers: HeaderMap,
) -> StatusCode {
    status
        .app_health
        .probe(&format!("/app-health/{rest}"), headers)
        .await
}

async fn quit(
    State(status): State<Arc<Status>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        let body = "only processes of this pod may do this\n";
        return (StatusCode::FORBIDDEN, body).into_response();
    }
    tracing::info!(%peer, "asked to quit");
    status.drain.begin();
    "OK".into_response()
}
