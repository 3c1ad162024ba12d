//! Identity, versions, names, deletion, namespaces, defaults.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use serde_json::json;

use crate::harness::Lab;

const CMS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn objects_get_identity_and_versions() {
    let lab = Lab::start().await;
    let made = lab.post(CMS, r#"{"metadata":{"name":"a","uid":"x","creationTimestamp":"2020-01-01T00:00:00Z"},"data":{"k":"v"}}"#).await.unwrap();
    assert_eq!(made["kind"], "ConfigMap");
    assert_ne!(made["metadata"]["uid"], "x");
    assert!(
        !made["metadata"]["creationTimestamp"]
            .as_str()
            .unwrap()
            .starts_with("2020")
    );
    let again = lab
        .post(CMS, r#"{"metadata":{"name":"a"}}"#)
        .await
        .unwrap_err();
    assert_eq!(
        (again.code, again.message.as_str()),
        (409, "configmaps \"a\" already exists")
    );
    let with_version = lab
        .post(CMS, r#"{"metadata":{"name":"b","resourceVersion":"1"}}"#)
        .await
        .unwrap_err();
    assert_eq!(
        with_version.message,
        "resourceVersion should not be set on objects to be created"
    );
    // A change that changes nothing keeps the version.
    let one = lab
        .merge(&format!("{CMS}/a"), r#"{"data":{"x":"y"}}"#)
        .await
        .unwrap();
    let two = lab
        .merge(&format!("{CMS}/a"), r#"{"data":{"x":"y"}}"#)
        .await
        .unwrap();
    assert_eq!(
        one["metadata"]["resourceVersion"],
        two["metadata"]["resourceVersion"]
    );
    // A stale version is refused, no version overwrites.
    let mut stale = made.clone();
    stale["data"] = json!({"n": "m"});
    let refused = lab.put(&format!("{CMS}/a"), &stale).await.unwrap_err();
    assert_eq!(
        refused.message,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    stale["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("resourceVersion");
    assert_eq!(
        lab.put(&format!("{CMS}/a"), &stale).await.unwrap()["data"],
        json!({"n": "m"})
    );
    let missing = lab
        .put(&format!("{CMS}/zz"), &json!({"metadata": {"name": "zz"}}))
        .await
        .unwrap_err();
    assert_eq!(
        (missing.code, missing.message.as_str()),
        (404, "configmaps \"zz\" not found")
    );
    let other = lab
        .put(&format!("{CMS}/a"), &json!({"metadata": {"name": "s2"}}))
        .await
        .unwrap_err();
    assert_eq!(
        other.message,
        "the name of the object (s2) does not match the name on the URL (a)"
    );
}

#[tokio::test]
async fn generated_names_and_generation() {
    let lab = Lab::start().await;
    let made = lab
        .post(CMS, r#"{"metadata":{"generateName":"web-"}}"#)
        .await
        .unwrap();
    let name = made["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
    let nameless = lab.post(CMS, "{}").await.unwrap_err();
    assert_eq!(nameless.code, 422);
    assert!(
        nameless
            .message
            .contains("name or generateName is required")
    );
    let deployment = r#"{"metadata":{"name":"d"},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},
        "spec":{"containers":[{"name":"c","image":"i"}]}}}}"#;
    let made = lab
        .post("/apis/apps/v1/namespaces/default/deployments", deployment)
        .await
        .unwrap();
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(made["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
    let path = "/apis/apps/v1/namespaces/default/deployments/d";
    let scaled = lab
        .merge(&format!("{path}/scale"), r#"{"spec":{"replicas":3}}"#)
        .await
        .unwrap();
    assert_eq!(
        (scaled["kind"].as_str(), scaled["spec"]["replicas"].as_i64()),
        (Some("Scale"), Some(3))
    );
    assert_eq!(scaled["status"]["selector"], "a=b");
    let status = lab
        .merge(
            &format!("{path}/status"),
            r#"{"status":{"replicas":3},"spec":{"replicas":9}}"#,
        )
        .await
        .unwrap();
    assert_eq!(
        (
            status["spec"]["replicas"].as_i64(),
            status["status"]["replicas"].as_i64()
        ),
        (Some(3), Some(3))
    );
    assert_eq!(status["metadata"]["generation"], 2);
    let labelled = lab
        .merge(
            path,
            r#"{"metadata":{"labels":{"x":"y"}},"status":{"replicas":8}}"#,
        )
        .await
        .unwrap();
    assert_eq!(
        (
            labelled["metadata"]["generation"].as_i64(),
            labelled["status"]["replicas"].as_i64()
        ),
        (Some(2), Some(3))
    );
    let fixed = lab
        .merge(path, r#"{"spec":{"selector":{"matchLabels":{"a":"c"}}}}"#)
        .await
        .unwrap_err();
    assert!(
        fixed.message.contains("field is immutable"),
        "{}",
        fixed.message
    );
}

#[tokio::test]
async fn typed_clients_list_and_delete() {
    let lab = Lab::start().await;
    for client in [lab.client.clone(), lab.tls_client().await] {
        let api: Api<ConfigMap> = Api::namespaced(client, "default");
        for i in 0..5 {
            let metadata = ObjectMeta {
                name: Some(format!("m{i}")),
                labels: Some([("n".into(), i.to_string())].into()),
                ..Default::default()
            };
            api.create(
                &PostParams::default(),
                &ConfigMap {
                    metadata,
                    ..Default::default()
                },
            )
            .await
            .unwrap();
        }
        let page = api.list(&ListParams::default().limit(2)).await.unwrap();
        assert_eq!(
            (page.items.len(), page.metadata.remaining_item_count),
            (2, Some(3))
        );
        api.delete("m4", &DeleteParams::default()).await.unwrap();
        let token = page.metadata.continue_.unwrap();
        let rest = api
            .list(&ListParams::default().continue_token(&token))
            .await
            .unwrap();
        let names: Vec<_> = rest
            .items
            .iter()
            .map(|i| i.metadata.name.clone().unwrap())
            .collect();
        assert_eq!(
            names,
            ["m2", "m3", "m4"],
            "all pages show the state of the first"
        );
        assert_eq!(
            rest.metadata.resource_version,
            page.metadata.resource_version
        );
        let some = api
            .list(&ListParams::default().labels("n in (1,2)"))
            .await
            .unwrap();
        assert_eq!(some.items.len(), 2);
        let one = api
            .list(&ListParams::default().fields("metadata.name=m3"))
            .await
            .unwrap();
        assert_eq!(one.items.len(), 1);
        let _ = api
            .delete_collection(&DeleteParams::default(), &ListParams::default())
            .await
            .unwrap();
        assert!(
            api.list(&ListParams::default())
                .await
                .unwrap()
                .items
                .is_empty()
        );
    }
}

#[tokio::test]
async fn finalizers_hold_and_release() {
    let lab = Lab::start().await;
    lab.post(CMS, r#"{"metadata":{"name":"f","finalizers":["x.y/z"]}}"#)
        .await
        .unwrap();
    let path = format!("{CMS}/f");
    let pending = lab.delete(&path, "").await.unwrap();
    assert_eq!(pending["metadata"]["deletionGracePeriodSeconds"], 0);
    assert!(pending["metadata"]["deletionTimestamp"].is_string());
    lab.delete(&path, "").await.unwrap();
    let refused = lab
        .merge(&path, r#"{"metadata":{"finalizers":["x.y/z","n.e/w"]}}"#)
        .await
        .unwrap_err();
    assert!(
        refused
            .message
            .contains(r#"found new finalizers []string{"n.e/w"}"#),
        "{}",
        refused.message
    );
    lab.merge(&path, r#"{"metadata":{"finalizers":null}}"#)
        .await
        .unwrap();
    assert_eq!(lab.get(&path).await.unwrap_err().code, 404);
    // Foreground and orphan deletions wait for the collector.
    lab.post(CMS, r#"{"metadata":{"name":"o"}}"#).await.unwrap();
    let waiting = lab
        .delete(&format!("{CMS}/o"), r#"{"propagationPolicy":"Foreground"}"#)
        .await
        .unwrap();
    assert_eq!(
        waiting["metadata"]["finalizers"],
        json!(["foregroundDeletion"])
    );
    let wrong = lab
        .delete(&format!("{CMS}/o"), r#"{"preconditions":{"uid":"nope"}}"#)
        .await
        .unwrap_err();
    assert_eq!(wrong.code, 409);
}

#[tokio::test]
async fn pods_end_gracefully() {
    let lab = Lab::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let body = r#"{"metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"i"}],"terminationGracePeriodSeconds":7}}"#;
    // The account arrives a moment after the request, as in a new namespace.
    let (pod, _) = tokio::join!(lab.post(pods, body), lab.default_account());
    let pod = pod.unwrap();
    assert_eq!(pod["spec"]["serviceAccountName"], "default");
    assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 2);
    let mount = &pod["spec"]["containers"][0]["volumeMounts"][0];
    assert_eq!(
        mount["mountPath"],
        "/var/run/secrets/kubernetes.io/serviceaccount"
    );
    assert_eq!(pod["spec"]["volumes"][0]["name"], mount["name"]);
    let bound = lab
        .post(
            &format!("{pods}/p/binding"),
            r#"{"target":{"kind":"Node","name":"node0"}}"#,
        )
        .await
        .unwrap();
    assert_eq!(bound["status"], "Success");
    let frozen = lab
        .merge(&format!("{pods}/p"), r#"{"spec":{"nodeName":"other"}}"#)
        .await
        .unwrap_err();
    assert!(
        frozen.message.contains("pod updates may not change fields"),
        "{}",
        frozen.message
    );
    let going = lab.delete(&format!("{pods}/p"), "").await.unwrap();
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 7);
    let uid = going["metadata"]["uid"].as_str().unwrap();
    let last = format!(r#"{{"gracePeriodSeconds":0,"preconditions":{{"uid":"{uid}"}}}}"#);
    lab.delete(&format!("{pods}/p"), &last).await.unwrap();
    assert_eq!(lab.get(&format!("{pods}/p")).await.unwrap_err().code, 404);
    let stranger = lab.post(pods, r#"{"metadata":{"name":"q"},"spec":{"serviceAccountName":"none","containers":[{"name":"c","image":"i"}]}}"#);
    let stranger = stranger.await.unwrap_err();
    assert_eq!(
        stranger.message,
        "pods \"q\" is forbidden: error looking up service account default/none: serviceaccount \"none\" not found"
    );
    let empty = lab
        .post(
            pods,
            r#"{"metadata":{"name":"x1"},"spec":{"containers":[]}}"#,
        )
        .await
        .unwrap_err();
    assert_eq!(
        empty.message,
        "Pod \"x1\" is invalid: spec.containers: Required value"
    );
}

#[tokio::test]
async fn namespaces_come_and_go() {
    let lab = Lab::start().await;
    let made = lab
        .post("/api/v1/namespaces", r#"{"metadata":{"name":"n"}}"#)
        .await
        .unwrap();
    assert_eq!(
        made["metadata"]["labels"]["kubernetes.io/metadata.name"],
        "n"
    );
    assert_eq!(made["status"]["phase"], "Active");
    let absent = lab
        .post(
            "/api/v1/namespaces/nons/configmaps",
            r#"{"metadata":{"name":"g"}}"#,
        )
        .await
        .unwrap_err();
    assert_eq!(
        (absent.code, absent.message.as_str()),
        (404, "namespaces \"nons\" not found")
    );
    let going = lab.delete("/api/v1/namespaces/n", "").await.unwrap();
    assert_eq!(going["status"]["phase"], "Terminating");
    let late = lab
        .post(
            "/api/v1/namespaces/n/configmaps",
            r#"{"metadata":{"name":"g"}}"#,
        )
        .await
        .unwrap_err();
    assert_eq!(late.code, 403);
    assert!(
        late.message
            .contains("unable to create new content in namespace n because it is being terminated")
    );
    let mut last = going;
    last["spec"]["finalizers"] = json!([]);
    lab.put("/api/v1/namespaces/n/finalize", &last)
        .await
        .unwrap();
    assert_eq!(lab.get("/api/v1/namespaces/n").await.unwrap_err().code, 404);
}

#[tokio::test]
async fn services_get_addresses_and_ports() {
    let lab = Lab::start().await;
    let services = "/api/v1/namespaces/default/services";
    let made = lab
        .post(
            services,
            r#"{"metadata":{"name":"s"},"spec":{"type":"NodePort","ports":[{"port":80}]}}"#,
        )
        .await
        .unwrap();
    assert!(
        made["spec"]["clusterIP"]
            .as_str()
            .unwrap()
            .starts_with("10.")
    );
    assert_eq!(made["spec"]["ports"][0]["targetPort"], 80);
    let port = made["spec"]["ports"][0]["nodePort"].as_i64().unwrap();
    assert!((30000..=32767).contains(&port));
    // An update that leaves the allocations out keeps them.
    let same =
        json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
    let kept = lab.put(&format!("{services}/s"), &same).await.unwrap();
    assert_eq!(kept["spec"]["clusterIP"], made["spec"]["clusterIP"]);
    assert_eq!(kept["spec"]["ports"][0]["nodePort"], port);
    let taken = lab
        .post(
            services,
            r#"{"metadata":{"name":"t"},"spec":{"clusterIP":"10.96.0.1","ports":[{"port":80}]}}"#,
        )
        .await
        .unwrap_err();
    assert!(
        taken.message.contains("provided IP is already allocated"),
        "{}",
        taken.message
    );
    let headless = lab
        .post(
            services,
            r#"{"metadata":{"name":"h"},"spec":{"clusterIP":"None"}}"#,
        )
        .await
        .unwrap();
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
}

#[tokio::test]
async fn bad_requests_are_named() {
    let lab = Lab::start().await;
    let error = lab
        .post(CMS, r#"{"metadata":{"name":"a"},"data":{"a":1}}"#)
        .await
        .unwrap_err();
    assert_eq!(
        error.message,
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type string"
    );
    let strict = format!("{CMS}?fieldValidation=Strict");
    let error = lab
        .post(
            &strict,
            r#"{"metadata":{"name":"a"},"dota":{},"data":{},"data":{}}"#,
        )
        .await
        .unwrap_err();
    assert!(
        error
            .message
            .ends_with("strict decoding error: unknown field \"dota\", duplicate field \"data\""),
        "{}",
        error.message
    );
    let error = lab
        .post(
            CMS,
            r#"{"kind":"Secret","apiVersion":"v1","metadata":{"name":"a"}}"#,
        )
        .await
        .unwrap_err();
    assert!(
        error
            .message
            .ends_with("converting (v1.Secret) to (core.ConfigMap): unknown conversion"),
        "{}",
        error.message
    );
    assert_eq!(lab.post(CMS, "{").await.unwrap_err().code, 400);
    assert_eq!(
        lab.send("POST", CMS, "text/plain", "x")
            .await
            .unwrap_err()
            .code,
        415
    );
    assert_eq!(
        lab.send("PATCH", &format!("{CMS}/a"), "text/plain", "x")
            .await
            .unwrap_err()
            .message,
        "415: Unsupported Media Type"
    );
    assert_eq!(
        lab.get("/api/v1/nosuch").await.unwrap_err().message,
        "the server could not find the requested resource"
    );
    assert_eq!(lab.put(CMS, &json!({})).await.unwrap_err().code, 405);
    let error = lab
        .get(&format!("{CMS}?labelSelector=a+b"))
        .await
        .unwrap_err();
    assert!(
        error
            .message
            .starts_with("unable to parse requirement: found 'b'"),
        "{}",
        error.message
    );
    let error = lab
        .get(&format!("{CMS}?limit=1&continue=%21%21"))
        .await
        .unwrap_err();
    assert_eq!(error.code, 400);
    let yaml = "metadata:\n  name: yy\ndata: {k: v}\n";
    let made = lab
        .send("POST", CMS, "application/yaml", yaml)
        .await
        .unwrap();
    assert_eq!(made["data"]["k"], "v");
    let failed = lab
        .send(
            "PATCH",
            &format!("{CMS}/yy"),
            "application/json-patch+json",
            r#"[{"op":"remove","path":"/data/zz"}]"#,
        )
        .await;
    assert_eq!(
        failed.unwrap_err().message,
        "the server rejected our request due to an error in our request"
    );
    assert_eq!(
        lab.get(&format!("{CMS}/yy")).await.unwrap()["data"]["k"],
        "v"
    );
}

#[tokio::test]
async fn autoscalers_have_two_versions() {
    let lab = Lab::start().await;
    let v1 = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
    let body = r#"{"metadata":{"name":"h"},"spec":{"maxReplicas":5,"targetCPUUtilizationPercentage":50,"scaleTargetRef":{"kind":"Deployment","name":"d","apiVersion":"apps/v1"}}}"#;
    let made = lab.post(v1, body).await.unwrap();
    assert_eq!(made["spec"]["targetCPUUtilizationPercentage"], 50);
    let v2 = lab
        .get("/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers/h")
        .await
        .unwrap();
    assert_eq!(
        v2["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
        50
    );
    assert_eq!(
        (
            v2["apiVersion"].as_str(),
            v2["spec"]["minReplicas"].as_i64()
        ),
        (Some("autoscaling/v2"), Some(1))
    );
}
