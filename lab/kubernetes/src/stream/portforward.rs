//! placeholder
use axum::body::Body;
use axum::response::Response;
use http::Request;

use crate::rest::Context;
use crate::status::{ApiError, Result};

pub(crate) async fn serve(_context: &Context, _request: Request<Body>) -> Result<Response> {
    Err(ApiError::internal("not served yet"))
}
