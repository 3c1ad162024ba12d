//! A server that does what it is asked for, for tests of the mesh.
//!
//! | Path | Answer |
//! |---|---|
//! | `/status/N` | status N |
//! | `/delay/S` | 200 after S seconds (fractions allowed, at most 60) |
//! | `/headers` | the request's headers |
//! | `/bytes/N` | N bytes, at most 10 MiB |
//! | anything else | method, path, query, headers, body of the request |

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{OriginalUri, Path},
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse as _, Response},
    routing::{any, get},
};
use serde_json::{Value, json};

const LONGEST: f64 = 60.0;
const LARGEST: usize = 10 << 20;

/// The routes of `echo`.
pub fn router(replica: &str) -> Router {
    let replica = replica.to_owned();
    let anything =
        move |method: Method, OriginalUri(uri): OriginalUri, headers: HeaderMap, body: Bytes| {
            let replica = replica.clone();
            async move {
                Json(json!({
                    "replica": replica,
                    "method": method.as_str(),
                    "path": uri.path(),
                    "query": uri.query(),
                    "headers": as_map(&headers),
                    "body": String::from_utf8_lossy(&body),
                }))
            }
        };
    Router::new()
        .route("/status/{code}", any(status))
        .route("/delay/{seconds}", any(delay))
        .route(
            "/headers",
            get(|headers: HeaderMap| async move { Json(json!({"headers": as_map(&headers)})) }),
        )
        .route("/bytes/{count}", get(bytes))
        .fallback(anything)
}

async fn status(Path(code): Path<String>) -> Response {
    match code
        .parse()
        .ok()
        .and_then(|code| StatusCode::from_u16(code).ok())
    {
        // Informational statuses are no final answers.
        Some(status) if !status.is_informational() => status.into_response(),
        _ => refuse(format!("{code:?} is not a status; give 200 to 599")),
    }
}

async fn delay(Path(seconds): Path<String>) -> Response {
    match seconds.parse::<f64>() {
        Ok(wanted) if (0.0..=LONGEST).contains(&wanted) => {
            tokio::time::sleep(Duration::from_secs_f64(wanted)).await;
            Json(json!({"delay": wanted})).into_response()
        }
        _ => refuse(format!(
            "{seconds:?} is not a delay; give 0 to {LONGEST} seconds"
        )),
    }
}

async fn bytes(Path(count): Path<String>) -> Response {
    match count.parse::<usize>() {
        Ok(count) if count <= LARGEST => vec![b'x'; count].into_response(),
        _ => refuse(format!("{count:?} is not a size; give 0 to {LARGEST}")),
    }
}

fn refuse(error: String) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({"error": error}))).into_response()
}

fn as_map(headers: &HeaderMap) -> BTreeMap<&str, Value> {
    let mut map: BTreeMap<&str, Value> = BTreeMap::new();
    for (name, value) in headers {
        let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
        let joined = match map.get(name.as_str()).and_then(Value::as_str) {
            Some(before) => format!("{before}, {text}"),
            None => text,
        };
        map.insert(name.as_str(), joined.into());
    }
    map
}
