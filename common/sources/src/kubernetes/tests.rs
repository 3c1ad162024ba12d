//! The source against an API that misbehaves on command.
//!
//! The API is a service in the same process that speaks the wire format of list and watch; back-offs are short. (Against the real API server stand-in the source runs in the end-to-end tests.)

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;

type Frame = Result<hyper::body::Frame<Bytes>, std::io::Error>;

#[derive(Default)]
struct Api {
    /// By plural and name.
    objects: BTreeMap<(String, String), Value>,
    version: u64,
    /// Plurals without a CRD, or ends of paths.
    missing: BTreeSet<String>,
    /// Every request fails with this status.
    failing: Option<u16>,
    watchers: Vec<(String, mpsc::UnboundedSender<Frame>)>,
    lists: BTreeMap<String, usize>,
}

#[derive(Clone, Default)]
struct FakeApi(Arc<Mutex<Api>>);

fn status(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "x", "code": code})
}

impl FakeApi {
    fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let response = api.answer(&request);
            async move { Ok::<_, Infallible>(response) }
        });
        kube::Client::new(service, "default")
    }

    fn answer(&self, request: &Request<Body>) -> Response<BoxBody<Bytes, std::io::Error>> {
        let plural = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let mut api = self.0.lock();
        let code = api
            .failing
            .or_else(|| {
                let path = request.uri().path();
                let missing = api.missing.iter().any(|end| path.ends_with(end.as_str()));
                missing.then_some(404)
            })
            .unwrap_or(200);
        let body = if code != 200 {
            full(&status(code))
        } else if request.uri().query().is_some_and(|q| q.contains("watch=")) {
            let (sender, receiver) = mpsc::unbounded_channel();
            // Like a compacted store, this one remembers nothing: a watch from an older version has expired.
            let from = query_number(request, "resourceVersion");
            if from < api.version {
                let gone = json!({"type": "ERROR", "object": status(410)});
                let frame = hyper::body::Frame::data(Bytes::from(format!("{gone}\n")));
                sender.send(Ok(frame)).unwrap();
            } else {
                api.watchers.push((plural, sender));
            }
            let stream = stream::unfold(receiver, |mut r| async {
                r.recv().await.map(|frame| (frame, r))
            });
            http_body_util::BodyExt::boxed(StreamBody::new(stream))
        } else {
            *api.lists.entry(plural.clone()).or_default() += 1;
            let items: Vec<&Value> = api
                .objects
                .iter()
                .filter(|((p, _), _)| *p == plural)
                .map(|(_, o)| o)
                .collect();
            full(&json!({
                "kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": api.version.to_string()}, "items": items
            }))
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(code).unwrap();
        response
    }

    /// Says something on the watches of a plural.
    fn say(&self, plural: &str, event: &Value) {
        let line = Bytes::from(format!("{event}\n"));
        self.0.lock().watchers.retain(|(p, sender)| {
            p != plural
                || sender
                    .send(Ok(hyper::body::Frame::data(line.clone())))
                    .is_ok()
        });
    }

    fn put(&self, plural: &str, name: &str, spec: &Value) {
        let (event, object) = {
            let mut api = self.0.lock();
            api.version += 1;
            let object = json!({
                "apiVersion": "networking.istio.io/v1alpha3", "kind": "x",
                "metadata": {"name": name, "namespace": "ns", "resourceVersion": api.version.to_string()},
                "spec": spec, "status": {"ignored": true}
            });
            let known = api
                .objects
                .insert((plural.to_owned(), name.to_owned()), object.clone())
                .is_some();
            (if known { "MODIFIED" } else { "ADDED" }, object)
        };
        self.say(plural, &json!({"type": event, "object": object}));
    }

    fn delete(&self, plural: &str, name: &str) {
        let object = {
            let mut api = self.0.lock();
            api.version += 1;
            api.objects
                .remove(&(plural.to_owned(), name.to_owned()))
                .unwrap()
        };
        self.say(plural, &json!({"type": "DELETED", "object": object}));
    }

    /// From now on everything fails, and open watches end.
    fn go_away(&self, code: u16) {
        let mut api = self.0.lock();
        api.failing = Some(code);
        api.watchers.clear();
    }

    fn come_back(&self) {
        self.0.lock().failing = None;
    }
}

