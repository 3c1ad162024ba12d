//! Webhooks over TLS: patches, refusals, failure policies and the texts users see.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::harness::Lab;

const CMS: &str = "/api/v1/namespaces/default/configmaps";
const HOOKS: &str = "/apis/admissionregistration.k8s.io/v1";

type Answer = Arc<dyn Fn(&Value) -> Value + Send + Sync>;

/// An HTTPS server that answers reviews by a function and hands them on.
struct Hook {
    port: u16,
    ca: String,
    seen: mpsc::UnboundedReceiver<Value>,
}

async fn hook(name: &str, answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Hook {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let san = match name.parse() {
        Ok(ip) => rcgen::SanType::IpAddress(ip),
        Err(_) => rcgen::SanType::DnsName(name.try_into().unwrap()),
    };
    parameters.subject_alt_names = vec![san];
    let certificate = parameters.self_signed(&key).unwrap().pem();
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (sender, seen) = mpsc::unbounded_channel();
    let router = Router::new()
        .route("/{*path}", post(serve))
        .with_state((Arc::new(answer) as Answer, sender));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, router) = (acceptor.clone(), router.clone());
            tokio::spawn(async move {
                if let Ok(tls) = acceptor.accept(stream).await {
                    let service = TowerToHyperService::new(router);
                    let builder =
                        hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    drop(builder.serve_connection(TokioIo::new(tls), service).await);
                }
            });
        }
    });
    Hook {
        port,
        ca: STANDARD.encode(certificate),
        seen,
    }
}

async fn serve(
    State((answer, seen)): State<(Answer, mpsc::UnboundedSender<Value>)>,
    Json(review): Json<Value>,
) -> Json<Value> {
    let response = answer(&review);
    drop(seen.send(review));
    Json(response)
}

fn respond(review: &Value, mut response: Value) -> Value {
    response["uid"] = review["request"]["uid"].clone();
    json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response})
}

