#![allow(clippy::unwrap_used)]
use pilot_generate::{model, report::metric};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{addresses::SERVICE_NAME, *};

fn index() -> Index {
    let context = Context {
        cluster: Arc::default(),
        domain: "cluster.local".into(),
        trust_domain: "cluster.local".into(),
        default_export_to: vec!["*".into()],
    };
    let metrics = Metrics::new(&mesh_service::Metrics::default());
    let empty = Shard::new("Kubernetes", model::Registry::Kubernetes);
    Index::new(context, empty, metrics)
}

fn of<K: DeserializeOwned>(value: Value) -> Box<K> {
    Box::new(serde_json::from_value(value).unwrap())
}

fn service(port: u16) -> Object {
    Object::Service(of(json!({
        "metadata": {"name": "web", "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"clusterIP": "10.96.0.10", "selector": {"app": "web"},
                 "ports": [{"name": "http", "port": port, "targetPort": 8080}]}
    })))
}

fn pod(name: &str, ip: &str) -> Object {
    Object::Pod(of(json!({
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "serviceAccountName": "web", "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}
    })))
}

fn slice(endpoints: &[(&str, bool)]) -> Object {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(ip, ready)| {
            json!({
                "addresses": [ip], "conditions": {"ready": ready},
                "targetRef": {"kind": "Pod", "name": "p", "namespace": "shop"}
            })
        })
        .collect();
    Object::Slice(of(json!({
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {SERVICE_NAME: "web"}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]
    })))
}

fn synced(index: &mut Index, lists: Vec<(Kind, Vec<Object>)>) {
    for (kind, list) in lists {
        index.take(kind, Change::Init);
        for object in list {
            index.take(kind, Change::Listed(object));
        }
        index.take(kind, Change::Done);
    }
}

fn shop() -> Vec<(Kind, Vec<Object>)> {
    vec![
        (
            Kind::Endpoints,
            vec![slice(&[("10.1.0.1", true), ("10.1.0.2", true)])],
        ),
        (Kind::Service, vec![service(80)]),
        (Kind::Pod, vec![pod("a", "10.1.0.1"), pod("b", "10.1.0.2")]),
        (Kind::Node, vec![]),
    ]
}

fn count(state: &Shard) -> usize {
    state
        .endpoints
        .values()
        .map(|set| set.endpoints.len())
        .sum()
}

#[test]
fn nothing_is_published_before_everything_is_listed() {
    let mut index = index();
    let mut lists = shop();
    let last = lists.pop().unwrap();
    synced(&mut index, lists);
    assert!(index.publish().is_none());
    synced(&mut index, vec![last]);
    let (state, event) = index.publish().unwrap();
    assert_eq!(
        (state.services.len(), count(&state), event),
        (1, 2, Event::Config)
    );
    assert!(index.publish().is_none(), "nothing changed since");
}

#[test]
fn an_unready_endpoint_leaves_and_only_endpoints_are_said_to_change() {
    let mut index = index();
    synced(&mut index, shop());
    let (before, _) = index.publish().unwrap();
    let change = Change::Apply(slice(&[("10.1.0.1", true), ("10.1.0.2", false)]));
    index.take(Kind::Endpoints, change);
    let (after, event) = index.publish().unwrap();
    assert_eq!((count(&after), event), (1, Event::Endpoints));
    assert!(Arc::ptr_eq(&before.services, &after.services));
    assert_eq!(count(&before), 2, "a published state does not change");
}

#[test]
fn an_endpoint_waits_for_its_pod() {
    let mut index = index();
    synced(&mut index, shop());
    index.publish().unwrap();
    index.take(Kind::Endpoints, Change::Apply(slice(&[("10.1.0.3", true)])));
    assert_eq!(count(&index.publish().unwrap().0), 0);
    index.take(Kind::Pod, Change::Apply(pod("c", "10.1.0.3")));
    let (state, event) = index.publish().unwrap();
    assert_eq!((count(&state), event), (1, Event::Endpoints));
}

