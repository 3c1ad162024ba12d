//! create, replace, patch: from a decoded object to the store.
//!
//! create: defaults → mutating admission → identity → validation → validating admission → store.
//! update: the same on the result of a change to the current object, retried when somebody else was
//! faster and the client did not insist on a version. A change that changes nothing is not written.

use std::sync::Arc;

use axum::response::Response;
use rand::Rng;
use serde_json::{Value, json};

use super::{Context, body, read};
use crate::admission::{self, Operation};
use crate::patch::{self, apply};
use crate::status::{ApiError, FieldError, Result};
use crate::store::Object;
use crate::{convert, defaults, json, validate};

/// Attempts of a patch against concurrent writers.
const ATTEMPTS: usize = 16;
/// Letters of generated names: no vowels, nothing that reads like another.
const NAME_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const GENERATED_PREFIX_MAX: usize = 58;

pub(crate) async fn create(context: &Context, bytes: &[u8]) -> Result<Response> {
    let decoded = body::decode(&context.content_type, bytes, &context.resource.kind)?;
    let value = body::object(context, decoded)?;
    let object = create_value(context, value).await?;
    Ok(context.object_response(201, &object))
}

/// Creates an object that is already in storage form.
pub(crate) async fn create_value(context: &Context, mut value: Value) -> Result<Arc<Object>> {
    let resource = &context.resource;
    if !json::str_at(&value, &["metadata", "resourceVersion"]).is_empty() {
        return Err(ApiError::new(
            500,
            "InternalError",
            "resourceVersion should not be set on objects to be created",
        ));
    }
    place(context, &mut value)?;
    check_namespace(context)?;
    let metadata = json::map_mut(&mut value, &["metadata"]);
    for key in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
    ] {
        metadata.shift_remove(key);
    }
    let applied = metadata.shift_remove("managedFields");
    if strips_status(context) {
        json::as_map(&mut value).shift_remove("status");
    }
    defaults::create(context, &mut value).await?;
    let mut value = admission::mutate(context, Operation::Create, Some(value), None)
        .await?
        .unwrap_or_default();
    defaults::apply(resource, &mut value);
    generate_name(context, &mut value)?;
    json::set(
        &mut value,
        &["metadata", "uid"],
        uuid::Uuid::new_v4().to_string().into(),
    );
    json::set(
        &mut value,
        &["metadata", "creationTimestamp"],
        json::now().into(),
    );
    if resource.generation || resource.custom {
        json::set(&mut value, &["metadata", "generation"], 1.into());
    }
    validate::create(context, &value)?;
    defaults::allocate(context, &mut value)?;
    match applied {
        Some(fields) if fields.as_array().is_some_and(|f| !f.is_empty()) => {
            json::set(&mut value, &["metadata", "managedFields"], fields);
        }
        _ => apply::track(context, &Value::Null, &mut value),
    }
    admission::validate(context, Operation::Create, Some(&value), None).await?;
    let name = json::str_at(&value, &["metadata", "name"]).to_owned();
    if context.options.dry_run()? {
        if context
            .collection()?
            .get(&context.namespace, &name)
            .is_some()
        {
            return Err(ApiError::already_exists(resource, &name));
        }
        return Ok(Arc::new(Object::from_stamped(value, 0)));
    }
    let key = (context.namespace.clone(), name.clone());
    let written = context
        .server
        .store
        .create(context.collection()?, key, value)
        .await;
    let object = written.map_err(|e| ApiError::from_write(e, resource, &name))?;
    context.server.written(resource);
    Ok(object)
}

/// Namespace and name of the URL against those of the object.
fn place(context: &Context, value: &mut Value) -> Result<()> {
    let sent = json::str_at(value, &["metadata", "namespace"]);
    if !context.resource.namespaced {
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.shift_remove("namespace");
        }
        return Ok(());
    }
    if !sent.is_empty() && sent != context.namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    json::set(
        value,
        &["metadata", "namespace"],
        context.namespace.clone().into(),
    );
    Ok(())
}

