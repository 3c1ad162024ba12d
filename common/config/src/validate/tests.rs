//! Rules by example: a manifest, and the problems it must have, as operators read them.

#![allow(clippy::unwrap_used)]

use super::validate_documents;

/// Problems of a manifest given by kind and spec, without the place.
fn problems(kind: &str, spec: &str) -> Vec<String> {
    let indented: String = spec.lines().map(|l| format!("  {l}\n")).collect();
    let text = format!(
        "apiVersion: networking.istio.io/v1alpha3\nkind: {kind}\nmetadata: {{name: x, namespace: ns}}\nspec:\n{indented}"
    );
    validate_documents(&text, "f.yaml")
        .into_iter()
        .map(|e| {
            assert_eq!(e.place.file.as_deref(), Some("f.yaml"));
            assert_eq!(e.place.name.as_deref(), Some("x"));
            assert!(e.place.line.is_some_and(|l| l >= 3), "{e}");
            let accepted = e
                .accepted
                .map(|a| format!("; accepted: {a}"))
                .unwrap_or_default();
            format!("{}: {}{accepted}", e.path, e.message)
        })
        .collect()
}

/// Asserts that a manifest has exactly these problems, each given by its beginning.
#[track_caller]
fn expect(kind: &str, spec: &str, expected: &[&str]) {
    let problems = problems(kind, spec);
    let fits = problems.len() == expected.len()
        && problems.iter().zip(expected).all(|(p, e)| p.starts_with(e));
    assert!(
        fits,
        "\n--- found\n{}\n--- expected\n{}",
        problems.join("\n"),
        expected.join("\n")
    );
}

#[test]
fn messages_name_file_line_object_and_field() {
    let text = "---\napiVersion: networking.istio.io/v1alpha3\nkind: VirtualService\nmetadata:\n  name: reviews\nspec:\n  \
                hosts: [reviews]\n  http:\n  - route:\n    - destination: {host: reviews, subset: v1}\n      weight: 75\n    - \
                destination: {host: reviews, subset: v2}\n      weight: 75\n    timeout: 1us\n    retrys: {}\n";
    let messages: Vec<String> = validate_documents(text, "r.yaml")
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(messages.len(), 1, "{messages:#?}");
    let unknown = "r.yaml:15: VirtualService reviews: spec.http[0].retrys: unknown field `retrys`; accepted: name, match, route";
    assert!(messages[0].starts_with(unknown), "{messages:#?}");

    let messages: Vec<String> = validate_documents(&text.replace("    retrys: {}\n", ""), "r.yaml")
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        messages,
        [
            "r.yaml:14: VirtualService default/reviews: spec.http[0].timeout: 0.000001s is too short; accepted: 1ms or longer",
            "r.yaml:9: VirtualService default/reviews: spec.http[0].route: the weights sum to 150; accepted: weights that sum to 100",
        ]
    );
}

#[test]
fn all_unknown_fields_are_reported_at_once() {
    expect(
        "VirtualService",
        "hosts: [a]\nhttpp: []\nhttp:\n- route: [{destination: {host: a, prot: 1}}]\n  tmeout: 1s\n",
        &[
            "spec.httpp: unknown field `httpp`; accepted: hosts, gateways, http, tls, tcp, exportTo",
            "spec.http[0].route[0].destination.prot: unknown field `prot`; accepted: host, subset, port",
            "spec.http[0].tmeout: unknown field `tmeout`; accepted: name, match",
        ],
    );
}

