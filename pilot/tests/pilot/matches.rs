//! Every kind of `http[].match`: which requests it takes and which it leaves to the next rule.

use super::harness::*;

/// A match, and what it makes of requests ([`Request::parse`]). Each case is a host of its own, `case-N.test`.
struct Case {
    what: &'static str,
    /// Items of `match`, in YAML's flow style.
    matches: &'static str,
    hits: &'static [&'static str],
    misses: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        what: "uri exact",
        matches: "{uri: {exact: /exact}}",
        hits: &[
            "GET /exact",
            "GET /exact?q=1",
            "POST /exact",
            "GET /exact h2",
            "GET /x/../exact",
        ],
        misses: &["GET /exact/", "GET /exactly", "GET /EXACT", "GET /"],
    },
    Case {
        what: "uri prefix",
        matches: "{uri: {prefix: /pre}}",
        hits: &["GET /pre", "GET /prefix", "GET /pre/x?y=1"],
        misses: &["GET /PRE", "GET /x/pre", "GET /pr"],
    },
    Case {
        what: "uri regex: the whole path, without the query",
        matches: "{uri: {regex: '/items/[0-9]+'}}",
        hits: &["GET /items/12", "GET /items/1?x=/y"],
        misses: &["GET /items/12/x", "GET /items/a", "GET /x/items/12"],
    },
    Case {
        what: "uri regex * stands for everything",
        matches: "{uri: {regex: '*'}}",
        hits: &["GET /", "POST /anything?at=all"],
        misses: &[],
    },
    Case {
        what: "uri exact, case ignored",
        matches: "{uri: {exact: /Exact}, ignoreUriCase: true}",
        hits: &["GET /exact", "GET /EXACT"],
        misses: &["GET /exact/x"],
    },
    Case {
        what: "uri prefix, case ignored",
        matches: "{uri: {prefix: /Pre}, ignoreUriCase: true}",
        hits: &["GET /pre", "GET /PREFIX"],
        misses: &["GET /x"],
    },
    Case {
        what: "ignoreUriCase means nothing for a regex",
        matches: "{uri: {regex: '/r[a-z]+'}, ignoreUriCase: true}",
        hits: &["GET /rab"],
        misses: &["GET /RAB"],
    },
    Case {
        what: "method exact",
        matches: "{method: {exact: PUT}}",
        hits: &["PUT /"],
        misses: &["GET /"],
    },
    Case {
        what: "method prefix",
        matches: "{method: {prefix: P}}",
        hits: &["PUT /", "POST /"],
        misses: &["GET /"],
    },
    Case {
        what: "method regex",
        matches: "{method: {regex: 'GET|HEAD'}}",
        hits: &["GET /"],
        misses: &["POST /"],
    },
    Case {
        what: "scheme",
        matches: "{scheme: {exact: http}}",
        hits: &["GET /", "GET / h2"],
        misses: &[],
    },
    Case {
        what: "another scheme",
        matches: "{scheme: {exact: https}}",
        hits: &[],
        misses: &["GET /"],
    },
    Case {
        what: "authority exact",
        matches: "{authority: {exact: a.case.test}}",
        hits: &["GET / host=a.case.test", "GET / host=a.case.test h2"],
        misses: &["GET / host=b.case.test", "GET / host=aa.case.test"],
    },
    Case {
        what: "authority prefix",
        matches: "{authority: {prefix: a}}",
        hits: &["GET / host=a.case.test", "GET / host=abc.case.test"],
        misses: &["GET / host=b.case.test"],
    },
    Case {
        what: "authority regex",
        matches: "{authority: {regex: '[ab]\\.case\\..*'}}",
        hits: &["GET / host=a.case.test", "GET / host=b.case.test"],
        misses: &["GET / host=c.case.test"],
    },
    Case {
        what: "header exact; names without case, values with",
        matches: "{headers: {X-User: {exact: Anna}}}",
        hits: &["GET / x-user=Anna", "GET / X-USER=Anna"],
        misses: &["GET /", "GET / x-user=anna", "GET / x-user=Anna2"],
    },
    Case {
        what: "header prefix",
        matches: "{headers: {x-user: {prefix: an}}}",
        hits: &["GET / x-user=anna"],
        misses: &["GET /", "GET / x-user=hannah"],
    },
    Case {
        what: "header regex: the whole value",
        matches: "{headers: {cookie: {regex: '^(.*?;)?(user=jason)(;.*)?$'}}}",
        hits: &["GET / cookie=user=jason", "GET / cookie=a=b;user=jason;c=d"],
        misses: &["GET / cookie=user=jasons", "GET / cookie=x", "GET /"],
    },
    Case {
        what: "header present",
        matches: "{headers: {x-any: {}}}",
        hits: &["GET / x-any=1"],
        misses: &["GET /"],
    },
    Case {
        what: "several headers: all of them",
        matches: "{headers: {x-a: {exact: '1'}, x-b: {exact: '2'}}}",
        hits: &["GET / x-b=2 x-a=1"],
        misses: &["GET / x-a=1", "GET / x-b=2", "GET / x-a=1 x-b=1"],
    },
    Case {
        what: "query parameter exact",
        matches: "{queryParams: {q: {exact: one}}}",
        hits: &["GET /?q=one", "GET /?a=b&q=one&c=d"],
        misses: &[
            "GET /",
            "GET /?q=two",
            "GET /?Q=one",
            "GET /?qq=one",
            "GET /?q=one2",
        ],
    },
    Case {
        what: "query parameter regex",
        matches: "{queryParams: {q: {regex: '[0-9]+'}}}",
        hits: &["GET /?q=12"],
        misses: &["GET /?q=a", "GET /?q=1a", "GET /"],
    },
    Case {
        what: "several query parameters: all of them",
        matches: "{queryParams: {q: {exact: '1'}, r: {exact: '2'}}}",
        hits: &["GET /?r=2&q=1"],
        misses: &["GET /?q=1", "GET /?r=2"],
    },
    Case {
        what: "everything in one match: all of it",
        matches: "{uri: {prefix: /a}, method: {exact: POST}, headers: {x-a: {exact: '1'}}, queryParams: {q: {exact: '1'}}}",
        hits: &["POST /ab?q=1 x-a=1"],
        misses: &[
            "GET /ab?q=1 x-a=1",
            "POST /b?q=1 x-a=1",
            "POST /ab?q=2 x-a=1",
            "POST /ab?q=1",
        ],
    },
    Case {
        what: "several matches: any of them",
        matches: "{uri: {exact: /a}}, {method: {exact: POST}}, {headers: {x-a: {}}}",
        hits: &["GET /a", "POST /b", "GET /b x-a=1"],
        misses: &["GET /b"],
    },
    Case {
        what: "labels that the client has",
        matches: "{sourceLabels: {app: client, version: v1}}",
        hits: &["GET /"],
        misses: &[],
    },
    Case {
        what: "labels that the client does not have",
        matches: "{sourceLabels: {app: client, version: v2}}",
        hits: &[],
        misses: &["GET /"],
    },
    Case {
        what: "labels of another, or a path",
        matches: "{sourceLabels: {app: other}}, {uri: {exact: /a}}",
        hits: &["GET /a"],
        misses: &["GET /b"],
    },
    Case {
        what: "the mesh among the gateways",
        matches: "{gateways: [edge, mesh], uri: {exact: /a}}",
        hits: &["GET /a"],
        misses: &["GET /b"],
    },
    Case {
        what: "another gateway only",
        matches: "{gateways: [edge]}",
        hits: &[],
        misses: &["GET /"],
    },
    Case {
        what: "with gateways, labels count for nothing",
        matches: "{gateways: [mesh], sourceLabels: {app: other}}",
        hits: &["GET /"],
        misses: &[],
    },
    Case {
        what: "the port that is called",
        matches: "{port: 80}",
        hits: &["GET /"],
        misses: &[],
    },
    Case {
        what: "another port",
        matches: "{port: 8081}",
        hits: &[],
        misses: &["GET /"],
    },
];

