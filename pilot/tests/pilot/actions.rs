//! What `http[]` rules do with a request: rewrites, redirects, headers, mirrors, faults, CORS, weights.
//!
//! One Pilot and one Envoy for all of it: every rule is a path of one host.

use std::time::{Duration, Instant};

use super::harness::*;

const WEB: &str = "web.shop.svc.cluster.local";
const VIP: &str = "10.96.0.1:80";

/// One client, two backends behind `web` with the subsets v1 and v2, a third service `shadow`.
struct World {
    v1: Backend,
    v2: Backend,
    shadow: Backend,
    pilot: Pilot,
    client: Envoy,
}

impl World {
    /// `rules` are the items of `http`.
    async fn new(net: &Net, rules: &str) -> Self {
        let (v1, v2, shadow) = (
            net.http("v1").await,
            net.http("v2").await,
            net.http("shadow").await,
        );
        let endpoints = [v1.endpoint("version: v1"), v2.endpoint("version: v2")];
        let services = service("web.shop", "10.96.0.1", "80 http HTTP", &endpoints)
            + &service(
                "shadow.shop",
                "10.96.0.2",
                "80 http HTTP",
                &[shadow.endpoint("")],
            )
            + &destination_rule(
                "web.shop",
                "web",
                "  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]",
            );
        let pilot = net
            .pilot()
            .start(|folder| {
                write(folder, "services", &services);
                write(
                    folder,
                    "rules",
                    &virtual_service("web.shop", "web", &format!("  http:\n{rules}")),
                );
            })
            .await;
        let client = Proxy::sidecar("client-0.shop")
            .bound()
            .start(net, &pilot)
            .await;
        Self {
            v1,
            v2,
            shadow,
            pilot,
            client,
        }
    }

    async fn ask(&self, line: &str) -> Response {
        self.client
            .ask(VIP, Request::parse(line, WEB))
            .await
            .unwrap()
    }

    /// The answer, and what v1 saw of the request.
    async fn through_v1(&self, line: &str) -> (Response, Seen) {
        let answer = self.ask(line).await;
        let mut seen = self.v1.take();
        assert_eq!(seen.len(), 1, "{line}: {answer:?}");
        (answer, seen.remove(0))
    }
}

#[test]
fn rewrites_and_redirects() {
    isolated(async |net| {
        let v1 = "route: [{destination: {host: web, subset: v1}}]";
        let world = World::new(
            net,
            &format!(
                "  - match: [{{uri: {{prefix: /prefix}}}}]
    rewrite: {{uri: /new}}
    {v1}
  - match: [{{uri: {{exact: /exact}}}}]
    rewrite: {{uri: /new}}
    {v1}
  - match: [{{uri: {{regex: '/r[0-9]+'}}}}]
    rewrite: {{uri: /new}}
    {v1}
  - match: [{{uri: {{prefix: /strip/}}}}]
    rewrite: {{uri: /}}
    {v1}
  - match: [{{uri: {{prefix: /authority}}}}]
    rewrite: {{authority: new.example.com}}
    {v1}
  - match: [{{uri: {{prefix: /both}}}}]
    rewrite: {{uri: /new, authority: new.example.com}}
    {v1}
  - match: [{{uri: {{prefix: /to-all}}}}]
    redirect: {{uri: /else, authority: other.test, redirectCode: 308}}
  - match: [{{uri: {{prefix: /to-path}}}}]
    redirect: {{uri: /else, redirectCode: 302}}
  - match: [{{uri: {{prefix: /to-host}}}}]
    redirect: {{authority: other.test, redirectCode: 307}}
  - match: [{{uri: {{prefix: /to-303}}}}]
    redirect: {{uri: /else, redirectCode: 303}}
  - match: [{{uri: {{prefix: /to-301}}}}]
    redirect: {{uri: /else}}"
            ),
        )
        .await;
        for (line, path, authority) in [
            ("GET /prefix", "/new", WEB),
            ("GET /prefix/x?y=1", "/new/x?y=1", WEB),
            ("GET /prefixed", "/newed", WEB),
            ("GET /exact?y=1", "/new?y=1", WEB),
            ("GET /r12?y=1", "/new?y=1", WEB),
            ("GET /strip/a/b", "/a/b", WEB),
            ("GET /authority/x", "/authority/x", "new.example.com"),
            ("GET /both/x", "/new/x", "new.example.com"),
        ] {
            let (_, seen) = world.through_v1(line).await;
            assert_eq!(
                (seen.path.as_str(), seen.authority.as_str()),
                (path, authority),
                "{line}"
            );
        }
        for (line, status, location) in [
            ("GET /to-all/x", 308, "http://other.test/else"),
            (
                "GET /to-path/x",
                302,
                "http://web.shop.svc.cluster.local/else",
            ),
            ("GET /to-host/x?y=1", 307, "http://other.test/to-host/x?y=1"),
            (
                "POST /to-303",
                303,
                "http://web.shop.svc.cluster.local/else",
            ),
            ("GET /to-301", 301, "http://web.shop.svc.cluster.local/else"),
        ] {
            let answer = world.ask(line).await;
            assert_eq!(
                (answer.status, answer.header("location").as_str()),
                (status, location),
                "{line}"
            );
        }
        assert!(world.v1.take().is_empty() && world.v2.take().is_empty());
        world.client.assert_nothing_rejected().await;
    });
}

