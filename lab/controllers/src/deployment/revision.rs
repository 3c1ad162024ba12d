//! Names, hashes, annotations and revisions of a Deployment's ReplicaSets. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::ResourceExt;

pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(crate) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(crate) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(crate) const MAX: &str = "deployment.kubernetes.io/max-replicas";
pub(crate) const TEMPLATE_HASH: &str = "pod-template-hash";
/// Annotations that describe the Deployment object and not its template.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

/// Letters and digits that form no words and are not mistaken for one another.
const SAFE: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The hash of a pod template: FNV-1a over its JSON (struct fields in fixed order, maps sorted), with the collision
/// count mixed in, spelt in the safe alphabet. The same template always gives the same name.
pub(crate) fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    let mut feed = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    };
    // A template that came as JSON can be written as JSON; an empty hash would only mean a name collision, handled above.
    feed(
        serde_json::to_string(template)
            .unwrap_or_default()
            .as_bytes(),
    );
    if collisions > 0 {
        feed(&collisions.to_le_bytes());
    }
    hash.to_string()
        .bytes()
        .map(|digit| char::from(SAFE[usize::from(digit) % SAFE.len()]))
        .collect()
}

/// Templates are the same if they differ in nothing but the hash label.
pub(crate) fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let strip = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        let meta = template.metadata.get_or_insert_default();
        meta.creation_timestamp = None;
        let mut labels = meta.labels.take().unwrap_or_default();
        labels.remove(TEMPLATE_HASH);
        meta.labels = (!labels.is_empty()).then_some(labels);
        meta.annotations = meta.annotations.take().filter(|a| !a.is_empty());
        template
    };
    strip(a) == strip(b)
}

pub(crate) fn revision(annotations: &BTreeMap<String, String>) -> i64 {
    annotations
        .get(REVISION)
        .and_then(|r| r.parse().ok())
        .unwrap_or(0)
}

/// Splits a Deployment's ReplicaSets into that of its current template and the others. Of several equal ones the
/// oldest counts, so that all looks agree.
pub(crate) fn split(
    deployment: &Deployment,
    sets: Vec<Arc<ReplicaSet>>,
) -> (Option<Arc<ReplicaSet>>, Vec<Arc<ReplicaSet>>) {
    let Some(template) = deployment.spec.as_ref().map(|s| &s.template) else {
        return (None, sets);
    };
    let mut sets = sets;
    sets.sort_by_key(|s| (s.creation_timestamp(), s.name_any()));
    let found = sets.iter().position(|set| {
        set.spec
            .as_ref()
            .and_then(|s| s.template.as_ref())
            .is_some_and(|t| same_template(t, template))
    });
    match found {
        Some(index) => {
            let new = sets.remove(index);
            (Some(new), sets)
        }
        None => (None, sets),
    }
}

/// The annotations the new ReplicaSet should have: the Deployment's, the revision, the sizes.
pub(crate) fn annotations(
    deployment: &Deployment,
    current: &BTreeMap<String, String>,
    new_revision: i64,
    max_replicas: i32,
) -> BTreeMap<String, String> {
    let mut wanted = current.clone();
    for (key, value) in deployment.annotations() {
        if !NOT_COPIED.contains(&key.as_str()) {
            wanted.insert(key.clone(), value.clone());
        }
    }
    let old_revision = revision(current);
    if new_revision > old_revision {
        // Rolled back to: remember under which numbers it was known before.
        if old_revision > 0 {
            let history = wanted.entry(REVISION_HISTORY.to_owned()).or_default();
            if !history.is_empty() {
                history.push(',');
            }
            history.push_str(&old_revision.to_string());
        }
        wanted.insert(REVISION.to_owned(), new_revision.to_string());
    }
    size_annotations(&mut wanted, replicas(deployment), max_replicas);
    wanted
}

pub(crate) fn size_annotations(annotations: &mut BTreeMap<String, String>, desired: i32, max: i32) {
    annotations.insert(DESIRED.to_owned(), desired.to_string());
    annotations.insert(MAX.to_owned(), max.to_string());
}

