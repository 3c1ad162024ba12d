//! Who controls whom: controller references, and which objects a controller may take or must let go.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;

use crate::error::{During, Result, unless_gone};
use crate::pods::selects;
use crate::runtime::store::{Key, Store, Stored};

/// The reference a controller puts on what it creates.
pub(crate) fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The object's controller, if it has one.
pub(crate) fn controller_of<K: Resource>(object: &K) -> Option<&OwnerReference> {
    object
        .meta()
        .owner_references
        .as_ref()?
        .iter()
        .find(|o| o.controller == Some(true))
}

/// The key of the object's controller if that is of kind `O`.
pub(crate) fn controller_key<K: Resource, O: Resource<DynamicType = ()>>(
    object: &K,
) -> Option<Key> {
    let owner = controller_of(object)?;
    (owner.kind == O::kind(&()) && owner.api_version == O::api_version(&()))
        .then(|| Key::new(object.namespace().unwrap_or_default(), owner.name.clone()))
}

/// What a controller does about each candidate.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum Claim {
    /// It is the controller's and matches.
    Keep,
    /// It matches and nobody controls it.
    Adopt,
    /// It is the controller's and no longer matches.
    Release,
    /// Not its business.
    Ignore,
}

pub(crate) fn claim<K: Resource>(
    object: &K,
    owner_uid: &str,
    owner_deleted: bool,
    selector: &LabelSelector,
) -> Claim {
    let matches = selects(selector, object.meta().labels.as_ref());
    match controller_of(object) {
        Some(controller) if controller.uid != owner_uid => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        // An owner that is being deleted neither lets go nor takes: the garbage collector decides.
        Some(_) if owner_deleted => Claim::Ignore,
        Some(_) => Claim::Release,
        None if !matches || owner_deleted || object.meta().deletion_timestamp.is_some() => {
            Claim::Ignore
        }
        None => Claim::Adopt,
    }
}

/// Claims every object of the owner's namespace and returns those that are the owner's now.
pub(crate) async fn claim_all<K, O>(
    client: &Client,
    store: &Store<K>,
    owner: &O,
    selector: &LabelSelector,
    adoptable: impl Fn(&K) -> bool,
) -> Result<Vec<Arc<K>>>
where
    K: Stored + Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    O: Resource<DynamicType = ()>,
{
    let namespace = owner.namespace().unwrap_or_default();
    let owner_uid = owner.uid().unwrap_or_default();
    let deleted = owner.meta().deletion_timestamp.is_some();
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let mut mine = Vec::new();
    for object in store.in_namespace(&namespace) {
        let references = object.meta().owner_references.clone().unwrap_or_default();
        let references = match claim(object.as_ref(), &owner_uid, deleted, selector) {
            Claim::Keep => {
                mine.push(object);
                continue;
            }
            Claim::Adopt if adoptable(&object) => references
                .into_iter()
                .chain([controller_reference(owner)])
                .collect::<Vec<_>>(),
            Claim::Release => references
                .into_iter()
                .filter(|o| o.uid != owner_uid)
                .collect(),
            Claim::Adopt | Claim::Ignore => continue,
        };
        let adopting = references.iter().any(|o| o.uid == owner_uid);
        // The uid in the patch refuses a namesake, the version refuses a stale view.
        let patch = json!({"metadata": {
            "uid": object.uid(), "resourceVersion": object.resource_version(), "ownerReferences": references}});
        let name = object.name_any();
        let written = unless_gone(
            api.patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await
                .during(|| {
                    format!(
                        "change the controller of {} {namespace}/{name}",
                        K::kind(&())
                    )
                }),
        )?;
        if let Some(written) = written {
            store.wrote(written.clone());
            if adopting {
                mine.push(Arc::new(written));
            }
        }
    }
    Ok(mine)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    #[test]
    fn claims() {
        let selector: LabelSelector =
            serde_json::from_value(json!({"matchLabels": {"app": "web"}})).unwrap();
        let owner = |uid: &str| json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": uid, "controller": true}]);
        for (labels, owners, owner_deleted, expected) in [
            (json!({"app": "web"}), owner("me"), false, Claim::Keep),
            (json!({"app": "web"}), owner("other"), false, Claim::Ignore),
            (json!({"app": "web"}), json!([]), false, Claim::Adopt),
            (json!({"app": "db"}), json!([]), false, Claim::Ignore),
            (json!({"app": "db"}), owner("me"), false, Claim::Release),
            (json!({"app": "db"}), owner("me"), true, Claim::Ignore),
            (json!({"app": "web"}), json!([]), true, Claim::Ignore),
        ] {
            let pod: Pod = serde_json::from_value(
                json!({"metadata": {"labels": labels, "ownerReferences": owners}}),
            )
            .unwrap();
            assert_eq!(
                claim(&pod, "me", owner_deleted, &selector),
                expected,
                "{labels} {owners}"
            );
        }
    }
}