#[test]
fn wrong_types_and_values() {
    expect(
        "VirtualService",
        "hosts: reviews",
        &["spec.hosts: invalid type: string \"reviews\", expected a sequence"],
    );
    expect(
        "VirtualService",
        "hosts: [5]",
        &["spec.hosts[0]: invalid type: integer `5`, expected a string"],
    );
    expect(
        "VirtualService",
        "hosts: [a]\nhttp: [{timeout: soon, route: [{destination: {host: a}}]}]",
        &["spec.http[0].timeout: \"soon\" is not a duration; accepted: numbers with a unit"],
    );
    expect(
        "DestinationRule",
        "host: a\ntrafficPolicy: {loadBalancer: {simple: FASTEST}}",
        &[
            "spec.trafficPolicy.loadBalancer.simple: unknown variant `FASTEST`; accepted: ROUND_ROBIN, LEAST_CONN, RANDOM, PASSTHROUGH",
        ],
    );
    expect(
        "VirtualService",
        "hosts: [a]\nhttp: [{route: [{destination: {host: a, port: {number: -1}}}]}]",
        &["spec.http[0].route[0].destination.port.number: "],
    );
}

#[test]
fn nulls_mean_not_set() {
    expect(
        "VirtualService",
        "hosts: [a]\ngateways:\nhttp:\n- match:\n  fault:\n  route:\n  - destination: {host: a, subset: }",
        &[],
    );
}

#[test]
fn virtual_service_hosts_and_gateways() {
    let http = "\nhttp: [{route: [{destination: {host: a}}]}]";
    let check = |head: &str, expected: &[&str]| {
        expect("VirtualService", &format!("{head}{http}"), expected)
    };
    check(
        "hosts: [a, b.c, '*.d.com', 1.2.3.4]\ngateways: [mesh, gw, ns/gw, ./gw]\nexportTo: ['.']",
        &[],
    );
    check("hosts: []", &["spec.hosts: is empty"]);
    check("hosts: ['*']", &["spec.hosts[0]: \"*\" would take over"]);
    check("hosts: ['*']\ngateways: [gw]", &[]);
    check(
        "hosts: ['a..b', 'a_b']",
        &["spec.hosts[0]: \"a..b\" is not", "spec.hosts[1]: "],
    );
    check(
        "hosts: ['*.a.com', x.a.com]",
        &["spec.hosts[1]: \"x.a.com\" overlaps \"*.a.com\""],
    );
    check(
        "hosts: [a]\ngateways: ['a/', 'b c']",
        &["spec.gateways[0]: ", "spec.gateways[1]: "],
    );
    check(
        "hosts: [a]\nexportTo: ['.', ns]",
        &["spec.exportTo: has 2", "spec.exportTo[1]: \"ns\""],
    );
    expect("VirtualService", "hosts: [a]", &["spec: has no routes"]);
}

#[test]
fn virtual_service_weights() {
    let check = |weights: &[&str], expected: &[&str]| {
        let routes: String = weights
            .iter()
            .map(|w| format!("  - {{destination: {{host: a}}{w}}}\n"))
            .collect();
        expect(
            "VirtualService",
            &format!("hosts: [a]\nhttp:\n- route:\n{routes}"),
            expected,
        );
    };
    check(&[""], &[]);
    check(&[", weight: 0"], &[]);
    check(&[", weight: 80", ", weight: 20"], &[]);
    check(&[", weight: 100", ", weight: 0"], &[]);
    check(
        &["", ""],
        &["spec.http[0].route: the weights sum to 0; accepted: weights that sum to 100"],
    );
    check(
        &[", weight: 75", ", weight: 75"],
        &["spec.http[0].route: the weights sum to 150"],
    );
    check(
        &[", weight: 150", ", weight: -50"],
        &[
            "spec.http[0].route[0].weight: 150 is not",
            "spec.http[0].route[1].weight: -50 is not",
        ],
    );
}

