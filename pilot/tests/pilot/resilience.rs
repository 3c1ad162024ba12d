//! Time-outs, retries, connection pools, outlier ejection: told by what the server sees.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use super::harness::*;

const WEB: &str = "web.shop.svc.cluster.local";
const VIP: &str = "10.96.0.1:80";
const NEVER: Duration = Duration::from_secs(600);

/// The first `times` answers are `bad`, then it is well.
fn at_first(times: usize, bad: Answer) -> impl Fn(&Seen) -> Answer {
    let seen = AtomicUsize::new(0);
    move |_| {
        if seen.fetch_add(1, Ordering::Relaxed) < times {
            bad.clone()
        } else {
            Answer::ok()
        }
    }
}

/// A path of the rules below, what the server does, and what is to come of it.
struct Case {
    what: &'static str,
    path: &'static str,
    server: (usize, fn() -> Answer),
    status: u16,
    /// How often the server is asked.
    tries: usize,
}

const RULES: &str = "  http:
  - match: [{uri: {prefix: /timeout}}]
    timeout: 0.2s
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /never}}]
    retries: {attempts: 0}
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /three}}]
    retries: {attempts: 3}
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /five-hundreds}}]
    retries: {attempts: 3, retryOn: 5xx}
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /gateway-errors}}]
    retries: {attempts: 2, retryOn: gateway-error}
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /codes}}]
    retries: {attempts: 2, retryOn: 'retriable-status-codes,418,429'}
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /bare-code}}]
    retries: {attempts: 2, retryOn: '418'}
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /reset}}]
    retries: {attempts: 2, retryOn: reset}
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /patience}}]
    retries: {attempts: 2, perTryTimeout: 0.2s, retryOn: gateway-error}
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /whole-timeout}}]
    timeout: 0.3s
    retries: {attempts: 1000, perTryTimeout: 10s, retryOn: 5xx}
    route: [{destination: {host: web}}]
  - route: [{destination: {host: web}}]";

const CASES: &[Case] = &[
    Case {
        what: "a timeout",
        path: "/timeout",
        server: (1, || Answer::ok().after(NEVER)),
        status: 504,
        tries: 1,
    },
    Case {
        what: "no timeout",
        path: "/",
        server: (1, || Answer::ok().after(Duration::from_millis(500))),
        status: 200,
        tries: 1,
    },
    Case {
        what: "503 is retried twice by default",
        path: "/",
        server: (9, || Answer::status(503)),
        status: 503,
        tries: 3,
    },
    Case {
        what: "and the second may do",
        path: "/",
        server: (1, || Answer::status(503)),
        status: 200,
        tries: 2,
    },
    Case {
        what: "500 is not, by default",
        path: "/",
        server: (9, || Answer::status(500)),
        status: 500,
        tries: 1,
    },
    Case {
        what: "a broken connection is not either: the server may have begun",
        path: "/",
        server: (9, Answer::close),
        status: 503,
        tries: 1,
    },
    Case {
        what: "no attempts",
        path: "/never",
        server: (9, || Answer::status(503)),
        status: 503,
        tries: 1,
    },
    Case {
        what: "three attempts of the default kind",
        path: "/three",
        server: (9, || Answer::status(503)),
        status: 503,
        tries: 4,
    },
    Case {
        what: "5xx",
        path: "/five-hundreds",
        server: (2, || Answer::status(500)),
        status: 200,
        tries: 3,
    },
    Case {
        what: "5xx takes a broken connection too",
        path: "/five-hundreds",
        server: (1, Answer::close),
        status: 200,
        tries: 2,
    },
    Case {
        what: "gateway-error",
        path: "/gateway-errors",
        server: (9, || Answer::status(502)),
        status: 502,
        tries: 3,
    },
    Case {
        what: "gateway-error does not take 500",
        path: "/gateway-errors",
        server: (9, || Answer::status(500)),
        status: 500,
        tries: 1,
    },
    Case {
        what: "codes",
        path: "/codes",
        server: (9, || Answer::status(429)),
        status: 429,
        tries: 3,
    },
    Case {
        what: "codes replace the default 503",
        path: "/codes",
        server: (9, || Answer::status(503)),
        status: 503,
        tries: 1,
    },
    Case {
        what: "a code without retriable-status-codes",
        path: "/bare-code",
        server: (9, || Answer::status(418)),
        status: 418,
        tries: 1,
    },
    Case {
        what: "reset",
        path: "/reset",
        server: (1, Answer::close),
        status: 200,
        tries: 2,
    },
    Case {
        what: "a timeout of each try",
        path: "/patience",
        server: (1, || Answer::ok().after(NEVER)),
        status: 200,
        tries: 2,
    },
    Case {
        what: "of every try",
        path: "/patience",
        server: (9, || Answer::ok().after(NEVER)),
        status: 504,
        tries: 3,
    },
    Case {
        what: "the whole request has a timeout too",
        path: "/whole-timeout",
        server: (9, || Answer::ok().after(NEVER)),
        status: 504,
        tries: 1,
    },
];

