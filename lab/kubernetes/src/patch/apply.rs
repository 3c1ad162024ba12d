//! Server-side apply, and the ownership that every other write leaves behind.
//!
//! Apply: what the manifest says is merged into the live object; a field with another value that
//! someone else owns is a conflict unless forced; fields this manager applied before, and nobody else
//! owns, go. Other writes: the manager owns what it changed, and the others lose it.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::lists::List;
use super::ownership::{
    Owner, Path, Paths, Place, flatten, item_element, owners, remove, set_owners, show,
};
use crate::rest::{Context, body, write};
use crate::status::{ApiError, FieldError, Result};
use crate::store::Object;
use crate::{convert, json};

const ATTEMPTS: usize = 16;

/// Applies a manifest; the flag says whether the object was created.
pub(crate) async fn apply(context: &Context, bytes: &[u8]) -> Result<(Arc<Object>, bool)> {
    let applied = manifest(context, bytes)?;
    if context.subresource.is_some()
        && context
            .collection()?
            .get(&context.namespace, context.name()?)
            .is_none()
    {
        return Err(ApiError::not_found(&context.resource, context.name()?));
    }
    for attempt in 1.. {
        let live = context
            .collection()?
            .get(&context.namespace, context.name()?);
        let result = match &live {
            None => create(context, &applied).await.map(|o| (o, true)),
            Some(live) => update(context, live, &applied).await.map(|o| (o, false)),
        };
        match result {
            Err(e) if attempt < ATTEMPTS && e.code() == 409 && moved(context, live.as_deref()) => {}
            other => return other,
        }
    }
    Err(ApiError::modified(&context.resource, context.name()?))
}

/// Whether somebody else wrote since we read.
fn moved(context: &Context, seen: Option<&Object>) -> bool {
    let now = context.collection().ok().and_then(|c| {
        c.get(
            &context.namespace,
            context.name.as_deref().unwrap_or_default(),
        )
    });
    now.map(|o| o.rv) != seen.map(|o| o.rv)
}

fn manifest(context: &Context, bytes: &[u8]) -> Result<Value> {
    if context.options.get("fieldManager").is_none() {
        let error = FieldError::required("fieldManager", "is required for apply patch");
        return Err(ApiError::invalid(
            "meta.k8s.io",
            "PatchOptions",
            "",
            &[error],
        ));
    }
    let kind = &context.resource.kind;
    let decoded = match body::decode("application/json", bytes, kind) {
        Ok(json) => json,
        Err(_) => body::decode("application/yaml", bytes, kind)?,
    };
    let value = &decoded.value;
    let (api_version, sent) = (
        json::str_at(value, &["apiVersion"]),
        json::str_at(value, &["kind"]),
    );
    if api_version.is_empty() || sent.is_empty() {
        return Err(ApiError::bad_request(format!(
            "invalid object type: {api_version}/, Kind={sent}"
        )));
    }
    if json::at(value, &["metadata", "managedFields"]).is_some_and(|m| !m.is_null()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    let mut value = body::object(context, decoded)?;
    let name = context.name()?;
    let sent = json::str_at(&value, &["metadata", "name"]);
    if !sent.is_empty() && sent != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({sent}) does not match the name on the URL ({name})"
        )));
    }
    json::set(&mut value, &["metadata", "name"], name.into());
    Ok(value)
}

fn place(context: &Context) -> Place<'_> {
    Place::root(
        &context.resource,
        context.resource.version(&context.version),
    )
}

fn owner(context: &Context, operation: &str, paths: Paths) -> Owner {
    Owner {
        manager: context.manager(),
        operation: operation.to_owned(),
        api_version: context.resource.api_version(&context.version),
        subresource: context.subresource.clone().unwrap_or_default(),
        time: json::now(),
        paths,
    }
}

fn is_same(a: &Owner, b: &Owner) -> bool {
    a.manager == b.manager && a.operation == b.operation && a.subresource == b.subresource
}

async fn create(context: &Context, applied: &Value) -> Result<Arc<Object>> {
    let mut value = applied.clone();
    let paths: Paths = flatten(applied, &place(context)).into_keys().collect();
    set_owners(&mut value, &[owner(context, "Apply", paths)]);
    write::create_value(context, value).await
}

