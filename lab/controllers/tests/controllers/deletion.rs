//! The garbage collector: background, foreground, orphan, and owners that never existed.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::json;

use crate::lab::{Lab, deployment};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_a_deployment_takes_everything_below_it() {
    let lab = Lab::start().await;
    for (name, params) in [
        ("back", DeleteParams::background()),
        ("fore", DeleteParams::foreground()),
    ] {
        lab.create::<Deployment>(deployment(name, 2, "a")).await;
        lab.rolled_out(name).await;
        lab.api::<Deployment>().delete(name, &params).await.unwrap();
        lab.until::<Deployment>("no deployment", |all| all.is_empty())
            .await;
        if name == "fore" {
            assert!(
                lab.list::<Pod>().await.is_empty(),
                "foreground: the owner goes last"
            );
            assert!(
                lab.list::<ReplicaSet>().await.is_empty(),
                "foreground: the owner goes last"
            );
        }
        lab.until::<ReplicaSet>("no replica sets", |all| all.is_empty())
            .await;
        lab.until::<Pod>("no pods", |all| all.is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_stay_and_are_adopted_again() {
    let lab = Lab::start().await;
    lab.create::<Deployment>(deployment("web", 2, "a")).await;
    lab.rolled_out("web").await;
    let set = lab.list::<ReplicaSet>().await.remove(0);
    let orphan = DeleteParams::orphan();
    lab.api::<Deployment>()
        .delete("web", &orphan)
        .await
        .unwrap();
    lab.until::<Deployment>("deployment gone", |all| all.is_empty())
        .await;
    let left = lab.until::<ReplicaSet>("set without owner", |all| {
        all.len() == 1 && all[0].owner_references().is_empty()
    });
    assert_eq!(left.await[0].uid(), set.uid());
    assert_eq!(lab.list::<Pod>().await.len(), 2);
    lab.create::<Deployment>(deployment("web", 2, "a")).await;
    lab.rolled_out("web").await;
    let sets = lab.list::<ReplicaSet>().await;
    assert_eq!(sets.len(), 1, "adopted, not made anew");
    assert_eq!(sets[0].uid(), set.uid());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_does_not_exist_owns_nothing() {
    let lab = Lab::start().await;
    let owner = lab
        .create::<ConfigMap>(json!({"metadata": {"name": "owner"}}))
        .await;
    let owned_by = |name: &str, uid: &str| json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid}]);
    let real = owned_by("owner", &owner.uid().unwrap());
    let ghost = owned_by("ghost", "00000000-0000-4000-8000-000000000000");
    let both = json!([real[0], ghost[0]]);
    for (name, owners) in [("kept", real), ("lost", ghost), ("shared", both)] {
        lab.create::<ConfigMap>(json!({"metadata": {"name": name, "ownerReferences": owners}}))
            .await;
    }
    let maps = lab.until::<ConfigMap>("the ghost's property is collected", |all| {
        let names: Vec<_> = all.iter().map(|m| m.name_any()).collect();
        let shared = all.iter().find(|m| m.name_any() == "shared");
        !names.contains(&"lost".to_owned())
            && shared.is_some_and(|m| m.owner_references().len() == 1)
    });
    assert!(maps.await.iter().any(|m| m.name_any() == "kept"));
    lab.api::<ConfigMap>()
        .delete("owner", &DeleteParams::default())
        .await
        .unwrap();
    lab.until::<ConfigMap>("dependents follow their owner", |all| {
        all.iter().all(|m| m.name_any() == "kube-root-ca.crt")
    })
    .await;
}
