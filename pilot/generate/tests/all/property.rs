//! Whatever users write, in whatever combination: names and domains stay unique, and Envoy takes the result.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use pilot_generate::{ChangeSet, Inputs, Report, Scope, Snapshot, generate, patch::PatchSet};
use prost::Message;

use crate::{
    envoy::Envoy,
    fixture::{Fixture, Output},
    world::world,
};

/// The seeds of a test: some, always the same; `PROPERTY_SEEDS=FROM..TO` tries others.
pub(crate) fn seeds(default: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("PROPERTY_SEEDS").ok();
    let asked = asked.and_then(|s| {
        let (from, to) = s.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    asked.unwrap_or(0..default)
}

fn unique<T: Ord + std::fmt::Debug>(
    what: &str,
    items: impl IntoIterator<Item = T>,
) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for item in items {
        if seen.contains(&item) {
            return Err(format!("{what} {item:?} twice"));
        }
        seen.insert(item);
    }
    Ok(())
}

pub(crate) fn check(output: &Output) -> Result<(), String> {
    unique("cluster", output.clusters.iter().map(|c| &c.name))?;
    unique("listener", output.listeners.iter().map(|l| &l.name))?;
    unique(
        "address",
        output.listeners.iter().map(|l| format!("{:?}", l.address)),
    )?;
    for listener in &output.listeners {
        unique(
            &format!("{} match", listener.name),
            listener
                .filter_chains
                .iter()
                .map(|c| format!("{:?}", c.filter_chain_match)),
        )?;
        if listener.filter_chains.is_empty() {
            return Err(format!("{} has no chain", listener.name));
        }
    }
    for config in &output.routes {
        let hosts = &config.virtual_hosts;
        unique(
            &format!("route {} host", config.name),
            hosts.iter().map(|h| &h.name),
        )?;
        unique(
            &format!("route {} domain", config.name),
            hosts
                .iter()
                .flat_map(|h| &h.domains)
                .map(|d| d.to_lowercase()),
        )?;
        if hosts.iter().any(|h| h.domains.is_empty()) {
            return Err(format!("route {}: a host without domains", config.name));
        }
    }
    Ok(())
}

#[test]
fn names_matches_and_domains_are_unique() {
    for seed in seeds(400) {
        let text = world(seed, seed % 4 == 0);
        if let Err(error) = check(&Fixture::parse(&text).output()) {
            panic!("seed {seed}: {error}\n{text}");
        }
    }
}

#[test]
fn envoy_takes_whatever_comes() {
    let Some(envoy) = Envoy::find() else { return };
    for seed in seeds(40) {
        let text = world(10_000 + seed, seed % 3 == 0);
        if let Err(error) = envoy.validate(&Fixture::parse(&text).output()) {
            panic!("seed {seed}: {error}\n{text}");
        }
    }
}

/// The second inputs with the identity of what is equal in the first, as registries keep it.
fn sharing(first: &Inputs, mut second: Inputs) -> Inputs {
    for (first, second) in first.shards.iter().zip(&mut second.shards) {
        for service in Arc::make_mut(&mut second.services) {
            if let Some(before) = first.services.iter().find(|before| *before == service) {
                *service = before.clone();
            }
        }
        for (key, set) in Arc::make_mut(&mut second.endpoints) {
            if let Some(before) = first.endpoints.get(key).filter(|before| *before == set) {
                *set = before.clone();
            }
        }
    }
    second.mesh = first.mesh.clone();
    second.options = first.options.clone();
    if first.networks == second.networks {
        second.networks = first.networks.clone();
    }
    second
}

/// Everything of a proxy by kind and name.
fn resources(scope: &Scope, fixture: &Fixture) -> BTreeMap<(&'static str, String), Vec<u8>> {
    let proxy = &fixture.proxies[0];
    let report = &mut Report::default();
    let mut out = BTreeMap::new();
    for cluster in generate::outbound_clusters(scope, report) {
        let assignment = generate::endpoints(scope, &cluster.name, report).encode_to_vec();
        out.insert(("endpoints", cluster.name.clone()), assignment);
        out.insert(("cluster", cluster.name.clone()), cluster.body);
    }
    for listener in generate::outbound_listeners(scope, report) {
        out.insert(("listener", listener.name.clone()), listener.body);
    }
    for name in generate::route_names(scope) {
        let config = generate::route(scope, &name, report).body;
        out.insert(("route", name), config);
    }
    if proxy.kind == pilot_generate::ProxyKind::Sidecar {
        for cluster in generate::inbound_clusters(scope, proxy, report) {
            out.insert(("own cluster", cluster.name.clone()), cluster.body);
        }
        for listener in generate::inbound_listeners(scope, proxy, report) {
            out.insert(("own listener", listener.name.clone()), listener.body);
        }
    }
    out
}

/// What differs without being named by the change set.
fn missed(first: &Fixture, second: &Fixture) -> Option<String> {
    let before = Arc::new(Snapshot::build(&first.inputs, None));
    let inputs = sharing(&first.inputs, second.inputs.clone());
    let after = Arc::new(Snapshot::build(&inputs, Some(&before)));
    let change = ChangeSet::between(&before, &after);
    let proxy = &second.proxies[0];
    let patches = |snapshot: &Snapshot| PatchSet::of(snapshot, proxy);
    if patches(&before) != patches(&after) {
        // It moves to another scope, for which everything is generated.
        return (!change.touches_proxy(&after, proxy)).then(|| "the proxy itself".to_owned());
    }
    let scope = Scope::of(&after, &second.proxies[0]);
    // A proxy is judged by what it saw before.
    let former = Scope::of(&before, &first.proxies[0]);
    let affected = change.affected(former.view());
    let own = change.touches_proxy(&after, &second.proxies[0]);
    let all = own || change.touches_all(former.view());
    let touched = |kind: &str, name: &str| match kind {
        _ if all => true,
        "cluster" => affected.clusters && change.touches_cluster(name),
        "endpoints" => affected.endpoints && change.touches_endpoints(name),
        "listener" => affected.listeners,
        "route" => affected.routes && change.touches_route(&scope, name),
        _ => own,
    };
    let (old, new) = (resources(&former, first), resources(&scope, second));
    // Building on a previous snapshot gives what building from nothing does, and so does carrying a view on.
    let fresh = Arc::new(Snapshot::build(&second.inputs, None));
    let fresh = resources(&Scope::of(&fresh, &second.proxies[0]), second);
    assert!(fresh == new, "a snapshot depends on its history");
    let carried = former.view().next(&after, &change);
    if let Some(view) = carried.filter(|view| view.key() == scope.view().key()) {
        let scope = Scope::new(after, view, scope.key().clone());
        assert!(
            resources(&scope, second) == new,
            "a view depends on its history"
        );
    }
    let all: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    all.into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .find(|(kind, name)| !touched(kind, name))
        .map(|(kind, name)| format!("{kind} {name}"))
}

#[test]
fn what_a_change_does_not_name_has_the_same_bytes() {
    for seed in seeds(6) {
        let text = world(20_000 + seed, seed % 4 == 0);
        let documents: Vec<&str> = text.split("\n---\n").collect();
        // The last two are the proxy and the mesh settings.
        for gone in 0..documents.len() - 2 {
            let rest: Vec<&str> = documents
                .iter()
                .enumerate()
                .filter(|(i, _)| *i != gone)
                .map(|(_, d)| *d)
                .collect();
            let (with, without) = (Fixture::parse(&text), Fixture::parse(&rest.join("\n---\n")));
            for (first, second, what) in
                [(&with, &without, "removing"), (&without, &with, "adding")]
            {
                if let Some(missed) = missed(first, second) {
                    panic!(
                        "seed {seed}: {missed} is not named after {what}\n{}\nin\n{text}",
                        documents[gone]
                    );
                }
            }
        }
    }
}
