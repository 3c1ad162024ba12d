//! Whatever users write, in whatever combination: names and domains stay unique, and Envoy takes the result.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Arc,
};

use pilot_generate::{ChangeSet, Inputs, Report, Scope, Snapshot, generate};
use prost::Message;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::{
    envoy::Envoy,
    fixture::{Fixture, Output},
};

const NAMESPACES: [&str; 3] = ["shop", "infra", "istio-system"];
const PORTS: [(u32, &str); 14] = [
    (80, "http"),
    (80, "http-web"),
    (443, "https"),
    (443, "http"),
    (8080, "web"),
    (8080, "tcp-x"),
    (9080, "http"),
    (9080, "grpc"),
    (3306, "mysql"),
    (27017, "mongo"),
    (6379, "redis"),
    (53, "udp"),
    (15001, "http"),
    (9090, "tls"),
];
const HOSTS: [&str; 16] = [
    "a",
    "b",
    "A",
    "a.shop.svc.cluster.local",
    "b.infra.svc.cluster.local",
    "*.shop.svc.cluster.local",
    "*",
    "*.com",
    "api.example.com",
    "a.infra",
    "bad host",
    "",
    "x..y",
    "10.0.0.1",
    "a.shop",
    "%.com",
];
const TEXTS: [&str; 14] = [
    "/",
    "",
    "/api",
    "*",
    "/a.*",
    "(",
    "(?=x)",
    "a**",
    "v1",
    "100%",
    "a\\nb",
    "x y",
    "[a-z]{1,99999}",
    "(a|b){200}",
];

fn one<'a>(rng: &mut StdRng, list: &[&'a str]) -> &'a str {
    list.choose(rng).unwrap()
}

fn matcher(rng: &mut StdRng) -> String {
    let kind = one(rng, &["exact", "prefix", "regex"]);
    if rng.random_bool(0.1) {
        "{}".to_owned()
    } else {
        format!("{{{kind}: \"{}\"}}", one(rng, &TEXTS))
    }
}

fn destination(rng: &mut StdRng) -> String {
    let port = [0, 80, 9080, 70000].choose(rng).unwrap();
    format!(
        "{{host: \"{}\", subset: \"{}\", port: {{number: {port}}}}}",
        one(rng, &HOSTS),
        one(rng, &["", "v1", "v2", "no|pe"])
    )
}

fn headers(rng: &mut StdRng) -> String {
    let name = one(rng, &["x-a", "Host", ":path", "a b", "x-b"]);
    let value = one(rng, &["1", "50%", "%REQ(x)%", "a\\nb", ""]);
    format!(
        "{{request: {{set: {{\"{name}\": \"{value}\"}}, remove: [\"{name}\"]}}, response: {{add: {{\"{name}\": \"{value}\"}}}}}}"
    )
}

