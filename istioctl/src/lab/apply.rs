//! Server-side apply of manifests: namespaces and CRDs first, then the rest once the CRDs are established.

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
        api.patch(&object.name_any(), &params, &Patch::Apply(object))
            .await
            .with_context(|| format!("applying {id}"))?;
    }
    Ok(())
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
