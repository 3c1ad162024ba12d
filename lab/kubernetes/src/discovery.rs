//! Discovery: which groups, versions and resources there are, in the plain and the aggregated form.

use axum::response::Response;
use http::{HeaderMap, HeaderValue, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::metrics;
use crate::negotiate::accepted;
use crate::registry::{Resource, STATUS_VERBS, Snapshot, Version, api_version};
use crate::rest::header_text;
use crate::server::Server;
use crate::status::{Result, json_response, text_response};

/// What /version says: the release whose behaviour this server follows.
pub(crate) fn version() -> Value {
    json!({"major": "1", "minor": "32", "gitVersion": "v1.32.13+mesozoic-lab", "gitCommit": "0000000000000000000000000000000000000000",
        "gitTreeState": "clean", "buildDate": "2026-01-01T00:00:00Z", "goVersion": "go1.23.10", "compiler": "gc",
        "platform": "linux/amd64"})
}

/// The root document.
pub(crate) fn paths(server: &Server) -> Value {
    let snapshot = server.registry.snapshot();
    let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for group in groups(&snapshot) {
        paths.push(format!("/apis/{group}"));
        paths.extend(
            versions(&snapshot, &group)
                .iter()
                .map(|v| format!("/apis/{group}/{v}")),
        );
    }
    paths.extend(
        [
            "/healthz",
            "/livez",
            "/metrics",
            "/openapi/v2",
            "/openapi/v3",
            "/readyz",
            "/version",
        ]
        .map(str::to_owned),
    );
    json!({"paths": paths})
}

pub(crate) fn serve(server: &Server, segments: &[&str], headers: &HeaderMap) -> Result<Response> {
    let snapshot = server.registry.snapshot();
    let document = match segments {
        ["api"] | ["apis"] => {
            let core = segments == ["api"];
            if let Some(version) = aggregated(headers) {
                return Ok(tagged(
                    headers,
                    &aggregate(&snapshot, core, version),
                    Some(version),
                ));
            }
            if core {
                api_versions(headers)
            } else {
                group_list(&snapshot)
            }
        }
        ["api", "v1"] => resource_list(&snapshot, "", "v1"),
        ["apis", group] if groups(&snapshot).iter().any(|g| g == group) => {
            let mut document = json!({"kind": "APIGroup", "apiVersion": "v1"});
            if let (Value::Object(document), Value::Object(group)) =
                (&mut document, group_document(&snapshot, group))
            {
                document.extend(group);
            }
            document
        }
        ["apis", group, version] if versions(&snapshot, group).iter().any(|v| v == version) => {
            resource_list(&snapshot, group, version)
        }
        _ => return Ok(text_response(404, "404 page not found\n")),
    };
    Ok(tagged(headers, &document, None))
}

/// The aggregated version (`v2` or `v2beta1`) the client prefers, if any.
fn aggregated(headers: &HeaderMap) -> Option<&'static str> {
    for media in accepted(headers) {
        if media.parameter("as") == Some("APIGroupDiscoveryList") {
            match media.parameter("v") {
                Some("v2") => return Some("v2"),
                Some("v2beta1") => return Some("v2beta1"),
                _ => {}
            }
        } else if matches!(media.kind, "application/json" | "*/*") {
            return None;
        }
    }
    None
}

/// With an ETag, and 304 for a client that has the document.
fn tagged(headers: &HeaderMap, document: &Value, aggregated: Option<&str>) -> Response {
    let body = document.to_string();
    let digest = Sha256::digest(body.as_bytes());
    let tag = format!(
        "\"{}\"",
        digest
            .iter()
            .map(|b| format!("{b:02X}"))
            .collect::<String>()
    );
    let mut response = if header_text(headers, "if-none-match") == tag {
        let mut response = json_response(304, axum::body::Body::empty());
        response.headers_mut().remove(header::CONTENT_TYPE);
        response
    } else {
        json_response(200, body)
    };
    let out = response.headers_mut();
    if let (Some(version), true) = (aggregated, out.contains_key(header::CONTENT_TYPE)) {
        let text =
            format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        if let Ok(value) = HeaderValue::from_str(&text) {
            out.insert(header::CONTENT_TYPE, value);
        }
    }
    if let (Ok(tag), true) = (HeaderValue::from_str(&tag), aggregated.is_some()) {
        out.insert(header::ETAG, tag);
    }
    out.insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn api_versions(headers: &HeaderMap) -> Value {
    let host = header_text(headers, "host");
    json!({"kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": host}]})
}

/// Named groups in order; metrics.k8s.io is served without being stored.
fn groups(snapshot: &Snapshot) -> Vec<String> {
    let mut groups: Vec<String> = snapshot
        .order
        .iter()
        .filter(|g| !g.is_empty())
        .cloned()
        .collect();
    groups.push(metrics::GROUP.to_owned());
    groups
}

fn versions(snapshot: &Snapshot, group: &str) -> Vec<String> {
    if group == metrics::GROUP {
        vec![metrics::VERSION.to_owned()]
    } else {
        snapshot.versions(group)
    }
}

fn group_document(snapshot: &Snapshot, group: &str) -> Value {
    let versions: Vec<Value> = versions(snapshot, group)
        .iter()
        .map(|v| json!({"groupVersion": api_version(group, v), "version": v}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions.first()})
}