fn rule(rng: &mut StdRng) -> String {
    let mut out = String::from("  - {");
    if rng.random_bool(0.7) {
        let list: Vec<String> = (0..rng.random_range(1..3))
            .map(|_| {
                let mut m = vec![format!("uri: {}", matcher(rng))];
                if rng.random_bool(0.4) {
                    m.push(format!(
                        "headers: {{\"{}\": {}}}",
                        one(rng, &["x-user", "", "a b", "cookie"]),
                        matcher(rng)
                    ));
                }
                if rng.random_bool(0.3) {
                    m.push(format!(
                        "method: {}, authority: {}",
                        matcher(rng),
                        matcher(rng)
                    ));
                }
                if rng.random_bool(0.3) {
                    m.push(format!(
                        "queryParams: {{\"{}\": {}}}",
                        one(rng, &["q", ""]),
                        matcher(rng)
                    ));
                }
                if rng.random_bool(0.2) {
                    m.push(format!(
                        "gateways: [\"{}\"], port: {}",
                        one(rng, &["mesh", "gw", "infra/gw"]),
                        one(rng, &["80", "9080"])
                    ));
                }
                if rng.random_bool(0.2) {
                    m.push("sourceLabels: {app: a}, ignoreUriCase: true".to_owned());
                }
                format!("{{{}}}", m.join(", "))
            })
            .collect();
        let _ = write!(out, "match: [{}], ", list.join(", "));
    }
    if rng.random_bool(0.15) {
        let _ = write!(
            out,
            "redirect: {{uri: \"{}\", authority: \"{}\", redirectCode: {}}}",
            one(rng, &TEXTS),
            one(rng, &HOSTS),
            one(rng, &["0", "302", "999"])
        );
    } else {
        let routes: Vec<String> = (0..rng.random_range(0..4))
            .map(|_| {
                let weight = ["0", "20", "80", "-5", "150", "2147483647"]
                    .choose(rng)
                    .unwrap();
                format!(
                    "{{destination: {}, weight: {weight}, headers: {}}}",
                    destination(rng),
                    headers(rng)
                )
            })
            .collect();
        let _ = write!(out, "route: [{}]", routes.join(", "));
        if rng.random_bool(0.3) {
            let _ = write!(
                out,
                ", rewrite: {{uri: \"{}\", authority: \"{}\"}}",
                one(rng, &TEXTS),
                one(rng, &HOSTS)
            );
        }
        if rng.random_bool(0.3) {
            let timeout = one(rng, &["2s", "0s", "-1s", "9000000h"]);
            let _ = write!(
                out,
                ", timeout: {timeout}, retries: {{attempts: {}, perTryTimeout: {timeout}, retryOn: \"{}\"}}",
                one(rng, &["0", "3", "-1", "2000000000"]),
                one(rng, &["5xx,503", "", "foo", "99999"])
            );
        }
        if rng.random_bool(0.3) {
            let percent = one(rng, &["0", "50", "0.0001", "101", "-1"]);
            let _ = write!(
                out,
                ", fault: {{delay: {{fixedDelay: {}, percentage: {{value: {percent}}}}}, abort: {{httpStatus: {}, percentage: {{value: {percent}}}}}}}",
                one(rng, &["5s", "0s", "-1s"]),
                one(rng, &["503", "42", "700"])
            );
        }
        if rng.random_bool(0.2) {
            let _ = write!(
                out,
                ", mirror: {}, mirrorPercent: {}",
                destination(rng),
                one(rng, &["0", "10", "150"])
            );
        }
        if rng.random_bool(0.2) {
            let _ = write!(
                out,
                ", corsPolicy: {{allowOrigin: [\"*\", \"{}\"], allowMethods: [GET, \"{}\"], maxAge: {}}}",
                one(rng, &TEXTS),
                one(rng, &TEXTS),
                one(rng, &["24h", "-1s"])
            );
        }
        let _ = write!(out, ", headers: {}", headers(rng));
    }
    out.push_str("}\n");
    out
}