#[test]
fn virtual_service_http_actions() {
    let check = |route: &str, expected: &[&str]| {
        let route: String = route.lines().map(|l| format!("  {l}\n")).collect();
        expect(
            "VirtualService",
            &format!("hosts: [a]\nhttp:\n-\n{route}"),
            expected,
        );
    };
    check(
        "match: [{uri: {prefix: /}}]",
        &["spec.http[0]: leads nowhere; accepted: route or redirect"],
    );
    check("redirect: {uri: /a, redirectCode: 307}", &[]);
    check(
        "redirect: {redirectCode: 200}\nroute: [{destination: {host: a}}]\nrewrite: {uri: /}",
        &[
            "spec.http[0].route: cannot go with redirect",
            "spec.http[0].rewrite: cannot go with redirect",
            "spec.http[0].redirect: redirects to where it was",
            "spec.http[0].redirect.redirectCode: 200 is not",
        ],
    );
    let to = "route: [{destination: {host: a}}]\n";
    let with = |rest: &str, expected: &[&str]| check(&format!("{to}{rest}"), expected);
    with("rewrite: {}", &["spec.http[0].rewrite: rewrites nothing"]);
    with(
        "mirror: {host: '*'}\nmirror_percent: 101",
        &[
            "spec.http[0].mirrorPercent: 101",
            "spec.http[0].mirror.host: \"*\"",
        ],
    );
    with(
        "retries: {attempts: 3, perTryTimeout: 2s, retryOn: 'gateway-error,503'}",
        &[],
    );
    with(
        "retries: {attempts: -1, perTryTimeout: 0.5ms, retryOn: '5xx, reset,sometimes'}",
        &[
            "spec.http[0].retries.attempts: -1 is negative",
            "spec.http[0].retries.perTryTimeout: 0.000500s is too short",
            "spec.http[0].retries.retryOn: \" reset\" is not",
            "spec.http[0].retries.retryOn: \"sometimes\" is not",
        ],
    );
    with(
        "retries: {attempts: 0, retryOn: 5xx}",
        &["spec.http[0].retries.attempts: is 0"],
    );
    with(
        "corsPolicy: {allowOrigin: ['*', 'https://a.com:443', 'ftp://a'], allowMethods: [GET, get], maxAge: 1500ms}",
        &[
            "spec.http[0].corsPolicy.allowOrigin[2]: ",
            "spec.http[0].corsPolicy.allowMethods[1]: \"get\"",
            "spec.http[0].corsPolicy.maxAge: 1.500s is finer",
        ],
    );
    with(
        "headers: {request: {set: {'': x}, remove: ['']}}",
        &[
            "spec.http[0].headers.request.set[\"\"]",
            "spec.http[0].headers.request.remove[0]",
        ],
    );
    with(
        "match: [{uri: {regex: '(?=a)'}, headers: {h: {regex: '['}}, port: 70000, sourceLabels: {'a b': x}}, {uri: {regex: '*'}}]",
        &[
            "spec.http[0].match[0].uri.regex: \"(?=a)\" is not a regular expression: look-around",
            "spec.http[0].match[0].headers.h.regex: ",
            "spec.http[0].match[0].port: 70000",
            "spec.http[0].match[0].sourceLabels[\"a b\"]: ",
        ],
    );
    check(
        "route: [{weight: 100}, {destination: {host: a, subset: v_1, port: {number: 70000}}}]",
        &[
            "spec.http[0].route[0].destination: is missing",
            "spec.http[0].route[1].destination.subset: \"v_1\"",
            "spec.http[0].route[1].destination.port.number: 70000",
        ],
    );
}

#[test]
fn virtual_service_faults() {
    let check = |fault: &str, expected: &[&str]| {
        let spec = format!(
            "hosts: [a]\nhttp: [{{route: [{{destination: {{host: a}}}}], fault: {fault}}}]"
        );
        expect("VirtualService", &spec, expected);
    };
    check(
        "{abort: {percentage: {value: 50}, httpStatus: 500}, delay: {percentage: {value: 0.1}, fixedDelay: 5s}}",
        &[],
    );
    check("{abort: {percent: 50, httpStatus: 500}}", &[]);
    check("{}", &["spec.http[0].fault: does nothing"]);
    check(
        "{abort: {percentage: {value: 100.5}, httpStatus: 99}, delay: {percentage: {value: 0.00001}, fixedDelay: 0s}}",
        &[
            "spec.http[0].fault.abort.percentage.value: 100.5 is not a percentage; accepted: 0, or 0.0001 to 100",
            "spec.http[0].fault.abort.httpStatus: 99 is not",
            "spec.http[0].fault.delay.percentage.value: ",
            "spec.http[0].fault.delay.fixedDelay: 0s is too short",
        ],
    );
    check(
        "{abort: {percent: -1, grpcStatus: OK}}",
        &[
            "spec.http[0].fault.abort.percent: -1",
            "spec.http[0].fault.abort.grpcStatus: is not supported",
        ],
    );
    check(
        "{delay: {exponentialDelay: 1s}}",
        &["spec.http[0].fault.delay.exponentialDelay: is not supported"],
    );
}

