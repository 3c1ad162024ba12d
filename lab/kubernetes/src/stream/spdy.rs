//! placeholder
use std::future::Future;

use axum::body::Body;
use axum::extract::ws::WebSocket;
use axum::response::Response;
use http::Request;

use super::portforward::Target;
use crate::kubelet::ExecSession;
use crate::rest::header_text;
use crate::status::{ApiError, Result};

pub(super) fn is_upgrade(request: &Request<Body>) -> bool {
    header_text(request.headers(), "upgrade")
        .to_ascii_lowercase()
        .starts_with("spdy/")
}

pub(super) fn exec(
    _request: Request<Body>,
    _start: impl Future<Output = Result<ExecSession>> + Send + 'static,
) -> Result<Response> {
    Err(ApiError::bad_request(
        "SPDY is not served; use a WebSocket client (kubectl 1.30 or newer)",
    ))
}

pub(super) fn port_forward(_request: Request<Body>, _target: Target) -> Result<Response> {
    Err(ApiError::bad_request(
        "SPDY is not served; use a WebSocket client (kubectl 1.30 or newer)",
    ))
}

pub(super) async fn tunnel(_socket: WebSocket, _target: Target) {}
