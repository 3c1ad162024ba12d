//! What readers say about a book; from v2 on with stars.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::HeaderMap,
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde_json::{Value, json};

use crate::{ReviewsVersion, details::product_id, upstream::Upstream};

const REVIEWS: [(&str, &str); 2] = [
    (
        "Reviewer1",
        "Two pairs of twins, one town, and nobody to tell them apart: I lost count of the mistaken identities and laughed at every one.",
    ),
    (
        "Reviewer2",
        "Great fun, and short. The plot would fall apart if anyone stopped to ask a question, which is rather the point.",
    ),
];

#[derive(Debug)]
struct Reviews {
    version: ReviewsVersion,
    ratings: Upstream,
    replica: String,
}

/// The routes of `reviews`.
pub fn router(version: ReviewsVersion, ratings: &str, replica: &str) -> Router {
    Router::new()
        .route("/reviews/{id}", get(reviews))
        .with_state(Arc::new(Reviews {
            version,
            ratings: Upstream::new(ratings),
            replica: replica.to_owned(),
        }))
}

async fn reviews(
    State(state): State<Arc<Reviews>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let id = match product_id(&id) {
        Ok(id) => id,
        Err(refusal) => return refusal.into_response(),
    };
    let stars = match state.version.stars() {
        None => None,
        Some(color) => {
            // As in the classic sample: v2 is patient with ratings, v3 is not.
            let limit = match state.version {
                ReviewsVersion::V3 => Duration::from_millis(2500),
                _ => Duration::from_secs(10),
            };
            let answer = state
                .ratings
                .get(&format!("/ratings/{id}"), &headers, limit)
                .await;
            if let Err(error) = &answer {
                tracing::info!(%error, "ratings did not answer");
            }
            Some((color, answer.ok()))
        }
    };
    let list: Vec<Value> = REVIEWS
        .iter()
        .map(|(reviewer, text)| {
            let mut review = json!({"reviewer": reviewer, "text": text});
            match &stars {
                None => {}
                Some((color, Some(answer))) => {
                    let count = answer["ratings"][reviewer].as_u64().unwrap_or(0).min(5);
                    review["rating"] = json!({"stars": count, "color": color});
                }
                Some((_, None)) => {
                    review["rating"] = json!({"error": "Ratings service is currently unavailable"});
                }
            }
            review
        })
        .collect();
    Json(json!({
        "id": id.to_string(),
        "podname": state.replica,
        "version": state.version.name(),
        "reviews": list,
    }))
    .into_response()
}
