//! delete and deletecollection: preconditions, grace, finalizers, propagation.
//!
//! An object goes at once unless finalizers or a grace period hold it; then it is marked with a
//! deletionTimestamp and goes with the write that removes the last finalizer (or, for pods, with the
//! node's delete of grace 0). Collecting dependents is the controllers' work; here propagation only
//! sets the finalizers that make the owner wait for it.

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Value, json};

use super::{Context, body, read};
use crate::admission;
use crate::registry::Resource;
use crate::status::{ApiError, Result, deleted, json_response};
use crate::store::Object;
use crate::{crd, json};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// Options of a deletion, from the body and the query.
#[derive(Debug, Clone, Default)]
struct DeleteOptions {
    grace: Option<i64>,
    propagation: Option<String>,
    uid: Option<String>,
    rv: Option<String>,
    dry_run: bool,
    raw: Value,
}

impl DeleteOptions {
    fn new(context: &Context, mut raw: Value) -> Result<Self> {
        let text =
            |path: &[&str]| Some(json::str_at(&raw, path).to_owned()).filter(|s| !s.is_empty());
        let query_grace = context
            .options
            .number("gracePeriodSeconds")?
            .map(|g| g as i64);
        let grace = json::int_at(&raw, &["gracePeriodSeconds"]).or(query_grace);
        if let Some(g) = grace.filter(|g| *g < 0) {
            return Err(ApiError::bad_request(format!(
                "gracePeriodSeconds: Invalid value: {g}: must be greater than or equal to 0"
            )));
        }
        let orphan = json::at(&raw, &["orphanDependents"]).and_then(Value::as_bool);
        let propagation = text(&["propagationPolicy"])
            .or_else(|| context.options.get("propagationPolicy").map(str::to_owned))
            .or_else(|| orphan.map(|o| if o { "Orphan" } else { "Background" }.to_owned()));
        if let Some(p) = &propagation
            && !matches!(p.as_str(), "Orphan" | "Background" | "Foreground")
        {
            return Err(ApiError::bad_request(format!(
                "propagationPolicy: Unsupported value: \"{p}\": supported values: \"Background\", \"Foreground\", \"Orphan\""
            )));
        }
        let (uid, rv) = (
            text(&["preconditions", "uid"]),
            text(&["preconditions", "resourceVersion"]),
        );
        let dry_run = context.options.dry_run()?
            || json::list_at(&raw, &["dryRun"]).iter().any(|d| d == "All");
        raw["kind"] = "DeleteOptions".into();
        raw["apiVersion"] = "meta.k8s.io/v1".into();
        Ok(Self {
            grace,
            propagation,
            uid,
            rv,
            dry_run,
            raw,
        })
    }

    fn check(&self, resource: &Resource, object: &Object) -> Result<()> {
        let why = |what: &str, asked: &str, found: &str| {
            let message = format!(
                "the {what} in the precondition ({asked}) does not match the {what} in record ({found}). The object might have been \
                 deleted and then recreated"
            );
            ApiError::new(
                409,
                "Conflict",
                format!(
                    "Operation cannot be fulfilled on {} \"{}\": {message}",
                    resource.kind, object.name
                ),
            )
            .with_details(json!({"name": object.name, "kind": resource.kind}))
        };
        match (&self.uid, &self.rv) {
            (Some(uid), _) if uid != object.uid() => Err(why("UID", uid, object.uid())),
            (_, Some(rv)) if *rv != object.rv.to_string() => {
                Err(why("ResourceVersion", rv, &object.rv.to_string()))
            }
            _ => Ok(()),
        }
    }
}

pub(super) async fn one(context: &Context, bytes: &[u8]) -> Result<Response> {
    with_options(context, body::options(context, bytes)?).await
}

/// Deletes the named object; `raw` is the DeleteOptions object.
pub(super) async fn with_options(context: &Context, raw: Value) -> Result<Response> {
    let options = DeleteOptions::new(context, raw)?;
    loop {
        let object = read::find(context)?;
        match delete(context, &object, &options).await {
            // Somebody wrote in between; the client did not ask for a version, so try again.
            Err(e) if e.is_conflict() && options.rv.is_none() && moved(context, &object) => {}
            Err(e) => return Err(e),
            Ok(Outcome::Gone(last)) => {
                let status = deleted(&context.resource, &last.name, last.uid());
                return Ok(json_response(200, status.to_string()));
            }
            Ok(Outcome::Pending(object)) => return Ok(context.object_response(200, &object)),
        }
    }
}

fn moved(context: &Context, seen: &Object) -> bool {
    context
        .collection()
        .ok()
        .and_then(|c| c.get(&seen.namespace, &seen.name))
        .is_some_and(|now| now.rv != seen.rv)
}

pub(super) async fn many(context: &Context, bytes: &[u8]) -> Result<Response> {
    let options = DeleteOptions::new(context, body::options(context, bytes)?)?;
    let (objects, rv) = read::Filter::new(context)?.current(context)?;
    for object in &objects {
        match delete(context, object, &options).await {
            Ok(_) => {}
            Err(e) if e.code() == 404 || e.is_conflict() && moved(context, object) => {}
            Err(e) => return Err(e),
        }
    }
    let view = super::view::View::new(context);
    Ok(json_response(
        200,
        view.list(json!({"resourceVersion": rv.to_string()}), &objects),
    ))
}

