//! Random Sidecars, none of which anybody checked.

use std::fmt::Write as _;

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

fn one<'a>(rng: &mut StdRng, list: &[&'a str]) -> &'a str {
    list.choose(rng).unwrap()
}

fn list(rng: &mut StdRng, most: usize, each: fn(&mut StdRng) -> String) -> String {
    let count = rng.random_range(0..=most);
    let all: Vec<String> = (0..count).map(|_| each(rng)).collect();
    format!("[{}]", all.join(", "))
}

fn host(rng: &mut StdRng) -> String {
    let namespace = one(rng, &["*", ".", "~", "shop", "infra", "nowhere"]);
    let name = one(
        rng,
        &[
            "*",
            "*.com",
            "a.shop.svc.cluster.local",
            "b.infra.svc.cluster.local",
            "*.shop.svc.cluster.local",
            "api.example.com",
            "bad host",
        ],
    );
    format!("\"{namespace}/{name}\"")
}

fn port(rng: &mut StdRng) -> String {
    let number = one(rng, &["0", "80", "443", "9080", "3306", "15001", "70000"]);
    let protocol = one(rng, &["HTTP", "TCP", "TLS", "MONGO", "GRPC", "", "UDP"]);
    format!("port: {{number: {number}, protocol: \"{protocol}\", name: p}}, ")
}

fn bind(rng: &mut StdRng) -> &'static str {
    one(
        rng,
        &[
            "",
            "",
            "127.0.0.1",
            "10.96.0.1",
            "0.0.0.0",
            "fd00::7",
            "unix:///run/x",
            "nonsense",
        ],
    )
}

fn egress(rng: &mut StdRng) -> String {
    let port = match rng.random_bool(0.5) {
        true => port(rng),
        false => String::new(),
    };
    format!(
        "{{{port}bind: \"{}\", captureMode: {}, hosts: {}}}",
        bind(rng),
        one(rng, &["DEFAULT", "IPTABLES", "NONE"]),
        list(rng, 3, host)
    )
}

fn ingress(rng: &mut StdRng) -> String {
    format!(
        "{{{}bind: \"{}\", captureMode: {}, defaultEndpoint: \"{}\"}}",
        port(rng),
        bind(rng),
        one(rng, &["DEFAULT", "NONE"]),
        one(
            rng,
            &[
                "127.0.0.1:8080",
                ":80",
                "unix:///run/app",
                "10.0.0.1:80",
                ""
            ]
        )
    )
}

/// Documents with Sidecars of the namespaces that worlds have; may be none.
pub(crate) fn sidecars(seed: u64) -> String {
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut out = String::new();
    for i in 0..rng.random_range(0..4) {
        let selector = one(
            rng,
            &[
                "",
                "workloadSelector: {labels: {app: a}}, ",
                "workloadSelector: {labels: {app: z}}, ",
            ],
        );
        let policy = one(
            rng,
            &[
                "",
                ", outboundTrafficPolicy: {mode: ALLOW_ANY}",
                ", outboundTrafficPolicy: {mode: REGISTRY_ONLY}",
            ],
        );
        let _ = write!(
            out,
            "apiVersion: networking.istio.io/v1alpha3\nkind: Sidecar\nmetadata: {{name: sc{i}, namespace: {}}}\nspec: {{{selector}egress: {}, ingress: {}{policy}}}\n---\n",
            one(rng, &["shop", "shop", "infra", "istio-system"]),
            list(rng, 3, egress),
            list(rng, 2, ingress),
        );
    }
    out
}