fn policy(rng: &mut StdRng) -> String {
    let number = |rng: &mut StdRng| *["0", "1", "100", "-1", "2147483647"].choose(rng).unwrap();
    let time = |rng: &mut StdRng| {
        *["0s", "1s", "-3s", "1h", "9000000h", "10us"]
            .choose(rng)
            .unwrap()
    };
    let mut parts = Vec::new();
    if rng.random_bool(0.5) {
        parts.push(format!(
            "loadBalancer: {}",
            one(
                rng,
                &[
                    "{simple: RANDOM}",
                    "{simple: PASSTHROUGH}",
                    "{consistentHash: {httpHeaderName: x-user}}",
                    "{consistentHash: {httpHeaderName: \"a b\"}}",
                    "{consistentHash: {httpCookie: {name: c, ttl: -1s}}}",
                    "{consistentHash: {useSourceIp: true, minimumRingSize: 99999999999}}",
                    "{simple: LEAST_CONN}",
                    "{}",
                ]
            )
        ));
    }
    if rng.random_bool(0.5) {
        parts.push(format!(
            "connectionPool: {{tcp: {{maxConnections: {}, connectTimeout: {}, tcpKeepalive: {{time: {}, probes: 3}}}}, http: {{http1MaxPendingRequests: {}, maxRequestsPerConnection: {}, idleTimeout: {}}}}}",
            number(rng), time(rng), time(rng), number(rng), number(rng), time(rng)
        ));
    }
    if rng.random_bool(0.5) {
        parts.push(format!(
            "outlierDetection: {{consecutiveErrors: {}, interval: {}, baseEjectionTime: {}, maxEjectionPercent: {}, minHealthPercent: {}}}",
            number(rng), time(rng), time(rng), number(rng), number(rng)
        ));
    }
    if rng.random_bool(0.2) {
        parts.push(format!(
            "tls: {{mode: {}, sni: \"{}\"}}",
            one(rng, &["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"]),
            one(rng, &["", "x"])
        ));
    }
    format!("{{{}}}", parts.join(", "))
}

