//! gRPC clients without a proxy: real ones, a current one (xDS v3) and the last but one that spoke v2.
//!
//! Python's grpcio, each version in a virtual environment of its own (`make setup`), dials `xds:///HOST:PORT` and is
//! answered by servers here that say who they are.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::harness::*;

const HOST: &str = "echo.shop.svc.cluster.local";
const CURRENT: &str = "grpcio-1.85.3";
const OLD: &str = "grpcio-1.49.1";

/// A gRPC server that answers every unary call with its name.
async fn server(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(move |_| answer(name));
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    address
}

async fn answer(
    name: &'static str,
) -> Result<http::Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let length = u32::try_from(name.len()).unwrap();
    let frame = [&[0], &length.to_be_bytes()[..], name.as_bytes()].concat();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let body = Full::new(Bytes::from(frame)).with_trailers(async move { Some(Ok(trailers)) });
    Ok(http::Response::builder()
        .header("content-type", "application/grpc")
        .body(body)
        .unwrap())
}

/// What calls came to.
#[derive(Debug)]
struct Outcome {
    answers: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    details: String,
}

impl Outcome {
    fn only(&self, name: &str) -> bool {
        self.errors.is_empty() && self.answers.keys().eq([name])
    }
}

/// A client process.
struct Client {
    _process: Child,
    _folder: tempfile::TempDir,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

/// The interpreter of a version; `None`, with a word why, where there is no wheel of it for this machine's Python.
fn interpreter(version: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../.tools")
        .join(version);
    let python = folder.join("bin/python");
    if python.exists() {
        return Some(python);
    }
    match std::fs::read_to_string(folder.join("missing")) {
        Ok(reason) => {
            eprintln!("not tested: {reason}");
            None
        }
        Err(_) => panic!("no {version}: run `make setup`"),
    }
}

impl Client {
    async fn start(version: &str, pilot: &Pilot) -> Option<Self> {
        let python = interpreter(version)?;
        let folder = tempfile::tempdir().unwrap();
        let features = if version == OLD {
            json!([])
        } else {
            json!(["xds_v3"])
        };
        let bootstrap = json!({
            "xds_servers": [{
                "server_uri": pilot.grpc.to_string(),
                "channel_creds": [{"type": "insecure"}],
                "server_features": features
            }],
            "node": {
                "id": "sidecar~10.9.9.8~client-0.shop~shop.svc.cluster.local",
                "cluster": "client",
                "locality": {"region": "r", "zone": "z"},
                "metadata": {"NAMESPACE": "shop", "LABELS": {"app": "client"}}
            }
        });
        let file = folder.path().join("bootstrap.json");
        std::fs::write(&file, bootstrap.to_string()).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pilot/client.py");
        let log =
            std::fs::File::create(pilot.folder.path().join(format!("{version}.log"))).unwrap();
        let mut process = Command::new(python)
            .arg(script)
            .env("GRPC_XDS_BOOTSTRAP", file)
            .env("GRPC_VERBOSITY", "info")
            .env_remove("http_proxy")
            .env_remove("https_proxy")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Some(Self {
            orders: process.stdin.take().unwrap(),
            answers: BufReader::new(process.stdout.take().unwrap()).lines(),
            _process: process,
            _folder: folder,
        })
    }

    async fn call(&mut self, order: Value) -> Outcome {
        let line = format!("{order}\n");
        self.orders.write_all(line.as_bytes()).await.unwrap();
        let line = self.answers.next_line().await.unwrap();
        let answer: Value = serde_json::from_str(&line.expect("the client ended")).unwrap();
        let counts = |key: &str| serde_json::from_value(answer[key].clone()).unwrap();
        Outcome {
            answers: counts("answers"),
            errors: counts("errors"),
            details: answer["details"].as_str().unwrap_or_default().to_owned(),
        }
    }

    async fn calls(&mut self, count: u32) -> Outcome {
        self.call(json!({"target": format!("xds:///{HOST}:50051"), "count": count}))
            .await
    }

    /// Calls until only this server answers; on the way there nothing may fail.
    async fn follow(&mut self, name: &str) {
        let begun = std::time::Instant::now();
        loop {
            let outcome = self.calls(10).await;
            assert!(outcome.errors.is_empty(), "{outcome:?}");
            if outcome.only(name) {
                return;
            }
            assert!(
                begun.elapsed().as_secs() < 60,
                "{name} never took over: {outcome:?}"
            );
        }
    }
}

fn service(endpoints: &[(SocketAddr, &str)]) -> String {
    let endpoints: String = endpoints
        .iter()
        .map(|(address, version)| {
            format!(
                "  - {{address: {}, ports: {{grpc: {}}}, labels: {{version: {version}}}}}\n",
                address.ip(),
                address.port()
            )
        })
        .collect();
    format!(
        "apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata: {{name: echo, namespace: shop}}
spec:
  hosts: [{HOST}]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 50051, name: grpc, protocol: GRPC}}]
  endpoints:
{endpoints}"
    )
}

const RULE: &str = "apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {name: echo, namespace: shop}
spec:
  host: echo
  trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1000}}}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
";

