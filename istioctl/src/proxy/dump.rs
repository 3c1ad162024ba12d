//! Reads Envoy's config dump and cluster list (admin interface, JSON) into the rows that `proxy-config` prints.
//!
//! Pure functions over `serde_json::Value`: a dump holds messages of any extension, and rows need a few fields only.

use serde_json::Value;

/// Every resource in a dump: dynamic active ones and static ones, as the resource's own JSON.
pub(super) fn resources(dump: &Value, kind: Kind) -> Vec<&Value> {
    let mut found = Vec::new();
    for section in list(&dump["configs"]) {
        for key in kind.sections() {
            for entry in list(&section[*key]) {
                let state = if entry["active_state"].is_object() {
                    &entry["active_state"]
                } else {
                    entry
                };
                let resource = &state[kind.field()];
                if resource.is_object() {
                    found.push(resource);
                }
            }
        }
    }
    found
}

/// What a dump can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Cluster,
    Listener,
    Route,
}

impl Kind {
    fn sections(self) -> &'static [&'static str] {
        match self {
            Self::Cluster => &["dynamic_active_clusters", "static_clusters"],
            Self::Listener => &["dynamic_listeners", "static_listeners"],
            Self::Route => &["dynamic_route_configs", "static_route_configs"],
        }
    }

    fn field(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Listener => "listener",
            Self::Route => "route_config",
        }
    }
}

/// A cluster's row. Names of Istio's form split into their four parts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClusterRow {
    pub(super) fqdn: String,
    pub(super) subset: String,
    pub(super) port: String,
    pub(super) direction: String,
    pub(super) kind: String,
}

pub(super) fn cluster_row(cluster: &Value) -> ClusterRow {
    let name = text(&cluster["name"]);
    let custom = text(&cluster["cluster_type"]["name"]);
    let kind = match (cluster["type"].as_str(), custom.is_empty()) {
        (_, false) => custom,
        (Some(kind), true) => kind.to_owned(),
        (None, true) => "STATIC".to_owned(),
    };
    let or_dash = |s: &str| {
        if s.is_empty() {
            "-".to_owned()
        } else {
            s.to_owned()
        }
    };
    match name.split('|').collect::<Vec<_>>()[..] {
        [direction, port, subset, fqdn] => ClusterRow {
            fqdn: fqdn.to_owned(),
            subset: or_dash(subset),
            port: or_dash(port),
            direction: direction.to_owned(),
            kind,
        },
        _ => ClusterRow {
            fqdn: name,
            subset: "-".to_owned(),
            port: "-".to_owned(),
            direction: "-".to_owned(),
            kind,
        },
    }
}

/// Address, port and type of a listener.
pub(super) fn listener_row(listener: &Value) -> (String, u64, &'static str) {
    let socket = &listener["address"]["socket_address"];
    let port = socket["port_value"].as_u64().unwrap_or(0);
    let filters = list(&listener["filter_chains"])
        .chain(std::iter::once(&listener["default_filter_chain"]))
        .flat_map(|chain| list(&chain["filters"]));
    let kind = filters
        .filter_map(|f| f["name"].as_str())
        .find_map(|name| {
            // Old names and today's: envoy.http_connection_manager, envoy.filters.network.http_connection_manager.
            if name.ends_with("http_connection_manager") {
                Some("HTTP")
            } else if name.ends_with("tcp_proxy") {
                Some("TCP")
            } else {
                None
            }
        })
        .unwrap_or("UNKNOWN");
    (text(&socket["address"]), port, kind)
}

/// Name and number of virtual hosts of a route configuration.
pub(super) fn route_row(route: &Value) -> (String, usize) {
    (text(&route["name"]), list(&route["virtual_hosts"]).count())
}

/// An endpoint as Envoy sees it now.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EndpointRow {
    pub(super) address: String,
    pub(super) port: u64,
    pub(super) cluster: String,
    pub(super) status: String,
    pub(super) outlier_failed: bool,
}