/// A world of services, entries, rules and gateways, none of which anybody checked.
fn world(seed: u64, router: bool) -> String {
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut out = String::new();
    for i in 0..rng.random_range(2..8) {
        let (namespace, name) = (one(rng, &NAMESPACES), one(rng, &["a", "b", "c", "com"]));
        let ip = *["None", "10.96.0.1", "10.96.0.2", "fd00::7", ""]
            .choose(rng)
            .unwrap();
        let mut ports: BTreeMap<(u32, bool), &str> = BTreeMap::new();
        for _ in 0..rng.random_range(1..4) {
            let (number, name) = PORTS.choose(rng).unwrap();
            ports.insert((*number, *name == "udp"), name);
        }
        let list: Vec<String> = ports
            .iter()
            .map(|((n, udp), name)| {
                format!(
                    "{{port: {n}, name: {name}, protocol: {}}}",
                    if *udp { "UDP" } else { "TCP" }
                )
            })
            .collect();
        let _ = write!(
            out,
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}, creationTimestamp: \"2020-01-0{}T00:00:00Z\"}}\nspec: {{clusterIP: \"{ip}\", selector: {{app: a}}, ports: [{}]}}\n---\n",
            i + 1,
            list.join(", ")
        );
        let subsets: Vec<String> = ports.values().map(|p| format!("{{addresses: [{{ip: 10.0.0.{}}}, {{ip: 10.0.0.9}}], ports: [{{name: {p}, port: 8080}}]}}", i + 1)).collect();
        let _ = write!(
            out,
            "apiVersion: v1\nkind: Endpoints\nmetadata: {{name: {name}, namespace: {namespace}}}\nsubsets: [{}]\n---\n",
            subsets.join(", ")
        );
    }
    let object = |kind: &str, namespace: &str, name: String, spec: String| {
        format!(
            "apiVersion: networking.istio.io/v1alpha3\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n{spec}---\n"
        )
    };
    for i in 0..rng.random_range(0..4) {
        let addresses = one(
            rng,
            &[
                "",
                "10.96.0.1",
                "10.0.0.0/8",
                "nonsense",
                "0.0.0.0/0",
                "10.0.0.0/8\", \"10.0.0.0/16",
            ],
        );
        let addresses = if addresses.is_empty() {
            String::new()
        } else {
            format!("\"{addresses}\"")
        };
        let (number, _) = PORTS.choose(rng).unwrap();
        let spec = format!(
            "  hosts: [\"{}\", \"{}\"]\n  addresses: [{addresses}]\n  ports: [{{number: {number}, name: p, protocol: {}}}, {{number: 443, name: q, protocol: {}}}]\n  resolution: {}\n  location: MESH_EXTERNAL\n  endpoints: {}\n",
            one(rng, &HOSTS),
            one(rng, &HOSTS),
            one(rng, &["HTTP", "TCP", "TLS", "", "GRPC", "MONGO"]),
            one(rng, &["HTTPS", "TLS", "HTTP"]),
            one(rng, &["NONE", "STATIC", "DNS"]),
            one(
                rng,
                &[
                    "[]",
                    "[{address: 1.2.3.4, weight: 4000000000}]",
                    "[{address: \"unix:///x\"}]",
                    "[{address: nope, ports: {p: 99999}}]",
                    "[{address: x.example.com}, {address: 1.1.1.1}]"
                ]
            ),
        );
        out.push_str(&object(
            "ServiceEntry",
            one(rng, &NAMESPACES),
            format!("se{i}"),
            spec,
        ));
    }
    for i in 0..rng.random_range(0..6) {
        let rules: String = (0..rng.random_range(0..4)).map(|_| rule(rng)).collect();
        let l4 = format!(
            "  tcp:\n  - {{match: [{{port: {}, destinationSubnets: [{}]}}], route: [{{destination: {}, weight: {}}}, {{destination: {}, weight: 50}}]}}\n  tls:\n  - {{match: [{{sniHosts: [\"{}\", \"{}\"], port: 443}}], route: [{{destination: {}}}]}}\n",
            one(rng, &["80", "9080", "3306"]),
            one(
                rng,
                &[
                    "",
                    "\"10.0.0.0/8\"",
                    "\"10.1.0.0/8\", \"10.0.0.0/8\"",
                    "\"x\""
                ]
            ),
            destination(rng),
            one(rng, &["50", "0", "-1"]),
            destination(rng),
            one(rng, &HOSTS),
            one(rng, &HOSTS),
            destination(rng),
        );
        let spec = format!(
            "  hosts: [\"{}\", \"{}\"]\n  gateways: [{}]\n  http:{}{}",
            one(rng, &HOSTS),
            one(rng, &HOSTS),
            one(rng, &["", "mesh", "mesh, gw", "infra/gw", "mesh, infra/gw"]),
            if rules.is_empty() {
                " []\n".to_owned()
            } else {
                format!("\n{rules}")
            },
            if rng.random_bool(0.4) {
                l4
            } else {
                String::new()
            },
        );
        out.push_str(&object(
            "VirtualService",
            one(rng, &NAMESPACES),
            format!("vs{i}"),
            spec,
        ));
    }
    for i in 0..rng.random_range(0..6) {
        let subsets: Vec<String> = (0..rng.random_range(0..3))
            .map(|_| {
                format!(
                    "{{name: \"{}\", labels: {{version: v1}}, trafficPolicy: {}}}",
                    one(rng, &["v1", "v2", "", "x|y"]),
                    policy(rng)
                )
            })
            .collect();
        let spec = format!(
            "  host: \"{}\"\n  trafficPolicy: {}\n  subsets: [{}]\n",
            one(rng, &HOSTS),
            policy(rng),
            subsets.join(", ")
        );
        out.push_str(&object(
            "DestinationRule",
            one(rng, &NAMESPACES),
            format!("dr{i}"),
            spec,
        ));
    }
    for i in 0..rng.random_range(0..3) {
        let server = |rng: &mut StdRng| {
            format!(
                "{{port: {{number: {}, name: p, protocol: {}}}, hosts: [\"{}\", \"{}\"]{}}}",
                one(rng, &["80", "443", "9080", "15090", "0"]),
                one(rng, &["HTTP", "HTTPS", "TCP", "TLS", "GRPC", "x"]),
                one(rng, &HOSTS),
                one(rng, &["*", "shop/*", "./a.shop", "*.com"]),
                one(
                    rng,
                    &[
                        "",
                        ", tls: {mode: PASSTHROUGH}",
                        ", tls: {httpsRedirect: true}",
                        ", tls: {mode: SIMPLE}"
                    ]
                )
            )
        };
        let spec = format!(
            "  selector: {}\n  servers: [{}, {}]\n",
            one(rng, &["{}", "{app: a}", "{app: z}"]),
            server(rng),
            server(rng)
        );
        out.push_str(&object(
            "Gateway",
            one(rng, &NAMESPACES),
            if i == 0 {
                "gw".to_owned()
            } else {
                format!("gw{i}")
            },
            spec,
        ));
    }
    let kind = if router { "router" } else { "sidecar" };
    let _ = write!(
        out,
        "kind: Proxy\nnode:\n  id: {kind}~10.0.0.9~a-0.shop~shop.svc.cluster.local\n  metadata: {{LABELS: {{app: a}}}}\n---\nkind: MeshConfig\nspec: {{outboundTrafficPolicy: {{mode: {}}}, proxyHttpPort: {}}}\n",
        one(rng, &["ALLOW_ANY", "REGISTRY_ONLY"]),
        one(rng, &["0", "15002"])
    );
    out
}

