//! What proxies were sent, and what they answered.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use pilot_xds::{Client, Resource, ResourceSource as _, ResourceType};
use serde_json::{Value, json};

use super::{Debug, Params, decode, decode_each};
use crate::{proxy::PilotProxy, source::PilotSource, world::World};

fn names(resources: &[Resource]) -> Vec<&str> {
    resources.iter().map(|resource| &*resource.name).collect()
}

/// What a client is served of a type: everything, or what it names.
fn served(client: &Client<PilotProxy>, world: &World, ty: ResourceType) -> Vec<Resource> {
    let (proxy, status) = (client.proxy(), client.status(ty));
    if status.wildcard {
        let all = PilotSource.collection(world, &proxy, ty);
        return all.resources().to_vec();
    }
    let named = PilotSource.named(world, &proxy, ty, &status.names);
    named.into_iter().flatten().collect()
}

pub(super) async fn adsz(State(debug): State<Debug>, Query(params): Params) -> Response {
    if let Some(pushed) = debug.maybe_push(&params) {
        return pushed;
    }
    let Some(world) = debug.world() else {
        return Json(json!([])).into_response();
    };
    let describe = |client: Arc<Client<PilotProxy>>| {
        let types: BTreeMap<&str, _> = ResourceType::ALL
            .into_iter()
            .map(|ty| (ty.short(), client.status(ty)))
            .filter(|(_, status)| status.subscribed)
            .collect();
        json!({
            "node": client.id,
            "addr": client.peer,
            "connect": client.connected.to_string(),
            "listeners": names(&served(&client, &world, ResourceType::Listener)),
            "RDSRoutes": client.status(ResourceType::Route).names,
            "clusters": client.status(ResourceType::Endpoint).names,
            "service": client.service,
            "protocol": format!("{:?}", client.variant).to_lowercase(),
            "synced": client.synced(),
            "types": types,
        })
    };
    let clients = debug.engine.clients().list();
    Json(clients.into_iter().map(describe).collect::<Value>()).into_response()
}

pub(super) async fn cdsz(State(debug): State<Debug>, Query(params): Params) -> Response {
    if let Some(pushed) = debug.maybe_push(&params) {
        return pushed;
    }
    let Some(world) = debug.world() else {
        return Json(json!([])).into_response();
    };
    let describe = |client: Arc<Client<PilotProxy>>| {
        json!({
            "node": client.id,
            "addr": client.peer,
            "connect": client.connected.to_string(),
            "Clusters": decode(ResourceType::Cluster, &served(&client, &world, ResourceType::Cluster)),
        })
    };
    let clients = debug.engine.clients().list();
    Json(clients.into_iter().map(describe).collect::<Value>()).into_response()
}

/// All load assignments that some connected proxy asked for.
pub(super) async fn edsz(State(debug): State<Debug>, Query(params): Params) -> Response {
    if let Some(pushed) = debug.maybe_push(&params) {
        return pushed;
    }
    let Some(world) = debug.world() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let mut all: BTreeMap<Arc<str>, Resource> = BTreeMap::new();
    for client in debug.engine.clients().list() {
        let wanted = client.status(ResourceType::Endpoint).names;
        let found = client.proxy().scope(&world).endpoints(&wanted);
        all.extend(
            found
                .into_iter()
                .flatten()
                .map(|resource| (resource.name.clone(), resource)),
        );
    }
    if all.is_empty() {
        return (StatusCode::NOT_FOUND, "no proxy has asked for endpoints").into_response();
    }
    let list: Vec<Resource> = all.into_values().collect();
    Json(decode(ResourceType::Endpoint, &list)).into_response()
}

pub(super) async fn syncz(State(debug): State<Debug>) -> Json<Value> {
    let describe = |client: Arc<Client<PilotProxy>>| {
        let proxy = client.proxy();
        let mut entry = json!({
            "proxy": &*proxy.proxy.name,
            "proxy_version": proxy.proxy.metadata.get("ISTIO_PROXY_VERSION").or(proxy.proxy.metadata.get("ISTIO_VERSION")),
            "istio_version": proxy.proxy.metadata.get("ISTIO_VERSION"),
        });
        for (ty, name) in [
            (ResourceType::Cluster, "cluster"),
            (ResourceType::Listener, "listener"),
            (ResourceType::Route, "route"),
            (ResourceType::Endpoint, "endpoint"),
        ] {
            let status = client.status(ty);
            for (what, nonce) in [("sent", &status.nonce_sent), ("acked", &status.nonce_acked)] {
                if !nonce.is_empty() {
                    entry[format!("{name}_{what}")] = json!(nonce);
                }
            }
            if let Some(error) = &status.error {
                entry[format!("{name}_error")] = json!(error);
                let since = status.error_since.map(|since| since.to_string());
                entry[format!("{name}_error_since")] = json!(since);
            }
            if ty == ResourceType::Endpoint && !status.names.is_empty() {
                entry["endpoint_percent"] = json!(status.resources * 100 / status.names.len());
            }
        }
        entry
    };
    Json(
        debug
            .engine
            .clients()
            .list()
            .into_iter()
            .map(describe)
            .collect(),
    )
}

/// What a proxy is served, in the shape of Envoy's own dump.
pub(super) async fn config_dump(State(debug): State<Debug>, Query(params): Params) -> Response {
    let Some(id) = params.get("proxyID") else {
        let text =
            "which proxy? /debug/config_dump?proxyID=ID, where ID is a node ID or NAME.NAMESPACE\n";
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    let (Some(client), Some(world)) = (debug.engine.clients().find(id), debug.world()) else {
        let text = format!("no proxy {id} is connected to this Pilot\n");
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    let routes = served(&client, &world, ResourceType::Route);
    let clusters = served(&client, &world, ResourceType::Cluster);
    let listeners = served(&client, &world, ResourceType::Listener);
    let version = |ty| client.status(ty).version_acked;
    let wrap = |ty: ResourceType, key: &str, resources: &[Resource]| -> Vec<Value> {
        let wrapped = decode_each(ty, resources).map(|mut value| {
            if let Value::Object(fields) = &mut value {
                fields.shift_insert(0, "@type".to_owned(), json!(ty.type_url()));
            }
            json!({"version_info": version(ty), key: value})
        });
        wrapped.collect()
    };
    let listeners: Vec<Value> = wrap(ResourceType::Listener, "listener", &listeners)
        .into_iter()
        .map(|state| json!({"name": state["listener"]["name"], "active_state": state}))
        .collect();
    let admin = |name: &str| format!("type.googleapis.com/envoy.admin.v3.{name}");
    Json(json!({"configs": [
        {"@type": admin("BootstrapConfigDump"), "bootstrap": {}},
        {"@type": admin("ClustersConfigDump"), "version_info": version(ResourceType::Cluster),
         "dynamic_active_clusters": wrap(ResourceType::Cluster, "cluster", &clusters)},
        {"@type": admin("ListenersConfigDump"), "version_info": version(ResourceType::Listener),
         "dynamic_listeners": listeners},
        {"@type": admin("RoutesConfigDump"),
         "dynamic_route_configs": wrap(ResourceType::Route, "route_config", &routes)},
    ]}))
    .into_response()
}