fn group_list(snapshot: &Snapshot) -> Value {
    let groups: Vec<Value> = groups(snapshot)
        .iter()
        .map(|g| group_document(snapshot, g))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// One resource or subresource of a version, before it takes either form.
struct Entry {
    name: String,
    singular: String,
    namespaced: bool,
    group: String,
    version: String,
    kind: String,
    verbs: Vec<&'static str>,
    short_names: Vec<String>,
    categories: Vec<String>,
    storage_hash: Option<String>,
}

fn entries(snapshot: &Snapshot, group: &str, version: &str) -> Vec<Entry> {
    if group == metrics::GROUP {
        return [
            ("nodes", "NodeMetrics", false),
            ("pods", "PodMetrics", true),
        ]
        .map(|(name, kind, namespaced)| Entry {
            name: name.to_owned(),
            singular: name.trim_end_matches('s').to_owned(),
            namespaced,
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
            verbs: vec!["get", "list"],
            short_names: Vec::new(),
            categories: Vec::new(),
            storage_hash: None,
        })
        .into();
    }
    let mut out = Vec::new();
    for resource in snapshot.group(group) {
        let Some(served) = resource.version(version) else {
            continue;
        };
        out.push(Entry {
            name: resource.plural.clone(),
            singular: resource.singular.clone(),
            namespaced: resource.namespaced,
            group: group.to_owned(),
            version: version.to_owned(),
            kind: resource.kind.clone(),
            verbs: resource.verbs.to_vec(),
            short_names: resource.short_names.clone(),
            categories: resource.categories.clone(),
            storage_hash: resource.collection.as_ref().map(|_| storage_hash(resource)),
        });
        out.extend(subresources(resource, served, group, version));
    }
    out
}

fn subresources(resource: &Resource, served: &Version, group: &str, version: &str) -> Vec<Entry> {
    let entry =
        |name: &str, group: &str, version: &str, kind: &str, verbs: &'static [&'static str]| {
            Entry {
                name: format!("{}/{name}", resource.plural),
                singular: String::new(),
                namespaced: resource.namespaced,
                group: group.to_owned(),
                version: version.to_owned(),
                kind: kind.to_owned(),
                verbs: verbs.to_vec(),
                short_names: Vec::new(),
                categories: Vec::new(),
                storage_hash: None,
            }
        };
    if resource.custom {
        let mut out = Vec::new();
        if served.status {
            out.push(entry(
                "status",
                group,
                version,
                &resource.kind,
                STATUS_VERBS,
            ));
        }
        if served.scale.is_some() {
            out.push(entry("scale", "autoscaling", "v1", "Scale", STATUS_VERBS));
        }
        return out;
    }
    resource
        .subresources
        .iter()
        .map(|s| {
            let (g, v) = if s.version.is_empty() {
                (group, version)
            } else {
                (s.group, s.version)
            };
            entry(s.name, g, v, &s.kind, s.verbs)
        })
        .collect()
}

fn storage_hash(resource: &Resource) -> String {
    use base64::Engine;
    let text = format!("{}/{}/{}", resource.group, resource.storage, resource.kind);
    base64::engine::general_purpose::STANDARD.encode(&Sha256::digest(text.as_bytes())[..8])
}

fn resource_list(snapshot: &Snapshot, group: &str, version: &str) -> Value {
    let resources: Vec<Value> = entries(snapshot, group, version)
        .into_iter()
        .map(|e| {
            let mut map = Map::new();
            map.insert("name".into(), e.name.clone().into());
            map.insert("singularName".into(), e.singular.into());
            map.insert("namespaced".into(), e.namespaced.into());
            if (e.group.as_str(), e.version.as_str()) != (group, version) {
                map.insert("group".into(), e.group.into());
                map.insert("version".into(), e.version.into());
            }
            map.insert("kind".into(), e.kind.into());
            map.insert("verbs".into(), e.verbs.into());
            if !e.short_names.is_empty() {
                map.insert("shortNames".into(), e.short_names.into());
            }
            if !e.categories.is_empty() {
                map.insert("categories".into(), e.categories.into());
            }
            if let Some(hash) = e.storage_hash {
                map.insert("storageVersionHash".into(), hash.into());
            }
            Value::Object(map)
        })
        .collect();
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version(group, version), "resources": resources})
}

fn aggregate(snapshot: &Snapshot, core: bool, version: &str) -> Value {
    let groups = if core {
        vec![String::new()]
    } else {
        groups(snapshot)
    };
    let items: Vec<Value> = groups
        .iter()
        .map(|group| {
            let versions: Vec<Value> = versions(snapshot, group)
                .iter()
                .map(|v| json!({"version": v, "resources": aggregated_resources(snapshot, group, v), "freshness": "Current"}))
                .collect();
            json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {}, "items": items})
}

fn aggregated_resources(snapshot: &Snapshot, group: &str, version: &str) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::new();
    for e in entries(snapshot, group, version) {
        let kind = json!({"group": e.group, "version": e.version, "kind": e.kind});
        if let Some((_, sub)) = e.name.split_once('/') {
            let sub = json!({"subresource": sub, "responseKind": kind, "verbs": e.verbs});
            if let Some(parent) = out.last_mut().and_then(Value::as_object_mut) {
                crate::json::list_mut(parent, "subresources").push(sub);
            }
            continue;
        }
        let scope = if e.namespaced {
            "Namespaced"
        } else {
            "Cluster"
        };
        let mut resource = json!({"resource": e.name, "responseKind": kind, "scope": scope, "singularResource": e.singular, "verbs": e.verbs});
        if !e.short_names.is_empty() {
            resource["shortNames"] = e.short_names.into();
        }
        if !e.categories.is_empty() {
            resource["categories"] = e.categories.into();
        }
        out.push(resource);
    }
    out
}
