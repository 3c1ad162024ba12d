//! The engine against a real HTTP server, with scripts instead of a cluster.
#![allow(clippy::unwrap_used)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::load::Kind;
use crate::model::{Mode, Probe, Target};

struct Script<F>(Definition, F);

#[async_trait]
impl<F> Experiment for Script<F>
where
    F: for<'a> Fn(&'a mut Context) -> BoxFuture<'a, Result<()>> + Send + Sync,
{
    fn definition(&self) -> &Definition {
        &self.0
    }
    async fn run(&self, cx: &mut Context) -> Result<()> {
        (self.1)(cx).await
    }
}

/// Tells the compiler what kind of closure it is.
fn script<F>(definition: Definition, run: F) -> Script<F>
where
    F: for<'a> Fn(&'a mut Context) -> BoxFuture<'a, Result<()>> + Send + Sync,
{
    Script(definition, run)
}

struct Silent;
impl Observer for Silent {
    fn started(&self, _: &Definition) {}
    fn event(&self, _: &str, _: Duration, _: &str) {}
    fn probe(&self, _: &str, _: &str, _: Verdict, _: &str) {}
    fn finished(&self, _: &Outcome) {}
}

fn definition(budget: f64) -> Definition {
    Definition {
        name: "script",
        summary: "a script",
        target: Target {
            component: "c".into(),
            namespace: "n".into(),
            selector: "a=b".into(),
        },
        action: "pod-kill",
        mode: "one",
        duration: Duration::ZERO,
        error_budget: budget,
        abort: Abort::default(),
        probes: vec![
            Probe::new(TRAFFIC, Mode::Continuous, "no request fails"),
            Probe::new("it", Mode::After, "works"),
        ],
    }
}

/// A server that answers 200 or, when told so, 503.
async fn server() -> (String, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let broken = Arc::new(AtomicBool::new(false));
    let flag = broken.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let flag = flag.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    let status = match flag.load(Ordering::SeqCst) {
                        true => "503 Service Unavailable",
                        false => "200 OK",
                    };
                    let reply = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                    if stream.write_all(reply.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, broken)
}

fn options(address: &str) -> Options {
    let load = Plan {
        rate: 200.0,
        ..Plan::new(address, vec!["/".into()])
    };
    Options {
        application: Application::default(),
        load,
        steady_timeout: Duration::from_secs(10),
        baseline: Duration::from_millis(50),
    }
}

/// A client that is never used for a request.
fn cluster() -> Cluster {
    let service = tower_service_that_refuses();
    Cluster {
        client: service,
        namespace: "default".into(),
        istio_namespace: "istio-system".into(),
    }
}

fn tower_service_that_refuses() -> kube::Client {
    let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
        Err::<http::Response<kube::client::Body>, std::io::Error>(std::io::Error::other(
            "no cluster in this test",
        ))
    });
    kube::Client::new(service, "default")
}

async fn perform<F>(experiment: Script<F>, address: &str, stop: &CancellationToken) -> Outcome
where
    F: for<'a> Fn(&'a mut Context) -> BoxFuture<'a, Result<()>> + Send + Sync,
{
    let observer = Arc::new(Silent);
    run(&experiment, &cluster(), &options(address), observer, stop).await
}

#[tokio::test]
async fn a_quiet_experiment_passes_and_undoes_in_reverse_order() {
    let (address, _) = server().await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let undone = order.clone();
    let experiment = script(definition(0.0), move |cx: &mut Context| {
        let undone = undone.clone();
        Box::pin(async move {
            for step in ["first", "second"] {
                let undone = undone.clone();
                cx.undo(step, async move {
                    undone.lock().unwrap().push(step);
                    Ok(())
                });
            }
            cx.recovered(Instant::now());
            cx.observe("it", true, "it does");
            Ok(())
        })
    });
    let outcome = perform(experiment, &address, &CancellationToken::new()).await;
    assert_eq!(outcome.verdict, Verdict::Pass, "{outcome:?}");
    assert_eq!(*order.lock().unwrap(), ["second", "first"]);
    assert_eq!(outcome.probes[0].name, TRAFFIC);
    assert!(outcome.requests.total > 0 && outcome.requests.failed == 0);
    assert!(outcome.recovery_seconds.is_some());
    let restored: Vec<_> = outcome
        .timeline
        .iter()
        .filter(|e| e.event.starts_with("restored"))
        .collect();
    assert_eq!(restored.len(), 2);
}

