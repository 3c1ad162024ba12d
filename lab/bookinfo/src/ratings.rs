//! Stars, with a switch to make this replica fail: what outlier detection is tried on.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU16, Ordering},
    },
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::details::product_id;

#[derive(Debug)]
struct Ratings {
    by_product: Mutex<BTreeMap<u32, BTreeMap<String, u8>>>,
    fail_percent: AtomicU8,
    fail_status: AtomicU16,
}

/// How this replica fails.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fault {
    /// 0 to 100.
    percent: u8,
    /// 400 to 599.
    #[serde(default = "unavailable")]
    status: u16,
}

fn unavailable() -> u16 {
    503
}

/// The routes of `ratings`.
pub fn router(fail_percent: u8, fail_status: u16) -> Router {
    let ratings = Ratings {
        by_product: Mutex::default(),
        fail_percent: AtomicU8::new(fail_percent),
        fail_status: AtomicU16::new(fail_status),
    };
    Router::new()
        .route("/ratings/fault", get(fault).post(set_fault))
        .route("/ratings/{id}", get(stars).post(rate))
        .with_state(Arc::new(ratings))
}

async fn stars(State(ratings): State<Arc<Ratings>>, Path(id): Path<String>) -> Response {
    let id = match product_id(&id) {
        Ok(id) => id,
        Err(refusal) => return refusal.into_response(),
    };
    if let Some(failure) = ratings.failure() {
        return failure;
    }
    let given = ratings
        .by_product
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(&id)
        .cloned();
    let stars =
        given.unwrap_or_else(|| BTreeMap::from([("Reviewer1".into(), 5), ("Reviewer2".into(), 4)]));
    Json(json!({"id": id, "ratings": stars})).into_response()
}

/// Replaces the ratings of a product, in this replica's memory.
async fn rate(
    State(ratings): State<Arc<Ratings>>,
    Path(id): Path<String>,
    Json(stars): Json<BTreeMap<String, u8>>,
) -> Response {
    let id = match product_id(&id) {
        Ok(id) => id,
        Err(refusal) => return refusal.into_response(),
    };
    if stars.len() > 100 || stars.values().any(|stars| *stars > 5) {
        let body = json!({"error": "give at most 100 reviewers with 0 to 5 stars each, e.g. {\"Reviewer1\": 5}"});
        return (StatusCode::BAD_REQUEST, Json(body)).into_response();
    }
    let mut products = ratings
        .by_product
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    // A sample application's memory must stay small, whoever posts.
    if products.len() >= 1000 && !products.contains_key(&id) {
        let body = json!({"error": "this replica holds ratings of 1000 products already"});
        return (StatusCode::INSUFFICIENT_STORAGE, Json(body)).into_response();
    }
    products.insert(id, stars.clone());
    Json(json!({"id": id, "ratings": stars})).into_response()
}

async fn fault(State(ratings): State<Arc<Ratings>>) -> Json<Fault> {
    Json(ratings.fault())
}

async fn set_fault(State(ratings): State<Arc<Ratings>>, Json(fault): Json<Fault>) -> Response {
    if fault.percent > 100 || !(400..=599).contains(&fault.status) {
        let body = json!({"error": "give {\"percent\": 0 to 100, \"status\": 400 to 599}"});
        return (StatusCode::BAD_REQUEST, Json(body)).into_response();
    }
    tracing::info!(fault.percent, fault.status, "fault set");
    ratings.fail_percent.store(fault.percent, Ordering::Relaxed);
    ratings.fail_status.store(fault.status, Ordering::Relaxed);
    Json(ratings.fault()).into_response()
}

impl Ratings {
    fn fault(&self) -> Fault {
        Fault {
            percent: self.fail_percent.load(Ordering::Relaxed),
            status: self.fail_status.load(Ordering::Relaxed),
        }
    }

    fn failure(&self) -> Option<Response> {
        let Fault { percent, status } = self.fault();
        if rand::random_range(0..100) >= percent {
            return None;
        }
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        Some(
            (
                status,
                Json(json!({"error": "this replica was told to fail"})),
            )
                .into_response(),
        )
    }
}