#[test]
fn a_relist_replaces_when_it_is_complete_and_not_before() {
    let mut index = index();
    synced(&mut index, shop());
    index.publish().unwrap();
    for kind in [Kind::Service, Kind::Endpoints, Kind::Pod] {
        index.take(kind, Change::Init);
    }
    assert!(index.publish().is_none());
    index.take(Kind::Service, Change::Listed(service(80)));
    index.take(Kind::Service, Change::Done);
    assert!(
        index.publish().is_none(),
        "the same service again is no change"
    );
    index.take(Kind::Endpoints, Change::Done);
    index.take(Kind::Pod, Change::Done);
    let (state, _) = index.publish().unwrap();
    assert_eq!(
        (state.services.len(), count(&state), state.workloads.len()),
        (1, 0, 0)
    );
}

#[test]
fn an_address_that_moved_to_another_pod_is_not_lost_with_the_old_one() {
    let mut index = index();
    synced(&mut index, shop());
    index.publish().unwrap();
    index.take(Kind::Pod, Change::Apply(pod("c", "10.1.0.1")));
    index.take(Kind::Pod, Change::Delete(pod("a", "10.1.0.1")));
    let (state, _) = index.publish().unwrap();
    let owner = &state.workloads[&"10.1.0.1".parse::<IpAddr>().unwrap()];
    assert_eq!(&*owner.name, "c");
    assert_eq!(count(&state), 2);
}

#[test]
fn pods_that_share_a_node_s_address_are_found_by_their_name() {
    let mut index = index();
    synced(&mut index, shop());
    let Object::Pod(mut proxy) = pod("p", "192.0.2.7") else {
        unreachable!()
    };
    proxy.spec.as_mut().unwrap().host_network = Some(true);
    let change = Change::Apply(slice(&[("192.0.2.7", true)]));
    index.take(Kind::Endpoints, change);
    let (before, _) = index.publish().unwrap();
    assert_eq!(
        (count(&before), before.report.count(metric::ENDPOINT_NO_POD)),
        (0, 1)
    );
    index.take(Kind::Pod, Change::Apply(Object::Pod(proxy)));
    let (after, _) = index.publish().unwrap();
    assert_eq!(
        (count(&after), after.report.count(metric::ENDPOINT_NO_POD)),
        (1, 0)
    );
    let found = after
        .endpoints
        .values()
        .flat_map(|set| &set.endpoints)
        .next()
        .unwrap();
    assert_eq!(&*found.uid, "kubernetes://p.shop");
    assert!(!after.workloads.contains_key(&"192.0.2.7".parse().unwrap()));
}

#[test]
fn a_slice_goes_over_to_another_service() {
    let mut index = index();
    synced(&mut index, shop());
    index.publish().unwrap();
    let Object::Slice(mut moved) = slice(&[("10.1.0.1", true)]) else {
        unreachable!()
    };
    let labels = moved.metadata.labels.as_mut().unwrap();
    labels.insert(SERVICE_NAME.into(), "other".into());
    index.take(Kind::Endpoints, Change::Apply(Object::Slice(moved)));
    let (shard, _) = index.publish().unwrap();
    let hosts: Vec<&str> = shard.endpoints.keys().map(|key| &*key.hostname).collect();
    assert_eq!(hosts, ["other.shop.svc.cluster.local"]);
    index.take(Kind::Endpoints, Change::Done);
    assert_eq!(index.publish().unwrap().0.endpoints.len(), 0);
}

#[test]
fn labels_of_nodes_reach_the_endpoints_on_them() {
    let mut index = index();
    synced(&mut index, shop());
    index.publish().unwrap();
    let node = |zone: &str| {
        Object::Node(of(json!({"metadata": {"name": "n1", "labels": {
            "topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": zone
        }}})))
    };
    index.take(Kind::Node, Change::Apply(node("a")));
    let (shard, event) = index.publish().unwrap();
    let zones = |shard: &Shard| -> Vec<String> {
        let all = shard.endpoints.values().flat_map(|set| &set.endpoints);
        all.map(|e| e.locality.to_string()).collect()
    };
    assert_eq!(
        (zones(&shard), event),
        (vec!["eu/a".into(); 2], Event::Endpoints)
    );
    index.take(Kind::Node, Change::Apply(node("b")));
    assert_eq!(zones(&index.publish().unwrap().0), ["eu/b", "eu/b"]);
    index.take(Kind::Node, Change::Apply(node("b")));
    assert!(index.publish().is_none(), "a heartbeat changes nothing");
}