/// Creating needs a namespace that exists and is not going away.
fn check_namespace(context: &Context) -> Result<()> {
    if !context.resource.namespaced {
        return Ok(());
    }
    let namespace = &context.namespace;
    let Some(object) = context
        .server
        .store
        .collection("namespaces")
        .get("", namespace)
    else {
        return Err(ApiError::namespace_not_found(namespace));
    };
    if json::at(&object.value, &["metadata", "deletionTimestamp"]).is_none() {
        return Ok(());
    }
    let name = context.name.as_deref().unwrap_or_default();
    let why = format!(
        "unable to create new content in namespace {namespace} because it is being terminated"
    );
    let mut details = json!({"kind": context.resource.plural, "causes": [{"reason": "NamespaceTerminating",
        "message": format!("namespace {namespace} is being terminated"), "field": "metadata.namespace"}]});
    if !name.is_empty() {
        details["name"] = name.into();
    }
    Err(ApiError::forbidden(&context.resource, name, &why).with_details(details))
}

fn strips_status(context: &Context) -> bool {
    context
        .resource
        .version(&context.version)
        .is_some_and(|v| v.status)
}

fn generate_name(context: &Context, value: &mut Value) -> Result<()> {
    if !json::str_at(value, &["metadata", "name"]).is_empty() {
        return Ok(());
    }
    let prefix = json::str_at(value, &["metadata", "generateName"]);
    if prefix.is_empty() {
        let error = FieldError::required("metadata.name", "name or generateName is required");
        return Err(ApiError::invalid(
            &context.resource.group,
            &context.resource.kind,
            "",
            &[error],
        ));
    }
    let prefix: String = prefix.chars().take(GENERATED_PREFIX_MAX).collect();
    json::set(
        value,
        &["metadata", "name"],
        format!("{prefix}{}", random_suffix(5)).into(),
    );
    Ok(())
}

/// Random letters as in generated names.
pub(crate) fn random_suffix(length: usize) -> String {
    let mut rng = rand::rng();
    (0..length)
        .map(|_| char::from(NAME_ALPHABET[rng.random_range(0..NAME_ALPHABET.len())]))
        .collect()
}

pub(crate) async fn replace(context: &Context, bytes: &[u8]) -> Result<Response> {
    let decoded = body::decode(&context.content_type, bytes, &context.resource.kind)?;
    let new = body::object(context, decoded)?;
    if context.resource.custom && json::str_at(&new, &["metadata", "resourceVersion"]).is_empty() {
        let error = FieldError {
            field: "metadata.resourceVersion".to_owned(),
            reason: "FieldValueInvalid",
            message: "Invalid value: 0x0: must be specified for an update".to_owned(),
        };
        return Err(ApiError::invalid(
            &context.resource.group,
            &context.resource.kind,
            context.name()?,
            &[error],
        ));
    }
    let object = update(context, |_| Ok(new.clone())).await?;
    Ok(context.object_response(200, &object))
}

pub(crate) async fn patch(context: &Context, bytes: &[u8]) -> Result<Response> {
    let kind = patch::Kind::of(context)?;
    if kind == patch::Kind::Apply {
        let (object, created) = apply::apply(context, bytes).await?;
        return Ok(context.object_response(if created { 201 } else { 200 }, &object));
    }
    let prepared = patch::Prepared::new(kind, bytes)?;
    let object = update(context, |old| {
        let shown = convert::from_storage(&context.resource, &context.version, &old.value);
        let patched = prepared.apply(context, shown)?;
        body::object(context, body::Decoded::plain(patched))
    })
    .await?;
    Ok(context.object_response(200, &object))
}