enum Outcome {
    Gone(Arc<Object>),
    Pending(Arc<Object>),
}

async fn delete(
    context: &Context,
    object: &Arc<Object>,
    options: &DeleteOptions,
) -> Result<Outcome> {
    let resource = &context.resource;
    options.check(resource, object)?;
    let mut marked = object.value.clone();
    let grace = grace(resource, object, options);
    let mut raw = options.raw.clone();
    if resource.is("", "pods") {
        raw["gracePeriodSeconds"] = grace.into();
    }
    admission::delete(context, &object.value, &raw).await?;
    mark_propagation(&mut marked, options);
    let held = !finalizers(&marked).is_empty() || namespace_held(resource, &marked);
    let already = json::at(&object.value, &["metadata", "deletionTimestamp"]).is_some();
    if grace > 0 || held {
        mark(resource, &mut marked, grace, already);
    }
    if options.dry_run {
        return Ok(if grace > 0 || held {
            Outcome::Pending(object.clone())
        } else {
            Outcome::Gone(object.clone())
        });
    }
    let (store, collection) = (&context.server.store, context.collection()?);
    let key = (object.namespace.clone(), object.name.clone());
    let failed = |e| ApiError::from_write(e, resource, &object.name);
    if grace > 0 || held {
        if marked == object.value {
            return Ok(Outcome::Pending(object.clone()));
        }
        let pending = store
            .update(collection, key, object.rv, marked)
            .await
            .map_err(failed)?;
        context.server.written(resource);
        return Ok(Outcome::Pending(pending));
    }
    let mut rv = object.rv;
    if resource.is("", "pods") && already {
        // A watcher sees the grace period end before the pod goes.
        json::set(
            &mut marked,
            &["metadata", "deletionGracePeriodSeconds"],
            0.into(),
        );
        rv = store
            .update(collection, key.clone(), rv, marked)
            .await
            .map_err(failed)?
            .rv;
    }
    if resource.is("apiextensions.k8s.io", "customresourcedefinitions") {
        crd::delete_instances(&context.server, &object.value).await;
    }
    let last = store
        .delete(collection, key, rv, None)
        .await
        .map_err(failed)?;
    context.server.written(resource);
    Ok(Outcome::Gone(last))
}

/// Seconds a deletion waits: only for pods that run on a node and have not finished.
fn grace(resource: &Resource, object: &Object, options: &DeleteOptions) -> i64 {
    if !resource.is("", "pods") {
        return 0;
    }
    let value = &object.value;
    let finished = matches!(
        json::str_at(value, &["status", "phase"]),
        "Succeeded" | "Failed"
    );
    if json::str_at(value, &["spec", "nodeName"]).is_empty() || finished {
        return 0;
    }
    let spec = json::int_at(value, &["spec", "terminationGracePeriodSeconds"]).unwrap_or(30);
    options.grace.unwrap_or(spec)
}

/// Sets the finalizers that make the owner wait for its dependents.
fn mark_propagation(value: &mut Value, options: &DeleteOptions) {
    let Some(policy) = options.propagation.as_deref() else {
        return;
    };
    let metadata = json::map_mut(value, &["metadata"]);
    let list = json::list_mut(metadata, "finalizers");
    list.retain(|f| f != ORPHAN && f != FOREGROUND);
    match policy {
        "Orphan" => list.push(ORPHAN.into()),
        "Foreground" => list.push(FOREGROUND.into()),
        _ => {}
    }
    if list.is_empty() {
        metadata.shift_remove("finalizers");
    }
}

fn mark(resource: &Resource, value: &mut Value, grace: i64, already: bool) {
    let time = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
    let metadata = json::map_mut(value, &["metadata"]);
    let shorter = metadata
        .get("deletionGracePeriodSeconds")
        .and_then(Value::as_i64)
        .is_none_or(|g| grace < g);
    if !already || (resource.is("", "pods") && shorter) {
        metadata.insert("deletionTimestamp".into(), json::seconds(time).into());
        metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
    }
    if !already && (resource.generation || resource.custom) {
        let next = metadata
            .get("generation")
            .and_then(Value::as_i64)
            .unwrap_or(0)
            + 1;
        metadata.insert("generation".into(), next.into());
    }
    if resource.is("", "namespaces") {
        json::set(value, &["status", "phase"], "Terminating".into());
    }
}

fn finalizers(value: &Value) -> &[Value] {
    json::list_at(value, &["metadata", "finalizers"])
}

fn namespace_held(resource: &Resource, value: &Value) -> bool {
    resource.is("", "namespaces") && !json::list_at(value, &["spec", "finalizers"]).is_empty()
}

/// Whether an update leaves an object that only waited for its last finalizer.
pub(super) fn is_finished(resource: &Resource, new: &Value) -> bool {
    json::at(new, &["metadata", "deletionTimestamp"]).is_some()
        && finalizers(new).is_empty()
        && json::int_at(new, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0) == 0
        && !namespace_held(resource, new)
}
