//! Which endpoint a request reaches: by hash, by the client's place, through another network's gateway; and how Ingresses
//! route. Told by who answers.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::harness::*;

const WEB: &str = "web.shop.svc.cluster.local";
const VIP: &str = "10.96.0.1:80";

fn get(path: &str) -> Request {
    Request::get(path).host(WEB)
}

/// Who answers, for each of these requests in turn.
async fn answers(client: &Envoy, requests: impl IntoIterator<Item = Request>) -> Vec<String> {
    let mut all = Vec::new();
    for request in requests {
        let answer = client.ask(VIP, request).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        all.push(answer.body);
    }
    all
}

fn distinct(answers: &[String]) -> BTreeSet<&str> {
    answers.iter().map(String::as_str).collect()
}

fn by_hash(key: &str) -> String {
    destination_rule(
        "web.shop",
        WEB,
        &format!("  trafficPolicy: {{loadBalancer: {{consistentHash: {key}}}}}"),
    )
}

#[test]
fn the_same_hash_reaches_the_same_endpoint() {
    isolated(async |net| {
        let mut backends = Vec::new();
        for name in ["a", "b", "c", "d"] {
            backends.push(net.http(name).await);
        }
        let endpoints: Vec<String> = backends.iter().map(|b| b.endpoint("")).collect();
        let pilot = net
            .pilot()
            .start(|folder| {
                let web = service("web.shop", "10.96.0.1", "80 http HTTP", &endpoints);
                write(folder, "web", &web);
                write(
                    folder,
                    "rule",
                    &by_hash("{httpHeaderName: x-user, minimumRingSize: 256}"),
                );
            })
            .await;
        let client = Proxy::sidecar("client-0.shop")
            .bound()
            .start(net, &pilot)
            .await;

        // By header: a user stays, users spread.
        let of_user = |user: usize| get("/").header("x-user", &format!("user-{user}"));
        for user in 0..3 {
            let same = answers(&client, (0..8).map(|_| of_user(user))).await;
            assert_eq!(distinct(&same).len(), 1, "user {user}: {same:?}");
        }
        let all = answers(&client, (0..60).map(of_user)).await;
        assert!(distinct(&all).len() >= 3, "{all:?}");

        // Without the header there is nothing to hash.
        let none = answers(&client, (0..40).map(|_| get("/"))).await;
        assert!(distinct(&none).len() >= 2, "{none:?}");

        // An endpoint that goes takes its users along. Of the others nearly all stay: the ring is made anew with as many
        // points as before, a few of which fall elsewhere.
        let rest = service("web.shop", "10.96.0.1", "80 http HTTP", &endpoints[..3]);
        pilot.write("web", &rest);
        pilot.settle(&client).await;
        let after = answers(&client, (0..60).map(of_user)).await;
        assert!(!distinct(&after).contains("d"));
        let others = || all.iter().zip(&after).filter(|(before, _)| *before != "d");
        let stayed = others().filter(|(before, after)| before == after).count();
        assert!(stayed * 3 > others().count() * 2, "{all:?} {after:?}");
        client.assert_nothing_rejected().await;
    });
}

#[test]
fn a_cookie_is_given_out_and_keeps_its_owner_where_he_is() {
    isolated(async |net| {
        let mut backends = Vec::new();
        for name in ["a", "b", "c"] {
            backends.push(net.http(name).await);
        }
        let endpoints: Vec<String> = backends.iter().map(|b| b.endpoint("")).collect();
        let pilot = net
            .pilot()
            .start(|folder| {
                let web = service("web.shop", "10.96.0.1", "80 http HTTP", &endpoints);
                write(folder, "web", &web);
                let cookie = "{httpCookie: {name: shop-user, path: /shop, ttl: 60s}}";
                write(folder, "rule", &by_hash(cookie));
            })
            .await;
        let client = Proxy::sidecar("client-0.shop")
            .bound()
            .start(net, &pilot)
            .await;
        let mut owners = BTreeMap::new();
        for _ in 0..30 {
            let first = client.ask(VIP, get("/")).await.unwrap();
            let given = first.header("set-cookie");
            assert!(given.starts_with("shop-user="), "{first:?}");
            assert!(
                given.contains("Max-Age=60") && given.contains("Path=/shop"),
                "{given}"
            );
            let cookie = given.split(';').next().unwrap().to_owned();
            owners.insert(cookie, first.body);
        }
        // Newcomers spread, and each comes back to the same.
        assert!(
            owners.values().collect::<BTreeSet<_>>().len() >= 2,
            "{owners:?}"
        );
        for (cookie, owner) in owners {
            let again = client
                .ask(VIP, get("/").header("cookie", &cookie))
                .await
                .unwrap();
            assert_eq!(
                (&again.body, again.header("set-cookie").as_str()),
                (&owner, "")
            );
        }
        client.assert_nothing_rejected().await;
    });
}

