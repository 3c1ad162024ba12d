//! EnvoyFilters: who shares, whom a change touches, and that no patch, however odd, breaks anything but itself.

use std::{collections::BTreeSet, fmt::Write as _, sync::Arc};

use mesh_config::{Configs, TypedObject, parse};
use pilot_generate::{ChangeSet, Inputs, Proxy, Report, Scope, ScopeKey, Snapshot, View, generate};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

use crate::{
    envoy::Envoy,
    fixture::{Fixture, Output},
    property::{check, seeds},
};

const GOLDEN: &str = include_str!("../../testdata/in/envoy-filter.yaml");

/// The documents of the golden input: those that are EnvoyFilters, and the others.
fn split() -> (Vec<&'static str>, Vec<&'static str>) {
    GOLDEN
        .split("\n---\n")
        .partition(|document| document.contains("kind: EnvoyFilter"))
}

fn base() -> Fixture {
    Fixture::parse(&split().1.join("\n---\n"))
}

/// The base with these EnvoyFilters. Those that cannot be parsed are left out, as sources do.
fn with(base: &Fixture, filters: &str) -> Inputs {
    let parsed = parse::from_yaml(filters, parse::Options::default());
    Inputs {
        configs: Arc::new(Configs::from_objects(parsed.objects)),
        ..base.inputs.clone()
    }
}

fn key_of(snapshot: &Arc<Snapshot>, proxy: &Proxy) -> ScopeKey {
    (**Scope::of(snapshot, proxy).key()).clone()
}

