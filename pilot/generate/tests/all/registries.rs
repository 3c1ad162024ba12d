//! Several registries in one snapshot: what merges, who wins, whose a proxy is.

use std::{net::IpAddr, sync::Arc};

use pilot_generate::{
    ChangeSet, Inputs, Proxy, Report, Scope, Shard, Snapshot, View,
    envoy::core::Node,
    generate,
    model::{Registry, Service, ServiceEndpoints, Workload},
    report::metric,
};

use crate::fixture::{Fixture, context};

const HOST: &str = "web.shop.svc.cluster.local";

/// A cluster with a service `web` at this address, and one pod behind it.
fn cluster(name: &str, vip: &str, pod: &str, target: u16) -> Shard {
    let fixture = Fixture::parse(&format!(
        "apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}}
spec: {{clusterIP: {vip}, selector: {{app: web}}, ports: [{{name: tcp, port: 80, targetPort: {target}}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web-{name}, namespace: shop, labels: {{app: web}}}}
spec: {{serviceAccountName: web, containers: [{{name: c}}]}}
status: {{phase: Running, podIP: {pod}}}
---
apiVersion: v1
kind: Endpoints
metadata: {{name: web, namespace: shop}}
subsets: [{{addresses: [{{ip: {pod}, targetRef: {{kind: Pod, name: web-{name}, namespace: shop}}}}], ports: [{{name: tcp, port: {target}}}]}}]
"
    ));
    let [shard] = &fixture.inputs.shards[..] else {
        unreachable!()
    };
    Shard {
        cluster: name.into(),
        ..shard.clone()
    }
}

fn proxy(ip: &str, metadata: serde_json::Value) -> Proxy {
    let node: Node = proto_envoy::json::from_json(&serde_json::json!({
        "id": format!("sidecar~{ip}~web-x.shop~shop.svc.cluster.local"), "metadata": metadata
    }))
    .unwrap();
    Proxy::from_node(&node).unwrap()
}

fn in_cluster(ip: &str, cluster: &str) -> Proxy {
    proxy(ip, serde_json::json!({"CLUSTER_ID": cluster}))
}

fn snapshot(shards: Vec<Shard>, previous: Option<&Snapshot>) -> Arc<Snapshot> {
    let inputs = match previous {
        Some(previous) => Inputs {
            shards,
            ..previous.inputs().clone()
        },
        None => Inputs {
            shards,
            ..Inputs::default()
        },
    };
    Arc::new(Snapshot::build(&inputs, previous))
}

/// Names of the listeners of TCP services.
fn listeners(snapshot: &Arc<Snapshot>, proxy: &Proxy) -> Vec<String> {
    let scope = Scope::of(snapshot, proxy);
    let all = generate::outbound_listeners(&scope, &mut Report::default());
    let names = all.iter().map(|l| l.name.clone());
    names.filter(|name| name.ends_with("_80")).collect()
}

/// Addresses of the endpoints of `web`.
fn endpoints(snapshot: &Arc<Snapshot>, proxy: &Proxy) -> Vec<String> {
    let scope = Scope::of(snapshot, proxy);
    let cluster = format!("outbound|80||{HOST}");
    let assignment = generate::endpoints(&scope, &cluster, &mut Report::default());
    let text = proto_envoy::json::to_json(&assignment).unwrap().to_string();
    let mut found: Vec<String> = text
        .split("\"address\":\"")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
        .collect();
    found.sort();
    found
}

fn inbound(snapshot: &Arc<Snapshot>, proxy: &Proxy) -> Vec<u32> {
    let found = generate::instances(snapshot, proxy, &mut Report::default());
    found.iter().map(|i| i.endpoint_port).collect()
}

#[test]
fn a_host_of_two_clusters_is_one_service_with_an_address_in_each() {
    let shards = vec![
        cluster("Kubernetes", "10.96.0.1", "10.1.0.1", 8080),
        cluster("west", "10.97.0.1", "10.2.0.1", 9090),
    ];
    let snapshot = snapshot(shards, None);
    assert_eq!(snapshot.services().all().len(), 1);
    let (here, west) = (
        in_cluster("10.1.0.1", "Kubernetes"),
        in_cluster("10.2.0.1", "west"),
    );
    assert_eq!(listeners(&snapshot, &here), ["10.96.0.1_80"]);
    assert_eq!(listeners(&snapshot, &west), ["10.97.0.1_80"]);
    for proxy in [&here, &west] {
        assert_eq!(endpoints(&snapshot, proxy), ["10.1.0.1", "10.2.0.1"]);
    }
    // What is behind the port is each cluster's own affair.
    assert_eq!(inbound(&snapshot, &here), [8080]);
    assert_eq!(inbound(&snapshot, &west), [9090]);
    // A proxy that does not say where it is belongs where its pod is.
    let silent = proxy("10.2.0.1", serde_json::json!({}));
    assert_eq!(&*snapshot.cluster_of(&silent), "west");
    assert_eq!(listeners(&snapshot, &silent), ["10.97.0.1_80"]);
}

#[test]
fn clusters_may_use_the_same_addresses() {
    let shards = vec![
        cluster("Kubernetes", "10.96.0.1", "10.1.0.1", 8080),
        cluster("west", "10.96.0.1", "10.1.0.1", 9090),
    ];
    let snapshot = snapshot(shards, None);
    assert_eq!(inbound(&snapshot, &in_cluster("10.1.0.1", "west")), [9090]);
    let named = in_cluster("10.1.0.1", "Kubernetes");
    assert_eq!(inbound(&snapshot, &named), [8080]);
    // A pod that its own cluster does not know yet is not taken for another cluster's.
    let labels = serde_json::json!({"CLUSTER_ID": "west", "LABELS": {"app": "other"}});
    assert!(inbound(&snapshot, &proxy("10.9.9.9", labels)).is_empty());
    let labels = serde_json::json!({"CLUSTER_ID": "west", "LABELS": {"app": "web"}});
    assert_eq!(inbound(&snapshot, &proxy("10.9.9.9", labels)), [9090]);
}

#[test]
fn a_change_in_another_cluster_is_named() {
    let west = |vip| cluster("west", vip, "10.2.0.1", 9090);
    let here = cluster("Kubernetes", "10.96.0.1", "10.1.0.1", 8080);
    let before = snapshot(vec![here.clone(), west("10.97.0.1")], None);
    // Another address there: a new view of the same service.
    let after = snapshot(vec![here.clone(), west("10.97.0.2")], Some(&before));
    let change = ChangeSet::between(&before, &after);
    let west_proxy = in_cluster("10.2.0.1", "west");
    let view = View::of(&after, &west_proxy);
    assert!(change.affected(&view).listeners);
    assert!(change.touches_cluster(&format!("outbound|80||{HOST}")));
    assert_eq!(listeners(&after, &west_proxy), ["10.97.0.2_80"]);
    assert!(Arc::ptr_eq(
        &before.services().all()[0],
        &after.services().all()[0]
    ));
    // The cluster goes.
    let alone = snapshot(vec![here], Some(&after));
    let change = ChangeSet::between(&after, &alone);
    assert!(change.touches_endpoints(&format!("outbound|80||{HOST}")));
    assert!(change.touches_proxy(&alone, &in_cluster("10.2.0.1", "west")));
    let proxy = in_cluster("10.1.0.1", "Kubernetes");
    assert_eq!(endpoints(&alone, &proxy), ["10.1.0.1"]);
    // An endpoint there: nothing but assignments, and nothing of the other cluster is looked at.
    let mut fewer = before.inputs().shards.clone();
    let key = context().key("web", "shop");
    fewer[1].endpoints = Arc::new([(key, Arc::default())].into_iter().collect());
    let after = snapshot(fewer, Some(&before));
    let change = ChangeSet::between(&before, &after);
    assert!(change.endpoints_only() && !change.is_empty());
    assert!(std::ptr::eq(before.services(), after.services()));
    assert_eq!(endpoints(&after, &proxy), ["10.1.0.1"]);
}

#[test]
fn of_other_registries_the_first_has_the_host_and_the_other_is_reported() {
    let kubernetes = cluster("Kubernetes", "10.96.0.1", "10.1.0.1", 8080);
    let service = Service {
        registry: Registry::Consul,
        namespace: "default".into(),
        selector: Default::default(),
        ..(*kubernetes.services[0]).clone()
    };
    let other = Service {
        hostname: "only.service.consul".into(),
        ..service.clone()
    };
    let consul = Shard {
        services: Arc::new(vec![Arc::new(service), Arc::new(other)]),
        ..Shard::new("Consul", Registry::Consul)
    };
    let first = snapshot(vec![kubernetes.clone(), consul.clone()], None);
    let hosts = |snapshot: &Snapshot| -> Vec<(String, Registry)> {
        let all = snapshot.services().all().iter();
        all.map(|s| (s.hostname.to_string(), s.registry)).collect()
    };
    let expected = [
        ("only.service.consul".to_owned(), Registry::Consul),
        (HOST.to_owned(), Registry::Kubernetes),
    ];
    assert_eq!(hosts(&first), expected);
    assert_eq!(first.report().count(metric::DUPLICATE_HOSTS), 1);
    let second = snapshot(vec![consul, kubernetes], None);
    assert!(hosts(&second).contains(&(HOST.to_owned(), Registry::Consul)));
    let report = serde_json::to_string(second.report()).unwrap();
    assert!(
        report.contains(&format!("{HOST} of Kubernetes")),
        "{report}"
    );
}

#[test]
fn a_workload_that_is_only_listed_hears_of_its_services() {
    let mut shard = cluster("Kubernetes", "10.96.0.1", "10.1.0.1", 8080);
    let service = Service {
        selector: Default::default(),
        ..(*shard.services[0]).clone()
    };
    shard.services = Arc::new(vec![Arc::new(service)]);
    shard.workloads = Arc::default();
    let listed = shard.endpoints.clone();
    let unlisted = Shard {
        endpoints: Arc::default(),
        ..shard.clone()
    };
    let before = snapshot(vec![unlisted], None);
    let proxy = in_cluster("10.1.0.1", "Kubernetes");
    let other = in_cluster("10.1.0.2", "Kubernetes");
    assert!(inbound(&before, &proxy).is_empty());
    let after = snapshot(vec![shard.clone()], Some(&before));
    assert_eq!(inbound(&after, &proxy), [8080]);
    let change = ChangeSet::between(&before, &after);
    assert!(change.touches_proxy(&after, &proxy) && !change.touches_proxy(&after, &other));
    // Not ready: nobody is sent there, its own proxy is configured all the same.
    let key = context().key("web", "shop");
    let set = ServiceEndpoints::default().with_not_ready(listed[&key].endpoints.clone());
    shard.endpoints = Arc::new([(key, Arc::new(set))].into_iter().collect());
    let unready = snapshot(vec![shard], Some(&after));
    assert_eq!(inbound(&unready, &proxy), [8080]);
    assert!(endpoints(&unready, &other).is_empty());
}

#[test]
fn a_workload_that_changes_touches_its_proxy() {
    let shard = cluster("Kubernetes", "10.96.0.1", "10.1.0.1", 8080);
    let before = snapshot(vec![shard.clone()], None);
    let ip: IpAddr = "10.1.0.1".parse().unwrap();
    let with = |workload: Option<Workload>| {
        let mut shard = shard.clone();
        let map = Arc::make_mut(&mut shard.workloads);
        match workload {
            Some(workload) => map.insert(ip, Arc::new(workload)),
            None => map.remove(&ip),
        };
        shard
    };
    let proxy = in_cluster("10.1.0.1", "Kubernetes");
    let bystander = in_cluster("10.1.0.9", "Kubernetes");
    let mut relabelled = (*shard.workloads[&ip]).clone();
    relabelled.labels = Arc::new([("app".to_owned(), "other".to_owned())].into());
    for changed in [with(Some(relabelled)), with(None)] {
        let after = snapshot(vec![changed], Some(&before));
        // It gains or loses its address, or its labels select something else.
        for (from, to) in [(&before, &after), (&after, &before)] {
            let change = ChangeSet::between(from, to);
            assert!(change.touches_proxy(to, &proxy));
            assert!(!change.touches_proxy(to, &bystander));
            assert_ne!(inbound(from, &proxy), inbound(to, &proxy));
        }
    }
}
