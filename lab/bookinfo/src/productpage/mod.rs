//! The page, and the public API behind it.
//!
//! `POST /login` puts the user's name into a cookie; every call made for that user then bears the header `end-user`, by
//! which a VirtualService can route one person to another version. There is no password: it is a sample.

mod page;

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    Form, Json, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{Html, IntoResponse as _, Redirect, Response},
    routing::{get, post},
};
use serde_json::{Value, json};

use crate::{
    details::product_id,
    upstream::{CallError, Upstream},
};

/// How long the page waits for a backend.
const PATIENCE: Duration = Duration::from_secs(3);
/// Reviews are asked twice, as in the classic sample: its "bug" that a delay experiment uncovers.
const REVIEW_ATTEMPTS: usize = 2;
const COOKIE: &str = "bookinfo-user";

#[derive(Debug)]
struct ProductPage {
    details: Upstream,
    reviews: Upstream,
    ratings: Upstream,
    replica: String,
}

/// The routes of `productpage`.
pub fn router(details: &str, reviews: &str, ratings: &str, replica: &str) -> Router {
    Router::new()
        .route("/", get(|| async { Html(page::index()) }))
        .route("/index.html", get(|| async { Html(page::index()) }))
        .route("/productpage", get(product_page))
        .route("/login", post(login))
        .route("/logout", get(logout).post(logout))
        .route(
            "/api/v1/products",
            get(|| async { Json(json!([product(0)])) }),
        )
        .route("/api/v1/products/{id}", get(product_details))
        .route("/api/v1/products/{id}/reviews", get(product_reviews))
        .route("/api/v1/products/{id}/ratings", get(product_ratings))
        .with_state(Arc::new(ProductPage {
            details: Upstream::new(details),
            reviews: Upstream::new(reviews),
            ratings: Upstream::new(ratings),
            replica: replica.to_owned(),
        }))
}

fn product(id: u32) -> Value {
    json!({
        "id": id,
        "title": "The Comedy of Errors",
        "descriptionHtml": page::DESCRIPTION,
    })
}

async fn product_page(State(state): State<Arc<ProductPage>>, headers: HeaderMap) -> Response {
    let (headers, user) = on_behalf_of_user(headers);
    let (details, reviews) = tokio::join!(state.details(0, &headers), state.reviews(0, &headers));
    // A backend that fails costs its part of the page; the status says that the page itself is fine.
    Html(page::product(&page::Product {
        user: user.as_deref(),
        details: &details,
        reviews: &reviews,
        replica: &state.replica,
    }))
    .into_response()
}

async fn login(Form(form): Form<HashMap<String, String>>) -> Response {
    let user = form.get("username").map_or("", String::as_str);
    if !is_user_name(user) {
        let text = "A user name has 1 to 64 letters, digits, dots, dashes or underscores.\n";
        return (StatusCode::BAD_REQUEST, text).into_response();
    }
    set_cookie(&format!("{COOKIE}={user}; Path=/; HttpOnly; SameSite=Lax"))
}

async fn logout() -> Response {
    set_cookie(&format!("{COOKIE}=; Path=/; Max-Age=0"))
}

fn set_cookie(cookie: &str) -> Response {
    let mut response = Redirect::to("/productpage").into_response();
    // Only checked characters are in it.
    if let Ok(cookie) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

async fn product_details(
    State(state): State<Arc<ProductPage>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    match product_id(&id) {
        Ok(id) => api(
            state.details(id, &on_behalf_of_user(headers).0).await,
            "details",
        ),
        Err(refusal) => refusal.into_response(),
    }
}

async fn product_reviews(
    State(state): State<Arc<ProductPage>>,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let (mut headers, _) = on_behalf_of_user(headers);
    // `?u=NAME` asks as that user, without a session.
    if let Some(user) = query.get("u").filter(|user| is_user_name(user))
        && let Ok(user) = HeaderValue::from_str(user)
    {
        headers.insert("end-user", user);
    }
    match product_id(&id) {
        Ok(id) => api(state.reviews(id, &headers).await, "reviews"),
        Err(refusal) => refusal.into_response(),
    }
}

async fn product_ratings(
    State(state): State<Arc<ProductPage>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    match product_id(&id) {
        Ok(id) => {
            let path = format!("/ratings/{id}");
            let headers = on_behalf_of_user(headers).0;
            api(
                state.ratings.get(&path, &headers, PATIENCE).await,
                "ratings",
            )
        }
        Err(refusal) => refusal.into_response(),
    }
}

fn api(answer: Result<Value, CallError>, what: &str) -> Response {
    match answer {
        Ok(value) => Json(value).into_response(),
        Err(error) => {
            tracing::info!(service = what, %error, "a backend failed");
            let body = json!({"error": format!("Sorry, product {what} are currently unavailable for this book."), "cause": error.to_string()});
            (error.status(), Json(body)).into_response()
        }
    }
}

impl ProductPage {
    async fn details(&self, id: u32, headers: &HeaderMap) -> Result<Value, CallError> {
        self.details
            .get(&format!("/details/{id}"), headers, PATIENCE)
            .await
    }

    async fn reviews(&self, id: u32, headers: &HeaderMap) -> Result<Value, CallError> {
        let path = format!("/reviews/{id}");
        let mut attempt = 1;
        loop {
            match self.reviews.get(&path, headers, PATIENCE).await {
                Err(_) if attempt < REVIEW_ATTEMPTS => attempt += 1,
                outcome => return outcome,
            }
        }
    }
}

/// The headers with which backends are called, and the user who is logged in.
fn on_behalf_of_user(mut headers: HeaderMap) -> (HeaderMap, Option<String>) {
    let user = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|cookies| cookies.to_str().ok())
        .flat_map(|cookies| cookies.split(';'))
        .filter_map(|cookie| cookie.trim().strip_prefix(COOKIE)?.strip_prefix('='))
        .find(|user| is_user_name(user))
        .map(str::to_owned);
    if let Some(Ok(value)) = user.as_deref().map(HeaderValue::from_str) {
        headers.insert("end-user", value);
    }
    (headers, user)
}

fn is_user_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}
