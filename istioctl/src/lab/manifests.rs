//! The manifests of deploy/, which are part of this program, read the way `kubectl apply -k` reads them.
//!
//! Of Kustomize only `resources` and `namespace` are understood; a kustomization that says more is refused, so that the
//! lab never runs something else than a cluster would.

use anyhow::{Context as _, bail};
use include_dir::{Dir, include_dir};
use kube::api::DynamicObject;
use serde::Deserialize;

static DEPLOY: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../deploy");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Kustomization {
    #[serde(default, rename = "apiVersion")]
    _api_version: String,
    #[serde(default, rename = "kind")]
    _kind: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    namespace: Option<String>,
}

/// All objects of a folder below deploy/, in the order of its kustomization.
pub(super) fn folder(path: &str) -> anyhow::Result<Vec<DynamicObject>> {
    load(&DEPLOY, path)
}

fn load(root: &Dir<'_>, path: &str) -> anyhow::Result<Vec<DynamicObject>> {
    let name = format!("{path}/kustomization.yaml");
    let text = read(root, &name)?;
    let kustomization: Kustomization = serde_saphyr::from_str(text).with_context(|| {
        format!("deploy/{name}: only resources and namespace are understood here")
    })?;
    let mut objects = Vec::new();
    for resource in &kustomization.resources {
        let target = join(path, resource)?;
        if root.get_dir(&target).is_some() {
            objects.extend(load(root, &target)?);
        } else {
            objects.extend(parse(read(root, &target)?, &format!("deploy/{target}"))?);
        }
    }
    if let Some(namespace) = &kustomization.namespace {
        for object in &mut objects {
            object
                .metadata
                .namespace
                .get_or_insert_with(|| namespace.clone());
        }
    }
    Ok(objects)
}

fn read<'a>(root: &'a Dir<'_>, path: &str) -> anyhow::Result<&'a str> {
    root.get_file(path)
        .with_context(|| format!("deploy/{path} is not part of this program"))?
        .contents_utf8()
        .with_context(|| format!("deploy/{path} is not UTF-8"))
}

/// The objects of a file with one or more YAML documents; empty documents are skipped.
pub(super) fn parse(text: &str, name: &str) -> anyhow::Result<Vec<DynamicObject>> {
    let documents: Vec<serde_json::Value> =
        serde_saphyr::from_multiple(text).with_context(|| name.to_owned())?;
    documents
        .into_iter()
        .filter(|document| !document.is_null())
        .enumerate()
        .map(|(index, document)| {
            let object: DynamicObject = serde_json::from_value(document)
                .with_context(|| format!("{name}, document {}", index + 1))?;
            if object.types.is_none() || object.metadata.name.is_none() {
                bail!(
                    "{name}, document {}: apiVersion, kind and metadata.name are required",
                    index + 1
                );
            }
            Ok(object)
        })
        .collect()
}

/// `base` + `../bookinfo` is `bookinfo`.
fn join(base: &str, relative: &str) -> anyhow::Result<String> {
    let mut parts: Vec<&str> = base.split('/').collect();
    for part in relative.trim_end_matches('/').split('/') {
        match part {
            "." | "" => {}
            ".." => {
                if parts.pop().is_none() {
                    bail!("deploy/{base}: resource {relative} leads out of deploy/");
                }
            }
            name => parts.push(name),
        }
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_and_stay_inside() {
        assert_eq!(join("overlays/lab", "../../base").expect("inside"), "base");
        assert_eq!(
            join("base", "./crds/all.yaml").expect("inside"),
            "base/crds/all.yaml"
        );
        assert!(join("base", "../../x").is_err());
    }

    #[test]
    fn several_documents_and_empty_ones() {
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: b, namespace: a}\n";
        let objects = parse(text, "x.yaml").expect("valid");
        assert_eq!(objects.len(), 2);
        assert_eq!(objects[1].metadata.namespace.as_deref(), Some("a"));
        let error = parse("kind: X\nmetadata: {}\n", "x.yaml").expect_err("incomplete");
        assert!(format!("{error:#}").contains("x.yaml"), "{error:#}");
    }

    #[test]
    fn the_manifests_of_this_program_load() {
        for path in ["base", "bookinfo"] {
            let objects = folder(path).expect("loads");
            assert!(!objects.is_empty(), "{path} is empty");
        }
    }
}