fn webhook(client: &Value) -> Value {
    json!({"name": "x.lab.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1", "v1beta1"], "clientConfig": client,
        "timeoutSeconds": 1, "rules": [{"operations": ["CREATE", "UPDATE", "DELETE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]})
}

async fn configure(lab: &Lab, kind: &str, webhook: &Value) {
    let path = format!("{HOOKS}/{kind}");
    let _ = lab.delete(&format!("{path}/cfg"), "").await;
    lab.post(
        &path,
        &json!({"metadata": {"name": "cfg"}, "webhooks": [webhook]}).to_string(),
    )
    .await
    .unwrap();
}

fn url(port: u16, ca: &str) -> Value {
    json!({"url": format!("https://127.0.0.1:{port}/hook"), "caBundle": ca})
}

const CM: &str = r#"{"metadata":{"generateName":"c-"},"data":{"a":"b"}}"#;

#[tokio::test]
async fn a_mutating_webhook_changes_objects() {
    let lab = Lab::start().await;
    let mut hook = hook("127.0.0.1", |review| {
        let patch = STANDARD.encode(r#"[{"op":"add","path":"/data/added","value":"yes"}]"#);
        respond(review, json!({"allowed": true, "patchType": "JSONPatch", "patch": patch, "warnings": ["careful"]}))
    })
    .await;
    configure(
        &lab,
        "mutatingwebhookconfigurations",
        &webhook(&url(hook.port, &hook.ca)),
    )
    .await;
    let made = lab
        .post(&format!("{CMS}?fieldManager=me"), CM)
        .await
        .unwrap();
    assert_eq!(made["data"], json!({"a": "b", "added": "yes"}));
    let request = hook.seen.recv().await.unwrap()["request"].take();
    assert_eq!(
        (
            request["operation"].as_str(),
            request.get("name"),
            &request["oldObject"]
        ),
        (Some("CREATE"), None, &Value::Null)
    );
    assert_eq!(request["object"]["metadata"]["namespace"], "default");
    assert_eq!(
        request["object"]["metadata"].get("creationTimestamp"),
        Some(&Value::Null)
    );
    assert!(request["object"]["metadata"].get("uid").is_none());
    assert_eq!(
        request["options"],
        json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1", "fieldManager": "me"})
    );
    assert_eq!(request["userInfo"]["username"], "test");
    // Selectors keep it away.
    let mut selective = webhook(&url(hook.port, &hook.ca));
    selective["objectSelector"] = json!({"matchLabels": {"wanted": "yes"}});
    configure(&lab, "mutatingwebhookconfigurations", &selective).await;
    assert_eq!(lab.post(CMS, CM).await.unwrap()["data"], json!({"a": "b"}));
}

#[tokio::test]
async fn a_validating_webhook_refuses() {
    let lab = Lab::start().await;
    let hook = hook("127.0.0.1", |review| {
        respond(
            review,
            json!({"allowed": false, "status": {"message": "no way"}}),
        )
    })
    .await;
    configure(
        &lab,
        "validatingwebhookconfigurations",
        &webhook(&url(hook.port, &hook.ca)),
    )
    .await;
    let denied = lab.post(CMS, CM).await.unwrap_err();
    assert_eq!(
        (denied.code, denied.message.as_str()),
        (
            403,
            "admission webhook \"x.lab.example.com\" denied the request: no way"
        )
    );
    // A denial denies whatever the failure policy.
    let mut lax = webhook(&url(hook.port, &hook.ca));
    lax["failurePolicy"] = "Ignore".into();
    configure(&lab, "validatingwebhookconfigurations", &lax).await;
    assert_eq!(lab.post(CMS, CM).await.unwrap_err().code, 403);
    assert!(
        lab.get(CMS).await.unwrap()["items"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn failures_read_as_in_kubernetes() {
    let lab = Lab::start().await;
    let good = hook("127.0.0.1", |review| {
        respond(review, json!({"allowed": true}))
    })
    .await;
    let named = hook("other.svc", |review| {
        respond(review, json!({"allowed": true}))
    })
    .await;
    let lost = hook(
        "127.0.0.1",
        |_| json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}),
    )
    .await;
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    // Accepts and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let start = "Internal error occurred: failed calling webhook \"x.lab.example.com\": ";
    let call = |port: u16, why: &str| {
        format!(
            "{start}failed to call webhook: Post \"https://127.0.0.1:{port}/hook?timeout=1s\": {why}"
        )
    };
    let service = |name: &str, port: u16| json!({"service": {"namespace": "default", "name": name, "port": port, "path": "/hook"}, "caBundle": good.ca});
    let by_service = |name: &str, port: u16, why: &str| {
        format!(
            "{start}failed to call webhook: Post \"https://{name}.default.svc:{port}/hook?timeout=1s\": {why}"
        )
    };
    lab.post(
        "/api/v1/namespaces/default/services",
        r#"{"metadata":{"name":"emp"},"spec":{"ports":[{"port":443}]}}"#,
    )
    .await
    .unwrap();
    let cases = [
        (
            url(closed, &good.ca),
            call(
                closed,
                &format!("dial tcp 127.0.0.1:{closed}: connect: connection refused"),
            ),
        ),
        (
            url(silent_port, &good.ca),
            call(silent_port, "context deadline exceeded"),
        ),
        (
            url(good.port, &named.ca),
            call(
                good.port,
                "tls: failed to verify certificate: x509: certificate signed by unknown authority",
            ),
        ),
        (
            json!({"url": format!("https://127.0.0.1:{}/hook", good.port)}),
            call(
                good.port,
                "tls: failed to verify certificate: x509: certificate signed by unknown authority",
            ),
        ),
        (
            url(named.port, &named.ca),
            call(
                named.port,
                "tls: failed to verify certificate: x509: cannot validate certificate for 127.0.0.1 because it doesn't contain any IP SANs",
            ),
        ),
        (
            url(lost.port, &lost.ca),
            format!("{start}received invalid webhook response: webhook response was absent"),
        ),
        (
            url(good.port, &STANDARD.encode("no pem")),
            format!(
                "{start}could not get REST client: unable to load root certificates: unable to parse bytes as PEM block"
            ),
        ),
        (
            service("nosvc", 443),
            by_service("nosvc", 443, "service \"nosvc\" not found"),
        ),
        (
            service("emp", 443),
            by_service("emp", 443, "no endpoints available for service \"emp\""),
        ),
        (
            service("emp", 444),
            by_service("emp", 444, "no service port 444 found for service \"emp\""),
        ),
    ];
    for (client, text) in cases {
        configure(&lab, "validatingwebhookconfigurations", &webhook(&client)).await;
        let error = lab.post(CMS, CM).await.unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (500, text.as_str()));
        let mut lax = webhook(&client);
        lax["failurePolicy"] = "Ignore".into();
        configure(&lab, "validatingwebhookconfigurations", &lax).await;
        lab.post(CMS, CM).await.unwrap();
    }
    drop(silent);
}

#[tokio::test]
async fn services_lead_to_endpoints() {
    let lab = Lab::start().await;
    let mut hook = hook("inj.default.svc", |review| {
        respond(review, json!({"allowed": true}))
    })
    .await;
    let service = r#"{"metadata":{"name":"inj"},"spec":{"ports":[{"name":"https","port":443,"targetPort":9443}]}}"#;
    lab.post("/api/v1/namespaces/default/services", service)
        .await
        .unwrap();
    let endpoints = json!({"metadata": {"name": "inj"}, "subsets": [{"addresses": [{"ip": "127.0.0.1"}],
        "ports": [{"name": "https", "port": hook.port}]}]});
    lab.post(
        "/api/v1/namespaces/default/endpoints",
        &endpoints.to_string(),
    )
    .await
    .unwrap();
    let mut config = webhook(
        &json!({"service": {"namespace": "default", "name": "inj", "path": "/inject"}, "caBundle": hook.ca}),
    );
    config["admissionReviewVersions"] = json!(["v1beta1"]);
    configure(&lab, "mutatingwebhookconfigurations", &config).await;
    lab.post(CMS, CM).await.unwrap();
    let review = tokio::time::timeout(Duration::from_secs(10), hook.seen.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(review["apiVersion"], "admission.k8s.io/v1beta1");
}

#[tokio::test]
async fn configurations_are_checked_and_defaulted() {
    let lab = Lab::start().await;
    let client = json!({"url": "https://127.0.0.1:1/x"});
    let mut bare = webhook(&client);
    bare.as_object_mut().unwrap().remove("timeoutSeconds");
    let body = json!({"metadata": {"name": "a"}, "webhooks": [bare]}).to_string();
    let made = lab
        .post(&format!("{HOOKS}/validatingwebhookconfigurations"), &body)
        .await
        .unwrap();
    let hook = &made["webhooks"][0];
    assert_eq!(
        (
            &hook["failurePolicy"],
            &hook["matchPolicy"],
            &hook["timeoutSeconds"]
        ),
        (&json!("Fail"), &json!("Equivalent"), &json!(10))
    );
    let beta = json!({"apiVersion": "admissionregistration.k8s.io/v1beta1", "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "b"},
        "webhooks": [{"name": "x.lab.example.com", "clientConfig": client}]});
    let made = lab
        .post(
            "/apis/admissionregistration.k8s.io/v1beta1/validatingwebhookconfigurations",
            &beta.to_string(),
        )
        .await
        .unwrap();
    let hook = &made["webhooks"][0];
    assert_eq!(
        (
            &hook["failurePolicy"],
            &hook["timeoutSeconds"],
            &hook["sideEffects"]
        ),
        (&json!("Ignore"), &json!(30), &json!("Unknown"))
    );
    let mut slow = webhook(&client);
    slow["timeoutSeconds"] = 31.into();
    slow["name"] = "short".into();
    slow["clientConfig"] = json!({"url": "http://x/"});
    let body = json!({"metadata": {"name": "c"}, "webhooks": [slow]}).to_string();
    let error = lab
        .post(&format!("{HOOKS}/validatingwebhookconfigurations"), &body)
        .await
        .unwrap_err();
    for part in [
        "the timeout value must be between 1 and 30 seconds",
        "should be a domain with at least three segments separated by dots",
        "'https' is the only allowed URL scheme; desired format: https://host[/path]",
    ] {
        assert!(error.message.contains(part), "{}", error.message);
    }
}
