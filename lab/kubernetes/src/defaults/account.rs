//! ServiceAccount admission: every pod has an account, and its token in a volume.

use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};

use crate::json;
use crate::rest::{Context, write};
use crate::status::{ApiError, Result};
use crate::store::Object;

const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// A new namespace gets its default account a moment later; wait that long for it.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn admit(context: &Context, pod: &mut Value) -> Result<()> {
    let mirror = json::at(
        pod,
        &["metadata", "annotations", "kubernetes.io/config.mirror"],
    )
    .is_some();
    if mirror {
        return Ok(());
    }
    let spec = json::map_mut(pod, &["spec"]);
    let legacy = spec
        .get("serviceAccount")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    json::default(
        spec,
        "serviceAccountName",
        if legacy.is_empty() {
            "default"
        } else {
            &legacy
        },
    );
    if spec["serviceAccountName"] == "" {
        spec.insert("serviceAccountName".into(), "default".into());
    }
    let name = spec["serviceAccountName"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    spec.insert("serviceAccount".into(), name.clone().into());
    let Some(account) = account(context, &name).await else {
        return Err(ApiError::forbidden(
            &context.resource,
            json::str_at(pod, &["metadata", "name"]),
            &format!(
                "error looking up service account {}/{name}: serviceaccount \"{name}\" not found",
                context.namespace
            ),
        ));
    };
    let wanted = json::at(pod, &["spec", "automountServiceAccountToken"])
        .or_else(|| account.value.get("automountServiceAccountToken"))
        .and_then(Value::as_bool)
        .unwrap_or(true);
    if wanted {
        mount(pod);
    }
    let secrets = json::list_at(&account.value, &["imagePullSecrets"]);
    if !secrets.is_empty() && json::list_at(pod, &["spec", "imagePullSecrets"]).is_empty() {
        json::set(
            pod,
            &["spec", "imagePullSecrets"],
            Value::Array(secrets.to_vec()),
        );
    }
    Ok(())
}

async fn account(context: &Context, name: &str) -> Option<std::sync::Arc<Object>> {
    let accounts = context.server.store.collection("serviceaccounts");
    let mut changes = accounts.subscribe();
    let find = || accounts.get(&context.namespace, name);
    if name != "default" {
        return find();
    }
    let appears = async {
        loop {
            changes.mark_unchanged();
            if let Some(found) = find() {
                return Some(found);
            }
            if changes.changed().await.is_err() {
                return None;
            }
        }
    };
    tokio::time::timeout(PATIENCE, appears).await.ok().flatten()
}

/// Adds the token volume and mounts it into every container that has nothing there yet.
fn mount(pod: &mut Value) {
    let unmounted = |c: &Value| {
        !json::list_at(c, &["volumeMounts"])
            .iter()
            .any(|m| json::str_at(m, &["mountPath"]) == MOUNT)
    };
    let containers = || ["initContainers", "containers"];
    let needed = containers()
        .iter()
        .any(|key| json::list_at(pod, &["spec", key]).iter().any(unmounted));
    if !needed {
        return;
    }
    let existing = json::list_at(pod, &["spec", "volumes"])
        .iter()
        .map(|v| json::str_at(v, &["name"]))
        .find(|n| n.starts_with("kube-api-access-"))
        .map(str::to_owned);
    let volume = existing
        .clone()
        .unwrap_or_else(|| format!("kube-api-access-{}", write::random_suffix(5)));
    for key in containers() {
        for c in json::at_mut(pod, &["spec", key])
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if unmounted(c) {
                json::list_mut(json::as_map(c), "volumeMounts")
                    .push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT}));
            }
        }
    }
    if existing.is_none() {
        json::list_mut(json::map_mut(pod, &["spec"]), "volumes").push(json!({"name": volume, "projected": {"sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}}],
            "defaultMode": 420}}));
    }
}

/// A secret of the old token type gets its token, if the account it names exists.
pub(super) fn token_secret(context: &Context, secret: &mut Value) -> Result<()> {
    let name = json::str_at(
        secret,
        &[
            "metadata",
            "annotations",
            "kubernetes.io/service-account.name",
        ],
    )
    .to_owned();
    if json::str_at(secret, &["type"]) != "kubernetes.io/service-account-token" || name.is_empty() {
        return Ok(());
    }
    let (server, namespace) = (&context.server, context.namespace.as_str());
    let Some(account) = server
        .store
        .collection("serviceaccounts")
        .get(namespace, &name)
    else {
        return Ok(());
    };
    let own = json::str_at(secret, &["metadata", "name"]);
    let token = server
        .tokens
        .issue_legacy(&server.pki.token_key, namespace, &name, account.uid(), own)
        .map_err(ApiError::internal)?;
    let encode = |text: &str| Value::from(base64::engine::general_purpose::STANDARD.encode(text));
    json::set(
        secret,
        &[
            "metadata",
            "annotations",
            "kubernetes.io/service-account.uid",
        ],
        account.uid().into(),
    );
    let data = json::map_mut(secret, &["data"]);
    data.insert("ca.crt".into(), encode(&server.pki.ca_pem));
    data.insert("namespace".into(), encode(namespace));
    data.insert("token".into(), encode(&token));
    Ok(())
}
