//! Server-side apply: creation, sharing, conflicts, force, removal.

use serde_json::{Value, json};

use crate::harness::Lab;

const CMS: &str = "/api/v1/namespaces/default/configmaps";
const SSA: &str = "application/apply-patch+yaml";

async fn apply(
    lab: &Lab,
    manager: &str,
    data: &Value,
    force: bool,
) -> Result<Value, kube::core::Status> {
    let body =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data})
            .to_string();
    lab.send(
        "PATCH",
        &format!("{CMS}/a?fieldManager={manager}&force={force}"),
        SSA,
        &body,
    )
    .await
}

#[tokio::test]
async fn fields_have_owners() {
    let lab = Lab::start().await;
    let made = apply(&lab, "a", &json!({"x": "1", "y": "1"}), false)
        .await
        .unwrap();
    let entry = &made["metadata"]["managedFields"][0];
    assert_eq!(
        (entry["manager"].as_str(), entry["operation"].as_str()),
        (Some("a"), Some("Apply"))
    );
    assert_eq!(entry["fieldsV1"], json!({"f:data": {"f:x": {}, "f:y": {}}}));
    let error = apply(&lab, "b", &json!({"x": "2"}), false)
        .await
        .unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (
            409,
            "Apply failed with 1 conflict: conflict with \"a\": .data.x"
        )
    );
    let cause = &error.details.unwrap().causes[0];
    assert_eq!(
        (cause.reason.as_str(), cause.field.as_str()),
        ("FieldManagerConflict", ".data.x")
    );
    // The same value is shared; then neither removal by one alone removes it.
    apply(&lab, "b", &json!({"y": "1"}), false).await.unwrap();
    let kept = apply(&lab, "a", &json!({"x": "1"}), false).await.unwrap();
    assert_eq!(kept["data"], json!({"x": "1", "y": "1"}));
    let gone = apply(&lab, "b", &json!({"z": "1"}), false).await.unwrap();
    assert_eq!(gone["data"], json!({"x": "1", "z": "1"}));
    let forced = apply(&lab, "b", &json!({"x": "2"}), true).await.unwrap();
    assert_eq!(forced["data"], json!({"x": "2"}));
    let error = apply(&lab, "a", &json!({"x": "1"}), false)
        .await
        .unwrap_err();
    assert!(
        error.message.contains("conflict with \"b\""),
        "{}",
        error.message
    );
    // An ordinary write takes the field, too.
    lab.merge(&format!("{CMS}/a?fieldManager=m"), r#"{"data":{"x":"3"}}"#)
        .await
        .unwrap();
    let error = apply(&lab, "b", &json!({"x": "2"}), false)
        .await
        .unwrap_err();
    assert_eq!(
        error.message,
        "Apply failed with 1 conflict: conflict with \"m\" using v1: .data.x"
    );
    // Applying the same again changes nothing.
    let one = apply(&lab, "b", &json!({"x": "2"}), true).await.unwrap();
    let two = apply(&lab, "b", &json!({"x": "2"}), true).await.unwrap();
    assert_eq!(
        one["metadata"]["resourceVersion"],
        two["metadata"]["resourceVersion"]
    );
}

#[tokio::test]
async fn lists_merge_by_key() {
    let lab = Lab::start().await;
    let path = "/apis/apps/v1/namespaces/default/deployments/d";
    let deployment = |containers: Value| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": containers}}}})
        .to_string()
    };
    let send = |manager: &'static str, body: String| {
        let lab = &lab;
        async move {
            lab.send(
                "PATCH",
                &format!("{path}?fieldManager={manager}&force=true"),
                SSA,
                &body,
            )
            .await
        }
    };
    send(
        "a",
        deployment(json!([{"name": "c", "image": "x", "ports": [{"containerPort": 80}]}])),
    )
    .await
    .unwrap();
    let both = send("b", deployment(json!([{"name": "side", "image": "s"}])))
        .await
        .unwrap();
    let names = |v: &Value| -> Vec<String> {
        v["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&both), ["c", "side"]);
    let after = send("a", deployment(json!([{"name": "c", "image": "y"}])))
        .await
        .unwrap();
    assert_eq!(names(&after), ["c", "side"]);
    let container = &after["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        (container["image"].as_str(), container.get("ports")),
        (Some("y"), None)
    );
    assert_eq!(
        names(&send("b", deployment(json!([]))).await.unwrap()),
        ["c"]
    );
}

#[tokio::test]
async fn what_apply_refuses() {
    let lab = Lab::start().await;
    let body = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}"#;
    let error = lab
        .send("PATCH", &format!("{CMS}/a"), SSA, body)
        .await
        .unwrap_err();
    assert_eq!(
        error.message,
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
    );
    let owned =
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","managedFields":[]}}"#;
    let error = lab
        .send("PATCH", &format!("{CMS}/a?fieldManager=x"), SSA, owned)
        .await
        .unwrap_err();
    assert_eq!(error.message, "metadata.managedFields must be nil");
    let error = lab
        .send("PATCH", &format!("{CMS}/a?fieldManager=x"), SSA, "{}")
        .await
        .unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (400, "invalid object type: /, Kind=")
    );
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  k: v\n";
    assert_eq!(
        lab.send("PATCH", &format!("{CMS}/a?fieldManager=x"), SSA, yaml)
            .await
            .unwrap()["data"]["k"],
        "v"
    );
}