#[test]
fn connections_of_a_client_reach_the_same_endpoint() {
    isolated(async |net| {
        let mut backends = Vec::new();
        for name in ["a", "b", "c", "d"] {
            backends.push(net.tcp(name).await);
        }
        let endpoints: Vec<String> = backends.iter().map(|b| b.endpoint("")).collect();
        let pilot = net
            .pilot()
            .start(|folder| {
                let web = service("web.shop", "10.96.0.1", "80 tcp TCP", &endpoints);
                write(folder, "web", &web);
                write(folder, "rule", &by_hash("{useSourceIp: true}"));
            })
            .await;
        let client = Proxy::sidecar("client-0.shop")
            .bound()
            .start(net, &pilot)
            .await;
        let reached = async || -> BTreeSet<String> {
            let mut all = BTreeSet::new();
            for _ in 0..20 {
                let stream = client.connect(VIP).await.unwrap();
                let answer = line(stream, "x").await.unwrap();
                all.insert(answer.split(' ').next().unwrap().to_owned());
            }
            all
        };
        assert_eq!(reached().await.len(), 1);
        pilot.remove("rule");
        pilot.settle(&client).await;
        assert!(reached().await.len() > 1);
        client.assert_nothing_rejected().await;
    });
}

/// A service of endpoints with further fields: `(backend, "locality: eu/a, network: x")`.
fn placed(endpoints: &[(&Backend, &str)]) -> String {
    let lines: String = endpoints
        .iter()
        .map(|(backend, fields)| {
            let (ip, port) = (backend.address.ip(), backend.address.port());
            format!("  - {{address: {ip}, ports: {{http: {port}}}, {fields}}}\n")
        })
        .collect();
    config(
        "ServiceEntry",
        "web.shop",
        &format!(
            "  hosts: [{WEB}]\n  addresses: [10.96.0.1]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  ports: [{{number: 80, name: http, protocol: HTTP}}]\n  endpoints:\n{lines}"
        ),
    )
}

#[test]
fn traffic_moves_away_from_failing_neighbours_and_back() {
    isolated(async |net| {
        let (near, next, far) = (
            net.http("near").await,
            net.http("next").await,
            net.http("far").await,
        );
        let pilot = net
            .pilot()
            .mesh("localityLbSetting: {failover: [{from: eu, to: us}]}")
            .start(|folder| {
                let all = [
                    (&far, "locality: us/a"),
                    (&near, "locality: eu/a/1"),
                    (&next, "locality: eu/b"),
                ];
                write(folder, "web", &placed(&all));
                let outlier = "{consecutiveErrors: 1, interval: 0.1s, baseEjectionTime: 5s, maxEjectionPercent: 100}";
                let rule = format!("  trafficPolicy: {{outlierDetection: {outlier}}}");
                write(folder, "rule", &destination_rule("web.shop", WEB, &rule));
            })
            .await;
        let here = Proxy::sidecar("client-0.shop").bound().locality("eu/a/1");
        let client = here.start(net, &pilot).await;
        let there = Proxy::sidecar("client-1.shop").bound().locality("us/a");
        let stranger = there.start(net, &pilot).await;

        // Each has its own neighbours.
        let of = async |client: &Envoy| answers(client, (0..20).map(|_| get("/"))).await;
        assert_eq!(distinct(&of(&client).await), ["near"].into());
        assert_eq!(distinct(&of(&stranger).await), ["far"].into());

        let everything_from = async |name: &str| {
            until(name, async || {
                for _ in 0..5 {
                    let answer = client.ask(VIP, get("/")).await.ok()?;
                    if (answer.status, answer.body.as_str()) != (200, name) {
                        return None;
                    }
                }
                Some(())
            })
            .await;
        };
        // Ejections last well over the second for which Envoy gathers changes of health before its workers see them.
        near.script(|_| Answer::status(503));
        everything_from("next").await;
        next.script(|_| Answer::status(503));
        everything_from("far").await;
        next.script(|_| Answer::ok());
        near.script(|_| Answer::ok());
        everything_from("near").await;
        client.assert_nothing_rejected().await;
    });
}