#[test]
fn timeouts_and_retries() {
    isolated(async |net| {
        let web = net.http("web").await;
        let pilot = net
            .pilot()
            .start(|folder| {
                let services =
                    service("web.shop", "10.96.0.1", "80 http HTTP", &[web.endpoint("")]);
                write(
                    folder,
                    "web",
                    &(services + &virtual_service("web.shop", "web", RULES)),
                );
            })
            .await;
        let client = Proxy::sidecar("client-0.shop")
            .bound()
            .start(net, &pilot)
            .await;
        let mut wrong = Vec::new();
        for Case {
            what,
            path,
            server: (times, bad),
            status,
            tries,
        } in CASES
        {
            web.script(at_first(*times, bad()));
            let answer = client.ask(VIP, Request::get(path).host(WEB)).await.unwrap();
            let got = (answer.status, web.take().len());
            if got != (*status, *tries) {
                wrong.push(format!(
                    "{what}: {status} after {tries} tries expected, got {got:?}"
                ));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        client.assert_nothing_rejected().await;
    });
}

/// One slow server, a pool of one connection and one waiting request: whoever comes third is refused.
#[test]
fn a_full_pool_refuses() {
    isolated(async |net| {
        let web = net.http("web").await;
        let pool = "  trafficPolicy:
    connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}";
        let pilot = net
            .pilot()
            .start(|folder| {
                let services =
                    service("web.shop", "10.96.0.1", "80 http HTTP", &[web.endpoint("")]);
                write(
                    folder,
                    "web",
                    &(services + &destination_rule("web.shop", "web", pool)),
                );
            })
            .await;
        let client = Proxy::sidecar("client-0.shop")
            .bound()
            .start(net, &pilot)
            .await;
        web.script(|_| Answer::ok().after(NEVER));
        let connect = async || client.connect(VIP).await.unwrap();
        let request = || Request::get("/").host(WEB);
        let cluster = format!("cluster.outbound|80||{WEB}");
        let first = tokio::spawn(send(connect().await, request()));
        until("the first is with the server", async || {
            (client.stat(&format!("{cluster}.upstream_rq_active")).await == 1).then_some(())
        })
        .await;
        let second = tokio::spawn(send(connect().await, request()));
        until("the second waits", async || {
            (client
                .stat(&format!("{cluster}.upstream_rq_pending_active"))
                .await
                == 1)
                .then_some(())
        })
        .await;
        let third = send(connect().await, request()).await.unwrap();
        assert_eq!(third.status, 503);
        assert_eq!(third.header("x-envoy-overloaded"), "true");
        assert!(
            client
                .stat(&format!("{cluster}.upstream_rq_pending_overflow"))
                .await
                >= 1
        );
        assert_eq!(web.connections(), 1);
        first.abort();
        second.abort();
    });
}

#[test]
fn a_failing_endpoint_is_ejected() {
    isolated(async |net| {
        let (good, bad) = (net.http("good").await, net.http("bad").await);
        bad.script(|_| Answer::status(503));
        let policy = "  trafficPolicy:
    outlierDetection: {consecutiveErrors: 3, interval: 1s, baseEjectionTime: 10m, maxEjectionPercent: 100}";
        let once = "  http: [{retries: {attempts: 0}, route: [{destination: {host: web}}]}]";
        let pilot = net
            .pilot()
            .start(|folder| {
                let endpoints = [good.endpoint(""), bad.endpoint("")];
                let services = service("web.shop", "10.96.0.1", "80 http HTTP", &endpoints);
                let rules = destination_rule("web.shop", "web", policy)
                    + &virtual_service("web.shop", "web", once);
                write(folder, "web", &(services + &rules));
            })
            .await;
        let client = Proxy::sidecar("client-0.shop")
            .bound()
            .start(net, &pilot)
            .await;
        let status = async || {
            let answer = client.ask(VIP, Request::get("/").host(WEB)).await;
            answer.unwrap().status
        };
        // Envoy's main thread ejects what a worker complains of; until then requests still come.
        let active = format!("cluster.outbound|80||{WEB}.outlier_detection.ejections_active");
        until("the bad one is ejected", async || {
            status().await;
            (client.stat(&active).await == 1).then_some(())
        })
        .await;
        assert!(bad.take().len() >= 3, "not before the third failure");
        until("the worker knows it", async || {
            let answers = [status().await, status().await];
            (answers == [200, 200]).then_some(())
        })
        .await;
        bad.take();
        for _ in 0..20 {
            assert_eq!(status().await, 200);
        }
        assert!(bad.take().is_empty(), "an ejected endpoint gets nothing");
    });
}

/// Config that cannot be fulfilled fails requests of its own host only.
#[test]
fn a_destination_that_is_not_there_gives_503() {
    isolated(async |net| {
        let web = net.http("web").await;
        let pilot = net
            .pilot()
            .start(|folder| {
                let services =
                    service("web.shop", "10.96.0.1", "80 http HTTP", &[web.endpoint("")]);
                let to = |name: &str, destination: &str| {
                    virtual_service(
                        &format!("{name}.shop"),
                        &format!("{name}.test"),
                        &format!("  http: [{{route: [{{destination: {{{destination}}}}}]}}]"),
                    )
                };
                let rules = to("a", "host: unknown")
                    + &to("b", "host: web, subset: unknown")
                    + &to("c", "host: web, port: {number: 81}")
                    + &to("d", "host: web");
                write(folder, "web", &(services + &rules));
            })
            .await;
        let client = Proxy::sidecar("client-0.shop")
            .bound()
            .start(net, &pilot)
            .await;
        for (host, status) in [
            ("a.test", 503),
            ("b.test", 503),
            ("c.test", 503),
            ("d.test", 200),
        ] {
            let answer = client.ask(VIP, Request::get("/").host(host)).await.unwrap();
            assert_eq!(answer.status, status, "{host}");
        }
        client.assert_nothing_rejected().await;
    });
}
