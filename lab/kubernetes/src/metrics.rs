//! metrics.k8s.io, answered from the node's figures, and the server's own Prometheus text.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use axum::response::Response;
use serde_json::{Value, json};

use crate::json;
use crate::kubelet::PodUsage;
use crate::negotiate::{Accept, Shape};
use crate::request::{Options, Path};
use crate::selector::Labels;
use crate::server::Server;
use crate::status::{ApiError, Result, json_response};

pub(crate) const GROUP: &str = "metrics.k8s.io";
pub(crate) const VERSION: &str = "v1beta1";

pub(crate) async fn serve(
    server: &Server,
    path: &Path,
    options: &Options,
    accept: Option<Accept>,
) -> Result<Response> {
    if path.version != VERSION || path.subresource.is_some() {
        return Err(ApiError::unknown_resource());
    }
    let labels = Labels::parse(options.get("labelSelector").unwrap_or_default())?;
    let usage = match server.kubelet() {
        Some(kubelet) => kubelet.pod_metrics().await,
        None => Vec::new(),
    };
    let (kind, items) = match path.plural.as_str() {
        "pods" => ("PodMetrics", pods(server, path, &labels, &usage)),
        "nodes" => ("NodeMetrics", nodes(server, &labels, &usage)),
        _ => return Err(ApiError::unknown_resource()),
    };
    if let Some(name) = &path.name {
        let mut item = items
            .into_iter()
            .find(|i| json::str_at(i, &["metadata", "name"]) == name)
            .ok_or_else(|| {
                ApiError::new(
                    404,
                    "NotFound",
                    format!("{}.{GROUP} \"{name}\" not found", path.plural),
                )
                .with_details(json!({"name": name, "group": GROUP, "kind": path.plural}))
            })?;
        item["kind"] = kind.into();
        item["apiVersion"] = format!("{GROUP}/{VERSION}").into();
        return Ok(json_response(200, item.to_string()));
    }
    let list = if accept.is_some_and(|a| a.shape == Shape::Table) {
        table(&items)
    } else {
        json!({"kind": format!("{kind}List"), "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": {}, "items": items})
    };
    Ok(json_response(200, list.to_string()))
}

fn pods(server: &Server, path: &Path, labels: &Labels, usage: &[PodUsage]) -> Vec<Value> {
    let collection = server.store.collection("pods");
    let now = json::now();
    usage
        .iter()
        .filter(|u| path.namespace.as_ref().is_none_or(|n| *n == u.namespace))
        .filter_map(|u| {
            let pod = collection.get(&u.namespace, &u.name).filter(|p| labels.matches_object(&p.value))?;
            let containers: Vec<Value> = u
                .containers
                .iter()
                .map(|c| json!({"name": c.name, "usage": quantities(c.cpu_nanocores, c.memory_bytes)}))
                .collect();
            let mut metadata = json!({"name": u.name, "namespace": u.namespace, "creationTimestamp": now});
            if let Some(labels) = json::at(&pod.value, &["metadata", "labels"]) {
                metadata["labels"] = labels.clone();
            }
            Some(json!({"metadata": metadata, "timestamp": now, "window": window(u.window_seconds), "containers": containers}))
        })
        .collect()
}

fn nodes(server: &Server, labels: &Labels, usage: &[PodUsage]) -> Vec<Value> {
    let now = json::now();
    let containers = || usage.iter().flat_map(|u| &u.containers);
    let cpu = containers().map(|c| c.cpu_nanocores).sum();
    let memory = containers().map(|c| c.memory_bytes).sum();
    let seconds = usage.first().map_or(10, |u| u.window_seconds);
    let nodes = server.store.collection("nodes").list(None, 0).0;
    nodes
        .iter()
        .filter(|n| labels.matches_object(&n.value))
        .map(|n| {
            json!({"metadata": {"name": n.name, "creationTimestamp": now, "labels": n.value["metadata"]["labels"]},
                "timestamp": now, "window": window(seconds), "usage": quantities(cpu, memory)})
        })
        .collect()
}

fn window(seconds: u64) -> String {
    format!("{seconds}s")
}

fn quantities(nanocores: u64, bytes: u64) -> Value {
    json!({"cpu": format!("{nanocores}n"), "memory": format!("{}Ki", bytes / 1024)})
}

fn table(items: &[Value]) -> Value {
    let columns = ["Name", "cpu", "memory", "Window"]
        .map(|name| json!({"name": name, "type": "string", "format": "", "description": "", "priority": 0}));
    let rows: Vec<Value> = items
        .iter()
        .map(|i| {
            let usage = |key: &str| i["usage"].get(key).cloned().unwrap_or_default();
            json!({"cells": [i["metadata"]["name"], usage("cpu"), usage("memory"), i["window"]],
                "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": i["metadata"]}})
        })
        .collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "columnDefinitions": columns, "rows": rows})
}

/// The server's own figures.
pub(crate) fn prometheus(server: &Server) -> String {
    let mut out = String::new();
    let requests = server.requests.load(Ordering::Relaxed);
    let _ = writeln!(
        out,
        "# TYPE apiserver_requests_total counter\napiserver_requests_total {requests}"
    );
    let _ = writeln!(
        out,
        "# TYPE apiserver_resource_version gauge\napiserver_resource_version {}",
        server.store.version()
    );
    let _ = writeln!(out, "# TYPE apiserver_storage_objects gauge");
    for resource in server.registry.snapshot().all() {
        if let Some(collection) = &resource.collection {
            let _ = writeln!(
                out,
                "apiserver_storage_objects{{resource=\"{}\"}} {}",
                resource.qualified(),
                collection.len()
            );
        }
    }
    out
}
