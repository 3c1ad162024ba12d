//! `testdata/in/NAME.yaml` against `testdata/out/NAME.{clusters,listeners,routes,endpoints,report}.yaml`, and through Envoy.

use std::{fs, path::Path};

use prost::{Message, Name};
use serde_json::{Map, Value};

use crate::{
    envoy,
    fixture::{Fixture, Output},
};

fn testdata() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata"))
}

/// Keys in order, `name` first: maps come in random order, and this reads better.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<(String, Value)> =
                fields.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            fields.sort_by(|a, b| (a.0 != "name", &a.0).cmp(&(b.0 != "name", &b.0)));
            Value::Object(fields.into_iter().collect::<Map<_, _>>())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(sorted).collect()),
        other => other,
    }
}

pub(crate) fn json<M: Message + Name>(list: &[M]) -> Vec<Value> {
    list.iter()
        .map(|m| sorted(proto_envoy::json::to_json(m).unwrap()))
        .collect()
}

fn yaml(value: &impl serde::Serialize) -> String {
    serde_saphyr::to_string(value).unwrap()
}

fn documents(output: &Output) -> [(&'static str, String); 5] {
    [
        ("clusters", yaml(&json(&output.clusters))),
        ("listeners", yaml(&json(&output.listeners))),
        ("routes", yaml(&json(&output.routes))),
        ("endpoints", yaml(&json(&output.endpoints))),
        ("report", yaml(&output.report)),
    ]
}

fn inputs() -> Vec<(String, Fixture)> {
    let mut names: Vec<_> = fs::read_dir(testdata().join("in"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "yaml"))
        .collect();
    names.sort();
    assert!(!names.is_empty());
    names
        .into_iter()
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, Fixture::parse(&fs::read_to_string(&path).unwrap()))
        })
        .collect()
}

#[test]
fn output_is_as_reviewed() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let out = testdata().join("out");
    let mut differing = Vec::new();
    for (name, fixture) in inputs() {
        for (kind, text) in documents(&fixture.output()) {
            let path = out.join(format!("{name}.{kind}.yaml"));
            if update {
                fs::write(&path, &text).unwrap();
            } else if fs::read_to_string(&path).unwrap_or_default() != text {
                differing.push((path, text));
            }
        }
    }
    if let Some((path, text)) = differing.first() {
        let names: Vec<_> = differing
            .iter()
            .map(|(p, _)| p.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        eprintln!("differ: {names:?}; UPDATE_GOLDEN=1 rewrites them");
        similar_asserts::assert_eq!(fs::read_to_string(path).unwrap_or_default(), *text);
    }
}

#[test]
fn output_is_the_same_every_time() {
    for (name, fixture) in inputs() {
        let bytes = |o: Output| -> Vec<Vec<u8>> {
            let clusters = o.clusters.iter().map(Message::encode_to_vec);
            let listeners = o.listeners.iter().map(Message::encode_to_vec);
            let routes = o.routes.iter().map(Message::encode_to_vec);
            clusters
                .chain(listeners)
                .chain(routes)
                .chain(o.endpoints.iter().map(Message::encode_to_vec))
                .collect()
        };
        let first = bytes(fixture.output());
        for _ in 0..5 {
            assert!(
                bytes(fixture.output()) == first,
                "{name}: equal input, other bytes"
            );
        }
    }
}

#[test]
fn envoy_takes_all_of_it() {
    let Some(envoy) = envoy::Envoy::find() else {
        return;
    };
    for (name, fixture) in inputs() {
        if let Err(error) = envoy.validate(&fixture.output()) {
            panic!("{name}: {error}");
        }
    }
}