#[test]
fn virtual_service_tls_and_tcp() {
    expect(
        "VirtualService",
        "hosts: ['*.a.com']\ntls:\n- match: [{sniHosts: [x.a.com], port: 443}]\n  route: [{destination: {host: a}}]\ntcp:\n- route: [{destination: {host: a}}]",
        &[],
    );
    expect(
        "VirtualService",
        "hosts: [a.com]\ntls:\n- route: []\n- match: [{sniHosts: []}, {sniHosts: [b.com, '*.a.com'], destinationSubnets: [1.2.3.4/33]}]\n  route: [{destination: {host: a}, weight: 1}, {destination: {host: b}}]\ntcp:\n- match: [{sourceSubnet: ::1, port: 0}]\n  route: [{destination: {host: a}}]",
        &[
            "spec.tls[0].match: is empty",
            "spec.tls[0].route: is empty",
            "spec.tls[1].match[0].sniHosts: is empty",
            "spec.tls[1].match[1].sniHosts[0]: \"b.com\" is not within spec.hosts; accepted: a.com",
            "spec.tls[1].match[1].sniHosts[1]: \"*.a.com\" is not within",
            "spec.tls[1].match[1].destinationSubnets[0]: \"1.2.3.4/33\"",
            "spec.tls[1].route: the weights sum to 1",
            "spec.tcp[0].match[0].sourceSubnet: \"::1\"",
        ],
    );
}

#[test]
fn destination_rules() {
    expect(
        "DestinationRule",
        "host: '*'\ntrafficPolicy:\n  connectionPool: {tcp: {maxConnections: 1, connectTimeout: 30ms}, http: {http1MaxPendingRequests: 1}}\n  \
         outlierDetection: {consecutiveErrors: 5, interval: 5m, baseEjectionTime: 15m}\n  loadBalancer: {consistentHash: {httpCookie: {name: u, ttl: 0s}}}\n\
         subsets: [{name: v1, labels: {version: v1}}]",
        &[],
    );
    expect(
        "DestinationRule",
        "host: a_b\ntrafficPolicy: {}\nsubsets:\n- {name: '', labels: {version: 'v 1'}, trafficPolicy: {connectionPool: {}}}\nexportTo: [x]",
        &[
            "spec.host: \"a_b\"",
            "spec.trafficPolicy: says nothing",
            "spec.subsets[0].name: \"\"",
            "spec.subsets[0].labels.version: \"v 1\"",
            "spec.subsets[0].trafficPolicy.connectionPool: says nothing",
            "spec.exportTo[0]: \"x\"",
        ],
    );
    expect(
        "DestinationRule",
        "host: a\ntrafficPolicy:\n  outlierDetection: {consecutiveErrors: -1, interval: 1us, maxEjectionPercent: 101, minHealthPercent: -1}\n  \
         connectionPool: {tcp: {maxConnections: -1}, http: {maxRetries: -2, idleTimeout: 1ns}}\n  \
         loadBalancer: {consistentHash: {httpCookie: {}}}\n  tls: {mode: MUTUAL}\n  portLevelSettings: [{}, {port: {number: 70000}, tls: {mode: SIMPLE}}]",
        &[
            "spec.trafficPolicy.outlierDetection.interval: ",
            "spec.trafficPolicy.outlierDetection.consecutiveErrors: -1",
            "spec.trafficPolicy.outlierDetection.maxEjectionPercent: 101",
            "spec.trafficPolicy.outlierDetection.minHealthPercent: -1",
            "spec.trafficPolicy.connectionPool.http.maxRetries: -2",
            "spec.trafficPolicy.connectionPool.http.idleTimeout: ",
            "spec.trafficPolicy.connectionPool.tcp.maxConnections: -1",
            "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.name: is empty",
            "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.ttl: is missing",
            "spec.trafficPolicy.tls.clientCertificate: is empty",
            "spec.trafficPolicy.tls.privateKey: is empty",
            "spec.trafficPolicy.portLevelSettings[0].port: is missing",
            "spec.trafficPolicy.portLevelSettings[0]: says nothing",
            "spec.trafficPolicy.portLevelSettings[1].port.number: 70000",
        ],
    );
}