async fn update(context: &Context, live: &Arc<Object>, applied: &Value) -> Result<Arc<Object>> {
    let place = place(context);
    let wanted = flatten(applied, &place);
    let found = flatten(&live.value, &place);
    let mut all = owners(&live.value);
    let mut mine = owner(context, "Apply", wanted.keys().cloned().collect());
    let differs = |path: &Path| found.get(path) != wanted.get(path);
    let mut conflicts: Vec<(&Owner, Path)> = Vec::new();
    for other in all.iter().filter(|o| !is_same(o, &mine)) {
        for path in other
            .paths
            .iter()
            .filter(|p| wanted.contains_key(*p) && differs(p))
        {
            conflicts.push((other, path.clone()));
        }
    }
    if !conflicts.is_empty() && !context.options.flag("force") {
        return Err(conflict(&conflicts));
    }
    let before: Paths = all
        .iter()
        .filter(|o| is_same(o, &mine))
        .flat_map(|o| o.paths.clone())
        .collect();
    let mut merged = live.value.clone();
    merge(&mut merged, applied, &place);
    let kept_by_others = |path: &Path| {
        all.iter()
            .filter(|o| !is_same(o, &mine))
            .any(|o| o.paths.iter().any(|p| p.starts_with(path)))
    };
    // Items before their fields: without its keys an item could not be found any more.
    for path in before.iter().filter(|p| !wanted.contains_key(*p)) {
        let above_mine = mine.paths.iter().any(|p| p.starts_with(path));
        if !above_mine && !kept_by_others(path) {
            remove(&mut merged, path, &place);
        }
    }
    for other in all.iter_mut().filter(|o| !is_same(o, &mine)) {
        other
            .paths
            .retain(|p| !(wanted.contains_key(p) && differs(p)));
    }
    let previous = all.iter().find(|o| is_same(o, &mine));
    if let Some(previous) = previous.filter(|p| p.paths == mine.paths) {
        mine.time.clone_from(&previous.time);
    }
    match all.iter().position(|o| is_same(o, &mine)) {
        Some(at) => all[at] = mine,
        None => all.insert(0, mine),
    }
    set_owners(&mut merged, &all);
    if json::str_at(applied, &["metadata", "resourceVersion"]).is_empty() {
        json::set(
            &mut merged,
            &["metadata", "resourceVersion"],
            live.rv.to_string().into(),
        );
    }
    let shown = convert::from_storage(&context.resource, &context.version, &merged);
    let new = body::object(context, body::Decoded::plain(shown))?;
    write::store_update(context, live, new).await
}

fn conflict(conflicts: &[(&Owner, Path)]) -> ApiError {
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    let mut causes = Vec::new();
    for (owner, path) in conflicts {
        let who = if owner.operation == "Apply" {
            format!("\"{}\"", owner.manager)
        } else if owner.subresource.is_empty() {
            format!("\"{}\" using {}", owner.manager, owner.api_version)
        } else {
            format!(
                "\"{}\" with subresource \"{}\" using {}",
                owner.manager, owner.subresource, owner.api_version
            )
        };
        let field = show(path);
        causes.push(json!({"reason": "FieldManagerConflict", "message": format!("conflict with {who}"), "field": field}));
        match groups.iter_mut().find(|(w, _)| *w == who) {
            Some((_, fields)) => fields.push(field),
            None => groups.push((who, vec![field])),
        }
    }
    let texts: Vec<String> = groups
        .iter()
        .map(|(who, fields)| match fields.as_slice() {
            [one] => format!("conflict with {who}: {one}"),
            many => format!("conflicts with {who}:\n- {}", many.join("\n- ")),
        })
        .collect();
    let plural = if conflicts.len() == 1 { "" } else { "s" };
    let message = format!(
        "Apply failed with {} conflict{plural}: {}",
        conflicts.len(),
        texts.join("\n")
    );
    ApiError::new(409, "Conflict", message).with_details(json!({"causes": causes}))
}

/// Merges what a manifest says into the live object.
fn merge<'a>(live: &mut Value, applied: &'a Value, place: &Place<'a>) {
    match applied {
        Value::Object(fields) if !place.is_atomic_map() => {
            let map = json::as_map(live);
            for (key, value) in fields {
                merge(
                    map.entry(key.clone()).or_insert(Value::Null),
                    value,
                    &place.field(key),
                );
            }
        }
        Value::Array(items) => match place.list() {
            List::Map(keys) if items.iter().all(|i| item_element(i, &keys).is_some()) => {
                merge_items(live, items, &keys, place)
            }
            List::Set => {
                let mut holder = Map::new();
                holder.insert(String::new(), live.take());
                let list = json::list_mut(&mut holder, "");
                for item in items {
                    if !list.contains(item) {
                        list.push(item.clone());
                    }
                }
                *live = Value::Array(std::mem::take(list));
            }
            _ => *live = applied.clone(),
        },
        other => *live = other.clone(),
    }
}

fn merge_items<'a>(live: &mut Value, items: &'a [Value], keys: &[String], place: &Place<'a>) {
    if !live.is_array() {
        *live = Value::Array(Vec::new());
    }
    let Some(list) = live.as_array_mut() else {
        return;
    };
    for item in items {
        let id = item_element(item, keys);
        match list.iter_mut().find(|i| item_element(i, keys) == id) {
            Some(found) => merge(found, item, &place.item()),
            None => list.push(item.clone()),
        }
    }
}

/// Records who changed what, for every write that is not an apply.
pub(crate) fn track(context: &Context, old: &Value, new: &mut Value) {
    if context.content_type.starts_with("application/apply-patch") {
        return;
    }
    let place = place(context);
    let before = flatten(old, &place);
    let after = flatten(new, &place);
    let changed: Paths = after
        .iter()
        .filter(|(p, v)| before.get(*p) != Some(v))
        .map(|(p, _)| p.clone())
        .collect();
    let mut all = owners(old);
    for other in &mut all {
        other
            .paths
            .retain(|p| after.contains_key(p) || !before.contains_key(p));
    }
    if !changed.is_empty() {
        let mine = owner(context, "Update", changed);
        for other in all.iter_mut().filter(|o| !is_same(o, &mine)) {
            other.paths.retain(|p| !mine.paths.contains(p));
        }
        match all.iter_mut().find(|o| is_same(o, &mine)) {
            Some(entry) => {
                entry.paths.extend(mine.paths);
                entry.time = mine.time;
                entry.api_version = mine.api_version;
            }
            None => all.push(mine),
        }
    }
    set_owners(new, &all);
}
