//! Validation of what is about to be stored.

mod builtin;
mod names;

use serde_json::{Value, json};

use crate::crd;
use crate::json;
use crate::rest::Context;
use crate::status::{ApiError, FieldError, Result};

pub(crate) fn create(context: &Context, value: &Value) -> Result<()> {
    let mut errors = Vec::new();
    common(context, value, &mut errors);
    finish(context, value, errors)
}

pub(crate) fn update(context: &Context, old: &Value, value: &Value) -> Result<()> {
    let mut errors = Vec::new();
    finalizers(old, value, &mut errors);
    if context.subresource.is_none() {
        common(context, value, &mut errors);
        builtin::update(&context.resource, old, value, &mut errors);
    } else if context.resource.custom {
        schema(context, value, &mut errors);
    }
    finish(context, value, errors)
}

fn common(context: &Context, value: &Value, errors: &mut Vec<FieldError>) {
    names::metadata(&context.resource, value, errors);
    if context.resource.custom {
        schema(context, value, errors);
    } else {
        builtin::create(&context.resource, value, errors);
    }
}

fn schema(context: &Context, value: &Value, errors: &mut Vec<FieldError>) {
    let version = context.resource.version(&context.version);
    if let Some(schema) = version.and_then(|v| v.schema.as_ref()) {
        crd::validate::validate(&schema.root, value, "", errors);
    }
}

/// An object that is going away takes no new finalizers.
fn finalizers(old: &Value, value: &Value, errors: &mut Vec<FieldError>) {
    if json::at(old, &["metadata", "deletionTimestamp"]).is_none() {
        return;
    }
    let path = &["metadata", "finalizers"];
    let before = json::list_at(old, path);
    let added: Vec<String> = json::list_at(value, path)
        .iter()
        .filter(|f| !before.contains(f))
        .filter_map(|f| f.as_str().map(|f| format!("{f:?}")))
        .collect();
    if !added.is_empty() {
        errors.push(FieldError::forbidden(
            "metadata.finalizers",
            &format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            ),
        ));
    }
}

fn finish(context: &Context, value: &Value, errors: Vec<FieldError>) -> Result<()> {
    if errors.is_empty() {
        return Ok(());
    }
    let name = json::str_at(value, &["metadata", "name"]);
    Err(ApiError::invalid(
        &context.resource.group,
        &context.resource.kind,
        name,
        &errors,
    ))
}

/// Go's way to print a value in an immutability error is not reproduced; JSON is.
pub(super) fn immutable(field: &str, value: Option<&Value>) -> FieldError {
    FieldError::invalid(field, value.unwrap_or(&json!(null)), "field is immutable")
}