/// The seeds of a test: some, always the same; `PROPERTY_SEEDS=FROM..TO` tries others.
fn seeds(default: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("PROPERTY_SEEDS").ok();
    let asked = asked.and_then(|s| {
        let (from, to) = s.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    asked.unwrap_or(0..default)
}

fn unique<T: Ord + std::fmt::Debug>(
    what: &str,
    items: impl IntoIterator<Item = T>,
) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for item in items {
        if seen.contains(&item) {
            return Err(format!("{what} {item:?} twice"));
        }
        seen.insert(item);
    }
    Ok(())
}

fn check(output: &Output) -> Result<(), String> {
    unique("cluster", output.clusters.iter().map(|c| &c.name))?;
    unique("listener", output.listeners.iter().map(|l| &l.name))?;
    unique(
        "address",
        output.listeners.iter().map(|l| format!("{:?}", l.address)),
    )?;
    for listener in &output.listeners {
        unique(
            &format!("{} match", listener.name),
            listener
                .filter_chains
                .iter()
                .map(|c| format!("{:?}", c.filter_chain_match)),
        )?;
        if listener.filter_chains.is_empty() {
            return Err(format!("{} has no chain", listener.name));
        }
    }
    for config in &output.routes {
        let hosts = &config.virtual_hosts;
        unique(
            &format!("route {} host", config.name),
            hosts.iter().map(|h| &h.name),
        )?;
        unique(
            &format!("route {} domain", config.name),
            hosts
                .iter()
                .flat_map(|h| &h.domains)
                .map(|d| d.to_lowercase()),
        )?;
        if hosts.iter().any(|h| h.domains.is_empty()) {
            return Err(format!("route {}: a host without domains", config.name));
        }
    }
    Ok(())
}

#[test]
fn names_matches_and_domains_are_unique() {
    for seed in seeds(400) {
        let text = world(seed, seed % 4 == 0);
        if let Err(error) = check(&Fixture::parse(&text).output()) {
            panic!("seed {seed}: {error}\n{text}");
        }
    }
}

#[test]
fn envoy_takes_whatever_comes() {
    let Some(envoy) = Envoy::find() else { return };
    for seed in seeds(40) {
        let text = world(10_000 + seed, seed % 3 == 0);
        if let Err(error) = envoy.validate(&Fixture::parse(&text).output()) {
            panic!("seed {seed}: {error}\n{text}");
        }
    }
}

/// The second inputs with the identity of what is equal in the first, as registries keep it.
fn sharing(first: &Inputs, mut second: Inputs) -> Inputs {
    fn share<K: Clone + Eq + std::hash::Hash, V: PartialEq>(
        first: &Arc<ahash::AHashMap<K, Arc<V>>>,
        second: &mut Arc<ahash::AHashMap<K, Arc<V>>>,
    ) {
        for (key, value) in Arc::make_mut(second) {
            if let Some(before) = first.get(key).filter(|before| *before == value) {
                *value = before.clone();
            }
        }
    }
    share(&first.services, &mut second.services);
    share(&first.endpoints, &mut second.endpoints);
    second.mesh = first.mesh.clone();
    second.options = first.options.clone();
    second
}

/// Everything of a proxy by kind and name.
fn resources(
    snapshot: &Arc<Snapshot>,
    fixture: &Fixture,
) -> BTreeMap<(&'static str, String), Vec<u8>> {
    let proxy = &fixture.proxies[0];
    let scope = Scope::of(snapshot, proxy);
    let report = &mut Report::default();
    let mut out = BTreeMap::new();
    for cluster in generate::outbound_clusters(&scope, report) {
        let assignment = generate::endpoints(&scope, &cluster.name, report).encode_to_vec();
        out.insert(("endpoints", cluster.name.clone()), assignment);
        out.insert(("cluster", cluster.name.clone()), cluster.encode_to_vec());
    }
    for listener in generate::outbound_listeners(&scope, report) {
        out.insert(
            ("listener", listener.name.clone()),
            listener.encode_to_vec(),
        );
    }
    for name in generate::route_names(&scope) {
        let config = generate::route(&scope, &name, report).encode_to_vec();
        out.insert(("route", name), config);
    }
    if proxy.kind == pilot_generate::ProxyKind::Sidecar {
        for cluster in generate::inbound_clusters(&scope, proxy, report) {
            out.insert(
                ("own cluster", cluster.name.clone()),
                cluster.encode_to_vec(),
            );
        }
        for listener in generate::inbound_listeners(&scope, proxy, report) {
            out.insert(
                ("own listener", listener.name.clone()),
                listener.encode_to_vec(),
            );
        }
    }
    out
}

/// What differs without being named by the change set.
fn missed(first: &Fixture, second: &Fixture) -> Option<String> {
    let before = Arc::new(Snapshot::build(&first.inputs, None));
    let inputs = sharing(&first.inputs, second.inputs.clone());
    let after = Arc::new(Snapshot::build(&inputs, Some(&before)));
    let change = ChangeSet::between(&before, &after);
    let scope = Scope::of(&after, &second.proxies[0]);
    let touched = |kind: &str, name: &str| match kind {
        "cluster" => change.affected().clusters && change.touches_cluster(name),
        "endpoints" => change.affected().endpoints && change.touches_endpoints(name),
        "listener" => change.affected().listeners,
        "route" => change.affected().routes && change.touches_route(&scope, name),
        _ => change.touches_proxy(&after, &second.proxies[0]),
    };
    let (old, new) = (resources(&before, first), resources(&after, second));
    // Building on a previous snapshot gives what building from nothing does.
    let fresh = resources(&Arc::new(Snapshot::build(&second.inputs, None)), second);
    assert!(fresh == new, "a snapshot depends on its history");
    let all: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    all.into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .find(|(kind, name)| !touched(kind, name))
        .map(|(kind, name)| format!("{kind} {name}"))
}

#[test]
fn what_a_change_does_not_name_has_the_same_bytes() {
    for seed in seeds(6) {
        let text = world(20_000 + seed, seed % 4 == 0);
        let documents: Vec<&str> = text.split("\n---\n").collect();
        // The last two are the proxy and the mesh settings.
        for gone in 0..documents.len() - 2 {
            let rest: Vec<&str> = documents
                .iter()
                .enumerate()
                .filter(|(i, _)| *i != gone)
                .map(|(_, d)| *d)
                .collect();
            let (with, without) = (Fixture::parse(&text), Fixture::parse(&rest.join("\n---\n")));
            for (first, second, what) in
                [(&with, &without, "removing"), (&without, &with, "adding")]
            {
                if let Some(missed) = missed(first, second) {
                    panic!(
                        "seed {seed}: {missed} is not named after {what}\n{}\nin\n{text}",
                        documents[gone]
                    );
                }
            }
        }
    }
}
