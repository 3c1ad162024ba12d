use serde_json::{Value as Json, json};

use super::check;
use crate::json::dynamic_from_json;

const HCM: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

fn finding(message: &str, json: Json) -> Option<String> {
    check(&dynamic_from_json(message, &json).unwrap())
        .err()
        .map(|finding| finding.to_string())
}

#[test]
fn what_envoy_would_refuse_is_found_with_its_path() {
    const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
    const ROUTE: &str = "envoy.config.route.v3.RouteConfiguration";
    const LISTENER: &str = "envoy.config.listener.v3.Listener";
    let filter = |config: Json| json!({"name": "x", "filter_chains": [{"filters": [{"name": "a", "typed_config": config}]}]});
    let route = |m: Json| json!({"virtual_hosts": [{"name": "a", "domains": ["*"], "routes": [{"match": m, "route": {"cluster": "c"}}]}]});
    for (message, json, wanted) in [
        (CLUSTER, json!({}), "name: must not be empty"),
        (
            CLUSTER,
            json!({"name": "a", "connect_timeout": "0s"}),
            "connect_timeout: is 0s; accepted: more than 0s",
        ),
        (
            CLUSTER,
            json!({"name": "a", "outlier_detection": {"max_ejection_percent": 101}}),
            "outlier_detection.max_ejection_percent: is 101; accepted: at most 100",
        ),
        (
            CLUSTER,
            json!({"name": "a", "load_assignment": {"cluster_name": ""}}),
            "load_assignment.cluster_name: must not be empty",
        ),
        (
            CLUSTER,
            json!({"name": "a", "type": 77}),
            "type: 77 is no value of",
        ),
        (
            CLUSTER,
            json!({"name": "a", "health_checks": [{"interval": "1s", "unhealthy_threshold": 1, "healthy_threshold": 1, "tcp_health_check": {}}]}),
            "health_checks[0].timeout: is required",
        ),
        (
            ROUTE,
            json!({"virtual_hosts": [{"name": "a", "domains": []}]}),
            "virtual_hosts[0].domains: must not be empty",
        ),
        (
            ROUTE,
            route(json!({})),
            "virtual_hosts[0].routes[0].match: needs one of prefix, path, safe_regex",
        ),
        (
            ROUTE,
            route(json!({"prefix": "/", "headers": [{"name": "a\nb"}]})),
            "virtual_hosts[0].routes[0].match.headers[0].name: is \"a\\nb\"; accepted: what matches",
        ),
        (
            LISTENER,
            filter(json!({"@type": HCM, "http_filters": [], "route_config": {}})),
            "filter_chains[0].filters[0].typed_config.stat_prefix: must not be empty",
        ),
        (
            LISTENER,
            filter(json!({"@type": HCM, "stat_prefix": "p"})),
            "filter_chains[0].filters[0].typed_config: needs one of rds, route_config",
        ),
        (
            LISTENER,
            filter(
                json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}),
            ),
            "filter_chains[0].filters[0].typed_config: Envoy 1.40 has no extension of envoy.filters.network that reads",
        ),
        (
            LISTENER,
            json!({"name": "x", "filter_chains": [{"filters": [{"name": "a"}]}]}),
            "filter_chains[0].filters[0].typed_config: is missing",
        ),
    ] {
        let found =
            finding(message, json.clone()).unwrap_or_else(|| panic!("nothing found in {json}"));
        assert!(found.starts_with(wanted), "{json}: {found}");
    }
}

#[test]
fn what_envoy_takes_passes() {
    for (message, json) in [
        (
            "envoy.config.cluster.v3.Cluster",
            json!({"name": "a", "connect_timeout": "0.001s", "lb_policy": "RANDOM", "per_connection_buffer_limit_bytes": 0}),
        ),
        (
            "envoy.config.route.v3.RouteConfiguration",
            json!({"name": "", "virtual_hosts": [{"name": "a", "domains": ["*"], "routes": [
                {"match": {"prefix": ""}, "redirect": {"https_redirect": true}}]}]}),
        ),
        (
            "envoy.config.listener.v3.Listener",
            json!({"filter_chains": [{"filters": [{"name": "a", "typed_config": {
                "@type": HCM, "stat_prefix": "p", "rds": {"config_source": {"ads": {}}, "route_config_name": "r"}}}]}]}),
        ),
    ] {
        assert_eq!(finding(message, json), None);
    }
}