/// Changes the named object by `change`, which gives the wanted state (in storage form) from the current one.
pub(crate) async fn update(
    context: &Context,
    change: impl Fn(&Object) -> Result<Value>,
) -> Result<Arc<Object>> {
    for attempt in 1.. {
        let old = read::find(context)?;
        let wanted = change(&old)?;
        let insists = !json::str_at(&wanted, &["metadata", "resourceVersion"]).is_empty()
            && json::str_at(&wanted, &["metadata", "resourceVersion"])
                != json::str_at(&old.value, &["metadata", "resourceVersion"]);
        match store_update(context, &old, wanted).await {
            Err(e)
                if e.is_conflict() && !insists && attempt < ATTEMPTS && context.name.is_some() =>
            {
                let moved = context
                    .collection()?
                    .get(&old.namespace, &old.name)
                    .is_some_and(|now| now.rv != old.rv);
                if !moved {
                    return Err(e);
                }
            }
            result => return result,
        }
    }
    Err(ApiError::modified(&context.resource, context.name()?))
}

/// Writes `new` over `old` if that is allowed.
pub(crate) async fn store_update(
    context: &Context,
    old: &Arc<Object>,
    mut new: Value,
) -> Result<Arc<Object>> {
    let resource = &context.resource;
    check_identity(context, old, &new)?;
    place(context, &mut new)?;
    carry_over(context, &old.value, &mut new);
    defaults::update(context, &old.value, &mut new);
    let admitted =
        admission::mutate(context, Operation::Update, Some(new), Some(&old.value)).await?;
    let mut new = admitted.unwrap_or_default();
    carry_over(context, &old.value, &mut new);
    defaults::apply(resource, &mut new);
    count_generation(context, &old.value, &mut new);
    validate::update(context, &old.value, &new)?;
    defaults::allocate(context, &mut new)?;
    apply::track(context, &old.value, &mut new);
    admission::validate(context, Operation::Update, Some(&new), Some(&old.value)).await?;
    if same(&old.value, &new) {
        return Ok(old.clone());
    }
    if context.options.dry_run()? {
        return Ok(Arc::new(Object::from_stamped(new, old.rv)));
    }
    let key = (old.namespace.clone(), old.name.clone());
    let (store, collection) = (&context.server.store, context.collection()?);
    let failed = |e| ApiError::from_write(e, resource, &old.name);
    let object = if super::delete::is_finished(resource, &new) {
        store
            .delete(collection, key, old.rv, Some(new))
            .await
            .map_err(failed)?
    } else {
        store
            .update(collection, key, old.rv, new)
            .await
            .map_err(failed)?
    };
    context.server.written(resource);
    Ok(object)
}

/// Equal but for the times of ownership entries.
fn same(old: &Value, new: &Value) -> bool {
    let bare = |v: &Value| {
        let mut v = v.clone();
        json::remove(&mut v, &["metadata", "managedFields"]);
        v
    };
    let owners = |v: &Value| -> Vec<Value> {
        json::list_at(v, &["metadata", "managedFields"])
            .iter()
            .cloned()
            .map(|mut entry| {
                json::remove(&mut entry, &["time"]);
                entry
            })
            .collect()
    };
    owners(old) == owners(new) && bare(old) == bare(new)
}

fn check_identity(context: &Context, old: &Object, new: &Value) -> Result<()> {
    let resource = &context.resource;
    let sent = |key| json::str_at(new, &["metadata", key]);
    if !sent("name").is_empty() && sent("name") != old.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            sent("name"),
            old.name
        )));
    }
    if !sent("uid").is_empty() && sent("uid") != old.uid() {
        let key = if old.namespace.is_empty() {
            old.name.clone()
        } else {
            format!("{}/{}", old.namespace, old.name)
        };
        return Err(ApiError::conflict(
            resource,
            &old.name,
            &format!(
                "StorageError: invalid object, Code: 4, Key: /registry/{}/{key}, ResourceVersion: 0, AdditionalErrorMsg: \
                 Precondition failed: UID in precondition: {}, UID in object meta: {}",
                resource.plural,
                sent("uid"),
                old.uid()
            ),
        ));
    }
    let version = sent("resourceVersion");
    if !version.is_empty() && version != "0" && version != old.rv.to_string() {
        return Err(ApiError::modified(resource, &old.name));
    }
    Ok(())
}