fn host(number: usize) -> String {
    format!("case-{number}.test")
}

fn rules(case: &Case, number: usize) -> String {
    // A host that takes more than one name, for matches of the authority.
    let hosts = if case.what.starts_with("authority") {
        format!("[{}, '*.case.test']", host(number))
    } else {
        format!("[{}]", host(number))
    };
    let gateways = if case.matches.contains("edge") {
        "  gateways: [mesh, edge]\n"
    } else {
        ""
    };
    let matches = case.matches;
    config(
        "VirtualService",
        &format!("case-{number}.shop"),
        &format!(
            "  hosts: {hosts}
{gateways}  http:
  - match: [{matches}]
    route: [{{destination: {{host: hit}}}}]
  - route: [{{destination: {{host: miss}}}}]"
        ),
    )
}

async fn check(client: &Envoy, case: &Case, number: usize) -> Vec<String> {
    let mut wrong = Vec::new();
    let expected = [("hit", case.hits), ("miss", case.misses)];
    for (body, requests) in expected {
        for line in requests {
            let request = Request::parse(line, &host(number));
            let answer = client.ask("10.96.0.1:80", request).await;
            if answer.as_ref().map(|a| a.body.as_str()) != Ok(body) {
                wrong.push(format!(
                    "{}: {line} should {body}, but: {answer:?}",
                    case.what
                ));
            }
        }
    }
    wrong
}

