//! Server-side apply of manifests: namespaces and CRDs first, then the rest once the CRDs are established.
//!
//! A number of replicas that somebody else has set since (by hand, an autoscaler, an experiment) is left alone: the
//! manifest says how many there are at first.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::Scope;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, Discovery, ResourceExt};

use crate::progress::Step;

const FIELD_MANAGER: &str = "istioctl";
const ESTABLISHED_WITHIN: Duration = Duration::from_secs(30);

/// Applies all of them. Objects without a namespace go to `namespace` if their kind has one.
pub(super) async fn apply(
    client: &Client,
    objects: Vec<DynamicObject>,
    namespace: &str,
    step: &Step,
) -> anyhow::Result<()> {
    let total = objects.len();
    let (first, rest): (Vec<_>, Vec<_>) = objects
        .into_iter()
        .partition(|o| matches!(kind(o), "Namespace" | "CustomResourceDefinition"));
    let crds: Vec<String> = first
        .iter()
        .filter(|o| kind(o) == "CustomResourceDefinition")
        .map(ResourceExt::name_any)
        .collect();
    let discovery = Discovery::new(client.clone())
        .run()
        .await
        .context("asking the API server for its kinds")?;
    apply_all(client, &discovery, &first, namespace).await?;
    step.update(&format!("{} of {total} objects", first.len()));
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for name in &crds {
        let established = await_condition(api.clone(), name, conditions::is_crd_established());
        tokio::time::timeout(ESTABLISHED_WITHIN, established)
            .await
            .with_context(|| {
                format!(
                    "CustomResourceDefinition {name} is not established after {} s",
                    ESTABLISHED_WITHIN.as_secs()
                )
            })?
            .with_context(|| format!("watching CustomResourceDefinition {name}"))?;
    }
    let discovery = Discovery::new(client.clone())
        .run()
        .await
        .context("asking the API server for its kinds")?;
    apply_all(client, &discovery, &rest, namespace).await
}

async fn apply_all(
    client: &Client,
    discovery: &Discovery,
    objects: &[DynamicObject],
    namespace: &str,
) -> anyhow::Result<()> {
    let params = PatchParams::apply(FIELD_MANAGER).force();
    for object in objects {
        let id = describe(object);
        let types = object.types.clone().unwrap_or_default();
        let gvk = GroupVersionKind::try_from(&types).with_context(|| id.clone())?;
        let (resource, capabilities) = discovery.resolve_gvk(&gvk).with_context(|| {
            format!(
                "{id}: the API server does not know {} in {}",
                types.kind, types.api_version
            )
        })?;
        let api = api_for(client, object, &resource, &capabilities.scope, namespace);
        let mut wanted = object.clone();
        if !wanted.data["spec"]["replicas"].is_null() {
            let live = api.get_opt(&object.name_any()).await;
            let live = live.with_context(|| format!("reading {id}"))?;
            if live.is_some_and(|live| is_scaled(&live))
                && let Some(spec) = wanted.data["spec"].as_object_mut()
            {
                spec.remove("replicas");
            }
        }
        api.patch(&object.name_any(), &params, &Patch::Apply(&wanted))
            .await
            .with_context(|| format!("applying {id}"))?;
    }
    Ok(())
}

/// Whether somebody else, and not this program any more, owns the number of replicas.
fn is_scaled(live: &DynamicObject) -> bool {
    let entries = live.metadata.managed_fields.iter().flatten();
    let mut owners = entries
        .filter(|entry| {
            let fields = entry.fields_v1.as_ref();
            fields.is_some_and(|fields| !fields.0["f:spec"]["f:replicas"].is_null())
        })
        .map(|entry| entry.manager.as_deref())
        .peekable();
    owners.peek().is_some() && owners.all(|owner| owner != Some(FIELD_MANAGER))
}

fn api_for(
    client: &Client,
    object: &DynamicObject,
    resource: &ApiResource,
    scope: &Scope,
    namespace: &str,
) -> Api<DynamicObject> {
    match scope {
        Scope::Cluster => Api::all_with(client.clone(), resource),
        Scope::Namespaced => {
            let namespace = object.metadata.namespace.as_deref().unwrap_or(namespace);
            Api::namespaced_with(client.clone(), namespace, resource)
        }
    }
}

fn kind(object: &DynamicObject) -> &str {
    object.types.as_ref().map_or("", |t| t.kind.as_str())
}

fn describe(object: &DynamicObject) -> String {
    let name = object.name_any();
    match object.namespace() {
        Some(namespace) => format!("{} {namespace}/{name}", kind(object)),
        None => format!("{} {name}", kind(object)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn replicas_belong_to_whoever_set_them_last() {
        let replicas = || json!({"f:spec": {"f:replicas": {}}});
        let entry = |manager: &str, fields: Value| json!({"manager": manager, "fieldsV1": fields});
        for (entries, expected) in [
            (json!([]), false),
            (json!([entry("istioctl", replicas())]), false),
            (
                json!([
                    entry("istioctl", json!({"f:spec": {"f:template": {}}})),
                    entry("kubectl", replicas())
                ]),
                true,
            ),
            (
                json!([entry("istioctl", replicas()), entry("kubectl", replicas())]),
                false,
            ),
            (
                json!([entry("horizontal-pod-autoscaler", replicas())]),
                true,
            ),
        ] {
            let live: DynamicObject = serde_json::from_value(
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "managedFields": entries}}),
            )
            .expect("an object");
            assert_eq!(is_scaled(&live), expected, "{entries}");
        }
    }
}
