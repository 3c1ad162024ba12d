//! Texts as people and accidents make them.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use crate::MeshConfig;
use crate::validate::validate_documents;

#[test]
fn good_objects_survive_bad_neighbours() {
    let good = |name: &str| {
        format!(
            "apiVersion: networking.istio.io/v1alpha3\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec: {{hosts: [a.com], resolution: DNS}}\n"
        )
    };
    let text = format!(
        "{}---\nkind: [\n---\n{}---\n{}---\nhello\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: s}}\n---\n{}---\n{}",
        good("one"),
        good("two").replace("v1alpha3", "v9"),
        good("three").replace("ServiceEntry", "ServiceEntri"),
        good("four").replace("name: four", "x: y"),
        good("five"),
    );
    let parsed = crate::parse::load(
        &text,
        crate::parse::Options {
            file: Some("f"),
            default_namespace: "d",
        },
    );
    let names: Vec<_> = parsed
        .objects
        .iter()
        .map(|o| o.meta().key().to_string())
        .collect();
    assert_eq!(names, ["ServiceEntry d/one", "ServiceEntry d/five"]);
    let errors: Vec<_> = parsed.errors.iter().map(ToString::to_string).collect();
    let expected = [
        "f:6: not readable as YAML",
        "f:8: ServiceEntry two: apiVersion: \"networking.istio.io/v9\" is not a version of ServiceEntry; accepted: networking.istio.io/v1alpha3",
        "f:14: ServiceEntri three: kind: networking.istio.io has no kind \"ServiceEntri\"; accepted: VirtualService, ",
        "f:18: a text is not an object",
        "f:26: ServiceEntry: metadata: the object has no name",
    ];
    assert_eq!(errors.len(), expected.len(), "{errors:#?}");
    for (error, expected) in errors.iter().zip(&expected) {
        assert!(error.starts_with(expected), "{error}\n{expected}");
    }
    assert_eq!(parsed.skipped.len(), 1);
    assert_eq!(parsed.skipped[0].kind.as_deref(), Some("Service"));
}

#[test]
fn lists_are_unpacked() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: networking.istio.io/v1alpha3\n  kind: Gateway\n  metadata: {name: g, namespace: n}\n  spec: {}\n";
    let errors = validate_documents(text, "f");
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0]
            .to_string()
            .starts_with("f:7: Gateway n/g: spec.servers: is empty"),
        "{}",
        errors[0]
    );
}

/// Every YAML file below a folder.
fn manifests(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            manifests(&path, found);
        } else if path.extension().is_some_and(|e| e == "yaml") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path.display().to_string(), text));
        }
    }
}

#[test]
fn shipped_manifests_are_valid() {
    let mut found = Vec::new();
    manifests(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy"),
        &mut found,
    );
    let mut objects = 0;
    for (file, text) in &found {
        let parsed = crate::parse::load(
            text,
            crate::parse::Options {
                file: Some(file),
                default_namespace: "default",
            },
        );
        assert!(parsed.errors.is_empty(), "{:#?}", parsed.errors);
        objects += parsed.objects.len();
    }
    assert!(
        objects > 5,
        "Bookinfo's examples are among them: {objects} of {} files",
        found.len()
    );
}

const SAMPLE: &str = r#"apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: reviews, namespace: shop, labels: {a: b}, creationTimestamp: "2020-01-02T03:04:05Z"}
spec:
  hosts: [reviews, '*.example.com']
  http:
  - match: [{uri: {regex: '/a.*'}, headers: {end-user: {exact: jason}}, port: 80}]
    route:
    - {destination: {host: reviews, subset: v1, port: {number: 9080}}, weight: 80}
    - {destination: {host: reviews, subset: v2}, weight: 20}
    timeout: 1h2m3.5s
    retries: {attempts: 3, perTryTimeout: 2s, retryOn: '5xx,503'}
    fault: {delay: {percentage: {value: 0.1}, fixedDelay: 5s}, abort: {percent: 50, httpStatus: 500}}
    mirror_percent: 100
---
apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata: &m {name: ext}
spec: {hosts: [a.com], addresses: [10.0.0.0/8], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 1.2.3.4, ports: {http: 8080}}]}
"#;

/// A small generator of pseudo-random numbers: the test must do the same every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides.max(1) as u64).unwrap()
    }
}

#[test]
fn no_text_makes_it_panic() {
    const BITS: [&str; 20] = [
        "",
        "-",
        ":",
        "{",
        "}",
        "[",
        "]",
        "'",
        "\"",
        "&a",
        "*a",
        "<<: *m",
        "null",
        "-1",
        "1e999",
        "\u{0}",
        "\u{feff}",
        "é",
        "\n---\n",
        "!!binary ",
    ];
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    assert!(
        validate_documents(SAMPLE, "f").is_empty(),
        "{:?}",
        validate_documents(SAMPLE, "f")
    );
    let mut with_errors = 0;
    for _ in 0..1_000 {
        let mut chars: Vec<char> = SAMPLE.chars().collect();
        for _ in 0..=dice.roll(4) {
            let at = dice.roll(chars.len());
            let until = (at + dice.roll(12)).min(chars.len());
            chars.splice(at..until, BITS[dice.roll(BITS.len())].chars());
        }
        let text: String = chars.into_iter().collect();
        let errors = validate_documents(&text, "f");
        with_errors += usize::from(!errors.is_empty());
        for error in errors {
            assert!(error.place.line.is_some(), "{error}\n{text}");
            assert!(error.to_string().len() < 4_000, "{error}");
        }
        // As mesh settings it is nonsense, but must be refused in peace.
        assert!(MeshConfig::from_yaml(&text, "mesh").is_err());
    }
    assert!(with_errors > 500, "{with_errors}");
}
