//! `/debug/*`: what Pilot knows and how far each proxy has come. JSON in the shapes of Istio 1.4.
//!
//! Reads only: the published world, the engine's list of clients. No authentication; bind accordingly.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use mesh_sources::ConfigSource;
use pilot_generate::model::{Endpoint, EndpointAddress, Service, ServiceKey};
use pilot_xds::{Client, Engine, Publisher, Resource, ResourceSource as _, ResourceType};
use serde_json::{Value, json};

use crate::{inputs::Intake, proxy::PilotProxy, source::PilotSource, world::World};

/// What the pages look at.
#[derive(Clone)]
pub(crate) struct Debug {
    pub(crate) engine: Arc<Engine<PilotSource>>,
    pub(crate) publisher: Arc<Publisher<PilotSource>>,
    pub(crate) intake: Intake,
    pub(crate) configs: Arc<dyn ConfigSource>,
}

type Params = Query<BTreeMap<String, String>>;

/// The pages.
pub(crate) fn router(debug: Debug) -> Router {
    Router::new()
        .route("/debug", get(index))
        .route("/debug/adsz", get(adsz))
        .route("/debug/cdsz", get(cdsz))
        .route("/debug/edsz", get(edsz))
        .route("/debug/syncz", get(syncz))
        .route("/debug/registryz", get(registryz))
        .route("/debug/endpointz", get(endpointz))
        .route("/debug/endpointShardz", get(endpoint_shardz))
        .route("/debug/configz", get(configz))
        .route("/debug/config_dump", get(config_dump))
        .route("/debug/push_status", get(push_status))
        .with_state(debug)
}

async fn index() -> Json<Value> {
    Json(json!([
        "/debug/adsz",
        "/debug/cdsz",
        "/debug/edsz",
        "/debug/syncz",
        "/debug/registryz",
        "/debug/endpointz",
        "/debug/endpointShardz",
        "/debug/configz",
        "/debug/config_dump?proxyID=ID",
        "/debug/push_status"
    ]))
}

impl Debug {
    fn world(&self) -> Option<Arc<World>> {
        self.publisher
            .current()
            .map(|published| published.world.clone())
    }

    fn maybe_push(&self, params: &BTreeMap<String, String>) {
        if params.contains_key("push") {
            self.intake.poke();
        }
    }
}

fn names(resources: &[Resource]) -> Vec<&str> {
    resources.iter().map(|resource| &*resource.name).collect()
}

