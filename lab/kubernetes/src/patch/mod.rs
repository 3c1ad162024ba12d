//! The patch formats: JSON (RFC 6902), merge (RFC 7386), strategic merge, and server-side apply.

pub(crate) mod apply;
pub(crate) mod json_patch;
pub(crate) mod lists;
pub(crate) mod merge;
mod ownership;
pub(crate) mod strategic;

use serde_json::{Value, json};

use crate::rest::{Context, body};
use crate::status::{ApiError, Result};

/// What the Content-Type of a PATCH means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl Kind {
    pub(crate) fn of(context: &Context) -> Result<Self> {
        let kind = match context.content_type.as_str() {
            "application/json-patch+json" => Self::Json,
            "application/merge-patch+json" => Self::Merge,
            "application/strategic-merge-patch+json" if context.resource.custom => {
                return Err(ApiError::unsupported_media(
                    "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
                ));
            }
            "application/strategic-merge-patch+json" => Self::Strategic,
            "application/apply-patch+yaml" | "application/apply-patch+cbor" => Self::Apply,
            _ => {
                return Err(ApiError::new(
                    415,
                    "UnsupportedMediaType",
                    "415: Unsupported Media Type",
                )
                .with_details(json!({})));
            }
        };
        Ok(kind)
    }
}

/// A patch read once and applied as often as concurrent writers make necessary.
#[derive(Debug)]
pub(crate) enum Prepared {
    Json(Vec<json_patch::Operation>),
    Merge(Value),
    Strategic(Value),
}

impl Prepared {
    pub(crate) fn new(kind: Kind, bytes: &[u8]) -> Result<Self> {
        let value = body::decode("", bytes, "patch")?.value;
        match kind {
            Kind::Json => json_patch::parse(&value)
                .map(Self::Json)
                .map_err(ApiError::bad_request),
            Kind::Apply => {
                Err(
                    ApiError::new(415, "UnsupportedMediaType", "415: Unsupported Media Type")
                        .with_details(json!({})),
                )
            }
            _ if !value.is_object() => {
                Err(ApiError::bad_request("a merge patch must be a JSON object"))
            }
            Kind::Merge => Ok(Self::Merge(value)),
            Kind::Strategic => Ok(Self::Strategic(value)),
        }
    }

    /// The patched object.
    pub(crate) fn apply(&self, context: &Context, mut value: Value) -> Result<Value> {
        match self {
            Self::Json(operations) => {
                json_patch::apply(&mut value, operations).map_err(|why| {
                    tracing::debug!(why, "a JSON patch does not apply");
                    ApiError::new(
                        422,
                        "Invalid",
                        "the server rejected our request due to an error in our request",
                    )
                    .with_details(json!({}))
                })?;
            }
            Self::Merge(patch) => merge::apply(&mut value, patch),
            Self::Strategic(patch) => strategic::apply(&context.resource.kind, &mut value, patch)
                .map_err(ApiError::bad_request)?,
        }
        Ok(value)
    }
}