#[test]
fn traffic_is_shared_between_places_as_the_mesh_says() {
    isolated(async |net| {
        let (a, b, c) = (
            net.http("a").await,
            net.http("b").await,
            net.http("c").await,
        );
        let share = |a: u32, b: u32| {
            let to = format!("{{\"eu/a\": {a}, \"eu/b\": {b}}}");
            format!("localityLbSetting: {{distribute: [{{from: eu/*, to: {to}}}]}}")
        };
        let pilot = net
            .pilot()
            .mesh(&share(75, 25))
            .start(|folder| {
                let all = [
                    (&a, "locality: eu/a"),
                    (&b, "locality: eu/b"),
                    (&c, "locality: us/a"),
                ];
                write(folder, "web", &placed(&all));
            })
            .await;
        let here = Proxy::sidecar("client-0.shop").bound().locality("eu/a");
        let client = here.start(net, &pilot).await;
        let count = async |name: &str| {
            let all = answers(&client, (0..200).map(|_| get("/"))).await;
            assert!(!distinct(&all).contains("c"), "no share was given to c");
            all.iter().filter(|answer| *answer == name).count()
        };
        let of_b = count("b").await;
        assert!((20..=80).contains(&of_b), "25 % of 200 requests: {of_b}");

        pilot.write_mesh(&share(1, 99));
        until("the shares are others", async || {
            (count("b").await > 170).then_some(())
        })
        .await;
        client.assert_nothing_rejected().await;
    });
}

#[test]
fn endpoints_of_another_network_are_reached_through_its_gateway() {
    isolated(async |net| {
        let (near, gateway) = (net.http("near").await, net.http("gateway").await);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("meshNetworks");
        let networks = |gateways: &str| {
            format!("networks: {{near: {{gateways: []}}, far: {{gateways: [{gateways}]}}}}\n")
        };
        let at_gateway = format!(
            "{{address: {}, port: {}}}",
            gateway.address.ip(),
            gateway.address.port()
        );
        std::fs::write(&file, networks(&at_gateway)).unwrap();
        let pilot = net
            .pilot()
            .arg(&format!("--networksConfig={}", file.display()))
            .start(|folder| {
                // Nobody is at this address: who connects to it is wrong.
                let remote = "  - {address: 192.0.2.1, ports: {http: 80}, network: far}\n";
                let all = format!(
                    "{}{remote}",
                    placed(&[(&near, "network: near")]).trim_end_matches("---\n")
                );
                write(folder, "web", &all);
            })
            .await;
        let start = async |name: &str, network: &str| {
            let proxy = Proxy::sidecar(name)
                .bound()
                .metadata("NETWORK", json!(network));
            proxy.start(net, &pilot).await
        };
        let inside = start("client-0.shop", "near").await;
        let outside = start("client-1.shop", "elsewhere").await;
        let of = async |client: &Envoy| answers(client, (0..40).map(|_| get("/"))).await;
        assert_eq!(distinct(&of(&inside).await), ["gateway", "near"].into());
        assert_eq!(distinct(&of(&outside).await), ["gateway"].into());

        // A gateway that goes takes its network out of reach; the file is followed.
        let partial = folder.path().join("partial");
        std::fs::write(&partial, networks("")).unwrap();
        std::fs::rename(&partial, &file).unwrap();
        until("only the near endpoint is left", async || {
            let all = of(&inside).await;
            (distinct(&all) == ["near"].into()).then_some(())
        })
        .await;
        inside.assert_nothing_rejected().await;
        outside.assert_nothing_rejected().await;
    });
}

#[test]
fn ingresses_route_at_the_gateway() {
    isolated(async |net| {
        let (web, cart) = (net.http("web").await, net.http("cart").await);
        let gateway = "  selector: {istio: ingressgateway}\n  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]";
        let ingress = "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: shop, namespace: shop, annotations: {kubernetes.io/ingress.class: istio}}
spec:
  rules:
  - host: shop.example.com
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}
      - {path: /cart, pathType: Prefix, backend: {service: {name: cart, port: {number: 80}}}}
";
        let pilot = net
            .pilot()
            .mesh("ingressControllerMode: STRICT")
            .start(|folder| {
                let service = |name: &str, backend: &Backend| {
                    service(name, "", "80 http HTTP", &[backend.endpoint("")])
                };
                write(folder, "web", &service("web.shop", &web));
                write(folder, "cart", &service("cart.shop", &cart));
                let name = "istio-autogenerated-k8s-ingress.istio-system";
                write(folder, "gateway", &config("Gateway", name, gateway));
                write(folder, "ingress", ingress);
            })
            .await;
        let router = Proxy::router("gateway-0.istio-system")
            .start(net, &pilot)
            .await;
        let at = (router.ip(), 80);
        let ask = async |host: &str, path: &str| {
            let answer = ask(at, Request::get(path).host(host)).await.unwrap();
            (answer.status, answer.body)
        };
        for (path, name) in [
            ("/", "web"),
            ("/cart", "cart"),
            ("/cart/1", "cart"),
            ("/carts", "web"),
        ] {
            assert_eq!(
                ask("shop.example.com", path).await,
                (200, name.to_owned()),
                "{path}"
            );
        }
        assert_eq!(ask("other.example.com", "/").await.0, 404);

        // Another controller's now.
        pilot.write("ingress", &ingress.replace("class: istio", "class: nginx"));
        pilot.settle(&router).await;
        assert_eq!(ask("shop.example.com", "/").await.0, 404);
        router.assert_nothing_rejected().await;
    });
}
