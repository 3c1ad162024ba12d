//! The contract of the JSON, and the page: well-formed, escaped, complete.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::*;
use crate::load::{Bucket, Failure, Summary};
use crate::model::{Event, Fault, Mode, Outcome, ProbeResult, Requests, Verdict};

fn outcome(verdict: Verdict) -> Outcome {
    let mut buckets = vec![
        Bucket {
            ok: 4,
            ..Bucket::default()
        };
        300
    ];
    buckets[120].server_error = 2;
    let load = Summary {
        buckets,
        failures: vec![Failure {
            t: 12.0,
            path: "/productpage?a=1&b=2".into(),
            message: "status 503: <b>no healthy upstream</b>".into(),
        }],
        ..Summary::empty()
    };
    Outcome {
        name: "pilot-down",
        target: "istio-system/istio-pilot".into(),
        action: "scale-to-zero".into(),
        verdict,
        recovery_seconds: (verdict == Verdict::Pass).then_some(4.2),
        probes: vec![ProbeResult {
            name: "traffic",
            mode: Mode::Continuous,
            expected: "no request fails".into(),
            observed: "2 of 1202 requests failed, \"503\" & <script>alert(1)</script>".into(),
            verdict,
        }],
        timeline: vec![
            Event {
                t: 0.0,
                event: "steady load".into(),
            },
            Event {
                t: 5.5,
                event: "killed istio-pilot-<1>".into(),
            },
        ],
        fault: Some(Fault {
            from: 5.0,
            to: 20.0,
        }),
        summary: "Pilot dies.",
        started_at: jiff::Timestamp::UNIX_EPOCH,
        seconds: 30.0,
        requests: Requests {
            total: 1202,
            ok: 1200,
            failed: 2,
            error_budget: 0.0,
            failed_share: 2.0 / 1202.0,
            p50_ms: 8.0,
            p99_ms: 31.5,
        },
        error: None,
        load,
    }
}

#[test]
fn json_has_the_fields_that_tools_rely_on() {
    let json =
        serde_json::to_value(vec![outcome(Verdict::Pass), outcome(Verdict::Stopped)]).unwrap();
    let first = &json[0];
    assert_eq!(first["name"], "pilot-down");
    assert_eq!(first["target"], "istio-system/istio-pilot");
    assert_eq!(first["action"], "scale-to-zero");
    assert_eq!(first["verdict"], "Pass");
    assert_eq!(first["recoverySeconds"], 4.2);
    assert_eq!(first["probes"][0]["name"], "traffic");
    assert_eq!(first["probes"][0]["mode"], "Continuous");
    assert_eq!(first["probes"][0]["expected"], "no request fails");
    assert!(first["probes"][0]["observed"].is_string());
    assert_eq!(first["probes"][0]["verdict"], "Pass");
    assert_eq!(first["timeline"][1]["t"], 5.5);
    assert_eq!(first["timeline"][1]["event"], "killed istio-pilot-<1>");
    assert_eq!(json[1]["verdict"], "Stopped");
    assert!(json[1]["recoverySeconds"].is_null());
    assert!(json[1].as_object().unwrap().contains_key("recoverySeconds"));
}

#[test]
fn nothing_from_outside_becomes_markup() {
    let page = html(&[outcome(Verdict::Fail)], &Environment::default());
    assert!(!page.contains("<script"), "a script from a message");
    assert!(!page.contains("<b>no healthy"));
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(page.contains("/productpage?a=1&amp;b=2"));
    assert_eq!(escape("a\u{1b}[31mb\n"), "a[31mb\n");
}

#[test]
fn the_page_is_well_formed_and_self_contained() {
    let environment = Environment {
        facts: vec![("Envoy".into(), "1.40.0 <x>".into())],
    };
    let outcomes = [outcome(Verdict::Pass), outcome(Verdict::Fail)];
    let page = html(&outcomes, &environment);
    check_nesting(&page);
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside} leads out of the page");
    }
    for text in [
        "1 of 2 experiments passed",
        "2\u{202f}404",
        "killed istio-pilot-&lt;1&gt;",
        "badge fail",
        "prefers-color-scheme: dark",
        "1.40.0 &lt;x&gt;",
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert_eq!(page.matches("<svg").count(), 2);
    assert_eq!(page.matches("<circle").count(), 4, "a mark per event");
}

#[test]
fn an_empty_report_is_still_a_page() {
    let page = html(&[], &Environment::default());
    check_nesting(&page);
    assert!(page.contains("0 of 0 experiments passed"));
}

#[test]
fn seconds_in_words() {
    assert_eq!(seconds(Duration::from_millis(400)), "0.4 s");
    assert_eq!(seconds(Duration::from_secs(12)), "12 s");
}

/// Every element that is opened is closed, in the right order.
fn check_nesting(page: &str) {
    const VOID: &[&str] = &["meta", "br", "!DOCTYPE"];
    let body = page.split_once("<style>").unwrap();
    let rest = body.1.split_once("</style>").unwrap().1;
    let text = format!("{}{rest}", body.0);
    let mut open: Vec<String> = Vec::new();
    for part in text.split('<').skip(1) {
        let (tag, _) = part.split_once('>').expect("a tag that ends");
        let name = tag.trim_end_matches('/').split_whitespace().next().unwrap();
        if VOID.contains(&name) || tag.ends_with('/') {
            continue;
        }
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop().as_deref(), Some(name), "at </{name}>"),
            None => open.push(name.to_owned()),
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
}
