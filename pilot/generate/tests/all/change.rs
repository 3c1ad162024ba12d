//! Snapshots share what did not change, and say what did.

use std::sync::Arc;

use pilot_generate::{ChangeSet, Report, Scope, Snapshot, generate, model::ServiceEndpoints};

use crate::fixture::{Fixture, context};

fn base() -> Fixture {
    Fixture::parse(include_str!("../../testdata/in/bookinfo.yaml"))
}

fn vs(host: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1alpha3\nkind: VirtualService\nmetadata: {{name: extra, namespace: default}}\nspec: {{hosts: [{host}], http: [{{route: [{{destination: {{host: {host}}}}}]{rest}}}]}}\n"
    )
}

#[test]
fn an_endpoint_change_touches_its_assignments_only() {
    let fixture = base();
    let before = Arc::new(Snapshot::build(&fixture.inputs, None));
    let mut inputs = fixture.inputs.clone();
    let key = context().key("reviews", "default");
    let mut map = (*inputs.shards[0].endpoints).clone();
    let fewer = map[&key].endpoints[1..].to_vec();
    map.insert(key, Arc::new(ServiceEndpoints::new(fewer)));
    inputs.shards[0].endpoints = Arc::new(map);
    let after = Arc::new(Snapshot::build(&inputs, Some(&before)));

    assert!(
        std::ptr::eq(before.config(), after.config())
            && std::ptr::eq(before.services(), after.services())
    );
    let change = ChangeSet::between(&before, &after);
    assert!(change.endpoints_only() && !change.is_empty());
    assert!(change.touches_endpoints("outbound|9080||reviews.default.svc.cluster.local"));
    assert!(change.touches_endpoints("outbound|9080|v1|reviews.default.svc.cluster.local"));
    assert!(!change.touches_endpoints("outbound|9080||ratings.default.svc.cluster.local"));
    let scope = Scope::of(&after, &fixture.proxies[0]);
    assert!(!change.touches_route(&scope, "9080"));
    assert!(!change.touches_proxy(&after, &fixture.proxies[0]));
}

#[test]
fn a_route_change_touches_the_ports_of_its_hosts() {
    let text = include_str!("../../testdata/in/bookinfo.yaml");
    let fixture = Fixture::parse(&format!("{text}{}", vs("ratings", "")));
    let changed = Fixture::parse(&format!("{text}{}", vs("ratings", ", timeout: 2s")));
    let before = Arc::new(Snapshot::build(&fixture.inputs, None));
    let mut inputs = fixture.inputs.clone();
    inputs.configs = changed.inputs.configs;
    let after = Arc::new(Snapshot::build(&inputs, Some(&before)));

    // Equal objects keep their identity although they were parsed anew.
    let same = |i: usize| {
        Arc::ptr_eq(
            &before.config().virtual_services[i],
            &after.config().virtual_services[i],
        )
    };
    let kept = (0..before.config().virtual_services.len())
        .filter(|i| same(*i))
        .count();
    assert_eq!(kept, before.config().virtual_services.len() - 1);

    let change = ChangeSet::between(&before, &after);
    let scope = Scope::of(&after, &fixture.proxies[0]);
    let affected = change.affected(scope.view());
    assert!(affected.routes && !affected.clusters && !affected.endpoints && !affected.listeners);
    assert!(change.touches_route(&scope, "9080") && !change.touches_route(&scope, "7070"));
    assert!(!change.touches_cluster("outbound|9080||ratings.default.svc.cluster.local"));
}

#[test]
fn a_service_that_takes_the_host_of_a_route_moves_it_off_port_80() {
    let text = include_str!("../../testdata/in/bookinfo.yaml");
    let fixture = Fixture::parse(&format!("{text}{}", vs("x.example.com", "")));
    let entry = "---\napiVersion: networking.istio.io/v1alpha3\nkind: ServiceEntry\nmetadata: {name: x, namespace: default}\nspec: {hosts: [x.example.com], ports: [{number: 8888, name: http, protocol: HTTP}], resolution: DNS}\n";
    let changed = Fixture::parse(&format!("{text}{}{entry}", vs("x.example.com", "")));
    let before = Arc::new(Snapshot::build(&fixture.inputs, None));
    let mut inputs = fixture.inputs.clone();
    inputs.configs = changed.inputs.configs;
    let after = Arc::new(Snapshot::build(&inputs, Some(&before)));
    let change = ChangeSet::between(&before, &after);
    let scope = |s: &Arc<Snapshot>| Scope::of(s, &fixture.proxies[0]);
    let hosts = |s: &Arc<Snapshot>, route: &str| {
        let config = generate::route(&scope(s), route, &mut Report::default());
        config
            .virtual_hosts
            .iter()
            .filter(|h| h.name.starts_with("x.example.com"))
            .count()
    };
    assert_eq!((hosts(&before, "80"), hosts(&before, "8888")), (1, 0));
    assert_eq!((hosts(&after, "80"), hosts(&after, "8888")), (0, 1));
    assert!(
        change.touches_route(&scope(&after), "80") && change.touches_route(&scope(&after), "8888")
    );
    assert!(!change.touches_route(&scope(&after), "9080"));
    assert!(change.touches_cluster("outbound|8888||x.example.com"));
}

#[test]
fn nothing_changed_means_nothing_touched() {
    let fixture = base();
    let before = Snapshot::build(&fixture.inputs, None);
    let after = Snapshot::build(&fixture.inputs, Some(&before));
    assert!(ChangeSet::between(&before, &after).is_empty());
}