#[test]
fn gateways() {
    expect(
        "Gateway",
        "selector: {istio: ingressgateway}\nservers:\n- port: {number: 80, name: http, protocol: HTTP}\n  hosts: ['*', ns/a.com, './*.b.com', '*/1.2.3.4']\n  \
         tls: {httpsRedirect: true}\n- port: {number: 443, name: https, protocol: HTTPS}\n  hosts: [a.com]\n  tls: {mode: SIMPLE, credentialName: c}",
        &[],
    );
    expect("Gateway", "{}", &["spec.servers: is empty"]);
    expect(
        "Gateway",
        "servers:\n- {}\n- port: {number: 80, name: p, protocol: HTTP}\n  hosts: [short, 'a_b/c.d', 'n/']\n  tls: {mode: SIMPLE}\n\
         - port: {number: 70000, name: p, protocol: HTTPS}\n  hosts: ['*']\n- port: {protocol: TCPP}\n  hosts: ['*']\n\
         - port: {number: 1, name: q, protocol: TCP}\n  hosts: ['*']\n  tls: {mode: ISTIO_MUTUAL, privateKey: f}",
        &[
            "spec.servers[0].hosts: is empty",
            "spec.servers[0].port: is missing",
            "spec.servers[1].hosts[0]: \"short\" is a short name",
            "spec.servers[1].hosts[1]: \"a_b\" is not a namespace",
            "spec.servers[1].hosts[2]: \"\" is a short name",
            "spec.servers[1].tls: terminates TLS though the protocol is HTTP",
            "spec.servers[1].tls.serverCertificate: is empty though mode is SIMPLE",
            "spec.servers[1].tls.privateKey: is empty",
            "spec.servers[2].port.number: 70000",
            "spec.servers[2].tls: is missing though the protocol is HTTPS",
            "spec.servers[2].port.name: \"p\" is there twice",
            "spec.servers[3].port.protocol: \"TCPP\" is not a protocol",
            "spec.servers[3].port.name: is empty",
            "spec.servers[4].tls: is set though the protocol is TCP",
            "spec.servers[4].tls.privateKey: is set though mode is ISTIO_MUTUAL",
        ],
    );
}

