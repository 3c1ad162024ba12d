//! Services, their endpoints, and who serves them.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Query, State},
    response::{IntoResponse, Response},
};
use pilot_generate::{
    Report,
    generate::{self, Instance},
    model::{Endpoint, EndpointAddress, Resolution, Service, ServiceKey, TlsMode, Visibility},
};
use serde_json::{Value, json};

use super::{Debug, Params};

fn port_json(service: &Service, name: &str) -> Value {
    let port = service.ports.iter().find(|port| &*port.name == name);
    port.map_or(
        Value::Null,
        |port| json!({"name": &*port.name, "port": port.number, "protocol": port.protocol}),
    )
}

fn attributes(service: &Service) -> Value {
    json!({
        "ServiceRegistry": format!("{:?}", service.registry),
        "Name": &*service.name,
        "Namespace": &*service.namespace,
        "UID": format!("istio://{}/services/{}", service.namespace, service.name),
        "ExportTo": match service.visibility {
            Visibility::Public => json!({"*": true}),
            Visibility::Private => json!({".": true}),
        },
    })
}

fn service_json(service: &Service) -> Value {
    let ports = service.ports.iter();
    let ports: Vec<Value> = ports.map(|port| port_json(service, &port.name)).collect();
    let address = service.address.ip();
    let mut out = json!({
        "Attributes": attributes(service),
        "ports": ports,
        "creationTime": service.creation.to_string(),
        "hostname": &*service.hostname,
        "address": address.map_or_else(|| "0.0.0.0".to_owned(), |ip| ip.to_string()),
        // As Istio numbers them.
        "Resolution": match service.resolution {
            Resolution::ClientSideLb => 0,
            Resolution::Dns => 1,
            Resolution::Passthrough => 2,
        },
        "MeshExternal": service.mesh_external,
    });
    if !service.service_accounts.is_empty() {
        out["serviceAccounts"] = json!(service.service_accounts);
    }
    out
}

/// All services, the last element `{}` as ever.
pub(super) async fn registryz(State(debug): State<Debug>) -> Json<Value> {
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

/// As Istio numbers them: TCP, Unix.
fn family(endpoint: &Endpoint) -> u8 {
    u8::from(matches!(endpoint.address, EndpointAddress::Pipe(_)))
}

fn tls_mode(endpoint: &Endpoint) -> &'static str {
    match endpoint.tls_mode {
        TlsMode::Istio => "istio",
        TlsMode::Disabled => "disabled",
    }
}

/// Istio's `ServiceInstance`.
fn instance_json(service: &Service, endpoint: &Endpoint) -> Value {
    json!({
        "endpoint": {
            "Family": family(endpoint),
            "Address": address(endpoint),
            "Port": endpoint.port,
            "ServicePort": port_json(service, &endpoint.service_port),
            "UID": &*endpoint.uid,
            "Network": &*endpoint.network,
            "Locality": endpoint.locality.to_string(),
            "LbWeight": endpoint.weight,
        },
        "service": service_json(service),
        "labels": &*endpoint.labels,
        "serviceaccount": &*endpoint.service_account,
        "tlsMode": tls_mode(endpoint),
    })
}

/// Istio's `IstioEndpoint`.
fn shard_json(endpoint: &Endpoint) -> Value {
    json!({
        "Labels": &*endpoint.labels,
        "Family": family(endpoint),
        "Address": address(endpoint),
        "ServicePortName": &*endpoint.service_port,
        "UID": &*endpoint.uid,
        "ServiceAccount": &*endpoint.service_account,
        "Network": &*endpoint.network,
        "Locality": endpoint.locality.to_string(),
        "EndpointPort": endpoint.port,
        "LbWeight": endpoint.weight,
        "TLSMode": tls_mode(endpoint),
    })
}

pub(super) async fn endpointz(State(debug): State<Debug>, Query(params): Params) -> Response {
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
                        "{name} {} {}:{} {} {}\n",
                        family(endpoint),
                        address(endpoint),
                        endpoint.port,
                        labels.join(","),
                        endpoint.service_account
                    );
                }
            } else {
                let instances = of_port.map(|endpoint| instance_json(service, endpoint));
                let mut instances: Vec<Value> = instances.collect();
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

/// Endpoints by service host, namespace and registry.
pub(super) async fn endpoint_shardz(State(debug): State<Debug>) -> Json<Value> {
    let mut shards: BTreeMap<&str, BTreeMap<&str, Value>> = BTreeMap::new();
    let world = debug.world();
    let all = world.iter().flat_map(|w| &w.snapshot.inputs().shards);
    for shard in all {
        for (key, set) in shard.endpoints.iter() {
            let endpoints: Vec<Value> = set.endpoints.iter().map(shard_json).collect();
            let of_service = shards
                .entry(&key.hostname)
                .or_default()
                .entry(&key.namespace)
                .or_insert_with(|| json!({"Shards": {}}));
            of_service["Shards"][&*shard.cluster] = endpoints.into();
        }
    }
    Json(json!(shards))
}

/// The service ports that each connected proxy serves, by node ID.
pub(super) async fn instancesz(State(debug): State<Debug>) -> Json<Value> {
    let Some(world) = debug.world() else {
        return Json(json!({}));
    };
    let clients = debug.engine.clients().list().into_iter().map(|client| {
        let proxy = client.proxy();
        let found = generate::instances(&world.snapshot, &proxy.proxy, &mut Report::default());
        let found: Vec<Value> = found.iter().map(served_json).collect();
        (client.node_id.clone(), json!(found))
    });
    Json(Value::Object(clients.collect()))
}

fn served_json(instance: &Instance) -> Value {
    let Instance {
        service,
        port,
        address,
        endpoint_port,
        ..
    } = instance;
    json!({
        "endpoint": {
            "Family": 0,
            "Address": address.to_string(),
            "Port": endpoint_port,
            "ServicePort": port_json(service, &port.name),
        },
        "service": service_json(service),
    })
}
