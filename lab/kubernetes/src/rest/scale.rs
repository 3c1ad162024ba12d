//! The scale subresource: replicas of anything, seen as `autoscaling/v1 Scale`.

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Map, Value, json};

use super::{Context, body, read, write};
use crate::registry::ScalePaths;
use crate::status::{ApiError, FieldError, Result};
use crate::store::Object;
use crate::{json, patch};

fn paths(context: &Context) -> Result<&ScalePaths> {
    context
        .resource
        .version(&context.version)
        .and_then(|v| v.scale.as_ref())
        .ok_or_else(ApiError::unknown_resource)
}

fn strs(path: &[String]) -> Vec<&str> {
    path.iter().map(String::as_str).collect()
}

fn scale_of(paths: &ScalePaths, object: &Object) -> Value {
    let value = &object.value;
    let mut metadata = Map::new();
    for key in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(v) = json::at(value, &["metadata", key]) {
            metadata.insert(key.into(), v.clone());
        }
    }
    let number = |path: &[String]| json::int_at(value, &strs(path));
    let mut status = json!({"replicas": number(&paths.status).unwrap_or(0)});
    if let Some(selector) = paths
        .selector
        .as_ref()
        .and_then(|p| json::at(value, &strs(p)))
    {
        let text = match selector {
            Value::String(s) => s.clone(),
            other => selector_text(other),
        };
        status["selector"] = text.into();
    }
    let mut spec = Map::new();
    if let Some(n) = number(&paths.spec).filter(|n| *n != 0) {
        spec.insert("replicas".into(), n.into());
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// A LabelSelector (or a plain map) as a selector string.
fn selector_text(selector: &Value) -> String {
    let plain = selector.get("matchLabels").is_none() && selector.get("matchExpressions").is_none();
    let labels = if plain {
        selector.as_object()
    } else {
        json::map_at(selector, &["matchLabels"])
    };
    let mut terms: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    terms.sort();
    for e in json::list_at(selector, &["matchExpressions"]) {
        let key = json::str_at(e, &["key"]);
        let values: Vec<&str> = json::list_at(e, &["values"])
            .iter()
            .filter_map(Value::as_str)
            .collect();
        terms.push(match json::str_at(e, &["operator"]) {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    terms.join(",")
}

/// What is missing is the scale: `deployments/scale.apps "web" not found`.
fn find(context: &Context) -> Result<Arc<Object>> {
    read::find(context).map_err(
        |error| match (error.code(), context.resource.group.as_str()) {
            (404, group) => {
                let dot = if group.is_empty() { "" } else { "." };
                let (plural, name) = (&context.resource.plural, context.name().unwrap_or_default());
                let message = format!("{plural}/scale{dot}{group} \"{name}\" not found");
                ApiError::new(404, "NotFound", message).with_details(
                    json!({"name": name, "group": group, "kind": format!("{plural}/scale")}),
                )
            }
            _ => error,
        },
    )
}

pub(super) fn get(context: &Context) -> Result<Response> {
    let object = find(context)?;
    Ok(context.value_response(200, &scale_of(paths(context)?, &object)))
}

pub(super) async fn write(context: &Context, is_patch: bool, bytes: &[u8]) -> Result<Response> {
    let paths = paths(context)?;
    let prepared = if is_patch {
        Some(patch::Prepared::new(patch::Kind::of(context)?, bytes)?)
    } else {
        None
    };
    let sent = match prepared {
        None => Some(body::decode(&context.content_type, bytes, "Scale")?.value),
        Some(_) => None,
    };
    let object = write::update(context, |old| {
        let scale = match (&prepared, &sent) {
            (Some(p), _) => p.apply(context, scale_of(paths, old))?,
            (None, Some(s)) => s.clone(),
            (None, None) => Value::Null,
        };
        let replicas = json::at(&scale, &["spec", "replicas"])
            .cloned()
            .unwrap_or_else(|| 0.into());
        if replicas.as_i64().is_none_or(|n| n < 0) {
            let error = FieldError::invalid(
                "spec.replicas",
                &replicas,
                "must be greater than or equal to 0",
            );
            return Err(ApiError::invalid(
                "autoscaling",
                "Scale",
                &old.name,
                &[error],
            ));
        }
        let mut new = old.value.clone();
        // The version is the scale's: an absent one means any, so that a patch may be retried.
        match json::at(&scale, &["metadata", "resourceVersion"]).and_then(Value::as_str) {
            Some(rv) if sent.is_some() => {
                json::set(&mut new, &["metadata", "resourceVersion"], rv.into())
            }
            _ => drop(json::remove(&mut new, &["metadata", "resourceVersion"])),
        }
        json::set(&mut new, &strs(&paths.spec), replicas);
        Ok(new)
    })
    .await?;
    Ok(context.value_response(200, &scale_of(paths, &object)))
}
