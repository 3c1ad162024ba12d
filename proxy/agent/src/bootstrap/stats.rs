//! Which of Envoy's stats are kept, and which parts of their names become tags.
//!
//! Kept as in Istio 1.4: the prefixes and the suffix below, and what the pod's annotations
//! `sidecar.istio.io/statsInclusion{Prefixes,Suffixes,Regexps}` add; `{pod_ip}` in them stands for each of the pod's
//! addresses. Everything else costs memory in every sidecar (a mesh of a thousand services has hundreds of thousands of
//! stats per proxy) and is dropped by Envoy.
//!
//! Kept in addition, few per cluster and each the answer to a question that operators of this mesh ask:
//!
//! | Stat | Question |
//! |---|---|
//! | `*.update_rejected` | has this proxy refused any config (CDS, LDS, and per cluster and route: EDS, RDS)? |
//! | `control_plane.*` | is it connected to Pilot? |
//! | `*.upstream_rq_pending_overflow`, `*.upstream_cx_overflow` | did a circuit breaker open? |
//! | `*.outlier_detection.ejections_active`, `…_enforced_total` | is a host ejected? |
//! | `*.upstream_rq_retry`, `*.upstream_rq_timeout` | what did the mesh do on the app's behalf? |
//! | `*.downstream_rq_active`, `*.downstream_cx_active` | is anything under way? The agent's drain asks this. |

use std::net::IpAddr;

use serde_json::{Map, Value, json};

const PREFIXES: [&str; 9] = [
    "reporter=",
    "component",
    "cluster_manager",
    "listener_manager",
    "http_mixer_filter",
    "tcp_mixer_filter",
    "server",
    "cluster.xds-grpc",
    // Ours.
    "control_plane",
];

const SUFFIXES: [&str; 10] = [
    "ssl_context_update_by_sds",
    // Ours.
    "update_rejected",
    "upstream_rq_pending_overflow",
    "upstream_cx_overflow",
    "outlier_detection.ejections_active",
    "outlier_detection.ejections_enforced_total",
    "upstream_rq_retry",
    "upstream_rq_timeout",
    "downstream_rq_active",
    "downstream_cx_active",
];

/// Tags that are written into a stat's name as `KEY=.=VALUE;.;`.
const KEYED: [&str; 23] = [
    "reporter",
    "source_namespace",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "destination_namespace",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
    "permissive_response_code",
    "permissive_response_policyid",
    "component",
    "tag",
];

/// An address and port as it stands in a stat's name: `10.0.0.1_8080`, `[fd00__1]_8080`.
const ADDRESS: &str = r"((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))";

/// `stats_config`.
pub fn config(metadata: &Map<String, Value>, addresses: &[IpAddr]) -> Value {
    json!({
        "use_all_default_tags": false,
        "stats_tags": tags(),
        "stats_matcher": {"inclusion_list": {"patterns": patterns(metadata, addresses)}},
    })
}

/// Envoy takes the first group out of the name and makes the second the tag's value.
fn tags() -> Vec<Value> {
    let plain = [
        (
            "cluster_name",
            r"^cluster\.((.+?(\..+?\.svc\.cluster\.local)?)\.)".to_owned(),
        ),
        ("tcp_prefix", r"^tcp\.((.*?)\.)\w+?$".to_owned()),
        (
            "response_code",
            r"(response_code=\.=(.+?);\.;)|_rq(_(\d{3}))$".to_owned(),
        ),
        ("response_code_class", r"_rq(_(\dxx))$".to_owned()),
        (
            "http_conn_manager_listener_prefix",
            format!(r"^listener(?=\.).*?\.http\.({ADDRESS}\.)"),
        ),
        ("http_conn_manager_prefix", format!(r"^http\.({ADDRESS}\.)")),
        ("listener_address", format!(r"^listener\.({ADDRESS}\.)")),
        (
            "mongo_prefix",
            r"^mongo\.(.+?)\.(collection|cmd|cx_|op_|delays_|decoding_)(.*?)$".to_owned(),
        ),
        ("cache", r"(cache\.(.+?)\.)".to_owned()),
    ];
    let keyed = KEYED
        .iter()
        .map(|key| (*key, format!(r"({key}=\.=(.*?);\.;)")));
    plain
        .into_iter()
        .chain(keyed)
        .map(|(name, regex)| json!({"tag_name": name, "regex": regex}))
        .collect()
}

fn patterns(metadata: &Map<String, Value>, addresses: &[IpAddr]) -> Vec<Value> {
    let annotation = |name: &str| -> Vec<String> {
        let text = metadata
            .get(&format!("sidecar.istio.io/{name}"))
            .and_then(Value::as_str)
            .unwrap_or_default();
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .flat_map(|part| match part.contains("{pod_ip}") {
                true => addresses
                    .iter()
                    .map(|address| part.replace("{pod_ip}", &address.to_string()))
                    .collect(),
                false => vec![part.to_owned()],
            })
            .collect()
    };
    let prefixes = PREFIXES
        .map(str::to_owned)
        .into_iter()
        .chain(annotation("statsInclusionPrefixes"));
    let suffixes = SUFFIXES
        .map(str::to_owned)
        .into_iter()
        .chain(annotation("statsInclusionSuffixes"));
    let regexes = annotation("statsInclusionRegexps");
    prefixes
        .map(|text| json!({"prefix": text}))
        .chain(suffixes.map(|text| json!({"suffix": text})))
        .chain(
            regexes
                .into_iter()
                .map(|text| json!({"safe_regex": {"regex": text}})),
        )
        .collect()
}