/// What an update cannot change: identity, deletion marks, and status or everything but status.
fn carry_over(context: &Context, old: &Value, new: &mut Value) {
    match context.subresource.as_deref() {
        Some("status") => {
            let status = json::remove(new, &["status"]);
            let metadata = new.get("metadata").cloned();
            *new = old.clone();
            let map = json::as_map(new);
            match status {
                Some(status) => drop(map.insert("status".into(), status)),
                None => drop(map.shift_remove("status")),
            }
            if !context.resource.custom
                && let Some(sent) = metadata
            {
                for key in ["labels", "annotations"] {
                    match sent.get(key) {
                        Some(value) => json::set(new, &["metadata", key], value.clone()),
                        None => drop(json::remove(new, &["metadata", key])),
                    }
                }
            }
        }
        Some("finalize") => {
            let finalizers = json::remove(new, &["spec", "finalizers"]);
            *new = old.clone();
            match finalizers {
                Some(list) => json::set(new, &["spec", "finalizers"], list),
                None => drop(json::remove(new, &["spec", "finalizers"])),
            }
        }
        // The scheduler's decision writes both.
        Some("binding") => {}
        _ if strips_status(context) => {
            let map = json::as_map(new);
            match old.get("status") {
                Some(status) => drop(map.insert("status".into(), status.clone())),
                None => drop(map.shift_remove("status")),
            }
        }
        _ => {}
    }
    let metadata = json::map_mut(new, &["metadata"]);
    for key in [
        "name",
        "generateName",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
    ] {
        match json::at(old, &["metadata", key]) {
            Some(value) => drop(metadata.insert(key.into(), value.clone())),
            None => drop(metadata.shift_remove(key)),
        }
    }
}

/// `metadata.generation` counts changes of what the user wants.
fn count_generation(context: &Context, old: &Value, new: &mut Value) {
    if !context.resource.generation && !context.resource.custom {
        return;
    }
    let has_status = strips_status(context);
    let wish = |v: &Value| {
        let mut v = v.clone();
        let map = json::as_map(&mut v);
        map.shift_remove("metadata");
        if has_status || !context.resource.custom {
            map.shift_remove("status");
        }
        v
    };
    if wish(old) != wish(new) {
        let next = json::int_at(old, &["metadata", "generation"]).unwrap_or(0) + 1;
        json::set(new, &["metadata", "generation"], next.into());
    }
}

/// `pods/NAME/binding`: the scheduler's decision.
pub(crate) async fn bind(context: &Context, bytes: &[u8]) -> Result<Response> {
    let binding = body::decode(&context.content_type, bytes, "Binding")?.value;
    let node = json::str_at(&binding, &["target", "name"]).to_owned();
    if node.is_empty() {
        let error = FieldError::required("target.name", "");
        return Err(ApiError::invalid("", "Binding", context.name()?, &[error]));
    }
    update(context, |old| {
        let current = json::str_at(&old.value, &["spec", "nodeName"]);
        if !current.is_empty() {
            return Err(ApiError::conflict(
                &context.resource,
                &old.name,
                &format!("pod {} is already assigned to node \"{current}\"", old.name),
            ));
        }
        let mut new = old.value.clone();
        json::set(&mut new, &["spec", "nodeName"], node.clone().into());
        let conditions = json::list_mut(json::map_mut(&mut new, &["status"]), "conditions");
        conditions.retain(|c| json::str_at(c, &["type"]) != "PodScheduled");
        conditions.push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": json::now()}));
        Ok(new)
    })
    .await?;
    Ok(context.value_response(201, &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})))
}
