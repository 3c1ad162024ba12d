//! CRDs: discovery, validation, pruning, defaults, columns.

use serde_json::{Value, json};

use crate::harness::Lab;

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/lab.example.com/v1/namespaces/default/widgets";

pub(crate) fn crd() -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.lab.example.com"},
        "spec": {"group": "lab.example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size"}},
                 "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
                 "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {"size": {"type": "integer", "minimum": 1, "default": 1},
                        "hosts": {"type": "array", "items": {"type": "string"}}}},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}},
                {"name": "v1alpha1", "served": true, "storage": false,
                 "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}})
}

fn widget(name: &str, spec: &Value) -> String {
    json!({"apiVersion": "lab.example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec}).to_string()
}

#[tokio::test]
async fn custom_resources() {
    let lab = Lab::start().await;
    let made = lab.post(CRDS, &crd().to_string()).await.unwrap();
    assert_eq!(made["status"]["conditions"][1]["type"], "Established");
    assert_eq!(made["status"]["acceptedNames"]["listKind"], "WidgetList");
    let list = lab.get("/apis/lab.example.com/v1").await.unwrap();
    let names: Vec<_> = list["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["widgets", "widgets/status", "widgets/scale"]);
    let made = lab
        .post(WIDGETS, &widget("a", &json!({"zz": 1})))
        .await
        .unwrap();
    assert_eq!(made["spec"], json!({"size": 1}), "pruned and defaulted");
    assert_eq!(made["metadata"]["generation"], 1);
    let bad = lab
        .post(WIDGETS, &widget("bad", &json!({"size": 0, "hosts": "x"})))
        .await
        .unwrap_err();
    assert_eq!(bad.code, 422);
    assert!(
        bad.message
            .starts_with("Widget.lab.example.com \"bad\" is invalid: [spec."),
        "{}",
        bad.message
    );
    let strict = lab
        .post(
            &format!("{WIDGETS}?fieldValidation=Strict"),
            &widget("s", &json!({"zz": 1})),
        )
        .await
        .unwrap_err();
    assert!(
        strict
            .message
            .contains("strict decoding error: unknown field \"spec.zz\""),
        "{}",
        strict.message
    );
    let kindless = lab
        .post(WIDGETS, r#"{"metadata":{"name":"k"}}"#)
        .await
        .unwrap_err();
    assert!(
        kindless.message.starts_with("Object 'Kind' is missing in"),
        "{}",
        kindless.message
    );
    // Status and the rest do not touch each other.
    let rv = made["metadata"]["resourceVersion"].clone();
    let status = json!({"apiVersion": "lab.example.com/v1", "kind": "Widget", "metadata": {"name": "a", "resourceVersion": rv},
        "spec": {"size": 2}, "status": {"size": 1}});
    let written = lab
        .put(&format!("{WIDGETS}/a/status"), &status)
        .await
        .unwrap();
    assert_eq!(
        (&written["spec"]["size"], &written["status"]["size"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(written["metadata"]["generation"], 1);
    let unversioned = json!({"apiVersion": "lab.example.com/v1", "kind": "Widget", "metadata": {"name": "a"}, "spec": {"size": 2}});
    let refused = lab
        .put(&format!("{WIDGETS}/a"), &unversioned)
        .await
        .unwrap_err();
    assert!(
        refused.message.contains(
            "metadata.resourceVersion: Invalid value: 0x0: must be specified for an update"
        )
    );
    let grown = lab
        .merge(&format!("{WIDGETS}/a"), r#"{"spec":{"size":2}}"#)
        .await
        .unwrap();
    assert_eq!(grown["metadata"]["generation"], 2);
    let smp = lab
        .send(
            "PATCH",
            &format!("{WIDGETS}/a"),
            "application/strategic-merge-patch+json",
            "{}",
        )
        .await
        .unwrap_err();
    assert_eq!(smp.code, 415);
    let other = lab
        .get("/apis/lab.example.com/v1alpha1/namespaces/default/widgets/a")
        .await
        .unwrap();
    assert_eq!(other["apiVersion"], "lab.example.com/v1alpha1");
    let scaled = lab
        .merge(&format!("{WIDGETS}/a/scale"), r#"{"spec":{"replicas":4}}"#)
        .await
        .unwrap();
    assert_eq!(scaled["spec"]["replicas"], 4);
    // The definition goes, and its objects with it.
    lab.delete(&format!("{CRDS}/widgets.lab.example.com"), "")
        .await
        .unwrap();
    lab.post(CRDS, &crd().to_string()).await.unwrap();
    assert_eq!(
        lab.get(&format!("{WIDGETS}/a")).await.unwrap_err().code,
        404
    );
}

#[tokio::test]
async fn bad_definitions_are_refused() {
    let lab = Lab::start().await;
    let mut wrong = crd();
    wrong["metadata"]["name"] = "other.lab.example.com".into();
    assert_eq!(
        lab.post(CRDS, &wrong.to_string()).await.unwrap_err().code,
        422
    );
    let mut wrong = crd();
    wrong["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        ["size"]["pattern"] = "(".into();
    let error = lab.post(CRDS, &wrong.to_string()).await.unwrap_err();
    assert!(error.message.contains("pattern"), "{}", error.message);
    let mut wrong = crd();
    wrong["spec"]["versions"][0]["storage"] = false.into();
    let error = lab.post(CRDS, &wrong.to_string()).await.unwrap_err();
    assert!(
        error
            .message
            .contains("must have exactly one version marked as storage version"),
        "{}",
        error.message
    );
}