pub(crate) fn replicas(deployment: &Deployment) -> i32 {
    deployment
        .spec
        .as_ref()
        .and_then(|s| s.replicas)
        .unwrap_or(1)
}

pub(crate) fn set_replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// Old, empty, settled ReplicaSets beyond the history limit, oldest revision first.
pub(crate) fn expired<'a>(
    deployment: &Deployment,
    old: &'a [Arc<ReplicaSet>],
) -> Vec<&'a Arc<ReplicaSet>> {
    let limit = deployment
        .spec
        .as_ref()
        .and_then(|s| s.revision_history_limit)
        .unwrap_or(10);
    let mut cleanable: Vec<_> = old
        .iter()
        .filter(|set| set.metadata.deletion_timestamp.is_none())
        .collect();
    let surplus = cleanable
        .len()
        .saturating_sub(usize::try_from(limit).unwrap_or(0));
    cleanable.sort_by_key(|set| (revision(set.annotations()), set.creation_timestamp()));
    cleanable.truncate(surplus);
    cleanable.retain(|set| {
        let status = set.status.as_ref();
        set_replicas(set) == 0
            && status.is_none_or(|s| s.replicas == 0)
            && status.and_then(|s| s.observed_generation).unwrap_or(0)
                >= set.metadata.generation.unwrap_or(0)
    });
    cleanable
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn deployment(image: &str) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "annotations": {"note": "x", REVISION: "7",
                "kubectl.kubernetes.io/last-applied-configuration": "{}"}},
            "spec": {"replicas": 3, "selector": {}, "revisionHistoryLimit": 1,
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}}
        }))
        .unwrap()
    }

    fn set(name: &str, image: &str, revision: &str, replicas: i32) -> Arc<ReplicaSet> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "annotations": {REVISION: revision}},
                "spec": {"replicas": replicas, "selector": {}, "template": {
                    "metadata": {"labels": {"app": "web", TEMPLATE_HASH: name}, "creationTimestamp": Value::Null},
                    "spec": {"containers": [{"name": "c", "image": image}]}}}
            }))
            .unwrap(),
        )
    }

    #[test]
    fn the_hash_is_short_safe_and_stable() {
        let template = deployment("a").spec.unwrap().template;
        let hash = template_hash(&template, 0);
        assert!((8..=10).contains(&hash.len()), "{hash}");
        assert!(hash.bytes().all(|b| SAFE.contains(&b)), "{hash}");
        assert_eq!(hash, template_hash(&template, 0));
        assert_ne!(hash, template_hash(&template, 1));
        assert_ne!(
            hash,
            template_hash(&deployment("b").spec.unwrap().template, 0)
        );
    }

    #[test]
    fn the_current_template_finds_its_set_again() {
        let sets = vec![set("one", "a", "1", 0), set("two", "b", "2", 3)];
        let (new, old) = split(&deployment("a"), sets);
        assert_eq!(new.unwrap().name_any(), "one");
        assert_eq!(old.len(), 1);
        let (new, old) = split(&deployment("c"), vec![set("one", "a", "1", 0)]);
        assert!(new.is_none());
        assert_eq!(old.len(), 1);
    }

    #[test]
    fn annotations_of_a_set_that_was_rolled_back_to() {
        let current = set("one", "a", "1", 0);
        let wanted = annotations(&deployment("a"), current.annotations(), 3, 4);
        assert_eq!(
            serde_json::to_value(wanted).unwrap(),
            json!({"note": "x", REVISION: "3", REVISION_HISTORY: "1", DESIRED: "3", MAX: "4"})
        );
    }

    #[test]
    fn history_is_cut_from_the_oldest_end_but_never_what_runs() {
        let old = vec![
            set("c", "c", "3", 0),
            set("a", "a", "1", 0),
            set("b", "b", "2", 1),
        ];
        let names: Vec<_> = expired(&deployment("d"), &old)
            .iter()
            .map(|s| s.name_any())
            .collect();
        assert_eq!(names, ["a"]);
    }
}
