//! A thousand services: prints what each step takes (`--nocapture`), and checks that what is shared stays shared.

use std::{fmt::Write as _, sync::Arc, time::Instant};

use pilot_generate::{ChangeSet, Report, Scope, Snapshot, generate};
use prost::Message;

use crate::fixture::{Fixture, context};

const SERVICES: usize = 1000;

fn world() -> Fixture {
    let mut text =
        String::from("kind: Proxy\nnode: {id: \"sidecar~10.0.0.1~a.ns0~ns0.svc.cluster.local\"}\n");
    for i in 0..SERVICES {
        let (namespace, ip) = (i % 10, format!("{}.{}", i / 250, i % 250 + 1));
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{i}, namespace: ns{namespace}}}\nspec: {{clusterIP: 10.96.{ip}, selector: {{app: s{i}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n\
             ---\napiVersion: v1\nkind: Endpoints\nmetadata: {{name: s{i}, namespace: ns{namespace}}}\nsubsets: [{{addresses: [{{ip: 10.1.{ip}}}, {{ip: 10.2.{ip}}}], ports: [{{name: http, port: 8080}}]}}]\n"
        );
    }
    for i in 0..SERVICES / 10 {
        let _ = write!(
            text,
            "---\napiVersion: networking.istio.io/v1alpha3\nkind: VirtualService\nmetadata: {{name: v{i}, namespace: ns{}}}\nspec: {{hosts: [s{i}], http: [{{timeout: 5s, route: [{{destination: {{host: s{i}}}}}]}}]}}\n",
            i % 10
        );
    }
    Fixture::parse(&text)
}

#[test]
fn a_change_costs_what_it_changes() {
    let fixture = world();
    let timed = |what: &str, start: Instant| eprintln!("{what}: {:.1?}", start.elapsed());

    let start = Instant::now();
    let first = Arc::new(Snapshot::build(&fixture.inputs, None));
    timed("first snapshot", start);

    let mut inputs = fixture.inputs.clone();
    let mut endpoints = (*inputs.shards[0].endpoints).clone();
    endpoints.remove(&context().key("s7", "ns7"));
    inputs.shards[0].endpoints = Arc::new(endpoints);
    let start = Instant::now();
    let second = Arc::new(Snapshot::build(&inputs, Some(&first)));
    let change = ChangeSet::between(&first, &second);
    timed("snapshot after an endpoint change, compared", start);
    assert!(change.endpoints_only());
    assert!(std::ptr::eq(first.config(), second.config()));

    let start = Instant::now();
    let scope = Scope::of(&second, &fixture.proxies[0]);
    timed("scope", start);

    let mut report = Report::default();
    let start = Instant::now();
    let clusters = generate::outbound_clusters(&scope, &mut report);
    timed("clusters", start);
    assert_eq!(clusters.len(), SERVICES + 2);
    let touched = clusters
        .iter()
        .filter(|c| change.touches_endpoints(&c.name))
        .count();
    assert_eq!(touched, 1);

    let start = Instant::now();
    let bytes: usize = clusters.iter().map(|c| c.encoded_len()).sum();
    let encoded: usize = clusters.iter().map(|c| c.body.len()).sum();
    timed("clusters encoded", start);
    assert_eq!(bytes, encoded);

    let start = Instant::now();
    let routes = generate::route(&scope, "80", &mut report);
    timed("route 80", start);
    assert_eq!(routes.virtual_hosts.len(), SERVICES + 1);
    let start = Instant::now();
    let size = routes.body.len();
    timed("route 80 encoded", start);
    let start = Instant::now();
    let listeners = generate::listeners(&scope, &fixture.proxies[0], &mut report);
    timed("listeners", start);
    let start = Instant::now();
    for cluster in &clusters {
        generate::endpoints(&scope, &cluster.name, &mut report).encode_to_vec();
    }
    timed("load assignments, encoded", start);
    eprintln!(
        "{bytes} bytes of clusters, {size} of routes, {} listeners",
        listeners.len()
    );
}
