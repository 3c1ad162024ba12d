//! The load against a real HTTP server on a free port.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::*;

/// Serves until dropped; `answer` gets the number of the request and its path. Also counts connections.
struct Server {
    address: String,
    requests: watch::Receiver<usize>,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    keep_alive: bool,
    answer: impl Fn(usize, &str) -> (u16, String) + Send + Sync + 'static,
) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let (count, requests) = watch::channel(0);
    let answer = Arc::new(answer);
    let count = Arc::new(count);
    let task = tokio::spawn(async move {
        let mut open = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let (answer, count) = (answer.clone(), count.clone());
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let mut number = 0;
                count.send_modify(|n| {
                    *n += 1;
                    number = *n;
                });
                let (status, body) = answer(number, request.uri().path());
                let reply = http::Response::builder()
                    .status(status)
                    .body(Full::<Bytes>::from(body))
                    .unwrap();
                async move { Ok::<_, Infallible>(reply) }
            });
            open.spawn(
                hyper::server::conn::http1::Builder::new()
                    .keep_alive(keep_alive)
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    Server {
        address,
        requests,
        connections,
        task,
    }
}

fn plan(server: &Server, rate: f64) -> Plan {
    Plan {
        rate,
        connections: 2,
        ..Plan::new(server.address.clone(), vec!["/a".into(), "/b".into()])
    }
}

async fn until(server: &mut Server, requests: usize) {
    let enough = server.requests.wait_for(|n| *n >= requests);
    tokio::time::timeout(Duration::from_secs(20), enough)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn outcomes_are_told_apart_and_connections_are_kept() {
    let mut server = serve(true, |n, _| match n % 10 {
        0 => (503, "no healthy upstream".into()),
        5 => (404, String::new()),
        _ => (200, "ok".into()),
    })
    .await;
    let load = Load::start(plan(&server, 2000.0));
    until(&mut server, 100).await;
    let summary = load.stop().await;
    assert_eq!(summary.total as usize, *server.requests.borrow());
    let errors: u32 = summary.buckets.iter().map(|b| b.server_error).sum();
    let missing: u32 = summary.buckets.iter().map(|b| b.client_error).sum();
    assert_eq!(errors as usize, summary.total as usize / 10);
    assert_eq!(missing as usize, (summary.total as usize + 5) / 10);
    assert_eq!(u64::from(errors + missing), summary.failed);
    let told = summary
        .failures
        .iter()
        .filter(|f| f.message == "status 503: no healthy upstream");
    assert!(told.count() > 0, "{:?}", summary.failures);
    assert_eq!(server.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_connection_closed_between_requests_is_no_failure() {
    let mut server = serve(false, |_, _| (200, "bye".into())).await;
    let load = Load::start(plan(&server, 500.0));
    until(&mut server, 20).await;
    let summary = load.stop().await;
    assert_eq!(summary.failed, 0, "{:?}", summary.failures);
    assert!(server.connections.load(Ordering::SeqCst) >= 20);
}

#[tokio::test]
async fn a_page_without_one_of_its_parts_is_a_failure() {
    let page = "<p>book</p><p>Sorry, reviews are currently unavailable.</p>";
    let mut server = serve(true, move |n, _| {
        (200, if n % 4 == 0 { page } else { "ok" }.into())
    })
    .await;
    let mut plan = plan(&server, 2000.0);
    plan.degraded = vec!["currently unavailable".into()];
    let load = Load::start(plan);
    until(&mut server, 40).await;
    let summary = load.stop().await;
    assert_eq!(summary.failed, summary.total / 4);
    let text = &summary.failures[0].message;
    assert!(
        text.starts_with("status 200, but: Sorry, reviews are currently unavailable."),
        "{text}"
    );
}

#[tokio::test]
async fn a_refused_connection_is_a_failure_that_says_where() {
    // A port that was free a moment ago and that nobody listens on.
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let reply = Connection::new(address.clone()).get("a", "/").await;
    let message = reply.unwrap_err();
    assert!(
        message.starts_with(&format!("connecting to {address}: ")),
        "{message}"
    );
}

#[tokio::test]
async fn the_rate_is_kept_and_paths_take_turns() {
    let paths = Arc::new(std::sync::Mutex::new([0usize; 2]));
    let seen = paths.clone();
    let mut server = serve(true, move |_, path| {
        seen.lock().unwrap()[usize::from(path == "/b")] += 1;
        (200, String::new())
    })
    .await;
    let began = Instant::now();
    let load = Load::start(plan(&server, 200.0));
    until(&mut server, 60).await;
    let took = began.elapsed();
    load.stop().await;
    // 60 requests at 200/s need 0.295 s at least; never faster, whatever the machine does.
    assert!(took >= Duration::from_millis(285), "{took:?}");
    let [a, b] = *paths.lock().unwrap();
    assert!(a.abs_diff(b) <= 2, "{a} of /a, {b} of /b");
}
