//! Empties a namespace that is being deleted, then lets it go.
//!
//! Every namespaced kind, custom ones included, is deleted as a collection; pods take their grace period. What remains
//! is shown in the namespace's conditions. The inventory wakes the namespace when its objects vanish; since events are
//! not in the inventory, and a kind may be new, the last word is a list of every kind just before the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};

use crate::context::Context;
use crate::error::{During, Error, Result, now, unless_gone};
use crate::inventory::{Change, Inventory, Kind};
use crate::runtime::driver::{Again, Controller};
use crate::runtime::queue::Queue;
use crate::runtime::store::Key;
use crate::service_accounts::is_terminating;

/// How many kinds are emptied at the same time.
const PARALLEL: usize = 8;
/// Another look if nothing was heard of meanwhile: a safety net, not the way it works.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

pub(crate) struct Namespaces {
    context: Arc<Context>,
    inventory: Arc<Inventory>,
    queue: Arc<Queue<Key>>,
}

impl Namespaces {
    pub(crate) fn new(context: Arc<Context>, inventory: Arc<Inventory>) -> Self {
        let queue = Arc::new(Queue::new());
        let wake = queue.clone();
        context.stores.namespaces.on_change(move |_, new| {
            if let Some(namespace) = new.filter(|n| is_terminating(n)) {
                wake.add(Key::of(namespace.as_ref()));
            }
        });
        let wake = queue.clone();
        let namespaces = context.stores.namespaces.clone();
        inventory.on_change(move |change| {
            if let Change::Gone { key, .. } = change {
                let namespace = Key::new("", key.namespace.clone());
                if namespaces
                    .get(&namespace)
                    .is_some_and(|n| is_terminating(&n))
                {
                    wake.add(namespace);
                }
            }
        });
        Self {
            context,
            inventory,
            queue,
        }
    }

    /// Deletes all there is of `kind` and says what is left.
    async fn empty(&self, kind: Arc<Kind>, namespace: &str) -> Result<Left> {
        let what = || format!("empty namespace {namespace} of {}", kind.resource.plural);
        let api = kind.api(&self.context.client, namespace);
        let list = ListParams::default();
        let before = tolerate(api.list(&list).await.during(what))?;
        let Some(before) = before.filter(|list| !list.items.is_empty()) else {
            return Ok(Left::default());
        };
        let params = DeleteParams::background();
        // Asking again for what is already going would only repeat admission calls.
        if before
            .items
            .iter()
            .any(|object| object.metadata.deletion_timestamp.is_none())
        {
            if kind.collection {
                tolerate(api.delete_collection(&params, &list).await.during(what))?;
            } else {
                for object in before
                    .items
                    .iter()
                    .filter(|o| o.metadata.deletion_timestamp.is_none())
                {
                    unless_gone(api.delete(&object.name_any(), &params).await.during(what))?;
                }
            }
        }
        let after = tolerate(api.list(&list).await.during(what))?;
        let mut left = Left::default();
        for object in after.into_iter().flat_map(|list| list.items) {
            *left.objects.entry(kind_name(&kind)).or_default() += 1;
            for finalizer in object.metadata.finalizers.unwrap_or_default() {
                *left.finalizers.entry(finalizer).or_default() += 1;
            }
        }
        Ok(left)
    }

    async fn empty_all(&self, namespace: &str) -> Result<(Left, Vec<Error>)> {
        // Discovered anew: a kind whose definition was made a moment ago counts too.
        let mut kinds = self.inventory.discover().await?;
        kinds.retain(|kind| kind.namespaced);
        let results: Vec<Result<Left>> = futures::stream::iter(kinds)
            .map(|kind| self.empty(kind, namespace))
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        let mut left = Left::default();
        let mut errors = Vec::new();
        for result in results {
            match result {
                Ok(more) => left.merge(more),
                Err(error) => errors.push(error),
            }
        }
        Ok((left, errors))
    }

    async fn show(&self, namespace: &Namespace, left: &Left, errors: &[Error]) -> Result<()> {
        let old = namespace.status.clone().unwrap_or_default();
        let mut status = old.clone();
        status.phase = Some("Terminating".to_owned());
        status.conditions = Some(conditions(
            old.conditions.clone().unwrap_or_default(),
            left,
            errors,
            &now(),
        ));
        if status == old {
            return Ok(());
        }
        let mut changed = namespace.clone();
        changed.status = Some(status);
        let name = namespace.name_any();
        let api: Api<Namespace> = Api::all(self.context.client.clone());
        let written = unless_gone(
            api.replace_status(&name, &PostParams::default(), &changed)
                .await
                .during(|| format!("write the status of Namespace {name}")),
        )?;
        if let Some(written) = written {
            self.context.stores.namespaces.wrote(written);
        }
        Ok(())
    }

    async fn finalize(&self, namespace: &Namespace) -> Result<()> {
        let name = namespace.name_any();
        let mut changed = namespace.clone();
        let spec = changed.spec.get_or_insert_default();
        let finalizers = spec.finalizers.get_or_insert_default();
        finalizers.retain(|f| f != "kubernetes");
        let body = serde_json::to_vec(&changed)
            .map_err(kube::Error::SerdeError)
            .during(|| format!("encode Namespace {name}"))?;
        let request = http::Request::put(format!("/api/v1/namespaces/{name}/finalize"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(kube::Error::HttpError)
            .during(|| format!("build the finalize request of Namespace {name}"))?;
        let answer = self
            .context
            .client
            .request::<serde_json::Value>(request)
            .await
            .during(|| format!("finalize Namespace {name}"));
        unless_gone(answer).map(|_| ())
    }
}

/// A kind that cannot be listed or deleted as a collection holds nothing up; one that vanished holds nothing at all.
fn tolerate<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(error)
            if error.is_not_found() || error.api().is_some_and(|status| status.code == 405) =>
        {
            Ok(None)
        }
        other => other.map(Some),
    }
}

