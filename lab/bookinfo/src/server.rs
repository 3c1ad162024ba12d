//! The process around a role: accept, answer, drain.
//!
//! After SIGTERM new connections are accepted for a while, and every answer says `Connection: close`; then the listener
//! closes and what is under way is finished. A pod's end is thus noticed by clients before it happens.

use std::time::Duration;

use axum::{
    extract::Request,
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::get,
    serve::ListenerExt as _,
};
use mesh_service::{BuildInfo, Drain, Health, Metrics, admin};
use prometheus_client::metrics::{counter::Counter, family::Family};
use tokio::net::TcpListener;

use crate::Service;

type Answers = Family<Vec<(&'static str, String)>, Counter>;

/// Serves until the drain is over.
pub async fn run(
    listener: TcpListener,
    service: Service,
    drain: Drain,
    delay: Duration,
) -> anyhow::Result<()> {
    let Service {
        name,
        replica,
        router,
    } = service;
    let metrics = Metrics::default();
    let answers = metrics.register(
        "bookinfo_requests_total",
        "Requests answered, by status",
        Answers::default(),
    );
    let served_by = HeaderValue::from_str(&format!("{name}/{replica}"))
        .unwrap_or_else(|_| HeaderValue::from_static("unnamed"));
    let draining = drain.clone();
    let mark = move |request: Request, next: Next| {
        let (answers, served_by, draining) = (answers.clone(), served_by.clone(), draining.clone());
        async move {
            let mut response = next.run(request).await;
            let status = response.status().as_u16().to_string();
            answers.get_or_create(&vec![("code", status)]).inc();
            let headers = response.headers_mut();
            headers.insert("x-served-by", served_by);
            if draining.has_begun() {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
    };
    let health = {
        let drain = drain.clone();
        move || async move { is_healthy(&drain) }
    };
    let router = router
        .route("/health", get(health))
        .layer(middleware::from_fn(mark))
        .merge(admin::router(
            &Health::default(),
            &metrics,
            BuildInfo::new("bookinfo", env!("CARGO_PKG_VERSION")),
        ));
    let end = async move {
        drain.begun().await;
        tokio::time::sleep(delay).await;
        tracing::info!("no new connections from here on");
    };
    let listener = listener.tap_io(|stream| {
        // Small answers must not wait for an ACK.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router)
        .with_graceful_shutdown(end)
        .await?;
    tracing::info!("every request is answered");
    Ok(())
}

fn is_healthy(drain: &Drain) -> Response {
    match drain.has_begun() {
        true => (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response(),
        false => "ok\n".into_response(),
    }
}