impl EndpointRow {
    pub(super) fn endpoint(&self) -> String {
        match self.address.starts_with("unix://") {
            true => self.address.clone(),
            false => format!("{}:{}", self.address, self.port),
        }
    }
}

/// All endpoints of `/clusters?format=json`, in order of address, port and cluster.
pub(super) fn endpoint_rows(clusters: &Value) -> Vec<EndpointRow> {
    let mut rows = Vec::new();
    for cluster in list(&clusters["cluster_statuses"]) {
        for host in list(&cluster["host_statuses"]) {
            let socket = &host["address"]["socket_address"];
            let address = match host["address"]["pipe"]["path"].as_str() {
                Some(path) => format!("unix://{path}"),
                None => text(&socket["address"]),
            };
            let health = &host["health_status"];
            rows.push(EndpointRow {
                address,
                port: socket["port_value"].as_u64().unwrap_or(0),
                cluster: text(&cluster["name"]),
                status: health["eds_health_status"]
                    .as_str()
                    .unwrap_or("HEALTHY")
                    .to_owned(),
                outlier_failed: health["failed_outlier_check"].as_bool().unwrap_or(false),
            });
        }
    }
    rows.sort();
    rows
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn active_and_static_resources_are_found_and_warming_ones_not() {
        let dump = json!({"configs": [
            {"dynamic_active_clusters": [{"version_info": "1", "cluster": {"name": "outbound|9080|v1|reviews.default.svc.cluster.local", "type": "EDS"}}],
             "dynamic_warming_clusters": [{"cluster": {"name": "warming"}}],
             "static_clusters": [{"cluster": {"name": "xds-grpc", "type": "STRICT_DNS"}}]},
            {"dynamic_listeners": [
                {"name": "l", "active_state": {"listener": {
                    "address": {"socket_address": {"address": "0.0.0.0", "port_value": 9080}},
                    "filter_chains": [{"filters": [{"name": "x"}, {"name": "envoy.filters.network.http_connection_manager"}]}]}}},
                {"name": "draining", "draining_state": {}}]}
        ]});
        let clusters: Vec<_> = resources(&dump, Kind::Cluster)
            .into_iter()
            .map(cluster_row)
            .collect();
        assert_eq!(clusters.len(), 2);
        assert_eq!(clusters[0].fqdn, "reviews.default.svc.cluster.local");
        assert_eq!(
            (clusters[0].port.as_str(), clusters[0].subset.as_str()),
            ("9080", "v1")
        );
        assert_eq!(
            (clusters[1].fqdn.as_str(), clusters[1].direction.as_str()),
            ("xds-grpc", "-")
        );
        let listeners: Vec<_> = resources(&dump, Kind::Listener)
            .into_iter()
            .map(listener_row)
            .collect();
        assert_eq!(listeners, [("0.0.0.0".to_owned(), 9080, "HTTP")]);
    }

    #[test]
    fn endpoints_are_sorted_and_ejected_ones_told() {
        let host = |ip: &str, failed: bool| {
            json!({
                "address": {"socket_address": {"address": ip, "port_value": 9080}},
                "health_status": {"eds_health_status": "HEALTHY", "failed_outlier_check": failed}
            })
        };
        let clusters = json!({"cluster_statuses": [
            {"name": "c", "host_statuses": [host("10.0.0.2", true), host("10.0.0.1", false)]},
            {"name": "p", "host_statuses": [{"address": {"pipe": {"path": "/s"}}}]}
        ]});
        let rows = endpoint_rows(&clusters);
        let seen: Vec<_> = rows
            .iter()
            .map(|r| (r.endpoint(), r.outlier_failed))
            .collect();
        assert_eq!(
            seen,
            [
                ("10.0.0.1:9080".into(), false),
                ("10.0.0.2:9080".into(), true),
                ("unix:///s".into(), false)
            ]
        );
    }
}