fn filter(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

const TIMEOUT: &str = "{applyTo: CLUSTER, match: {context: SIDECAR_OUTBOUND}, patch: {operation: MERGE, value: {connect_timeout: 5s}}}";

fn snapshot(inputs: &Inputs, previous: Option<&Snapshot>) -> Arc<Snapshot> {
    Arc::new(Snapshot::build(inputs, previous))
}

#[test]
fn only_proxies_with_the_same_patches_share() {
    let base = base();
    let web = base.proxies[0].clone();
    let mut db = web.clone();
    db.labels = Some(Arc::new([("app".to_owned(), "db".to_owned())].into()));
    let mut other_db = db.clone();
    other_db.id = "sidecar~10.1.0.9~db-1.shop~shop.svc.cluster.local".into();
    let none = snapshot(&base.inputs, None);
    assert!(key_of(&none, &web).patches.is_empty());

    let spec = format!("{{workloadSelector: {{labels: {{app: db}}}}, configPatches: [{TIMEOUT}]}}");
    let some = snapshot(&with(&base, &filter("a", "shop", &spec)), Some(&none));
    let key = |proxy| key_of(&some, proxy);
    // Whoever is not selected has the key it had.
    assert_eq!(key(&web), key_of(&none, &web));
    assert_ne!(key(&db), key(&web));
    assert_eq!(key(&db), key(&other_db));
    // The same content is the same key, in a snapshot that knows nothing of the former.
    let again = snapshot(&with(&base, &filter("a", "shop", &spec)), None);
    assert_eq!(key_of(&again, &db), key(&db));
    assert!(key(&db).patches.is_current(&again) && !key(&db).patches.is_current(&none));
    let changed = spec.replace("5s", "6s");
    let changed = snapshot(&with(&base, &filter("a", "shop", &changed)), None);
    assert_ne!(key_of(&changed, &db), key(&db));
}

#[test]
fn a_change_touches_whom_it_selects_and_nothing_else() {
    let base = base();
    let web = &base.proxies[0];
    let spec = |labels: &str, extra: &str| {
        format!("{{workloadSelector: {{labels: {labels}}}, configPatches: [{TIMEOUT}{extra}]}}")
    };
    let none = snapshot(&base.inputs, None);
    for (spec, namespace, touched) in [
        (spec("{app: web}", ""), "shop", true),
        (spec("{app: web}", ""), "istio-system", true),
        (spec("{app: db}", ""), "shop", false),
        (spec("{app: web}", ""), "other", false),
        (
            spec("{app: web}", "").replace("SIDECAR_OUTBOUND", "GATEWAY"),
            "shop",
            false,
        ),
        (
            spec("{app: web}", "").replace("context:", "proxy: {proxyVersion: ^1\\.3}, context:"),
            "shop",
            false,
        ),
        (
            spec("{app: web}", "").replace("context:", "proxy: {proxyVersion: ^1\\.4}, context:"),
            "shop",
            true,
        ),
        (
            spec("{app: web}", "").replace("context:", "proxy: {metadata: {TIER: gold}}, context:"),
            "shop",
            true,
        ),
        (
            spec("{app: web}", "").replace("context:", "proxy: {metadata: {TIER: tin}}, context:"),
            "shop",
            false,
        ),
    ] {
        let some = snapshot(&with(&base, &filter("a", namespace, &spec)), Some(&none));
        for (from, to) in [(&none, &some), (&some, &none)] {
            let change = ChangeSet::between(from, to);
            assert!(!change.is_empty() && !change.endpoints_only());
            assert_eq!(change.touches_proxy(to, web), touched, "{namespace} {spec}");
            // What is shared stays as it is: whoever is touched moves to another scope.
            assert_eq!(change.affected(&View::of(from, web)), Default::default());
            assert_eq!(key_of(from, web) != key_of(to, web), touched);
        }
    }
}

#[test]
fn bytes_are_the_same_every_time() {
    let fixture = Fixture::parse(GOLDEN);
    let bytes = || {
        let snapshot = snapshot(&fixture.inputs, None);
        let scope = Scope::of(&snapshot, &fixture.proxies[0]);
        let report = &mut Report::default();
        let clusters = generate::clusters(&scope, &fixture.proxies[0], report);
        let listeners = generate::listeners(&scope, &fixture.proxies[0], report);
        let routes = generate::route_names(&scope)
            .into_iter()
            .map(|name| generate::route(&scope, &name, &mut Report::default()).body);
        let bodies = clusters.into_iter().map(|c| c.body);
        bodies
            .chain(listeners.into_iter().map(|l| l.body))
            .chain(routes)
            .collect::<Vec<_>>()
    };
    let first = bytes();
    assert!((0..10).all(|_| bytes() == first));
}

#[test]
fn what_is_too_large_is_refused_and_the_rest_served() {
    let base = base();
    let plain = base.output();
    let output =
        |filters: &str| Output::of(&snapshot(&with(&base, filters), None), &base.proxies[0]);
    // Ten megabytes in one EnvoyFilter.
    let value = "x".repeat(10 << 20);
    let spec = json!({"configPatches": [
        {"applyTo": "CLUSTER", "patch": {"operation": "MERGE", "value": {"alt_stat_name": value}}}
    ]});
    // Parsing and validation refuse it already; here it has got past both.
    let small = parse::from_yaml(&filter("huge", "shop", "{}"), parse::Options::default());
    let TypedObject::EnvoyFilter(mut object) = small.objects[0].clone() else {
        unreachable!()
    };
    object.spec = Arc::new(serde_json::from_value(spec).unwrap());
    let inputs = Inputs {
        configs: Arc::new(Configs::from_objects(vec![TypedObject::EnvoyFilter(
            object,
        )])),
        ..base.inputs.clone()
    };
    let huge = Output::of(&snapshot(&inputs, None), &base.proxies[0]);
    assert!(huge.clusters == plain.clusters);
    let one = &huge.report.rejections[0];
    assert_eq!(one.field, "configPatches");
    assert!(one.reason.contains("larger than 1024 KiB"), "{one}");

    // Much of little: each patch is small enough, all of them together are not.
    let value = "y".repeat(900 << 10);
    let spec = json!({"configPatches": [
        {"applyTo": "CLUSTER", "match": {"context": "SIDECAR_OUTBOUND"}, "patch": {"operation": "MERGE", "value": {"alt_stat_name": value}}}
    ]});
    let many: String = (0..4)
        .map(|i| {
            filter(
                &format!("f{i}"),
                "shop",
                &spec
                    .to_string()
                    .replace(
                        "alt_stat_name",
                        ["alt_stat_name", "lrs_report_endpoint_metrics"][i % 2],
                    )
                    .replace(
                        &format!("\"{value}\""),
                        &[format!("\"{value}\""), format!("[\"{value}\"]")][i % 2],
                    ),
            )
        })
        .collect();
    let grown = output(&many);
    assert_eq!(grown.clusters.len(), plain.clusters.len());
    let size: usize = grown.clusters.iter().map(prost::Message::encoded_len).sum();
    assert!(size < 40 << 20, "{size}");
    assert!(
        grown.report.rejections.iter().any(|r| r
            .reason
            .contains("patches may add at most 2048 KiB to a resource")),
        "{:?}",
        grown.report.rejections
    );
}

/// Patches to start from: all of the golden input, sound and broken ones.
fn templates() -> Vec<Value> {
    let mut out = Vec::new();
    for document in split().0 {
        let object: Value = serde_saphyr::from_str(document).unwrap();
        out.extend(
            object["spec"]["configPatches"]
                .as_array()
                .cloned()
                .unwrap_or_default(),
        );
    }
    assert!(out.len() > 40);
    out
}

/// Every place in a value, as pointers.
fn places(value: &Value, at: &str, out: &mut Vec<String>) {
    out.push(at.to_owned());
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                places(
                    value,
                    &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")),
                    out,
                );
            }
        }
        Value::Array(list) => {
            for (i, value) in list.iter().enumerate() {
                places(value, &format!("{at}/{i}"), out);
            }
        }
        _ => {}
    }
}

