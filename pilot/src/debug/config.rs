//! Config objects: which are in use, where they have arrived, what is wrong with them.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use mesh_config::Meta;
use pilot_xds::{Client, ResourceType};
use serde_json::{Value, json};

use super::{Debug, Params};
use crate::{introduced::Introduction, proxy::PilotProxy};

/// `TYPE/NAMESPACE/NAME`, as Istio's stores name objects.
fn key(meta: &Meta) -> String {
    format!(
        "{}/{}/{}",
        meta.kind.schema_name(),
        meta.namespace,
        meta.name
    )
}

/// All config objects as they are used, then what was refused and why, then `{}`.
pub(super) async fn configz(State(debug): State<Debug>) -> Json<Value> {
    let configs = debug.configs.subscribe().latest();
    let mut list: Vec<Value> = configs
        .iter()
        .map(|object| {
            let meta = object.meta();
            json!({
                "type": meta.kind.schema_name(),
                "group": meta.kind.group(),
                "version": meta.kind.version(),
                "name": meta.name,
                "namespace": meta.namespace,
                "labels": meta.labels,
                "annotations": meta.annotations,
                "resourceVersion": meta.resource_version,
                "creationTimestamp": meta.creation_timestamp.to_string(),
                "Spec": object.spec_json().unwrap_or_default(),
            })
        })
        .collect();
    for (what, rejected) in debug.configs.status().rejected {
        let reasons: Vec<String> = rejected.errors.iter().map(ToString::to_string).collect();
        list.push(json!({
            "rejected": what,
            "reasons": reasons,
            "previousInUse": rejected.previous_in_use,
            "since": rejected.since.to_string(),
        }));
    }
    list.push(json!({}));
    Json(list.into())
}

/// What a client refused and has not accepted since.
fn refusals(client: &Client<PilotProxy>) -> Vec<Value> {
    let refused = |ty: ResourceType| {
        let error = client.status(ty).error?;
        Some(json!({"proxy": client.node_id, "type": ty.short(), "error": error}))
    };
    ResourceType::ALL.into_iter().filter_map(refused).collect()
}

/// Where config objects have arrived.
///
/// Without `resource`: every object, since when it is served in its present form, how many of the connected proxies have
/// answered everything of that state, since when the last of them has, and who has not or has refused something. With
/// `resource=TYPE/NAMESPACE/NAME`: Istio's shape, the object's version by proxy and type.
pub(super) async fn config_distribution(
    State(debug): State<Debug>,
    Query(params): Params,
) -> Response {
    let Some(world) = debug.world() else {
        return Json(json!([])).into_response();
    };
    let mut clients = debug.engine.clients().list();
    if let Some(namespace) = params.get("proxy_namespace").filter(|ns| !ns.is_empty()) {
        clients.retain(|client| *client.proxy().proxy.namespace == **namespace);
    }
    let introduced = world.introduced.objects();
    let Some(resource) = params.get("resource").filter(|name| !name.is_empty()) else {
        let all = introduced.map(|object| distribution(object, &clients));
        return Json(all.collect::<Value>()).into_response();
    };
    let mut found = introduced.filter(|object| key(&object.meta) == **resource);
    let Some(object) = found.next() else {
        let text = format!(
            "no config object {resource} is in use; expected TYPE/NAMESPACE/NAME such as \
             virtual-service/default/reviews, see /debug/configz\n"
        );
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    let by_proxy = clients.iter().map(|client| versions(object, client));
    Json(by_proxy.collect::<Value>()).into_response()
}

fn distribution(object: &Introduction, clients: &[Arc<Client<PilotProxy>>]) -> Value {
    let mut waiting = Vec::new();
    let mut refused = Vec::new();
    let mut since = None;
    for client in clients {
        match client.synced_since(object.world) {
            Some(at) => since = since.max(Some(at)),
            None => waiting.push(client.node_id.as_str()),
        }
        refused.extend(refusals(client));
    }
    json!({
        "resource": key(&object.meta),
        "resourceVersion": object.meta.resource_version,
        "served": object.at.to_string(),
        "proxies": clients.len(),
        "have": clients.len() - waiting.len(),
        "since": since.map(|at| at.to_string()),
        "waiting": waiting,
        "refused": refused,
    })
}

/// Istio's `SyncedVersions`: a type that has not been answered since the object came is left out.
fn versions(object: &Introduction, client: &Client<PilotProxy>) -> Value {
    let version = match object.meta.resource_version.as_str() {
        // Files have no versions of their own.
        "" => object.world.to_string(),
        version => version.to_owned(),
    };
    let mut out = json!({"proxy": client.node_id});
    let has = client.synced_since(object.world);
    for (ty, name) in [
        (ResourceType::Cluster, "cluster_acked"),
        (ResourceType::Listener, "listener_acked"),
        (ResourceType::Route, "route_acked"),
    ] {
        let status = client.status(ty);
        if has.is_some() && status.subscribed && status.error.is_none() {
            out[name] = json!(version);
        }
    }
    if let Some(at) = has {
        out["since"] = json!(at.to_string());
    }
    out
}

pub(super) async fn push_status(State(debug): State<Debug>) -> Json<Value> {
    let Some(published) = debug.publisher.current() else {
        return Json(json!({}));
    };
    let report = published.world.report();
    Json(json!({
        "ProxyStatus": report.events,
        "Rejections": report.rejections,
        "Version": &*published.version,
    }))
}