#[test]
fn service_entries() {
    let ports = "ports: [{number: 80, name: http, protocol: HTTP}]";
    let check = |rest: &str, expected: &[&str]| {
        expect("ServiceEntry", &format!("{ports}\n{rest}"), expected)
    };
    check("hosts: [a.com]\nresolution: DNS", &[]);
    check(
        "hosts: [a.com]\naddresses: [1.2.3.4, 10.0.0.0/8]\nresolution: STATIC\nendpoints: [{address: 2.2.2.2, ports: {http: 8080}}]",
        &[],
    );
    check(
        "hosts: [a.com]\nresolution: STATIC\nendpoints: [{address: 'unix:///tmp/s'}]",
        &[],
    );
    check("hosts: []", &["spec.hosts: is empty"]);
    check(
        "hosts: ['*', 'a_b']",
        &["spec.hosts[0]: \"*\"", "spec.hosts[1]: \"a_b\""],
    );
    check(
        "hosts: ['*.a.com']\nresolution: DNS",
        &["spec.hosts[0]: \"*.a.com\" cannot be resolved"],
    );
    check(
        "hosts: [a]\naddresses: [1.2.3, 1.2.3.4/40, ::1, 10.0.0.0/8]\nresolution: DNS",
        &[
            "spec.addresses[0]: \"1.2.3\" is not an IPv4 address or CIDR block; accepted: 10.1.2.3 or 10.1.0.0/16",
            "spec.addresses[1]: \"1.2.3.4/40\" is not",
            "spec.addresses[1]: \"1.2.3.4/40\" is a CIDR block",
            "spec.addresses[2]: \"::1\"",
            "spec.addresses[3]: \"10.0.0.0/8\" is a CIDR block",
        ],
    );
    check(
        "hosts: [a]\nendpoints: [{address: 1.2.3.4}]",
        &["spec.endpoints: are given"],
    );
    check(
        "hosts: [a]\nresolution: STATIC",
        &["spec.endpoints: is empty"],
    );
    check(
        "hosts: [a]\nresolution: STATIC\nendpoints: [{address: 300.1.2.3}, {address: a.com, ports: {x: 0}}, {address: 'unix://s', ports: {http: 1}}]",
        &[
            "spec.endpoints[0].address: \"300.1.2.3\" is not an IPv4",
            "spec.endpoints[1].ports.x: the service has no port \"x\"; accepted: http",
            "spec.endpoints[1].ports.x: 0 is not a port",
            "spec.endpoints[1].address: \"a.com\" is not",
            "spec.endpoints[2].address: \"s\" is not a socket path",
            "spec.endpoints[2].address: a socket has no ports",
        ],
    );
    check(
        "hosts: [a]\nresolution: DNS\nendpoints: [{address: 'a b', labels: {'': x}}]",
        &[
            "spec.endpoints[0].labels[\"\"]",
            "spec.endpoints[0].address: \"a b\"",
        ],
    );
    check("hosts: [a]\nresolution: 7", &["spec.resolution: "]);
    expect(
        "ServiceEntry",
        "hosts: [a, b]\nresolution: DNS\nports: [{number: 1, name: t, protocol: TCP}, {number: 1, name: t, protocol: HTTP}, {number: 0, name: A_b, protocol: X}]",
        &[
            "spec.ports[1].name: \"t\" is there twice",
            "spec.ports[1].number: 1 is there twice",
            "spec.ports[2].name: \"A_b\"",
            "spec.ports[2].protocol: \"X\"",
            "spec.ports[2].number: 0",
            "spec.ports[0].protocol: \"TCP\" cannot tell 2 hosts apart",
            "spec.ports[2].protocol: \"X\" cannot tell",
        ],
    );
}

