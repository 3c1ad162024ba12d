//! CustomResourceDefinitions: from the stored definition to a served resource.

pub(crate) mod prune;
pub(crate) mod schema;
pub(crate) mod validate;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::json;
use crate::registry::{ALL_VERBS, Column, Resource, ScalePaths, Version, qualify, version_rank};
use crate::server::Server;
use crate::store::Store;

/// Where the definitions themselves are stored.
pub(crate) const COLLECTION: &str = "customresourcedefinitions.apiextensions.k8s.io";

fn text(value: &Value, path: &[&str]) -> String {
    json::str_at(value, path).to_owned()
}

fn texts(value: &Value, path: &[&str]) -> Vec<String> {
    json::list_at(value, path)
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

/// The resource a definition describes; `None` if no version is served.
pub(crate) fn resource(definition: &Value, store: &Store) -> Result<Option<Resource>, String> {
    let (group, plural) = (
        text(definition, &["spec", "group"]),
        text(definition, &["spec", "names", "plural"]),
    );
    let kind = text(definition, &["spec", "names", "kind"]);
    if group.is_empty() || plural.is_empty() || kind.is_empty() {
        return Err("spec.group, spec.names.plural and spec.names.kind are needed".to_owned());
    }
    let mut versions = Vec::new();
    let mut storage = String::new();
    for version in json::list_at(definition, &["spec", "versions"]) {
        if version["storage"] == true {
            storage = text(version, &["name"]);
        }
        if version["served"] == true {
            versions.push(served(version)?);
        }
    }
    if versions.is_empty() {
        return Ok(None);
    }
    versions.sort_by_key(|v| std::cmp::Reverse(version_rank(&v.name)));
    let or = |value: String, other: String| if value.is_empty() { other } else { value };
    Ok(Some(Resource {
        collection: Some(store.collection(&qualify(&plural, &group))),
        singular: or(
            text(definition, &["spec", "names", "singular"]),
            kind.to_lowercase(),
        ),
        list_kind: or(
            text(definition, &["spec", "names", "listKind"]),
            format!("{kind}List"),
        ),
        short_names: texts(definition, &["spec", "names", "shortNames"]),
        categories: texts(definition, &["spec", "names", "categories"]),
        namespaced: json::str_at(definition, &["spec", "scope"]) == "Namespaced",
        group,
        plural,
        kind,
        versions,
        storage,
        subresources: Vec::new(),
        generation: true,
        field_labels: &[],
        custom: true,
        verbs: ALL_VERBS,
    }))
}

fn served(version: &Value) -> Result<Version, String> {
    let name = text(version, &["name"]);
    let source = json::at(version, &["schema", "openAPIV3Schema"])
        .cloned()
        .unwrap_or_else(|| json!({"type": "object"}));
    let schema = schema::Schema::new(source).map_err(|e| format!("version {name}: {e}"))?;
    let columns = json::list_at(version, &["additionalPrinterColumns"])
        .iter()
        .map(|c| Column {
            name: text(c, &["name"]),
            kind: text(c, &["type"]),
            format: text(c, &["format"]),
            description: text(c, &["description"]),
            priority: json::int_at(c, &["priority"]).unwrap_or(0),
            path: text(c, &["jsonPath"]),
        })
        .collect();
    let path = |key: &str| -> Vec<String> {
        json::str_at(version, &["subresources", "scale", key])
            .split('.')
            .filter(|s| !s.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let scale = json::at(version, &["subresources", "scale"]).map(|_| ScalePaths {
        spec: path("specReplicasPath"),
        status: path("statusReplicasPath"),
        selector: Some(path("labelSelectorPath")).filter(|p| !p.is_empty()),
    });
    let deprecated = (version["deprecated"] == true).then(|| {
        match json::str_at(version, &["deprecationWarning"]) {
            "" => format!("version {name} is deprecated"),
            warning => warning.to_owned(),
        }
    });
    Ok(Version {
        check: None,
        schema: Some(Arc::new(schema)),
        columns,
        status: json::at(version, &["subresources", "status"]).is_some(),
        scale,
        deprecated,
        name,
    })
}

/// Names and conditions of a definition that is accepted; a definition is established at once.
pub(crate) fn establish(definition: &mut Value) {
    let names = definition["spec"]["names"].clone();
    let stored: Vec<Value> = json::list_at(definition, &["spec", "versions"])
        .iter()
        .filter(|v| v["storage"] == true)
        .map(|v| v["name"].clone())
        .collect();
    let known = json::list_at(definition, &["status", "conditions"])
        .iter()
        .any(|c| c["type"] == "Established");
    json::set(definition, &["status", "acceptedNames"], names);
    let versions = json::list_mut(json::map_mut(definition, &["status"]), "storedVersions");
    for version in stored {
        if !versions.contains(&version) {
            versions.push(version);
        }
    }
    if known {
        return;
    }
    let now = json::now();
    let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now, "reason": reason, "message": message});
    let conditions = json!([
        condition("NamesAccepted", "NoConflicts", "no conflicts found"),
        condition(
            "Established",
            "InitialNamesAccepted",
            "the initial names have been accepted"
        ),
    ]);
    json::set(definition, &["status", "conditions"], conditions);
}

/// Deletes all objects of a definition that goes away, so that watchers see them go.
pub(crate) async fn delete_instances(server: &Server, definition: &Value) {
    let id = qualify(
        json::str_at(definition, &["spec", "names", "plural"]),
        json::str_at(definition, &["spec", "group"]),
    );
    let collection = server.store.collection(&id);
    for object in collection.list(None, 0).0 {
        let key = (object.namespace.clone(), object.name.clone());
        if let Err(error) = server.store.delete(&collection, key, object.rv, None).await {
            tracing::warn!(resource = id, namespace = object.namespace, name = object.name, %error,
                "an object of a deleted CRD could not be deleted");
        }
    }
}
