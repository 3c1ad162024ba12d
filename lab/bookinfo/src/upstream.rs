//! Calls to other services.
//!
//! Headers that belong to the request of the user, not to one hop, are handed on: the mesh routes by them and
//! traces are put together by them. No service mesh can do this for the application.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderName, Method, Request, StatusCode, header},
};
use http_body_util::{BodyExt as _, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};

/// Headers that travel along.
const HANDED_ON: [&str; 13] = [
    "end-user",
    "user-agent",
    "x-request-id",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "b3",
    "x-ot-span-context",
    "traceparent",
    "tracestate",
    "x-datadog-trace-id",
];

/// Answers larger than this are refused.
const BODY_LIMIT: usize = 1 << 20;

/// One backend.
#[derive(Clone, Debug)]
pub struct Upstream {
    base: String,
    client: Client<HttpConnector, Body>,
}

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    /// No connection, or it broke.
    #[error("{0}")]
    Transport(String),
    /// An answer other than 200.
    #[error("status {status}")]
    Status {
        /// The status.
        status: StatusCode,
        /// The body.
        body: Bytes,
    },
    /// Not JSON.
    #[error("the answer is not JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl CallError {
    /// The status to tell one's own client.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Transport(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Status { status, .. } => *status,
            Self::Json(_) => StatusCode::BAD_GATEWAY,
        }
    }
}

impl Upstream {
    /// The backend at `base`, e.g. `http://reviews:9080`.
    pub fn new(base: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(5)));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector);
        Self {
            base: base.trim_end_matches('/').to_owned(),
            client,
        }
    }

    /// GET as part of serving the request with these headers.
    pub async fn get(
        &self,
        path: &str,
        of: &HeaderMap,
        limit: Duration,
    ) -> Result<serde_json::Value, CallError> {
        let call = async {
            let mut request = Request::builder()
                .method(Method::GET)
                .uri(format!("{}{path}", self.base))
                .header(header::ACCEPT, "application/json")
                .body(Body::empty())
                .map_err(|error| CallError::Transport(error.to_string()))?;
            hand_on(of, request.headers_mut());
            let answer = self
                .client
                .request(request)
                .await
                .map_err(|error| CallError::Transport(root_cause(&error)))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), BODY_LIMIT)
                .collect()
                .await
                .map_err(|error| CallError::Transport(error.to_string()))?
                .to_bytes();
            match status {
                StatusCode::OK => Ok(serde_json::from_slice(&body)?),
                status => Err(CallError::Status { status, body }),
            }
        };
        match tokio::time::timeout(limit, call).await {
            Ok(outcome) => outcome,
            Err(_) => Err(CallError::Timeout(limit)),
        }
    }
}

fn hand_on(from: &HeaderMap, to: &mut HeaderMap) {
    for name in HANDED_ON.map(HeaderName::from_static) {
        if let Some(value) = from.get(&name) {
            to.insert(name, value.clone());
        }
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => root_cause(source),
        None => error.to_string(),
    }
}