#[test]
fn sidecars() {
    expect(
        "Sidecar",
        "workloadSelector: {labels: {app: a}}\ningress: [{port: {number: 9080, protocol: HTTP, name: h}, defaultEndpoint: 'unix:///s'}]\n\
         egress:\n- port: {number: 0, protocol: HTTP, name: u}\n  bind: unix:///x\n  hosts: ['*/*']\n- port: {number: 80, protocol: HTTP, name: e}\n  bind: 127.0.0.1\n  hosts: [./a.b]\n- hosts: ['~/*', istio-system/*]",
        &[],
    );
    expect(
        "Sidecar",
        "workloadSelector: {}",
        &[
            "spec.workloadSelector.labels: is empty",
            "spec.egress: is empty",
        ],
    );
    expect(
        "Sidecar",
        "ingress:\n- {}\n- {port: {number: 1, protocol: X}, bind: '::1', defaultEndpoint: 10.0.0.1:80}\n- {port: {number: 1}, defaultEndpoint: ':0'}\n- {port: {number: 2}}\n\
         egress:\n- hosts: ['*/*']\n- port: {number: 0, protocol: HTTP}\n  bind: 1.2.3.4\n  captureMode: IPTABLES\n- hosts: [short, a/short, 'A_/x.y', ns/1.2.3.4]",
        &[
            "spec.ingress[0].port: is missing",
            "spec.ingress[1].port.protocol: \"X\"",
            "spec.ingress[1].bind: \"::1\"",
            "spec.ingress[1].defaultEndpoint: \"10.0.0.1:80\"",
            "spec.ingress[2].port.number: 1 is there twice",
            "spec.ingress[2].defaultEndpoint: 0",
            "spec.ingress[3].defaultEndpoint: is empty",
            "spec.egress[0]: has no port and is not the last",
            "spec.egress[1].bind: \"1.2.3.4\" is not a socket",
            "spec.egress[1].captureMode: ",
            "spec.egress[1].hosts: is empty",
            "spec.egress[2]: has no port, like egress[0]",
            "spec.egress[2].hosts[0]: \"short\" names no namespace",
            "spec.egress[2].hosts[1]: \"short\" is a short name",
            "spec.egress[2].hosts[2]: \"A_\" is not a namespace",
            "spec.egress[2].hosts[3]: \"1.2.3.4\" is not a DNS name",
        ],
    );
}

#[test]
fn envoy_filters() {
    expect(
        "EnvoyFilter",
        "workloadSelector: {labels: {app: a}}\nconfigPatches:\n- applyTo: HTTP_FILTER\n  match: {context: SIDECAR_INBOUND, proxy: {proxyVersion: '^1\\.4.*'}, listener: {filterChain: {filter: {name: envoy.http_connection_manager, subFilter: {name: envoy.router}}}}}\n  \
         patch: {operation: INSERT_BEFORE, value: {name: envoy.lua, config: {inline_code: ''}}}\n- applyTo: CLUSTER\n  patch: {operation: REMOVE}",
        &[],
    );
    expect(
        "EnvoyFilter",
        "filters: [{insertPosition: {index: BEFORE}}]\nconfigPatches:\n- {}\n- {applyTo: CLUSTER}\n- {applyTo: CLUSTER, patch: {}}\n- {applyTo: CLUSTER, patch: {operation: MERGE}}\n\
         - {applyTo: CLUSTER, match: {listener: {}, proxy: {proxyVersion: '('}}, patch: {operation: REMOVE}}\n\
         - {applyTo: LISTENER, match: {listener: {filterChain: {filter: {subFilter: {}}}}}, patch: {operation: REMOVE}}\n- {applyTo: VIRTUAL_HOST, match: {cluster: {}}, patch: {operation: REMOVE}}",
        &[
            "spec.filters[0].insertPosition.relativeTo: is empty",
            "spec.filters[0].filterType: is missing",
            "spec.filters[0].filterName: is empty",
            "spec.filters[0].filterConfig: is missing",
            "spec.configPatches[0].applyTo: is missing",
            "spec.configPatches[1].patch: is missing",
            "spec.configPatches[2].patch.operation: is missing",
            "spec.configPatches[3].patch.value: is missing",
            "spec.configPatches[4].match.proxy.proxyVersion: \"(\"",
            "spec.configPatches[4].match.listener: does not fit applyTo CLUSTER; accepted: cluster",
            "spec.configPatches[5].match.listener.filterChain.filter.name: is empty",
            "spec.configPatches[5].match.listener.filterChain.filter.subFilter: has no meaning",
            "spec.configPatches[5].match.listener.filterChain.filter.name: \"\" has no sub-filters",
            "spec.configPatches[5].match.listener.filterChain.filter.subFilter.name: is empty",
            "spec.configPatches[6].match.cluster: does not fit applyTo VIRTUAL_HOST; accepted: routeConfiguration",
        ],
    );
}

