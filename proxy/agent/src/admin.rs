//! A client of Envoy's admin interface on loopback.

use std::time::Duration;

use axum::body::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

/// Time for one question; the admin interface answers from memory.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Envoy's admin interface.
#[derive(Clone, Debug)]
pub struct Admin {
    authority: String,
    client: Client<HttpConnector, Empty<Bytes>>,
}

/// Why a question had no answer.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No connection, or it broke.
    #[error("Envoy's admin interface at {authority} does not answer {path}: {reason}")]
    Unreachable {
        /// HOST:PORT
        authority: String,
        /// What was asked.
        path: String,
        /// Why.
        reason: String,
    },
    /// An answer that is an error.
    #[error("Envoy's admin interface answers {status} to {path}: {body}")]
    Refused {
        /// What was asked.
        path: String,
        /// Status.
        status: StatusCode,
        /// Body.
        body: String,
    },
}

impl Admin {
    /// The admin interface at this address.
    pub fn new(host: &str, port: u16) -> Self {
        let authority = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(1)
            .build_http();
        Self { authority, client }
    }

    /// Status and body.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
    ) -> Result<(StatusCode, String), AdminError> {
        let unreachable = |reason: String| AdminError::Unreachable {
            authority: self.authority.clone(),
            path: path.to_owned(),
            reason,
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.authority))
            .body(Empty::new())
            .map_err(|error| unreachable(error.to_string()))?;
        let exchange = async {
            let answer = self
                .client
                .request(request)
                .await
                .map_err(|error| unreachable(with_source(&error)))?;
            let status = answer.status();
            let body = answer
                .into_body()
                .collect()
                .await
                .map_err(|error| unreachable(error.to_string()))?;
            Ok((
                status,
                String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            ))
        };
        tokio::time::timeout(TIMEOUT, exchange)
            .await
            .unwrap_or_else(|_| {
                Err(unreachable(format!(
                    "no answer within {} s",
                    TIMEOUT.as_secs()
                )))
            })
    }

    /// The body of a successful GET.
    pub async fn get(&self, path: &str) -> Result<String, AdminError> {
        self.successful(Method::GET, path).await
    }

    /// The body of a successful POST.
    pub async fn post(&self, path: &str) -> Result<String, AdminError> {
        self.successful(Method::POST, path).await
    }

    async fn successful(&self, method: Method, path: &str) -> Result<String, AdminError> {
        match self.call(method, path).await? {
            (status, body) if status.is_success() => Ok(body),
            (status, body) => Err(AdminError::Refused {
                path: path.to_owned(),
                status,
                body: body.trim().to_owned(),
            }),
        }
    }
}

/// The client's own text says little ("client error (Connect)"); its source says what happened.
fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => with_source(source),
        None => error.to_string(),
    }
}
