//! Facts about a book.

use axum::{
    Json, Router,
    extract::Path,
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde_json::{Value, json};

/// The routes of `details`.
pub fn router() -> Router {
    Router::new().route("/details/{id}", get(details))
}

async fn details(Path(id): Path<String>) -> Response {
    match product_id(&id) {
        Ok(id) => Json(json!({
            "id": id,
            "author": "William Shakespeare",
            "year": 1595,
            "type": "paperback",
            "pages": 200,
            "publisher": "PublisherA",
            "language": "English",
            "ISBN-10": "1234567890",
            "ISBN-13": "123-1234567890",
        }))
        .into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

/// A product's number, or the refusal of what is none.
pub(crate) fn product_id(text: &str) -> Result<u32, (StatusCode, Json<Value>)> {
    text.parse().map_err(|_| {
        let body = json!({"error": format!("{text:?} is not a product ID; give a number")});
        (StatusCode::BAD_REQUEST, Json(body))
    })
}