#[test]
fn header_operations() {
    isolated(async |net| {
        let world = World::new(
            net,
            "  - match: [{uri: {prefix: /rule}}]
    headers:
      request: {set: {x-set: '100% new', x-fresh: f}, add: {x-add: two}, remove: [x-gone]}
      response: {set: {x-set: new}, add: {x-add: two}, remove: [x-gone]}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /destination}}]
    route:
    - destination: {host: web, subset: v1}
      headers:
        request: {set: {x-set: new}, add: {x-add: two}, remove: [x-gone]}
        response: {set: {x-set: new}, add: {x-add: two}, remove: [x-gone]}
  - match: [{uri: {prefix: /host}}]
    headers: {request: {set: {Host: set.example.com}}}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /old-style}}]
    appendHeaders: {x-a: '1'}
    appendRequestHeaders: {x-b: '2'}
    removeRequestHeaders: [x-gone]
    appendResponseHeaders: {x-c: '3'}
    removeResponseHeaders: [x-gone]
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /each}}]
    headers: {response: {add: {x-rule: both}}}
    route:
    - {destination: {host: web, subset: v1}, weight: 50, headers: {response: {add: {x-from: v1}}, request: {add: {x-for: v1}}}}
    - {destination: {host: web, subset: v2}, weight: 50, headers: {response: {add: {x-from: v2}}, request: {add: {x-for: v2}}}}",
        )
        .await;
        let server = |_: &Seen| {
            let answer = Answer::ok().header("x-set", "old").header("x-add", "one");
            answer.header("x-gone", "here")
        };
        world.v1.script(server);
        for (path, set) in [("/rule", "100% new"), ("/destination", "new")] {
            let line = format!("GET {path} x-set=old x-add=one x-gone=here x-stays=1");
            let (answer, seen) = world.through_v1(&line).await;
            let of_request = ["x-set", "x-add", "x-gone", "x-stays"].map(|name| seen.header(name));
            assert_eq!(of_request, [set, "one,two", "", "1"], "{path}");
            let of_response = ["x-set", "x-add", "x-gone"].map(|name| answer.header(name));
            assert_eq!(of_response, ["new", "one,two", ""], "{path}");
        }
        assert_eq!(world.through_v1("GET /rule").await.1.header("x-fresh"), "f");
        assert_eq!(
            world.through_v1("GET /host").await.1.authority,
            "set.example.com"
        );
        let (answer, seen) = world.through_v1("GET /old-style x-gone=here").await;
        assert_eq!(
            ["x-a", "x-b", "x-gone"].map(|name| seen.header(name)),
            ["1", "2", ""]
        );
        assert_eq!(["x-c", "x-gone"].map(|name| answer.header(name)), ["3", ""]);

        world.v1.script(|_| Answer::ok());
        let mut hit = [0, 0];
        for _ in 0..40 {
            let answer = world.ask("GET /each").await;
            assert_eq!(answer.header("x-from"), answer.body);
            assert_eq!(answer.header("x-rule"), "both");
            hit[usize::from(answer.body == "v2")] += 1;
        }
        assert!(hit[0] > 0 && hit[1] > 0, "{hit:?}");
        for backend in [&world.v1, &world.v2] {
            assert!(
                backend
                    .take()
                    .iter()
                    .all(|seen| seen.header("x-for").starts_with('v'))
            );
        }
        world.client.assert_nothing_rejected().await;
    });
}

