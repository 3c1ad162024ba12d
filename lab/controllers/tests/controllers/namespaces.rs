//! What every namespace gets, and how one is emptied.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::discovery::ApiResource;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::lab::{Lab, deployment, until};

async fn namespace(lab: &Lab, name: &str) -> Namespace {
    let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    Api::all(lab.client.clone())
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_and_root_certificates_are_everywhere_and_come_back() {
    let lab = Lab::start().await;
    namespace(&lab, "n").await;
    let accounts: Api<ServiceAccount> = Api::namespaced(lab.client.clone(), "n");
    let maps: Api<ConfigMap> = Api::namespaced(lab.client.clone(), "n");
    until(accounts.clone(), "default account", |all| {
        all.iter().any(|a| a.name_any() == "default")
    })
    .await;
    let found = until(maps.clone(), "root certificate", |all| {
        all.iter().any(|m| m.name_any() == "kube-root-ca.crt")
    })
    .await;
    let ca = found[0].data.as_ref().unwrap()["ca.crt"].clone();
    assert_eq!(ca, lab.server.ca_certificate());
    assert!(
        found[0]
            .annotations()
            .contains_key("kubernetes.io/description")
    );

    let old = accounts.get("default").await.unwrap().uid();
    accounts
        .delete("default", &DeleteParams::default())
        .await
        .unwrap();
    until(accounts, "account again", |all| {
        all.iter().any(|a| a.uid() != old)
    })
    .await;
    let spoil = Patch::Merge(json!({"data": {"ca.crt": "x", "y": "z"}}));
    maps.patch("kube-root-ca.crt", &PatchParams::default(), &spoil)
        .await
        .unwrap();
    until(maps.clone(), "restored", |all| {
        all[0]
            .data
            .as_ref()
            .is_some_and(|d| d.len() == 1 && d["ca.crt"] == ca)
    })
    .await;
    maps.delete("kube-root-ca.crt", &DeleteParams::default())
        .await
        .unwrap();
    until(maps, "made again", |all| {
        all.iter().any(|m| m.name_any() == "kube-root-ca.crt")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_secret_is_filled_and_goes_with_its_account() {
    let lab = Lab::start().await;
    lab.create::<ServiceAccount>(json!({"metadata": {"name": "bob"}}))
        .await;
    let secret = json!({"metadata": {"name": "bob-token", "annotations": {"kubernetes.io/service-account.name": "bob"}},
        "type": "kubernetes.io/service-account-token"});
    lab.create::<Secret>(secret).await;
    let filled = |all: &[Secret]| {
        all.iter().any(|s| {
            s.name_any() == "bob-token" && s.data.as_ref().is_some_and(|d| d.contains_key("token"))
        })
    };
    let secrets = lab.until::<Secret>("token", filled).await;
    let secret = secrets
        .iter()
        .find(|s| s.name_any() == "bob-token")
        .unwrap();
    let data = secret.data.as_ref().unwrap();
    assert_eq!(data["namespace"].0, b"default");
    assert_eq!(data["ca.crt"].0, lab.server.ca_certificate().as_bytes());
    assert_eq!(
        data["token"].0.split(|b| *b == b'.').count(),
        3,
        "a JWT has three parts"
    );
    assert!(
        secret
            .annotations()
            .contains_key("kubernetes.io/service-account.uid")
    );
    lab.api::<ServiceAccount>()
        .delete("bob", &DeleteParams::default())
        .await
        .unwrap();
    lab.until::<Secret>("secret gone", |all| {
        !all.iter().any(|s| s.name_any() == "bob-token")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_emptied_custom_resources_included_and_waits_for_finalizers() {
    let lab = Lab::start().await;
    let crd = json!({"metadata": {"name": "widgets.lab.example.com"}, "spec": {"group": "lab.example.com", "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
        "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}});
    let crds: Api<CustomResourceDefinition> = Api::all(lab.client.clone());
    crds.create(
        &PostParams::default(),
        &serde_json::from_value(crd).unwrap(),
    )
    .await
    .unwrap();
    await_condition(
        crds,
        "widgets.lab.example.com",
        conditions::is_crd_established(),
    )
    .await
    .unwrap();
    namespace(&lab, "n").await;
    let mut manifest = deployment("web", 2, "a");
    manifest["metadata"]["namespace"] = json!("n");
    lab.create::<Deployment>(manifest).await;
    let pods: Api<Pod> = Api::namespaced(lab.client.clone(), "n");
    until(pods, "pods run", |all| {
        all.len() == 2
            && all
                .iter()
                .all(|p| p.status.as_ref().unwrap().pod_ip.is_some())
    })
    .await;
    let resource = ApiResource {
        group: "lab.example.com".into(),
        version: "v1".into(),
        api_version: "lab.example.com/v1".into(),
        kind: "Widget".into(),
        plural: "widgets".into(),
    };
    let widgets: Api<DynamicObject> = Api::namespaced_with(lab.client.clone(), "n", &resource);
    let mut widget = DynamicObject::new("w", &resource).within("n");
    widget.metadata.finalizers = Some(vec!["lab.example.com/hold".into()]);
    widgets
        .create(&PostParams::default(), &widget)
        .await
        .unwrap();

    let namespaces: Api<Namespace> = Api::all(lab.client.clone());
    namespaces
        .delete("n", &DeleteParams::default())
        .await
        .unwrap();
    let held = |n: &Namespace| {
        let status = n.status.clone().unwrap_or_default();
        let finalizers = status
            .conditions
            .unwrap_or_default()
            .into_iter()
            .find(|c| c.type_ == "NamespaceFinalizersRemaining");
        status.phase.as_deref() == Some("Terminating")
            && finalizers.is_some_and(|c| c.status == "True")
    };
    let seen = until(namespaces.clone(), "held by the finalizer", |all| {
        all.iter().any(|n| n.name_any() == "n" && held(n))
    });
    let seen = seen.await;
    let status = seen
        .iter()
        .find(|n| n.name_any() == "n")
        .unwrap()
        .status
        .clone()
        .unwrap();
    let texts: Vec<_> = status
        .conditions
        .unwrap()
        .into_iter()
        .filter_map(|c| c.message)
        .collect();
    assert!(
        texts
            .iter()
            .any(|t| t.contains("lab.example.com/hold in 1 resource instances")),
        "{texts:?}"
    );
    let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    widgets
        .patch("w", &PatchParams::default(), &release)
        .await
        .unwrap();
    until(namespaces, "namespace gone", |all| {
        !all.iter().any(|n| n.name_any() == "n")
    })
    .await;
}
