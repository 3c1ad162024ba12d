//! Watches: order, selectors, bookmarks, windows.

use std::time::Duration;

use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use http::Request;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::Value;

use crate::harness::Lab;

const CMS: &str = "/api/v1/namespaces/default/configmaps";
const PATIENCE: Duration = Duration::from_secs(20);

type Lines = std::pin::Pin<Box<dyn futures::Stream<Item = Value> + Send>>;

/// The events of a raw watch.
async fn watch(client: &Client, query: &str) -> Lines {
    let request = Request::get(format!("{CMS}?watch=true&{query}"))
        .body(Vec::new())
        .unwrap();
    let lines = client.request_stream(request).await.unwrap().lines();
    Box::pin(
        lines
            .map_ok(|l| serde_json::from_str(&l).unwrap())
            .map(Result::unwrap),
    )
}

async fn next(lines: &mut Lines) -> (String, Value) {
    let event = tokio::time::timeout(PATIENCE, lines.next())
        .await
        .expect("an event in time")
        .expect("the stream goes on");
    (
        event["type"].as_str().unwrap().to_owned(),
        event["object"].clone(),
    )
}

#[tokio::test]
async fn selectors_turn_changes_into_appearance_and_disappearance() {
    let lab = Lab::start().await;
    for client in [lab.client.clone(), lab.tls_client().await] {
        let mut lines = watch(&client, "labelSelector=l%3D1").await;
        lab.post(CMS, r#"{"metadata":{"name":"a","labels":{"l":"1"}}}"#)
            .await
            .unwrap();
        assert_eq!(next(&mut lines).await.0, "ADDED");
        let gone = lab
            .merge(&format!("{CMS}/a"), r#"{"metadata":{"labels":{"l":"2"}}}"#)
            .await
            .unwrap();
        let (kind, object) = next(&mut lines).await;
        assert_eq!(
            (kind.as_str(), object["metadata"]["labels"]["l"].as_str()),
            ("DELETED", Some("1"))
        );
        assert_eq!(
            object["metadata"]["resourceVersion"],
            gone["metadata"]["resourceVersion"]
        );
        lab.merge(&format!("{CMS}/a"), r#"{"metadata":{"labels":{"l":"1"}}}"#)
            .await
            .unwrap();
        assert_eq!(next(&mut lines).await.0, "ADDED");
        lab.delete(&format!("{CMS}/a"), "").await.unwrap();
        assert_eq!(next(&mut lines).await.0, "DELETED");
    }
}

#[tokio::test]
async fn versions_and_windows() {
    let lab = Lab::start().await;
    let made = lab.post(CMS, r#"{"metadata":{"name":"a"}}"#).await.unwrap();
    let rv = made["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    lab.merge(&format!("{CMS}/a"), r#"{"data":{"x":"1"}}"#)
        .await
        .unwrap();
    let mut lines = watch(&lab.client, &format!("resourceVersion={rv}")).await;
    assert_eq!(next(&mut lines).await.0, "MODIFIED");
    // After a compaction the same version is too old: an error in the stream, then its end.
    lab.server.compact();
    let mut lines = watch(&lab.client, &format!("resourceVersion={rv}")).await;
    let (kind, status) = next(&mut lines).await;
    assert_eq!(
        (
            kind.as_str(),
            status["code"].as_i64(),
            status["reason"].as_str()
        ),
        ("ERROR", Some(410), Some("Expired"))
    );
    assert!(lines.next().await.is_none());
    let bad = lab
        .get(&format!("{CMS}?watch=true&resourceVersion=abc"))
        .await
        .unwrap_err();
    assert_eq!(bad.code, 500);
    let future = lab
        .get(&format!("{CMS}?resourceVersion=99999"))
        .await
        .unwrap_err();
    assert_eq!((future.code, future.reason.as_str()), (504, "Timeout"));
    // A watch ends by itself, cleanly.
    let mut lines = watch(&lab.client, "resourceVersion=99999&timeoutSeconds=1").await;
    assert!(
        tokio::time::timeout(PATIENCE, lines.next())
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let lab = Lab::start().await;
    lab.post(CMS, r#"{"metadata":{"name":"a"}}"#).await.unwrap();
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&resourceVersion=0";
    let mut lines = watch(&lab.client, query).await;
    assert_eq!(next(&mut lines).await.0, "ADDED");
    let (kind, object) = next(&mut lines).await;
    assert_eq!(
        (
            kind.as_str(),
            object["metadata"]["annotations"]["k8s.io/initial-events-end"].as_str()
        ),
        ("BOOKMARK", Some("true"))
    );
    let refused = lab
        .get(&format!("{CMS}?watch=true&sendInitialEvents=true"))
        .await
        .unwrap_err();
    assert!(
        refused
            .message
            .contains("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
    );
}

#[tokio::test]
async fn watchers_of_kube_rs_survive_compaction() {
    let lab = Lab::start().await;
    for config in [
        watcher::Config::default(),
        watcher::Config::default().streaming_lists(),
    ] {
        let api: Api<ConfigMap> = Api::namespaced(lab.tls_client().await, "default");
        let mut objects = std::pin::pin!(watcher(api, config).default_backoff().applied_objects());
        for round in 0..3 {
            let name = format!("w{}-{round}", rand_name());
            lab.post(CMS, &format!(r#"{{"metadata":{{"name":"{name}"}}}}"#))
                .await
                .unwrap();
            loop {
                let object = tokio::time::timeout(PATIENCE, objects.try_next())
                    .await
                    .unwrap()
                    .unwrap()
                    .unwrap();
                if object.metadata.name.as_deref() == Some(name.as_str()) {
                    break;
                }
            }
            lab.server.compact();
        }
    }
}

fn rand_name() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_left_behind() {
    let lab = Lab::start_with(tempfile::tempdir().unwrap(), |c| c.watch_history = 8).await;
    let made = lab.post(CMS, r#"{"metadata":{"name":"a"}}"#).await.unwrap();
    let rv = made["metadata"]["resourceVersion"].as_str().unwrap();
    let mut lines = watch(&lab.client, &format!("resourceVersion={rv}")).await;
    for i in 0..200 {
        lab.merge(&format!("{CMS}/a"), &format!(r#"{{"data":{{"x":"{i}"}}}}"#))
            .await
            .unwrap();
    }
    // What it reads first may have been fetched early; then it is told that it is too late.
    let mut seen = 0;
    loop {
        match next(&mut lines).await.0.as_str() {
            "MODIFIED" => seen += 1,
            "ERROR" => break,
            other => panic!("{other}"),
        }
    }
    assert!(seen < 200, "{seen}");
}