#[test]
fn mirrors_and_weights() {
    isolated(async |net| {
        let world = World::new(
            net,
            "  - match: [{uri: {prefix: /mirrored}}]
    mirror: {host: shadow}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /none}}]
    mirror: {host: shadow}
    mirrorPercent: 0
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /some}}]
    mirror: {host: shadow}
    mirrorPercent: 30
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /weights}}]
    route:
    - {destination: {host: web, subset: v1}, weight: 80}
    - {destination: {host: web, subset: v2}, weight: 20}
  - match: [{uri: {prefix: /all}}]
    route:
    - {destination: {host: web, subset: v1}, weight: 0}
    - {destination: {host: web, subset: v2}, weight: 100}",
        )
        .await;
        // A mirror gets the same request, marked as a copy; its answer goes nowhere.
        world.shadow.script(|_| Answer::status(500));
        let answer = world.ask("POST /mirrored/x?y=1 x-a=1").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "v1"));
        let copy = until("the copy", async || world.shadow.take().pop()).await;
        assert_eq!(
            (copy.method.as_str(), copy.path.as_str()),
            ("POST", "/mirrored/x?y=1")
        );
        assert_eq!(copy.authority, format!("{WEB}-shadow"));
        assert_eq!(copy.header("x-a"), "1");

        // Copies are made before the answer comes, so counting Envoy's own requests needs no waiting.
        let copies = "cluster.outbound|80||shadow.shop.svc.cluster.local.upstream_rq_total";
        let before = world.client.stat(copies).await;
        for _ in 0..20 {
            world.ask("GET /none").await;
        }
        assert_eq!(world.client.stat(copies).await, before);
        for _ in 0..200 {
            world.ask("GET /some").await;
        }
        // Six standard deviations.
        let some = world.client.stat(copies).await - before;
        assert!((21..=99).contains(&some), "30 % of 200 requests: {some}");

        world.v1.take();
        for _ in 0..200 {
            world.ask("GET /weights").await;
        }
        let counts = (world.v1.take().len(), world.v2.take().len());
        assert_eq!(counts.0 + counts.1, 200);
        assert!(
            (6..=74).contains(&counts.1),
            "20 % of 200 requests: {counts:?}"
        );
        for _ in 0..20 {
            assert_eq!(world.ask("GET /all").await.body, "v2");
        }

        // Weights are changed under way.
        world.pilot.write(
            "rules",
            &virtual_service(
                "web.shop",
                "web",
                "  http: [{route: [{destination: {host: web, subset: v2}}]}]",
            ),
        );
        world.pilot.settle(&world.client).await;
        for _ in 0..20 {
            assert_eq!(world.ask("GET /weights").await.body, "v2");
        }
        world.client.assert_nothing_rejected().await;
    });
}