fn mutate(patch: &mut Value, templates: &[Value], rng: &mut StdRng) {
    const OPERATIONS: [&str; 7] = [
        "MERGE",
        "ADD",
        "REMOVE",
        "INSERT_BEFORE",
        "INSERT_AFTER",
        "INSERT_FIRST",
        "REPLACE",
    ];
    match rng.random_range(0..10) {
        0 => patch["patch"]["operation"] = json!(OPERATIONS.choose(rng)),
        1 => patch["applyTo"] = templates.choose(rng).unwrap()["applyTo"].clone(),
        2 => patch["match"] = templates.choose(rng).unwrap()["match"].clone(),
        3 => patch["patch"]["value"] = templates.choose(rng).unwrap()["patch"]["value"].clone(),
        4 => {
            patch.as_object_mut().unwrap().shift_remove("match");
        }
        kind => {
            let mut all = Vec::new();
            places(&patch["patch"]["value"], "/patch/value", &mut all);
            let Some(at) = all.choose(rng) else { return };
            let (parent, key) = at.rsplit_once('/').unwrap();
            match (kind, patch.pointer_mut(parent)) {
                (5, Some(Value::Object(parent))) => {
                    parent.shift_remove(key);
                }
                (6, Some(Value::Array(list))) => {
                    let copy = list.choose(rng).cloned();
                    list.extend(copy);
                }
                _ => {
                    let values = [
                        json!(null),
                        json!(""),
                        json!(-1),
                        json!(0),
                        json!(1e18),
                        json!("*"),
                        json!("/"),
                        json!(true),
                        json!([]),
                        json!({}),
                        json!([{}]),
                        json!("-1s"),
                        json!("0s"),
                        json!("1s"),
                        json!("("),
                        json!("10.96.0.1"),
                        json!("outbound|80||web.shop.svc.cluster.local"),
                        json!("%"),
                        json!("a\u{0}b"),
                        json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}),
                    ];
                    if let Some(place) = patch.pointer_mut(at) {
                        *place = values.choose(rng).unwrap().clone();
                    }
                }
            }
        }
    }
}

/// An EnvoyFilter of mutated patches.
fn mutants(seed: u64) -> String {
    let rng = &mut StdRng::seed_from_u64(seed);
    let templates = templates();
    let mut out = String::new();
    for i in 0..rng.random_range(1..3) {
        let patches: Vec<Value> = (0..rng.random_range(1..7))
            .map(|_| {
                let mut patch = templates.choose(rng).unwrap().clone();
                for _ in 0..rng.random_range(0..3) {
                    mutate(&mut patch, &templates, rng);
                }
                patch
            })
            .collect();
        let namespace = *["shop", "istio-system"].choose(rng).unwrap();
        let spec = json!({"configPatches": patches}).to_string();
        let _ = write!(out, "{}", filter(&format!("f{i}"), namespace, &spec));
    }
    out
}

fn names(output: &Output) -> BTreeSet<(&'static str, String)> {
    let clusters = output.clusters.iter().map(|c| ("cluster", c.name.clone()));
    let listeners = output
        .listeners
        .iter()
        .map(|l| ("listener", l.name.clone()));
    let routes = output.routes.iter().map(|r| ("route", r.name.clone()));
    clusters.chain(listeners).chain(routes).collect()
}

#[test]
fn odd_patches_break_nothing_but_themselves() {
    let base = base();
    let plain = names(&base.output());
    for seed in seeds(500) {
        let filters = mutants(seed);
        let inputs = with(&base, &filters);
        let output = Output::of(&snapshot(&inputs, None), &base.proxies[0]);
        // Nothing that would collide, and nothing lost that no patch removes.
        if let Err(error) = check(&output) {
            panic!("seed {seed}: {error}\n{filters}");
        }
        let now = names(&output);
        let lost: Vec<_> = plain.difference(&now).collect();
        assert!(
            lost.is_empty() || filters.contains("REMOVE"),
            "seed {seed}: lost {lost:?}\n{filters}"
        );
    }
}

#[test]
fn envoy_takes_what_odd_patches_leave() {
    let Some(envoy) = Envoy::find() else { return };
    let base = base();
    for seed in seeds(60) {
        let filters = mutants(30_000 + seed);
        let inputs = with(&base, &filters);
        let output = Output::of(&snapshot(&inputs, None), &base.proxies[0]);
        if let Err(error) = envoy.validate(&output) {
            panic!(
                "seed {seed}: {error}\n{filters}\n{:#?}",
                output.report.rejections
            );
        }
    }
}

#[test]
fn the_table_of_extensions_is_envoys_own() {
    let Some(envoy) = Envoy::find() else { return };
    let info = envoy.server_info();
    let extensions = info["node"]["extensions"].as_array().unwrap();
    let mut lines = BTreeSet::new();
    for extension in extensions {
        let text = |key: &str| extension[key].as_str().unwrap_or_default();
        for message in extension["type_urls"].as_array().into_iter().flatten() {
            let message = message.as_str().unwrap();
            lines.insert(format!(
                "{}\t{}\t{message}\n",
                text("category"),
                text("name")
            ));
        }
    }
    let table: String = lines.into_iter().collect();
    assert!(
        table == proto_envoy::extensions::TABLE,
        "extensions.tsv of proto/envoy must be:\n{table}"
    );
}
