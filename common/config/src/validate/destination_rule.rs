//! Rules of DestinationRule (DR1 to DR14 of the reference).

use proto_networking::networking::load_balancer_settings::{LbPolicy, consistent_hash_lb::HashKey};
use proto_networking::networking::tls_settings::TlSmode;
use proto_networking::networking::{
    ConnectionPoolSettings, DestinationRule, LoadBalancerSettings, OutlierDetection, Subset,
    TlsSettings, TrafficPolicy,
};

use super::{Problems, rules};
use crate::meta::Meta;
use crate::path::FieldPath;

pub(super) fn check(p: &mut Problems, _: &Meta, spec: &DestinationRule) {
    let root = FieldPath::spec();
    rules::wildcard_domain(p, &root.key("host"), &spec.host);
    if let Some(policy) = &spec.traffic_policy {
        traffic_policy(p, &root.key("trafficPolicy"), policy);
    }
    for (i, s) in spec.subsets.iter().enumerate() {
        subset(p, &root.key("subsets").index(i), s);
    }
    rules::export_to(p, &root.key("exportTo"), &spec.export_to);
}

fn subset(p: &mut Problems, path: &FieldPath, subset: &Subset) {
    rules::label(p, &path.key("name"), &subset.name);
    rules::labels(p, &path.key("labels"), &subset.labels);
    if let Some(policy) = &subset.traffic_policy {
        traffic_policy(p, &path.key("trafficPolicy"), policy);
    }
}

/// The four parts of a policy, of a rule or of a port.
struct Parts<'a> {
    load_balancer: Option<&'a LoadBalancerSettings>,
    connection_pool: Option<&'a ConnectionPoolSettings>,
    outlier_detection: Option<&'a OutlierDetection>,
    tls: Option<&'a TlsSettings>,
}

impl Parts<'_> {
    fn is_empty(&self) -> bool {
        self.load_balancer.is_none()
            && self.connection_pool.is_none()
            && self.outlier_detection.is_none()
            && self.tls.is_none()
    }

    fn check(&self, p: &mut Problems, path: &FieldPath) {
        if let Some(outlier) = self.outlier_detection {
            outlier_detection(p, &path.key("outlierDetection"), outlier);
        }
        if let Some(pool) = self.connection_pool {
            connection_pool(p, &path.key("connectionPool"), pool);
        }
        if let Some(settings) = self.load_balancer {
            load_balancer(p, &path.key("loadBalancer"), settings);
        }
        if let Some(settings) = self.tls {
            tls(p, &path.key("tls"), settings);
        }
    }
}

const PARTS: &str = "loadBalancer, connectionPool, outlierDetection or tls";

fn traffic_policy(p: &mut Problems, path: &FieldPath, policy: &TrafficPolicy) {
    let parts = Parts {
        load_balancer: policy.load_balancer.as_ref(),
        connection_pool: policy.connection_pool.as_ref(),
        outlier_detection: policy.outlier_detection.as_ref(),
        tls: policy.tls.as_ref(),
    };
    if parts.is_empty() && policy.port_level_settings.is_empty() {
        p.add_accepting(
            path,
            "says nothing",
            format!("{PARTS}, or portLevelSettings"),
        );
    }
    parts.check(p, path);
    for (i, port) in policy.port_level_settings.iter().enumerate() {
        let path = path.key("portLevelSettings").index(i);
        match &port.port {
            Some(selector) => rules::port(
                p,
                &path.key("port").key("number"),
                i64::from(selector.number),
            ),
            None => p.add_accepting(&path.key("port"), "is missing", "port.number"),
        }
        let parts = Parts {
            load_balancer: port.load_balancer.as_ref(),
            connection_pool: port.connection_pool.as_ref(),
            outlier_detection: port.outlier_detection.as_ref(),
            tls: port.tls.as_ref(),
        };
        if parts.is_empty() {
            p.add_accepting(&path, "says nothing", PARTS);
        }
        parts.check(p, &path);
    }
}

fn outlier_detection(p: &mut Problems, path: &FieldPath, outlier: &OutlierDetection) {
    rules::optional_duration(
        p,
        &path.key("baseEjectionTime"),
        outlier.base_ejection_time.as_ref(),
    );
    rules::optional_duration(p, &path.key("interval"), outlier.interval.as_ref());
    rules::not_negative(
        p,
        &path.key("consecutiveErrors"),
        outlier.consecutive_errors,
    );
    rules::percent(
        p,
        &path.key("maxEjectionPercent"),
        i64::from(outlier.max_ejection_percent),
    );
    rules::percent(
        p,
        &path.key("minHealthPercent"),
        i64::from(outlier.min_health_percent),
    );
}

fn connection_pool(p: &mut Problems, path: &FieldPath, pool: &ConnectionPoolSettings) {
    if pool.http.is_none() && pool.tcp.is_none() {
        p.add_accepting(path, "says nothing", "http, tcp or both");
    }
    if let Some(http) = &pool.http {
        let path = path.key("http");
        for (name, value) in [
            ("http1MaxPendingRequests", http.http1_max_pending_requests),
            ("http2MaxRequests", http.http2_max_requests),
            ("maxRequestsPerConnection", http.max_requests_per_connection),
            ("maxRetries", http.max_retries),
        ] {
            rules::not_negative(p, &path.key(name), value);
        }
        rules::optional_duration(p, &path.key("idleTimeout"), http.idle_timeout.as_ref());
    }
    if let Some(tcp) = &pool.tcp {
        let path = path.key("tcp");
        rules::not_negative(p, &path.key("maxConnections"), tcp.max_connections);
        rules::optional_duration(p, &path.key("connectTimeout"), tcp.connect_timeout.as_ref());
    }
}

fn load_balancer(p: &mut Problems, path: &FieldPath, settings: &LoadBalancerSettings) {
    let Some(LbPolicy::ConsistentHash(hash)) = &settings.lb_policy else {
        return;
    };
    if let Some(HashKey::HttpCookie(cookie)) = &hash.hash_key {
        let path = path.key("consistentHash").key("httpCookie");
        if cookie.name.is_empty() {
            p.add(&path.key("name"), "is empty");
        }
        if cookie.ttl.is_none() {
            p.add_accepting(
                &path.key("ttl"),
                "is missing",
                "a duration; 0s for a session cookie",
            );
        }
    }
}

fn tls(p: &mut Problems, path: &FieldPath, settings: &TlsSettings) {
    if settings.mode() != TlSmode::Mutual {
        return;
    }
    for (name, value) in [
        ("clientCertificate", &settings.client_certificate),
        ("privateKey", &settings.private_key),
    ] {
        if value.is_empty() {
            p.add_accepting(
                &path.key(name),
                "is empty though mode is MUTUAL",
                "the path of a file",
            );
        }
    }
}