#[test]
fn faults() {
    isolated(async |net| {
        let world = World::new(
            net,
            "  - match: [{uri: {prefix: /late}}]
    fault: {delay: {fixedDelay: 0.3s, percentage: {value: 100}}}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /aborted}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /half}}]
    fault: {abort: {httpStatus: 503, percentage: {value: 50}}}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /old-percent}}]
    fault: {abort: {httpStatus: 418, percent: 100}}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /never}}]
    fault: {abort: {httpStatus: 418}, delay: {fixedDelay: 100s, percentage: {value: 0}}}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /both}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}, delay: {fixedDelay: 0.3s, percentage: {value: 100}}}
    route: [{destination: {host: web, subset: v1}}]
  - fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: web, subset: v1}}]
  - route: [{destination: {host: web, subset: v1}}]",
        )
        .await;
        // Envoy counts the delays. Its timers start from a time read a little earlier, so only half of one is asked for.
        let delays = "http.outbound_127.0.0.1_80.fault.delays_injected";
        for (line, status, counted) in [("GET /late", 200, 1), ("GET /both", 418, 2)] {
            let begun = Instant::now();
            assert_eq!(world.ask(line).await.status, status, "{line}");
            assert!(begun.elapsed() >= Duration::from_millis(150), "{line}");
            assert_eq!(world.client.stat(delays).await, counted, "{line}");
        }
        for (line, status) in [
            ("GET /aborted", 418),
            ("GET /old-percent", 418),
            ("GET /never", 200),
            ("GET / end-user=jason", 418),
            ("GET / end-user=anna", 200),
        ] {
            assert_eq!(world.ask(line).await.status, status, "{line}");
        }
        assert_eq!(world.client.stat(delays).await, 2);
        world.v1.take();
        let mut aborted = 0;
        for _ in 0..200 {
            aborted += usize::from(world.ask("GET /half").await.status == 503);
        }
        assert!(
            (58..=142).contains(&aborted),
            "50 % of 200 requests: {aborted}"
        );
        // An abort is no answer of the service: it is not retried, and nothing reaches the service.
        assert_eq!(world.v1.take().len(), 200 - aborted);
        world.client.assert_nothing_rejected().await;
    });
}

#[test]
fn cors() {
    isolated(async |net| {
        let world = World::new(
            net,
            "  - match: [{uri: {prefix: /api}}]
    corsPolicy:
      allowOrigin: ['https://a.test', 'https://b.test']
      allowMethods: [GET, PUT]
      allowHeaders: [x-a, x-b]
      exposeHeaders: [x-c]
      maxAge: 24h
      allowCredentials: true
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /any}}]
    corsPolicy: {allowOrigin: ['*']}
    route: [{destination: {host: web, subset: v1}}]
  - route: [{destination: {host: web, subset: v1}}]",
        )
        .await;
        let allowed = [
            "access-control-allow-origin",
            "access-control-allow-methods",
            "access-control-allow-headers",
            "access-control-max-age",
            "access-control-allow-credentials",
        ];
        // A preflight is answered by Envoy itself.
        let preflight = "OPTIONS /api origin=https://b.test access-control-request-method=PUT";
        let answer = world.ask(preflight).await;
        assert_eq!(answer.status, 200);
        assert_eq!(
            allowed.map(|name| answer.header(name)),
            ["https://b.test", "GET,PUT", "x-a,x-b", "86400", "true"]
        );
        assert!(world.v1.take().is_empty());
        // A foreign origin gets no permission, whoever answers.
        let answer = world.ask(&preflight.replace("b.test", "c.test")).await;
        assert_eq!(answer.header(allowed[0]), "");
        world.v1.take();
        // The request itself.
        for (line, origin) in [
            ("GET /api origin=https://a.test", "https://a.test"),
            ("GET /api origin=https://c.test", ""),
            ("GET /any origin=https://c.test", "https://c.test"),
            ("GET / origin=https://a.test", ""),
        ] {
            let (answer, _) = world.through_v1(line).await;
            assert_eq!(answer.header(allowed[0]), origin, "{line}");
        }
        let (answer, _) = world.through_v1("GET /api origin=https://a.test").await;
        assert_eq!(answer.header("access-control-expose-headers"), "x-c");
        world.client.assert_nothing_rejected().await;
    });
}
