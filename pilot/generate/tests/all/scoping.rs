//! A change is told to those it concerns, and to nobody else.

use std::{
    fmt::Write as _,
    sync::{Arc, LazyLock},
};

use mesh_config::Configs;
use pilot_generate::{
    ChangeSet, Inputs, Proxy, Scope, Snapshot, View, ViewKey,
    model::{ProxyKind, ServiceEndpoints},
    snapshot::Affected,
};

use crate::fixture::{Fixture, context};

const NAMESPACES: usize = 100;
const SERVICES: usize = 10;

const NONE: Affected = Affected {
    clusters: false,
    endpoints: false,
    listeners: false,
    routes: false,
};

/// A hundred namespaces of ten services each, in which a Sidecar imports just these; and one without any.
static MESH: LazyLock<Fixture> = LazyLock::new(|| {
    let mut text = String::new();
    for ns in 0..NAMESPACES {
        let _ = write!(
            text,
            "kind: Proxy\nnode: {{id: \"sidecar~10.3.{ns}.1~a.ns{ns}~ns{ns}.svc.cluster.local\", metadata: {{LABELS: {{app: s0}}}}}}\n---\n"
        );
        for i in 0..SERVICES {
            let _ = write!(
                text,
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s{i}, namespace: ns{ns}}}\nspec: {{clusterIP: 10.96.{ns}.{i}, selector: {{app: s{i}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n---\n\
                 apiVersion: v1\nkind: Endpoints\nmetadata: {{name: s{i}, namespace: ns{ns}}}\nsubsets: [{{addresses: [{{ip: 10.1.{ns}.{i}}}, {{ip: 10.2.{ns}.{i}}}], ports: [{{name: http, port: 8080}}]}}]\n---\n"
            );
        }
        let own = "egress: [{hosts: ['./*']}]";
        text += &object("Sidecar", "default", &format!("ns{ns}"), own);
    }
    text += "kind: Proxy\nnode: {id: \"sidecar~10.4.0.1~a.open~open.svc.cluster.local\"}\n";
    Fixture::parse(&text)
});

/// The mesh with more config.
fn inputs(extra: &str) -> Inputs {
    let mut inputs = MESH.inputs.clone();
    let more = Fixture::parse(extra).inputs.configs;
    let all = inputs.configs.iter().chain(more.iter());
    inputs.configs = Arc::new(Configs::from_objects(all));
    inputs
}

fn object(kind: &str, name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1alpha3\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n---\n"
    )
}

/// Two snapshots, the second made from the first and the config of another mesh.
struct Step {
    before: Arc<Snapshot>,
    after: Arc<Snapshot>,
    change: ChangeSet,
}

impl Step {
    fn config(extra: &str) -> Step {
        Step::of(&MESH.inputs, &inputs(extra))
    }

    fn of(first: &Inputs, second: &Inputs) -> Step {
        let before = Arc::new(Snapshot::build(first, None));
        let after = Arc::new(Snapshot::build(second, Some(&before)));
        let change = ChangeSet::between(&before, &after);
        assert!(!change.is_empty());
        Step {
            before,
            after,
            change,
        }
    }

    fn view(&self, proxy: usize) -> Arc<View> {
        Arc::new(View::of(&self.before, &MESH.proxies[proxy]))
    }

    /// The proxies whose scopes may differ, what may, and whether their views are made anew.
    fn concerned(&self) -> Vec<(usize, Affected)> {
        let mut out = Vec::new();
        for i in 0..MESH.proxies.len() {
            let view = self.view(i);
            let affected = self.change.affected(&view);
            if affected.any() {
                out.push((i, affected));
            } else {
                let next = view.next(&self.after, &self.change).unwrap();
                assert!(Arc::ptr_eq(&next, &view), "proxy {i} keeps its view");
            }
        }
        out
    }

    fn own(&self) -> Vec<usize> {
        let touched = |i: &usize| self.change.touches_proxy(&self.after, &MESH.proxies[*i]);
        (0..MESH.proxies.len()).filter(touched).collect()
    }
}

/// The proxy of the namespace without a Sidecar, which sees everything.
const OPEN: usize = NAMESPACES;

#[test]
fn a_virtual_service_concerns_those_who_import_a_host_of_it() {
    let routes = Affected {
        routes: true,
        ..NONE
    };
    let of_ns7 = "hosts: [s3], http: [{timeout: 3s, route: [{destination: {host: s3}}]}]";
    let step = Step::config(&object("VirtualService", "v", "ns7", of_ns7));
    assert_eq!(step.concerned(), [(7, routes), (OPEN, routes)]);
    assert_eq!(step.own(), [0; 0]);
    // Its services are the same list.
    let (view, next) = (step.view(7), step.view(7).next(&step.after, &step.change));
    let next = next.unwrap();
    assert!(!Arc::ptr_eq(&view, &next) && next.virtual_services().len() == 1);
    assert_eq!(next.services().all().len(), SERVICES);

    // One for gateways only concerns no sidecar; a private one only its own namespace.
    let step = Step::config(&object(
        "VirtualService",
        "v",
        "ns7",
        &format!("gateways: [gw], {of_ns7}"),
    ));
    assert_eq!(step.concerned(), []);
    let private = format!("exportTo: ['.'], {of_ns7}");
    let step = Step::config(&object("VirtualService", "v", "ns7", &private));
    assert_eq!(step.concerned(), [(7, routes)]);
    // A Sidecar imports from namespaces, whatever the host: clients of ns7 have nothing to do with it.
    let elsewhere = "hosts: [s3.ns7.svc.cluster.local], http: [{route: [{destination: {host: s3.ns7.svc.cluster.local}}]}]";
    let step = Step::config(&object("VirtualService", "v", "ns8", elsewhere));
    assert_eq!(step.concerned(), [(8, routes), (OPEN, routes)]);
}

#[test]
fn a_rule_concerns_those_who_follow_it() {
    let policies = Affected {
        clusters: true,
        endpoints: true,
        ..NONE
    };
    let rule = |namespace: &str, spec: &str| {
        let host = "host: s3.ns7.svc.cluster.local";
        Step::config(&object(
            "DestinationRule",
            "d",
            namespace,
            &format!("{host}, {spec}"),
        ))
    };
    let random = "trafficPolicy: {loadBalancer: {simple: RANDOM}}";
    assert_eq!(
        rule("ns7", random).concerned(),
        [(7, policies), (OPEN, policies)]
    );
    // Of the clients' namespace: it is for them alone, and these do not see the host.
    assert_eq!(rule("ns8", random).concerned(), []);
    assert_eq!(rule("open", random).concerned(), [(OPEN, policies)]);
    assert_eq!(
        rule("istio-system", random).concerned(),
        [(7, policies), (OPEN, policies)]
    );
    assert_eq!(
        rule("istio-system", &format!("exportTo: ['.'], {random}")).concerned(),
        []
    );
    // Hashing shows in routes.
    let hash = "trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x}}}";
    let hashed = Affected {
        routes: true,
        ..policies
    };
    assert_eq!(rule("ns7", hash).concerned(), [(7, hashed), (OPEN, hashed)]);
    // That by address shows in listeners too: connections have one.
    let hash = "trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}";
    let hashed = Affected {
        listeners: true,
        ..hashed
    };
    assert_eq!(rule("ns7", hash).concerned(), [(7, hashed), (OPEN, hashed)]);
    // The workload behind the host has its connection pool on its own side too. The proxy of ns7 is behind s0.
    let step = Step::config(&object(
        "DestinationRule",
        "d",
        "ns7",
        "host: s0, trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}",
    ));
    assert_eq!(step.own(), [7]);
}

#[test]
fn endpoints_concern_those_who_see_their_service_and_no_view() {
    let mut inputs = MESH.inputs.clone();
    let key = context().key("s3", "ns7");
    let mut map = (*inputs.shards[0].endpoints).clone();
    let fewer = map[&key].endpoints[1..].to_vec();
    map.insert(key.clone(), Arc::new(ServiceEndpoints::new(fewer)));
    inputs.shards[0].endpoints = Arc::new(map);
    let step = Step::of(&MESH.inputs, &inputs);
    let endpoints = Affected {
        endpoints: true,
        ..NONE
    };
    assert_eq!(step.concerned(), [(7, endpoints), (OPEN, endpoints)]);
    assert_eq!(step.own(), [0; 0]);
    for i in [7, OPEN] {
        let view = step.view(i);
        assert!(Arc::ptr_eq(
            &view.next(&step.after, &step.change).unwrap(),
            &view
        ));
        let hosts: Vec<_> = step.change.endpoint_hosts(&view).unwrap().collect();
        assert_eq!(hosts, [&key.hostname]);
    }
}

#[test]
fn a_service_concerns_those_who_would_see_it() {
    let all = Affected {
        clusters: true,
        endpoints: true,
        listeners: true,
        routes: true,
    };
    let entry = "hosts: [new.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS";
    let step = Step::config(&object("ServiceEntry", "e", "ns7", entry));
    assert_eq!(step.concerned(), [(7, all), (OPEN, all)]);
    let private = format!("exportTo: ['.'], {entry}");
    let step = Step::config(&object("ServiceEntry", "e", "ns7", &private));
    assert_eq!(step.concerned(), [(7, all)]);
    // An address of a workload in it makes it one of the workload's services.
    let listed = "hosts: [s.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 10.3.9.1}]";
    let step = Step::config(&object("ServiceEntry", "e", "ns7", listed));
    assert_eq!(step.own(), [9]);
}

#[test]
fn a_sidecar_concerns_its_workloads() {
    let step = Step::config(&object(
        "Sidecar",
        "other",
        "ns7",
        "workloadSelector: {labels: {app: s0}}, egress: [{hosts: ['~/*']}]",
    ));
    assert_eq!((step.concerned(), step.own()), (vec![], vec![7]));
    let unselected = "workloadSelector: {labels: {app: s1}}, egress: [{hosts: ['~/*']}]";
    let step = Step::config(&object("Sidecar", "other", "ns7", unselected));
    assert_eq!((step.concerned(), step.own()), (vec![], vec![]));
    // That of the root namespace is for those without, and there is no telling who has one but by asking.
    let step = Step::config(&object(
        "Sidecar",
        "default",
        "istio-system",
        "egress: [{hosts: ['./*']}]",
    ));
    assert_eq!(step.concerned(), []);
    assert!(step.own().contains(&OPEN));
    let key = ViewKey::of(&step.after, &MESH.proxies[OPEN]);
    assert_eq!(&*key.sidecar.unwrap().namespace, "istio-system");
    assert!(
        View::of(&step.after, &MESH.proxies[OPEN])
            .services()
            .all()
            .is_empty()
    );

    // A Sidecar that changes keeps its name and takes its view along; one that goes takes its view away.
    let with = |spec: &str| inputs(&object("Sidecar", "mine", "open", spec));
    let first = with("egress: [{hosts: ['ns1/*']}]");
    let step = Step::of(&first, &with("egress: [{hosts: ['ns2/*']}]"));
    assert!(step.change.touches_all(&step.view(OPEN)));
    assert!(!step.change.touches_all(&step.view(1)));
    let next = step.view(OPEN).next(&step.after, &step.change).unwrap();
    assert!(next.services().has_host("s0.ns2.svc.cluster.local"));
    let last = Snapshot::build(&MESH.inputs, Some(&step.after));
    let gone = ChangeSet::between(&step.after, &last);
    assert!(next.next(&last, &gone).is_none());
    assert!(gone.touches_proxy(&last, &MESH.proxies[OPEN]));
}

#[test]
fn proxies_that_see_the_same_share_everything() {
    let extra = object(
        "Sidecar",
        "canary",
        "open",
        "workloadSelector: {labels: {track: canary}}, egress: [{hosts: ['ns1/*']}]",
    ) + &object(
        "Sidecar",
        "stable",
        "open",
        "workloadSelector: {labels: {track: stable}}, egress: [{hosts: ['ns2/*']}]",
    ) + &object(
        "VirtualService",
        "v",
        "ns1",
        "hosts: [s0], http: [{match: [{sourceLabels: {version: v1}}], route: [{destination: {host: s1}}]}]",
    );
    let snapshot = Arc::new(Snapshot::build(&inputs(&extra), None));
    let key = |labels: &[(&str, &str)]| {
        let labels = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let proxy = Proxy {
            labels: Some(Arc::new(labels.collect())),
            ..MESH.proxies[OPEN].clone()
        };
        assert_eq!(proxy.kind, ProxyKind::Sidecar);
        Scope::of(&snapshot, &proxy).key().clone()
    };
    // Labels that only selectors ask for, or that VirtualServices of others do, tell nobody apart.
    assert_eq!(
        key(&[("track", "stable"), ("version", "v1")]),
        key(&[("track", "stable"), ("version", "v2"), ("app", "x")])
    );
    assert_ne!(key(&[("track", "stable")]), key(&[("track", "canary")]));
    assert_ne!(
        key(&[("track", "canary"), ("version", "v1")]),
        key(&[("track", "canary"), ("version", "v2")])
    );
}
