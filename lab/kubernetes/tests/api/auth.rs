//! Credentials, RBAC, tokens and reviews.

use serde_json::{Value, json};

use crate::harness::{Lab, send};

/// A kube-rs client over TLS with a bearer token, or with nothing at all.
async fn with_token(lab: &Lab, token: Option<&str>) -> kube::Client {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let text = lab.server.admin_kubeconfig(lab.address);
    let mut config = kube::config::Kubeconfig::from_yaml(&text).unwrap();
    let user = config.auth_infos[0].auth_info.as_mut().unwrap();
    user.client_certificate_data = None;
    user.client_key_data = None;
    user.token = token.map(|t| t.to_owned().into());
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default())
        .await
        .unwrap();
    kube::Client::try_from(config).unwrap()
}

async fn token(lab: &Lab, body: &Value) -> Result<Value, kube::core::Status> {
    lab.post(
        "/api/v1/namespaces/default/serviceaccounts/default/token",
        &body.to_string(),
    )
    .await
}

async fn review(lab: &Lab, token: &str, audiences: Value) -> Value {
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token, "audiences": audiences}});
    lab.post(
        "/apis/authentication.k8s.io/v1/tokenreviews",
        &body.to_string(),
    )
    .await
    .unwrap()["status"]
        .clone()
}

#[tokio::test]
async fn nobody_gets_nothing_but_the_version() {
    let lab = Lab::start().await;
    let nobody = with_token(&lab, None).await;
    assert_eq!(
        send(&nobody, "GET", "/version", "", "").await.unwrap()["minor"],
        "32"
    );
    let refused = send(&nobody, "GET", "/api/v1/pods", "", "")
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (
            403,
            "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" at the cluster scope"
        )
    );
    assert_eq!(
        send(&nobody, "GET", "/apis", "", "")
            .await
            .unwrap_err()
            .code,
        403
    );
    let forged = with_token(&lab, Some("a.b.c")).await;
    assert_eq!(
        send(&forged, "GET", "/api/v1/pods", "", "")
            .await
            .unwrap_err()
            .code,
        401
    );
}

#[tokio::test]
async fn service_accounts_need_roles() {
    let lab = Lab::start().await;
    lab.default_account().await;
    let made = token(&lab, &json!({})).await.unwrap();
    let client = with_token(&lab, made["status"]["token"].as_str()).await;
    let path = "/apis/apps/v1/namespaces/default/deployments/web";
    let refused = send(&client, "GET", path, "", "").await.unwrap_err();
    assert_eq!(
        refused.message,
        "deployments.apps \"web\" is forbidden: User \"system:serviceaccount:default:default\" cannot get resource \"deployments\" in API group \"apps\" in the namespace \"default\""
    );
    assert!(send(&client, "GET", "/apis", "", "").await.is_ok());
    let role = r#"{"metadata":{"name":"r"},"rules":[{"apiGroups":["apps"],"resources":["deployments"],"verbs":["get"]}]}"#;
    lab.post(
        "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles",
        role,
    )
    .await
    .unwrap();
    let binding = r#"{"metadata":{"name":"b"},"roleRef":{"kind":"Role","name":"r"},"subjects":[{"kind":"ServiceAccount","name":"default","namespace":"default"}]}"#;
    lab.post(
        "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
        binding,
    )
    .await
    .unwrap();
    assert_eq!(
        send(&client, "GET", path, "", "").await.unwrap_err().code,
        404
    );
    assert_eq!(
        send(&client, "DELETE", path, "", "")
            .await
            .unwrap_err()
            .code,
        403
    );
    let access = json!({"spec": {"resourceAttributes": {"verb": "get", "group": "apps", "resource": "deployments", "namespace": "default"}}}).to_string();
    let review = send(
        &client,
        "POST",
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        "application/json",
        &access,
    );
    assert_eq!(review.await.unwrap()["status"]["allowed"], true);
}

#[tokio::test]
async fn tokens_are_bound_and_reviewed() {
    let lab = Lab::start().await;
    lab.default_account().await;
    let made = token(
        &lab,
        &json!({"spec": {"audiences": ["istio-ca"], "expirationSeconds": 43200}}),
    )
    .await
    .unwrap();
    let jwt = made["status"]["token"].as_str().unwrap().to_owned();
    let good = review(&lab, &jwt, json!(["istio-ca"])).await;
    assert_eq!(good["authenticated"], true);
    assert_eq!(
        good["user"]["username"],
        "system:serviceaccount:default:default"
    );
    assert_eq!(good["audiences"], json!(["istio-ca"]));
    let wrong = review(&lab, &jwt, json!([])).await;
    assert!(wrong.get("authenticated").is_none());
    assert_eq!(
        wrong["error"],
        "[invalid bearer token, token audiences [\"istio-ca\"] is invalid for the target audiences [\"https://kubernetes.default.svc.cluster.local\"]]"
    );
    assert_eq!(
        review(&lab, "x.y.z", json!([])).await["error"],
        "invalid bearer token"
    );
    let mut forged = jwt.clone().into_bytes();
    let last = forged.len() - 5;
    forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
    assert_eq!(
        review(
            &lab,
            std::str::from_utf8(&forged).unwrap(),
            json!(["istio-ca"])
        )
        .await["error"],
        "invalid bearer token"
    );
    let short = token(&lab, &json!({"spec": {"expirationSeconds": 60}}))
        .await
        .unwrap_err();
    assert!(short.message.contains(
        "spec.expirationSeconds: Invalid value: 60: may not specify a duration less than 10 minutes"
    ));
    let unknown = lab
        .post(
            "/api/v1/namespaces/default/serviceaccounts/none/token",
            "{}",
        )
        .await
        .unwrap_err();
    assert_eq!(unknown.message, "serviceaccounts \"none\" not found");
    // A token dies with its account.
    lab.delete("/api/v1/namespaces/default/serviceaccounts/default", "")
        .await
        .unwrap();
    assert!(
        review(&lab, &jwt, json!(["istio-ca"])).await["error"]
            .as_str()
            .unwrap()
            .contains("invalid bearer token")
    );
}
