//! Random worlds of services, entries, rules and gateways, none of which anybody checked. The same seed gives the same world.

use std::{collections::BTreeMap, fmt::Write as _};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::sidecars::sidecars;

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
            "tls: {{mode: {}, sni: \"{}\", clientCertificate: \"{}\", privateKey: \"{}\", caCertificates: \"{}\", subjectAltNames: [\"{}\"]}}",
            one(rng, &["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"]),
            one(rng, &["", "x"]),
            one(rng, &PATHS),
            one(rng, &PATHS),
            one(rng, &PATHS),
            one(rng, &["", "a.com", "spiffe://x/y"])
        ));
    }
    format!("{{{}}}", parts.join(", "))
}

/// Files that do not exist, and some that cannot.
const PATHS: [&str; 5] = ["", "/etc/a.pem", "/etc/b.pem", "/etc/a~b", "relative"];

fn server_tls(rng: &mut StdRng) -> String {
    if rng.random_bool(0.3) {
        return one(
            rng,
            &[
                "",
                ", tls: {mode: PASSTHROUGH}",
                ", tls: {httpsRedirect: true}",
            ],
        )
        .to_owned();
    }
    format!(
        ", tls: {{mode: {}, serverCertificate: \"{}\", privateKey: \"{}\", caCertificates: \"{}\", credentialName: \"{}\", subjectAltNames: [\"{}\"], minProtocolVersion: {}, maxProtocolVersion: {}, cipherSuites: [{}], verifyCertificateSpki: [{}], verifyCertificateHash: [{}]}}",
        one(
            rng,
            &[
                "SIMPLE",
                "MUTUAL",
                "ISTIO_MUTUAL",
                "AUTO_PASSTHROUGH",
                "PASSTHROUGH"
            ]
        ),
        one(rng, &PATHS),
        one(rng, &PATHS),
        one(rng, &PATHS),
        one(rng, &["", "web", "Bad/Name", "file-root:/x"]),
        one(rng, &["", "a.com", "10.0.0.1", "a@b.c"]),
        one(rng, &["TLS_AUTO", "TLSV1_0", "TLSV1_3"]),
        one(rng, &["TLS_AUTO", "TLSV1_1", "TLSV1_2"]),
        one(
            rng,
            &[
                "",
                "AES128-SHA",
                "nonsense",
                "nonsense, ECDHE-RSA-AES128-GCM-SHA256",
                "\"[AES128-SHA|x]\""
            ]
        ),
        one(
            rng,
            &[
                "",
                "",
                "nonsense",
                "NvqYIYSbgK2vCJpQhObf77vv+bQWtc5ek5RIOwPiC9A="
            ]
        ),
        one(
            rng,
            &[
                "",
                "",
                "zz",
                "abababababababababababababababababababababababababababababababab"
            ]
        )
    )
}