#[test]
fn every_match_takes_what_it_says() {
    isolated(async |net| {
        let (hit, miss) = (net.http("hit").await, net.http("miss").await);
        let service = |name: &str, vip: &str, backend: &Backend| {
            service(
                name,
                vip,
                "80 http HTTP, 8081 http-alt HTTP",
                &[backend.endpoint("")],
            )
        };
        let services =
            service("hit.shop", "10.96.0.1", &hit) + &service("miss.shop", "10.96.0.2", &miss);
        // All cases of one kind share a host name, so they come one after the other.
        let (authorities, others): (Vec<_>, Vec<_>) = CASES
            .iter()
            .enumerate()
            .partition(|(_, case)| case.what.starts_with("authority"));
        let cases: String = others
            .iter()
            .map(|(number, case)| rules(case, *number))
            .collect();
        let ports = virtual_service(
            "ports.shop",
            "hit.shop.svc.cluster.local",
            "  http:
  - match: [{port: 8081}]
    route: [{destination: {host: miss, port: {number: 80}}}]
  - route: [{destination: {host: hit, port: {number: 80}}}]",
        );
        let pilot = net
            .pilot()
            .start(|folder| {
                write(folder, "services", &services);
                write(folder, "cases", &(cases + &ports));
            })
            .await;
        let client = Proxy::sidecar("client-0.shop")
            .labels(serde_json::json!({"app": "client", "version": "v1"}))
            .bound()
            .start(net, &pilot)
            .await;

        let mut wrong = Vec::new();
        for (number, case) in others {
            wrong.extend(check(&client, case, number).await);
        }
        for (number, case) in authorities {
            pilot.write("cases", &rules(case, number));
            pilot.settle(&client).await;
            wrong.extend(check(&client, case, number).await);
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));

        // A match on the port, on a service that has two.
        pilot.write("cases", &ports);
        pilot.settle(&client).await;
        for (port, body) in [(80, "hit"), (8081, "miss")] {
            let to = format!("10.96.0.1:{port}");
            let answer = client
                .ask(&to, Request::get("/").host("hit"))
                .await
                .unwrap();
            assert_eq!(answer.body, body, "port {port}");
        }
        client.assert_nothing_rejected().await;
    });
}

#[test]
fn the_first_rule_that_matches_counts() {
    isolated(async |net| {
        let backend = net.http("backend").await;
        let rules = "  http:
  - match: [{uri: {prefix: /a/b}}]
    headers: {response: {add: {x-rule: first}}}
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /a}}]
    headers: {response: {add: {x-rule: second}}}
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /a/b/c}}, {uri: {exact: /d}}]
    headers: {response: {add: {x-rule: third}}}
    route: [{destination: {host: web}}]
  - headers: {response: {add: {x-rule: fourth}}}
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /e}}]
    headers: {response: {add: {x-rule: never}}}
    route: [{destination: {host: web}}]";
        let pilot = net
            .pilot()
            .start(|folder| {
                let web = service(
                    "web.shop",
                    "10.96.0.1",
                    "80 http HTTP",
                    &[backend.endpoint("")],
                );
                write(
                    folder,
                    "web",
                    &(web + &virtual_service("web.shop", "web", rules)),
                );
            })
            .await;
        let client = Proxy::sidecar("client-0.shop")
            .bound()
            .start(net, &pilot)
            .await;
        let rule = async |path: &str| {
            let request = Request::get(path).host("web.shop.svc.cluster.local");
            client
                .ask("10.96.0.1:80", request)
                .await
                .unwrap()
                .header("x-rule")
        };
        for (path, expected) in [
            ("/a/b/c", "first"),
            ("/a/x", "second"),
            ("/d", "third"),
            ("/e", "fourth"),
            ("/", "fourth"),
        ] {
            assert_eq!(rule(path).await, expected, "{path}");
        }
    });
}
