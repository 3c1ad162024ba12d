//! A restart loses nothing that was acknowledged.

use serde_json::json;

use crate::harness::Lab;

const CMS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn objects_versions_and_keys_survive() {
    let lab = Lab::start().await;
    lab.post(CMS, r#"{"metadata":{"name":"a"},"data":{"k":"v"}}"#)
        .await
        .unwrap();
    lab.post(CMS, r#"{"metadata":{"name":"gone"}}"#)
        .await
        .unwrap();
    lab.delete(&format!("{CMS}/gone"), "").await.unwrap();
    let crd = crate::custom::crd();
    lab.post(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        &crd.to_string(),
    )
    .await
    .unwrap();
    let widgets = "/apis/lab.example.com/v1/namespaces/default/widgets";
    let last = lab
        .post(widgets, r#"{"apiVersion":"lab.example.com/v1","kind":"Widget","metadata":{"name":"w"},"spec":{"size":2}}"#)
        .await
        .unwrap();
    let (ca, dir) = (lab.server.ca_certificate().to_owned(), lab.stop());
    let lab = Lab::start_in(dir).await;
    assert_eq!(lab.server.ca_certificate(), ca);
    assert_eq!(
        lab.get(&format!("{CMS}/a")).await.unwrap()["data"],
        json!({"k": "v"})
    );
    assert_eq!(lab.get(&format!("{CMS}/gone")).await.unwrap_err().code, 404);
    assert_eq!(lab.get(&format!("{widgets}/w")).await.unwrap(), last);
    let next = lab.post(CMS, r#"{"metadata":{"name":"b"}}"#).await.unwrap();
    let number = |v: &serde_json::Value| {
        v["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    assert!(number(&next) > number(&last));
}

#[tokio::test]
async fn concurrent_writers_never_lose_an_update() {
    let lab = Lab::start().await;
    lab.post(CMS, r#"{"metadata":{"name":"c"},"data":{}}"#)
        .await
        .unwrap();
    let path = format!("{CMS}/c");
    let patches = (0..60).map(|i| {
        let (lab, path) = (&lab, &path);
        async move {
            lab.merge(path, &format!(r#"{{"data":{{"k{i}":"v"}}}}"#))
                .await
        }
    });
    let results = futures::future::join_all(patches).await;
    let done = results.iter().filter(|r| r.is_ok()).count();
    assert!(
        results
            .iter()
            .all(|r| r.as_ref().map_or_else(|e| e.code == 409, |_| true))
    );
    assert_eq!(
        lab.get(&path).await.unwrap()["data"]
            .as_object()
            .unwrap()
            .len(),
        done
    );
}

/// A patch that names no version is tried again when another write came in between. Two writers can be in each other's
/// way only so often.
#[tokio::test]
async fn two_patchers_side_by_side_are_never_refused() {
    let lab = Lab::start().await;
    lab.post(CMS, r#"{"metadata":{"name":"c"},"data":{}}"#)
        .await
        .unwrap();
    let path = format!("{CMS}/c");
    for round in 0..200 {
        let (one, other) = (
            format!(r#"{{"data":{{"one":"{round}"}}}}"#),
            format!(r#"{{"data":{{"other":"{round}"}}}}"#),
        );
        tokio::try_join!(lab.merge(&path, &one), lab.merge(&path, &other)).unwrap();
    }
}