fn virtual_service(rules: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {{name: echo, namespace: shop}}
spec:
  hosts: [echo]
  http:
{rules}"
    )
}

fn weights(v1: u32, v2: u32) -> String {
    virtual_service(&format!(
        "  - timeout: 10s
    retries: {{attempts: 2, retryOn: \"unavailable,5xx,cancelled\"}}
    route:
    - {{destination: {{host: echo, subset: v1}}, weight: {v1}}}
    - {{destination: {{host: echo, subset: v2}}, weight: {v2}}}
"
    ))
}

/// Nothing that was ever sent was refused.
async fn assert_nothing_refused(pilot: &Pilot) {
    let synced = pilot.json("/debug/syncz").await.to_string();
    assert!(!synced.contains("_error"), "{synced}");
    let metrics = pilot.page("/metrics").await.1;
    assert!(
        metrics.contains("pilot_total_xds_rejects 0"),
        "{synced}\n{}",
        pilot.log()
    );
}

async fn session(version: &str) {
    let (v1, v2) = (server("v1").await, server("v2").await);
    let pilot = Pilot::start(|folder| write(folder, "echo", &service(&[(v1, "v1")]))).await;
    let Some(mut client) = Client::start(version, &pilot).await else {
        return;
    };
    let outcome = client.calls(5).await;
    assert!(outcome.only("v1"), "{outcome:?}\n{}", pilot.log());
    // A short name means the client's own namespace, a longer one any.
    for short in ["echo:50051", "echo.shop:50051", "echo.shop.svc:50051"] {
        let outcome = client
            .call(json!({"target": format!("xds:///{short}")}))
            .await;
        assert!(outcome.only("v1"), "{short}: {outcome:?}");
    }

    // Endpoints change.
    pilot.write("echo", &service(&[(v2, "v2")]));
    client.follow("v2").await;

    // Weights, to and fro, with subsets that come in the same moment.
    pilot.write("echo", &service(&[(v1, "v1"), (v2, "v2")]));
    pilot.write("traffic", &format!("{RULE}---\n{}", weights(100, 0)));
    client.follow("v1").await;
    pilot.write("traffic", &format!("{RULE}---\n{}", weights(0, 100)));
    client.follow("v2").await;
    pilot.write("traffic", &format!("{RULE}---\n{}", weights(50, 50)));
    until("both answer", async || {
        (client.calls(20).await.answers.len() == 2).then_some(())
    })
    .await;

    // By header.
    let by_header = "  - match: [{headers: {user: {exact: jason}, agent: {regex: \"x.*\"}}}]
    route: [{destination: {host: echo, subset: v2}}]
  - match: [{uri: {prefix: /mesozoic.test.Echo/}, method: {exact: POST}}]
    route: [{destination: {host: echo, subset: v1}}]
";
    pilot.write(
        "traffic",
        &format!("{RULE}---\n{}", virtual_service(by_header)),
    );
    let target = format!("xds:///{HOST}:50051");
    let metadata = json!({"user": "jason", "agent": "xyz"});
    let order = json!({"target": target, "count": 20, "metadata": metadata});
    // Equal shares may look like one of them for a while; a header that decides does not.
    until("jason is told apart", async || {
        let (jason, others) = (client.call(order.clone()).await, client.calls(20).await);
        (jason.only("v2") && others.only("v1")).then_some(())
    })
    .await;

    // A route moves to a cluster that comes with it, and the old one goes: nothing fails meanwhile.
    for round in 0..6 {
        let name = if round % 2 == 0 { "v2" } else { "v1" };
        let rule = RULE
            .replace("name: v1, labels", &format!("name: v1-{round}, labels"))
            .replace("name: v2, labels", &format!("name: v2-{round}, labels"));
        let route =
            format!("  - route: [{{destination: {{host: echo, subset: {name}-{round}}}}}]\n");
        pilot.write(
            "traffic",
            &format!("{rule}---\n{}", virtual_service(&route)),
        );
        client.follow(name).await;
    }

    if version == CURRENT {
        let fault = "  - fault: {abort: {httpStatus: 403, percentage: {value: 100}}}
    route: [{destination: {host: echo}}]
";
        pilot.write("traffic", &format!("{RULE}---\n{}", virtual_service(fault)));
        until("calls are aborted", async || {
            client
                .calls(5)
                .await
                .errors
                .get("PERMISSION_DENIED")
                .map(|_| ())
        })
        .await;
    }
    assert_nothing_refused(&pilot).await;

    // What does not exist is told at once.
    let outcome = client
        .call(json!({"target": "xds:///nobody:50051", "timeout": 60}))
        .await;
    assert!(outcome.errors.contains_key("UNAVAILABLE"), "{outcome:?}");
    assert!(outcome.details.contains("nobody:50051"), "{outcome:?}");
    pilot.remove("traffic");
    pilot.remove("echo");
    until("the service is gone", async || {
        client.calls(1).await.errors.get("UNAVAILABLE").map(|_| ())
    })
    .await;
    assert_nothing_refused(&pilot).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_current_client_v3() {
    session(CURRENT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_client_v2() {
    session(OLD).await;
}