#[test]
fn values_of_envoy_filters_are_messages_of_envoys_api() {
    let lua = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua";
    expect(
        "EnvoyFilter",
        &format!(
            "configPatches:\n- {{applyTo: HTTP_FILTER, patch: {{operation: ADD, value: {{name: x, typed_config: {{'@type': {lua}, inline_cod: ''}}}}}}}}\n\
             - {{applyTo: HTTP_FILTER, patch: {{operation: ADD, value: {{name: x}}}}}}\n\
             - {{applyTo: CLUSTER, patch: {{operation: MERGE, value: {{connect_timeout: 1s, lb_policy: FAIR}}}}}}\n\
             - {{applyTo: CLUSTER, patch: {{operation: MERGE, value: {{connect_timeout: 1s}}}}}}\n\
             - {{applyTo: CLUSTER, patch: {{operation: ADD, value: {{connect_timeout: 1s}}}}}}\n\
             - {{applyTo: CLUSTER, patch: {{operation: REPLACE, value: {{}}}}}}\n\
             - {{applyTo: ROUTE_CONFIGURATION, patch: {{operation: REMOVE}}}}\n\
             filters:\n- {{filterType: HTTP, filterName: mixer, filterConfig: {{}}}}\n\
             - {{filterType: HTTP, filterName: envoy.fault, filterConfig: {{abort: {{http_status: 700, percentage: {{}}}}}}}}"
        ),
        &[
            "spec.configPatches[5].patch.operation: REPLACE is not for CLUSTER; accepted: MERGE",
            "spec.configPatches[6].patch.operation: REMOVE is not for ROUTE_CONFIGURATION; accepted: MERGE",
            "spec.configPatches[0].patch.value.typed_config: envoy.extensions.filters.http.lua.v3.Lua has no field \"inline_cod\"; accepted: inline_code",
            "spec.configPatches[1].patch.value.typed_config: is missing; accepted: the extension's config",
            "spec.configPatches[2].patch.value.lb_policy: \"FAIR\" is no value of envoy.config.cluster.v3.Cluster.LbPolicy; accepted: ROUND_ROBIN, LEAST_REQUEST",
            "spec.configPatches[4].patch.value.name: must not be empty",
            "spec.configPatches[5].patch.value.name: must not be empty",
            "spec.filters[0].filterConfig.config: is the form of Envoy's v2 API, and \"mixer\" is no extension that had it; accepted: typed_config",
            "spec.filters[1].filterConfig.typed_config.abort.http_status: is 700; accepted: at least 200, less than 600",
        ],
    );
    // Sources take such an object: Pilot leaves out the one patch.
    let text = "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: x, namespace: ns}\n\
                spec: {configPatches: [{applyTo: CLUSTER, patch: {operation: MERGE, value: {nope: 1}}}]}";
    assert!(
        crate::parse::load(text, Default::default())
            .errors
            .is_empty()
    );
    let errors = crate::parse::review(
        text,
        crate::parse::Options {
            file: Some("f.yaml"),
            ..Default::default()
        },
    )
    .errors;
    let message = errors[0].to_string();
    assert!(
        message.starts_with("f.yaml:4: EnvoyFilter ns/x: spec.configPatches[0].patch.value: envoy.config.cluster.v3.Cluster has no field \"nope\"; accepted: "),
        "{message}"
    );
}

#[test]
fn envoy_filters_are_bounded() {
    let patches = "\n- {applyTo: CLUSTER, patch: {operation: REMOVE}}".repeat(501);
    expect(
        "EnvoyFilter",
        &format!("configPatches:{patches}"),
        &["spec.configPatches: 501 patches; at most 500 are accepted in one EnvoyFilter"],
    );
    let large = "x".repeat(1 << 20);
    expect(
        "EnvoyFilter",
        &format!(
            "configPatches:\n- {{applyTo: CLUSTER, patch: {{operation: MERGE, value: {{name: {large}}}}}}}"
        ),
        &[
            "spec.configPatches: the values are larger than 1024 KiB together; split the EnvoyFilter",
        ],
    );
}