async fn adsz(State(debug): State<Debug>, Query(params): Params) -> Json<Value> {
    debug.maybe_push(&params);
    let Some(world) = debug.world() else {
        return Json(json!([]));
    };
    let describe = |client: Arc<Client<PilotProxy>>| {
        let proxy = client.proxy();
        let types: BTreeMap<&str, _> = ResourceType::ALL
            .into_iter()
            .map(|ty| (ty.short(), client.status(ty)))
            .filter(|(_, status)| status.subscribed)
            .collect();
        json!({
            "node": client.id,
            "addr": client.peer,
            "connect": client.connected.to_string(),
            "listeners": names(proxy.listeners(&world).resources()),
            "RDSRoutes": client.status(ResourceType::Route).names,
            "clusters": client.status(ResourceType::Endpoint).names,
            "protocol": format!("{:?}", client.variant).to_lowercase(),
            "synced": client.synced(),
            "types": types,
        })
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

async fn cdsz(State(debug): State<Debug>, Query(params): Params) -> Json<Value> {
    debug.maybe_push(&params);
    let Some(world) = debug.world() else {
        return Json(json!([]));
    };
    let describe = |client: Arc<Client<PilotProxy>>| {
        json!({
            "node": client.id,
            "addr": client.peer,
            "connect": client.connected.to_string(),
            "Clusters": decode(ResourceType::Cluster, client.proxy().clusters(&world).resources()),
        })
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

/// All load assignments that some connected proxy asked for.
async fn edsz(State(debug): State<Debug>, Query(params): Params) -> Response {
    debug.maybe_push(&params);
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

async fn syncz(State(debug): State<Debug>) -> Json<Value> {
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

fn service_json(service: &Service) -> Value {
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| json!({"name": &*port.name, "port": port.number, "protocol": port.protocol}))
        .collect();
    json!({
        "hostname": &*service.hostname,
        "address": service.address.ip().map_or_else(|| "0.0.0.0".to_owned(), |ip| ip.to_string()),
        "creationTime": service.creation.to_string(),
        "Attributes": {
            "Name": &*service.name,
            "Namespace": &*service.namespace,
            "ServiceRegistry": format!("{:?}", service.registry),
            "UID": format!("istio://{}/services/{}", service.namespace, service.name),
        },
        "ports": ports,
        "MeshExternal": service.mesh_external,
        "Resolution": format!("{:?}", service.resolution),
        "Visibility": format!("{:?}", service.visibility),
    })
}

/// All services, the last element `{}` as ever.
async fn registryz(State(debug): State<Debug>) -> Json<Value> {
    let world = debug.world();
    let services = world
        .iter()
        .flat_map(|world| world.snapshot.services().all());
    let mut list: Vec<Value> = services.map(|service| service_json(service)).collect();
    list.push(json!({}));
    Json(list.into())
}

fn address(endpoint: &Endpoint) -> String {
    match &endpoint.address {
        EndpointAddress::Ip(ip) => ip.to_string(),
        EndpointAddress::Host(host) => host.to_string(),
        EndpointAddress::Pipe(path) => path.to_string(),
    }
}

fn endpoint_json(endpoint: &Endpoint) -> Value {
    json!({
        "endpoint": {
            "Address": address(endpoint),
            "Port": endpoint.port,
            "ServicePort": &*endpoint.service_port,
            "UID": &*endpoint.uid,
            "Network": &*endpoint.network,
            "Locality": endpoint.locality.to_string(),
            "LbWeight": endpoint.weight,
        },
        "labels": &*endpoint.labels,
        "serviceaccount": &*endpoint.service_account,
    })
}

async fn endpointz(State(debug): State<Debug>, Query(params): Params) -> Response {
    let brief = params.contains_key("brief");
    let (mut list, mut lines) = (Vec::new(), String::new());
    for (world, service) in debug.world().iter().flat_map(|world| {
        world
            .snapshot
            .services()
            .all()
            .iter()
            .map(move |service| (world, service))
    }) {
        let key = ServiceKey {
            hostname: service.hostname.clone(),
            namespace: service.namespace.clone(),
        };
        for port in &service.ports {
            let name = format!("{}:{}", service.hostname, port.name);
            let all = world
                .snapshot
                .endpoints(&key)
                .flat_map(|set| &set.endpoints);
            let of_port = all.filter(|endpoint| endpoint.service_port == port.name);
            if brief {
                for endpoint in of_port {
                    let labels: Vec<String> = endpoint
                        .labels
                        .iter()
                        .map(|(key, value)| format!("{key}={value}"))
                        .collect();
                    lines += &format!(
                        "{name} {}:{} {} {}\n",
                        address(endpoint),
                        endpoint.port,
                        labels.join(","),
                        endpoint.service_account
                    );
                }
            } else {
                let mut instances: Vec<Value> = of_port.map(endpoint_json).collect();
                instances.push(json!({}));
                list.push(json!({"svc": name, "ep": instances}));
            }
        }
    }
    if brief {
        return lines.into_response();
    }
    list.push(json!({}));
    Json(list).into_response()
}

/// Endpoints by service host and namespace.
async fn endpoint_shardz(State(debug): State<Debug>) -> Json<Value> {
    let mut shards: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
    if let Some(world) = debug.world() {
        for (key, set) in world.snapshot.inputs().endpoints.iter() {
            let endpoints: Vec<Value> = set.endpoints.iter().map(endpoint_json).collect();
            shards.entry(key.hostname.to_string()).or_default().insert(
                key.namespace.to_string(),
                json!({"Shards": {"Kubernetes": endpoints}}),
            );
        }
    }
    Json(json!(shards))
}

/// All config objects as they are used, then what was refused and why, then `{}`.
async fn configz(State(debug): State<Debug>) -> Json<Value> {
    let configs = debug.configs.subscribe().latest();
    let mut list: Vec<Value> = configs
        .iter()
        .map(|object| {
            let meta = object.meta();
            json!({
                "type": meta.kind.kind(),
                "group": meta.kind.group(),
                "version": meta.kind.version(),
                "name": meta.name,
                "namespace": meta.namespace,
                "labels": meta.labels,
                "annotations": meta.annotations,
                "resourceVersion": meta.resource_version,
                "creationTimestamp": meta.creation_timestamp.to_string(),
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

/// What a proxy is served, in the shape of Envoy's own dump.
async fn config_dump(State(debug): State<Debug>, Query(params): Params) -> Response {
    let Some(id) = params.get("proxyID") else {
        let text =
            "which proxy? /debug/config_dump?proxyID=ID, where ID is a node ID or NAME.NAMESPACE\n";
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    let (Some(client), Some(world)) = (debug.engine.clients().find(id), debug.world()) else {
        let text = format!("no proxy {id} is connected to this Pilot\n");
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    let proxy = client.proxy();
    let source = PilotSource;
    let wanted = client.status(ResourceType::Route).names;
    let routes: Vec<Resource> = source
        .named(&world, &proxy, ResourceType::Route, &wanted)
        .into_iter()
        .flatten()
        .collect();
    let clusters = proxy.clusters(&world);
    let listeners = proxy.listeners(&world);
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
    let listeners: Vec<Value> = wrap(ResourceType::Listener, "listener", listeners.resources())
        .into_iter()
        .map(|state| json!({"name": state["listener"]["name"], "active_state": state}))
        .collect();
    let admin = |name: &str| format!("type.googleapis.com/envoy.admin.v3.{name}");
    Json(json!({"configs": [
        {"@type": admin("BootstrapConfigDump"), "bootstrap": {}},
        {"@type": admin("ClustersConfigDump"), "version_info": version(ResourceType::Cluster),
         "dynamic_active_clusters": wrap(ResourceType::Cluster, "cluster", clusters.resources())},
        {"@type": admin("ListenersConfigDump"), "version_info": version(ResourceType::Listener),
         "dynamic_listeners": listeners},
        {"@type": admin("RoutesConfigDump"),
         "dynamic_route_configs": wrap(ResourceType::Route, "route_config", &routes)},
    ]}))
    .into_response()
}

async fn push_status(State(debug): State<Debug>) -> Json<Value> {
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

fn decode(ty: ResourceType, resources: &[Resource]) -> Value {
    decode_each(ty, resources).collect()
}

fn decode_each(ty: ResourceType, resources: &[Resource]) -> impl Iterator<Item = Value> {
    let name = ty.type_url().trim_start_matches("type.googleapis.com/");
    resources.iter().map(move |resource| {
        proto_envoy::json::bytes_to_json(name, &resource.body)
            .unwrap_or_else(|error| json!({"name": &*resource.name, "error": error.to_string()}))
    })
}
