//! OpenAPI documents, as far as clients need them.
//!
//! Neither holds the schemas of built-in kinds, so kubectl validates nothing itself. v3 tells it for every
//! kind that the server validates fields, and explains custom resources; v2 (protobuf) tells older ones
//! which kinds can be dry-run.

mod swagger;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::discovery;
use crate::registry::{Resource, Snapshot};
use crate::rest::header_text;
use crate::server::Server;
use crate::status::{Result, json_response, text_response};

const V2_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

pub(crate) fn serve(server: &Server, segments: &[&str], headers: &HeaderMap) -> Result<Response> {
    let snapshot = server.registry.snapshot();
    Ok(match segments {
        ["openapi", "v2"] | ["swagger-2.0.0.pb-v1"] => v2(&snapshot, headers),
        ["openapi", "v3"] => index(&snapshot),
        ["openapi", "v3", "api", "v1"] => json_response(200, document(&snapshot, "", "v1")),
        ["openapi", "v3", "apis", group, version]
            if snapshot.versions(group).iter().any(|v| v == version) =>
        {
            json_response(200, document(&snapshot, group, version))
        }
        _ => text_response(404, "404 page not found\n"),
    })
}

fn v2(snapshot: &Snapshot, headers: &HeaderMap) -> Response {
    if header_text(headers, "accept").contains("protobuf") {
        let mut response = Response::new(Body::from(swagger::document(snapshot)));
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(V2_TYPE));
        return response;
    }
    let info = json!({"title": "Kubernetes", "version": discovery::version()["gitVersion"]});
    json_response(
        200,
        json!({"swagger": "2.0", "info": info, "paths": {}}).to_string(),
    )
}

fn index(snapshot: &Snapshot) -> Response {
    let mut paths = Map::new();
    for group in &snapshot.order {
        for version in snapshot.versions(group) {
            let path = if group.is_empty() {
                format!("api/{version}")
            } else {
                format!("apis/{group}/{version}")
            };
            // Clients cache the URL for ever, so it changes with the document.
            let digest = Sha256::digest(document(snapshot, group, &version));
            let hash: String = digest.iter().take(16).map(|b| format!("{b:02X}")).collect();
            paths.insert(
                path.clone(),
                json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}),
            );
        }
    }
    json_response(200, json!({"paths": paths}).to_string())
}

/// The documents of one group version: the operations by which kubectl recognises server-side
/// validation, and for custom resources their schemas, which `kubectl explain` prints.
fn document(snapshot: &Snapshot, group: &str, version: &str) -> String {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for resource in snapshot
        .group(group)
        .filter(|r| r.version(version).is_some() && r.collection.is_some())
    {
        add_paths(&mut paths, resource, version);
        schemas.insert(schema_name(resource, version), schema(resource, version));
    }
    let body = json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": discovery::version()["gitVersion"]},
        "paths": paths, "components": {"schemas": schemas}});
    body.to_string()
}

fn schema_name(resource: &Resource, version: &str) -> String {
    let group: Vec<&str> = resource
        .group
        .split('.')
        .rev()
        .filter(|s| !s.is_empty())
        .collect();
    let group = if group.is_empty() {
        "io.k8s.api.core".to_owned()
    } else {
        group.join(".")
    };
    format!("{group}.{version}.{}", resource.kind)
}

fn add_paths(paths: &mut Map<String, Value>, resource: &Resource, version: &str) {
    let root = if resource.group.is_empty() {
        "/api/v1".to_owned()
    } else {
        format!("/apis/{}/{version}", resource.group)
    };
    let namespaced = if resource.namespaced {
        "/namespaces/{namespace}"
    } else {
        ""
    };
    let collection = format!("{root}{namespaced}/{}", resource.plural);
    let gvk = json!({"group": resource.group, "version": version, "kind": resource.kind});
    let content = json!({"application/json": {"schema": {"$ref": format!("#/components/schemas/{}", schema_name(resource, version))}}});
    let operation = |verb: &str, action: &str| {
        let parameters: Vec<Value> = ["dryRun", "fieldManager", "fieldValidation", "force"]
            .iter()
            .filter(|_| verb != "get")
            .map(|p| json!({"name": p, "in": "query", "schema": {"type": if *p == "force" { "boolean" } else { "string" }, "uniqueItems": true}}))
            .collect();
        json!({"operationId": format!("{verb}{}{}{version}", resource.kind, resource.group.replace('.', "")), "parameters": parameters,
            "responses": {"200": {"description": "OK", "content": content}},
            "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk})
    };
    paths.insert(
        format!("{collection}/{{name}}"),
        json!({"get": operation("get", "get"), "patch": operation("patch", "patch"),
        "put": operation("put", "put")}),
    );
    paths.insert(
        collection,
        json!({"get": operation("list", "list"), "post": operation("post", "post")}),
    );
}

fn schema(resource: &Resource, version: &str) -> Value {
    let mut schema = match resource.version(version).and_then(|v| v.schema.as_ref()) {
        Some(schema) => schema.source.clone(),
        None => json!({"type": "object"}),
    };
    schema["x-kubernetes-group-version-kind"] =
        json!([{"group": resource.group, "version": version, "kind": resource.kind}]);
    let properties = crate::json::map_mut(&mut schema, &["properties"]);
    for key in ["apiVersion", "kind"] {
        properties.insert(key.into(), json!({"type": "string"}));
    }
    properties.insert("metadata".into(), json!({"type": "object"}));
    schema
}