#[tokio::test]
async fn a_script_that_breaks_fails_and_is_still_undone() {
    let (address, _) = server().await;
    let undone = Arc::new(AtomicBool::new(false));
    let flag = undone.clone();
    let experiment = script(definition(0.0), move |cx: &mut Context| {
        let flag = flag.clone();
        Box::pin(async move {
            cx.undo("it", async move {
                flag.store(true, Ordering::SeqCst);
                Ok(())
            });
            cx.undo("what cannot be", async {
                Err(ChaosError::Precondition("stuck".into()))
            });
            Err(ChaosError::Precondition("no such thing".into()))
        })
    });
    let outcome = perform(experiment, &address, &CancellationToken::new()).await;
    assert!(undone.load(Ordering::SeqCst));
    assert_eq!(outcome.verdict, Verdict::Fail);
    assert_eq!(
        outcome.error.as_deref(),
        Some("no such thing; not restored: what cannot be: stuck")
    );
    assert_eq!(outcome.probes[1].observed, "not reached");
}

#[tokio::test]
async fn too_many_failures_stop_it_and_traffic_is_told() {
    let (address, broken) = server().await;
    let experiment = script(definition(0.0), move |_: &mut Context| {
        broken.store(true, Ordering::SeqCst);
        Box::pin(std::future::pending())
    });
    let outcome = perform(experiment, &address, &CancellationToken::new()).await;
    assert_eq!(
        outcome.verdict,
        Verdict::Fail,
        "failed requests are a failure, stopped or not"
    );
    let error = outcome.error.unwrap();
    assert!(error.starts_with("abort condition: "), "{error}");
    assert_eq!(outcome.probes[1].verdict, Verdict::Stopped);
    assert!(outcome.probes[0].observed.contains("status 503"));
}

#[tokio::test]
async fn the_user_stops_it_and_nothing_is_claimed() {
    let (address, _) = server().await;
    let stop = CancellationToken::new();
    let token = stop.clone();
    let undone = Arc::new(AtomicBool::new(false));
    let flag = undone.clone();
    let experiment = script(definition(0.0), move |cx: &mut Context| {
        let (token, flag) = (token.clone(), flag.clone());
        Box::pin(async move {
            cx.undo("it", async move {
                flag.store(true, Ordering::SeqCst);
                Ok(())
            });
            token.cancel();
            std::future::pending().await
        })
    });
    let outcome = perform(experiment, &address, &stop).await;
    assert_eq!(outcome.verdict, Verdict::Stopped);
    assert!(undone.load(Ordering::SeqCst));
    assert_eq!(outcome.error.as_deref(), Some("stopped by the user"));
}

#[tokio::test(start_paused = true)]
async fn no_steady_state_means_fail_with_the_reason() {
    // Nothing listens there any more.
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let experiment = script(definition(0.0), |_: &mut Context| {
        Box::pin(async { panic!("must not run without a steady state") })
    });
    let outcome = perform(experiment, &address, &CancellationToken::new()).await;
    assert_eq!(outcome.verdict, Verdict::Fail);
    let error = outcome.error.unwrap();
    assert!(error.contains("steady state"), "{error}");
    assert!(
        error.contains(&format!("connecting to {address}")),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_abort_watch_needs_enough_requests_and_forgets_old_ones() {
    let recorder = Arc::new(Recorder::new());
    let fail = |count: usize| {
        for _ in 0..count {
            let failure = Some((Kind::Transport, "refused".to_owned()));
            recorder.record(Instant::now(), Duration::ZERO, "/", failure);
        }
    };
    let watched = recorder.clone();
    let watch = tokio::spawn(async move { abort_watch(&watched, Abort::default()).await });
    fail(9);
    tokio::time::advance(Duration::from_secs(6)).await;
    fail(9);
    // The clock is paused: this lets the watch look four times and takes no time.
    tokio::time::sleep(ABORT_EVERY * 4).await;
    assert!(
        !watch.is_finished(),
        "18 failures, but only 9 in the window"
    );
    fail(1);
    let why = watch.await.unwrap();
    assert_eq!(why, "abort condition: 10 of 10 requests failed within 5 s");
}