/// A world of services, entries, rules and gateways, none of which anybody checked.
pub(crate) fn world(seed: u64, router: bool) -> String {
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
                    "[{address: 1.2.3.4, weight: 4000000000, locality: eu/a}, {address: 1.2.3.5, locality: us}]",
                    "[{address: 1.2.3.4, network: far, weight: 7}, {address: 1.2.3.5, network: near, locality: eu/b}]",
                    "[{address: 10.0.0.9, locality: eu/b}, {address: 1.2.3.6, network: dark}]",
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
                "{{port: {{number: {}, name: {}, protocol: {}}}, hosts: [\"{}\", \"{}\"]{}}}",
                one(rng, &["80", "443", "9080", "15090", "0"]),
                one(rng, &["p", "q", "r"]),
                one(rng, &["HTTP", "HTTPS", "TCP", "TLS", "GRPC", "x"]),
                one(rng, &HOSTS),
                one(rng, &["*", "shop/*", "./a.shop", "*.com"]),
                server_tls(rng)
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
    if rng.random_bool(0.3) {
        let gateways = one(
            rng,
            &[
                "[]",
                "[{address: 192.0.2.1, port: 443}]",
                "[{address: 192.0.2.1, port: 443}, {address: \"fd00::1\", port: 15443}, {address: x.example.com, port: 1}]",
                "[{registryServiceName: a.shop.svc.cluster.local, port: 443}, {address: 192.0.2.1}]",
            ],
        );
        let _ = write!(
            out,
            "kind: MeshNetworks\nspec: {{networks: {{far: {{gateways: {gateways}}}, near: {{endpoints: [{{fromRegistry: Kubernetes}}, {{fromCidr: \"nonsense\"}}]}}}}}}\n---\n"
        );
    }
    out.push_str(&sidecars(seed));
    for i in 0..rng.random_range(0..3) {
        let patch = one(
            rng,
            &[
                "{applyTo: CLUSTER, patch: {operation: MERGE, value: {connect_timeout: 3s}}}",
                "{applyTo: CLUSTER, match: {context: SIDECAR_INBOUND}, patch: {operation: ADD, value: {name: more, type: STATIC}}}",
                "{applyTo: HTTP_FILTER, match: {listener: {portNumber: 80}}, patch: {operation: ADD, value: {name: envoy.buffer, config: {max_request_bytes: 9}}}}",
                "{applyTo: HTTP_ROUTE, match: {routeConfiguration: {portNumber: 80}}, patch: {operation: INSERT_FIRST, value: {match: {path: /x}, direct_response: {status: 200}}}}",
                "{applyTo: LISTENER, match: {listener: {portName: http}}, patch: {operation: MERGE, value: {per_connection_buffer_limit_bytes: 9}}}",
                "{applyTo: NETWORK_FILTER, match: {context: GATEWAY}, patch: {operation: INSERT_FIRST, value: {name: envoy.filters.network.sni_cluster}}}",
                "{applyTo: CLUSTER, patch: {operation: MERGE, value: {nope: 3}}}",
            ],
        );
        let spec = format!(
            "  workloadSelector: {{labels: {}}}\n  configPatches: [{patch}]\n",
            one(rng, &["{}", "{app: a}", "{app: z}"])
        );
        let namespace = one(rng, &["shop", "istio-system", "other"]);
        out.push_str(&object("EnvoyFilter", namespace, format!("ef{i}"), spec));
    }
    let kind = if router { "router" } else { "sidecar" };
    let locality = one(
        rng,
        &[
            "",
            "",
            ", localityLbSetting: {}",
            ", localityLbSetting: {failover: [{from: eu, to: us}]}",
            ", localityLbSetting: {distribute: [{from: eu/*, to: {\"eu/a\": 99, \"us/*\": 1}}]}",
        ],
    );
    let _ = write!(
        out,
        "kind: Proxy\nnode:\n  id: {kind}~10.0.0.9~a-0.shop~shop.svc.cluster.local\n  locality: {{region: eu}}\n  metadata: {{LABELS: {{app: a}}, NETWORK: near, REQUESTED_NETWORK_VIEW: \"{}\", {}}}\n---\nkind: MeshConfig\nspec: {{outboundTrafficPolicy: {{mode: {}}}, proxyHttpPort: {}, sdsUdsPath: \"{}\"{locality}}}\n",
        one(rng, &["", "near,far"]),
        one(
            rng,
            &[
                "A: b",
                "AGENT_SDS: \"1\"",
                "AGENT_SDS: \"1\", USER_SDS: \"true\"",
                "USER_SDS: \"1\", ROUTER_MODE: sni-dnat",
                "INTERCEPTION_MODE: NONE",
                "INTERCEPTION_MODE: TPROXY, INSTANCE_IPS: \"10.0.0.9,fd00::9\"",
                "INSTANCE_IPS: \"fd00::9\""
            ]
        ),
        one(rng, &["ALLOW_ANY", "REGISTRY_ONLY"]),
        one(rng, &["0", "15002"]),
        one(rng, &["", "", "unix:/var/run/sds/uds_path"])
    );
    out
}