fn kind_name(kind: &Kind) -> String {
    if kind.resource.group.is_empty() {
        kind.resource.plural.clone()
    } else {
        format!("{}.{}", kind.resource.plural, kind.resource.group)
    }
}

/// What is still in a namespace.
#[derive(Debug, Default, PartialEq, Eq)]
struct Left {
    objects: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
}

impl Left {
    fn merge(&mut self, other: Self) {
        for (kind, count) in other.objects {
            *self.objects.entry(kind).or_default() += count;
        }
        for (finalizer, count) in other.finalizers {
            *self.finalizers.entry(finalizer).or_default() += count;
        }
    }
}

/// The five conditions of a namespace on its way out. Pure.
fn conditions(
    mut list: Vec<NamespaceCondition>,
    left: &Left,
    errors: &[Error],
    now: &Time,
) -> Vec<NamespaceCondition> {
    let mut set = |kind: &str, bad: bool, good_text: (&str, &str), bad_text: (&str, String)| {
        let (reason, message) = if bad {
            bad_text
        } else {
            (good_text.0, good_text.1.to_owned())
        };
        let status = if bad { "True" } else { "False" };
        let known = list.iter_mut().find(|c| c.type_ == kind);
        let since = known
            .as_ref()
            .filter(|c| c.status == status)
            .and_then(|c| c.last_transition_time.clone());
        let condition = NamespaceCondition {
            last_transition_time: Some(since.unwrap_or_else(|| now.clone())),
            message: Some(message),
            reason: Some(reason.to_owned()),
            status: status.to_owned(),
            type_: kind.to_owned(),
        };
        match known {
            Some(known) => *known = condition,
            None => list.push(condition),
        }
    };
    set(
        "NamespaceDeletionDiscoveryFailure",
        false,
        (
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        ("DiscoveryFailed", String::new()),
    );
    set(
        "NamespaceDeletionGroupVersionParsingFailure",
        false,
        (
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        ("GroupVersionParsingFailed", String::new()),
    );
    let failures: Vec<_> = errors.iter().map(ToString::to_string).collect();
    set(
        "NamespaceDeletionContentFailure",
        !errors.is_empty(),
        (
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "ContentDeletionFailed",
            format!(
                "Failed to delete all resource types, {} remaining: {}",
                failures.len(),
                failures.join(", ")
            ),
        ),
    );
    let objects: Vec<_> = left
        .objects
        .iter()
        .map(|(k, n)| format!("{k} has {n} resource instances"))
        .collect();
    set(
        "NamespaceContentRemaining",
        !left.objects.is_empty(),
        ("ContentRemoved", "All content successfully removed"),
        (
            "SomeResourcesRemain",
            format!("Some resources are remaining: {}", objects.join(", ")),
        ),
    );
    let finalizers: Vec<_> = left
        .finalizers
        .iter()
        .map(|(f, n)| format!("{f} in {n} resource instances"))
        .collect();
    set(
        "NamespaceFinalizersRemaining",
        !left.finalizers.is_empty(),
        (
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
        (
            "SomeFinalizersRemain",
            format!(
                "Some content in the namespace has finalizers remaining: {}",
                finalizers.join(", ")
            ),
        ),
    );
    list
}

impl Controller for Namespaces {
    const NAME: &'static str = "namespace";
    const WORKERS: usize = 2;
    type Key = Key;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> Result<Again> {
        let Some(namespace) = self
            .context
            .stores
            .namespaces
            .get(key)
            .filter(|n| is_terminating(n))
        else {
            return Ok(Again::Never);
        };
        let finalizers = namespace
            .spec
            .as_ref()
            .and_then(|s| s.finalizers.as_deref())
            .unwrap_or_default();
        if !finalizers.iter().any(|f| f == "kubernetes") {
            return Ok(Again::Never);
        }
        let (left, errors) = self.empty_all(&key.name).await?;
        if left.objects.is_empty() && errors.is_empty() {
            self.finalize(&namespace).await?;
            return Ok(Again::Never);
        }
        self.show(&namespace, &left, &errors).await?;
        match errors.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(Again::After(LOOK_AGAIN)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_remains_is_shown() {
        let at = |s: i64| Time(jiff::Timestamp::from_second(s).unwrap());
        let mut left = Left::default();
        left.merge(Left {
            objects: [("pods".to_owned(), 2)].into(),
            finalizers: [("lab/hold".to_owned(), 1)].into(),
        });
        let first = conditions(Vec::new(), &left, &[], &at(1));
        let shown: Vec<_> = first
            .iter()
            .map(|c| {
                (
                    c.type_.as_str(),
                    c.status.as_str(),
                    c.message.as_deref().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            shown[3..],
            [
                (
                    "NamespaceContentRemaining",
                    "True",
                    "Some resources are remaining: pods has 2 resource instances"
                ),
                (
                    "NamespaceFinalizersRemaining",
                    "True",
                    "Some content in the namespace has finalizers remaining: lab/hold in 1 resource instances"
                ),
            ]
        );
        assert_eq!(
            conditions(first.clone(), &left, &[], &at(9)),
            first,
            "times move only with the status"
        );
        let done = conditions(first, &Left::default(), &[], &at(9));
        assert_eq!(done[3].status, "False");
        assert_eq!(done[3].last_transition_time, Some(at(9)));
        assert_eq!(done.len(), 5);
    }
}