fn query_number(request: &Request<Body>, name: &str) -> u64 {
    let query = request.uri().query().unwrap_or_default();
    let value = query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    value.and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn full(value: &Value) -> BoxBody<Bytes, std::io::Error> {
    Full::new(Bytes::from(value.to_string()))
        .map_err(|never| match never {})
        .boxed()
}

fn entry(host: &str) -> Value {
    json!({"hosts": [host], "resolution": "DNS", "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]})
}

fn names(update: &crate::Update) -> Vec<String> {
    update
        .configs
        .iter()
        .map(|o| o.meta().name.clone())
        .collect()
}

struct Running {
    api: FakeApi,
    source: Arc<KubernetesSource>,
    updates: Subscription,
    _shutdown: tokio_util::sync::DropGuard,
}

impl Running {
    async fn next(&mut self) -> crate::Update {
        tokio::time::timeout(Duration::from_secs(60), self.updates.next())
            .await
            .unwrap()
            .unwrap()
    }
}

fn run(api: FakeApi) -> Running {
    run_kinds(api, KubernetesOptions::default().kinds)
}

fn run_kinds(api: FakeApi, kinds: Vec<ConfigKind>) -> Running {
    let source = KubernetesSource::new(KubernetesOptions {
        kinds,
        retry_min: Duration::from_millis(1),
        retry_max: Duration::from_millis(20),
        ..Default::default()
    });
    let shutdown = CancellationToken::new();
    tokio::spawn(Arc::clone(&source).run(api.client(), shutdown.clone()));
    Running {
        updates: source.subscribe(),
        api,
        source,
        _shutdown: shutdown.drop_guard(),
    }
}

/// Waits for a condition that no update announces.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(60), wait).await;
    assert!(in_time.is_ok(), "never happened: {what}");
}

#[tokio::test]
async fn syncs_when_every_kind_is_listed_and_follows() {
    let api = FakeApi::default();
    api.0.lock().missing.insert("rbacconfigs".to_owned());
    api.put("serviceentries", "a", &entry("a.com"));
    api.put(
        "serviceentries",
        "bad",
        &json!({"hosts": ["a.com"], "addresses": ["300.1.1.1"]}),
    );
    let mut r = run(api);
    let first = r.next().await;
    assert_eq!(names(&first), ["a"]);
    let status = r.source.status();
    assert!(
        status.synced && status.kinds[&ConfigKind::RbacConfig].not_installed,
        "{status:?}"
    );
    assert!(status.kinds[&ConfigKind::Gateway].listed);
    let rejected = &status.rejected["ServiceEntry ns/bad"];
    assert!(!rejected.previous_in_use);
    assert_eq!(rejected.errors[0].path, "spec.addresses[0]");

    // Wrong, then right; a status update alone is no update.
    r.api.put(
        "serviceentries",
        "a",
        &json!({"hosts": ["a.com"], "hosst": []}),
    );
    until("rejected", || {
        r.source.status().rejected.contains_key("ServiceEntry ns/a")
    })
    .await;
    assert!(r.source.status().rejected["ServiceEntry ns/a"].previous_in_use);
    assert_eq!(
        r.updates.latest().service_entries[0].spec.hosts,
        ["a.com"],
        "the last good version stays"
    );
    r.api.put("serviceentries", "a", &entry("b.com"));
    let update = r.next().await;
    assert_eq!(update.configs.service_entries[0].spec.hosts, ["b.com"]);
    assert_eq!(update.changes.len(), 1);
    assert_eq!(r.source.status().rejected.len(), 1);
    r.api.delete("serviceentries", "a");
    assert!(r.next().await.configs.is_empty());

    // The missing kind appears.
    r.api.0.lock().missing.clear();
    until("listed", || {
        r.source.status().kinds[&ConfigKind::RbacConfig].listed
    })
    .await;
    assert!(!r.source.status().kinds[&ConfigKind::RbacConfig].not_installed);
}

#[tokio::test]
async fn an_api_away_for_minutes_changes_nothing_until_it_is_back() {
    let api = FakeApi::default();
    api.put("serviceentries", "a", &entry("a.com"));
    api.put("serviceentries", "b", &entry("b.com"));
    let mut r = run(api);
    assert_eq!(names(&r.next().await), ["a", "b"]);

    for code in [500, 503, 404] {
        r.api.go_away(code);
        let errors = || r.source.status().kinds[&ConfigKind::ServiceEntry].errors;
        let before = errors();
        until("many attempts", || errors() > before + 20).await;
        let status = r.source.status();
        assert_eq!(r.updates.latest().len(), 2, "{code}: nothing is taken away");
        assert!(status.synced);
        r.api.come_back();
        until("listed", || r.source.status().complaints().is_empty()).await;
    }
    r.api.go_away(500);
    until("noticed", || {
        r.source.status().kinds[&ConfigKind::ServiceEntry]
            .error
            .is_some()
    })
    .await;
    // What happens meanwhile arrives afterwards.
    r.api
        .0
        .lock()
        .objects
        .remove(&("serviceentries".to_owned(), "a".to_owned()));
    r.api.put("serviceentries", "c", &entry("c.com"));
    r.api.come_back();
    let update = r.next().await;
    assert_eq!(names(&update), ["b", "c"]);
    assert_eq!(update.changes.len(), 2);
}

#[tokio::test]
async fn an_expired_watch_lists_again() {
    let api = FakeApi::default();
    api.put("serviceentries", "a", &entry("a.com"));
    let mut r = run(api);
    r.next().await;
    until("watching", || {
        r.api
            .0
            .lock()
            .watchers
            .iter()
            .any(|(p, _)| p == "serviceentries")
    })
    .await;
    // Something the watch does not tell of: only the list shows it.
    let unseen = r.api.0.lock().objects.values().next().unwrap().clone();
    r.api
        .0
        .lock()
        .objects
        .insert(("serviceentries".to_owned(), "z".to_owned()), {
            let mut object = unseen;
            object["metadata"]["name"] = "z".into();
            object
        });
    r.api.say(
        "serviceentries",
        &json!({"type": "ERROR", "object": status(410)}),
    );
    let update = r.next().await;
    assert_eq!(names(&update), ["a", "z"]);
    assert_eq!(r.api.0.lock().lists["serviceentries"], 2);
}

#[tokio::test]
async fn not_synced_before_the_last_kind() {
    let api = FakeApi::default();
    api.put("serviceentries", "a", &entry("a.com"));
    api.go_away(500);
    let mut r = run(api);
    until("every kind failed", || {
        r.source.status().kinds.values().all(|k| k.errors > 3)
    })
    .await;
    assert!(!r.updates.is_synced());
    let kinds = KubernetesOptions::default().kinds;
    assert_eq!(r.source.status().complaints().len(), kinds.len());
    r.api.come_back();
    assert_eq!(names(&r.next().await), ["a"]);
}

#[tokio::test]
async fn garbage_on_the_watch_is_survived() {
    let api = FakeApi::default();
    api.put("serviceentries", "a", &entry("a.com"));
    let mut r = run(api);
    r.next().await;
    until("watching", || {
        r.api
            .0
            .lock()
            .watchers
            .iter()
            .any(|(p, _)| p == "serviceentries")
    })
    .await;
    r.api.say(
        "serviceentries",
        &json!({"type": "MODIFIED", "object": {"kind": 5, "metadata": []}}),
    );
    r.api.say("serviceentries", &json!("nonsense"));
    r.api.put("serviceentries", "b", &entry("b.com"));
    assert_eq!(names(&r.next().await), ["a", "b"]);
}

#[tokio::test]
async fn ingresses_are_read_in_the_version_that_the_server_has() {
    let kinds = || vec![ConfigKind::Ingress];
    let spec = json!({"backend": {"serviceName": "web", "servicePort": 80}});
    let api = FakeApi::default();
    api.put("ingresses", "a", &spec);
    for newer in [
        "networking.k8s.io/v1/ingresses",
        "networking.k8s.io/v1beta1/ingresses",
    ] {
        api.0.lock().missing.insert(newer.to_owned());
    }
    api.go_away(503);
    let mut r = run_kinds(api, kinds());
    until("attempts fail and are told", || {
        let status = r.source.status();
        status.kinds[&ConfigKind::Ingress].error.is_some()
    })
    .await;
    r.api.come_back();
    let update = r.next().await;
    assert_eq!(
        update.configs.ingresses[0]
            .spec
            .default_backend
            .as_ref()
            .unwrap()
            .service,
        "web"
    );
    assert_eq!(r.source.status().complaints(), Vec::<String>::new());

    // No version at all is a kind that is not installed.
    let api = FakeApi::default();
    api.0.lock().missing.insert("ingresses".to_owned());
    let mut r = run_kinds(api, kinds());
    assert!(r.next().await.configs.ingresses.is_empty());
    assert!(r.source.status().kinds[&ConfigKind::Ingress].not_installed);
}
