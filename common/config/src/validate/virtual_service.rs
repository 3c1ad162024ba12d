//! Rules of VirtualService (VS1 to VS42 of the reference; Istio 1.4 `pkg/config/validation`).

use std::collections::BTreeMap;

use proto_networking::networking::http_fault_injection::{abort::ErrorType, delay::HttpDelayType};
use proto_networking::networking::{
    CorsPolicy, Destination, Headers, HttpFaultInjection, HttpMatchRequest, HttpRetry, HttpRoute,
    Percent, RouteDestination, StringMatch, TcpRoute, TlsRoute, VirtualService, string_match,
};

use super::{Problems, rules};
use crate::meta::Meta;
use crate::path::FieldPath;

/// Names of retry conditions that Envoy knows and Istio allows.
const RETRY_ON: [&str; 11] = [
    "5xx",
    "gateway-error",
    "reset",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
];
const RETRY_ON_LAST: &str = "unavailable";

const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE",
];

pub(super) fn check(p: &mut Problems, _: &Meta, spec: &VirtualService) {
    let root = FieldPath::spec();
    rules::gateways(p, &root.key("gateways"), &spec.gateways);
    hosts(p, &root.key("hosts"), spec);
    if spec.http.is_empty() && spec.tcp.is_empty() && spec.tls.is_empty() {
        p.add_accepting(&root, "has no routes", "at least one of http, tls, tcp");
    }
    for (i, route) in spec.http.iter().enumerate() {
        http_route(p, &root.key("http").index(i), route);
    }
    for (i, route) in spec.tls.iter().enumerate() {
        tls_route(p, &root.key("tls").index(i), route, &spec.hosts);
    }
    for (i, route) in spec.tcp.iter().enumerate() {
        tcp_route(p, &root.key("tcp").index(i), route);
    }
    rules::export_to(p, &root.key("exportTo"), &spec.export_to);
}

fn hosts(p: &mut Problems, path: &FieldPath, spec: &VirtualService) {
    if spec.hosts.is_empty() {
        p.add_accepting(path, "is empty", "at least one host");
    }
    let on_mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|g| g == "mesh");
    let mut valid = true;
    for (i, host) in spec.hosts.iter().enumerate() {
        let path = path.index(i);
        if host == "*" && on_mesh {
            p.add_accepting(
                &path,
                "\"*\" would take over all traffic of the mesh",
                "\"*\" only with gateways",
            );
            valid = false;
        } else if !rules::is_ip(host) {
            let count = p.len();
            rules::wildcard_domain(p, &path, host);
            valid &= p.len() == count;
        }
    }
    if !valid {
        return;
    }
    for (i, host) in spec.hosts.iter().enumerate() {
        if let Some(other) = spec.hosts[..i]
            .iter()
            .find(|other| rules::hosts_overlap(host, other))
        {
            p.add_accepting(
                &path.index(i),
                format!("{host:?} overlaps {other:?}"),
                "hosts that differ",
            );
        }
    }
}

fn http_route(p: &mut Problems, path: &FieldPath, route: &HttpRoute) {
    match &route.redirect {
        Some(redirect) => {
            let beside = [
                ("route", !route.route.is_empty()),
                ("fault", route.fault.is_some()),
                ("rewrite", route.rewrite.is_some()),
                ("websocketUpgrade", route.websocket_upgrade),
            ];
            for (name, _) in beside.iter().filter(|(_, set)| *set) {
                p.add_accepting(
                    &path.key(*name),
                    "cannot go with redirect",
                    "redirect alone",
                );
            }
            let path = path.key("redirect");
            if redirect.uri.is_empty() && redirect.authority.is_empty() {
                p.add_accepting(
                    &path,
                    "redirects to where it was",
                    "a uri, an authority or both",
                );
            }
            if redirect.redirect_code != 0 && !(300..400).contains(&redirect.redirect_code) {
                let message = format!("{} is not a redirection status", redirect.redirect_code);
                p.add_accepting(
                    &path.key("redirectCode"),
                    message,
                    "301, 302, 303, 307 or 308",
                );
            }
        }
        None if route.route.is_empty() => {
            p.add_accepting(path, "leads nowhere", "route or redirect")
        }
        None => {}
    }
    for (i, m) in route.r#match.iter().enumerate() {
        http_match(p, &path.key("match").index(i), m);
    }
    route_headers(p, path, route);
    if let Some(percent) = &route.mirror_percent {
        rules::percent(p, &path.key("mirrorPercent"), i64::from(percent.value));
    }
    if let Some(mirror) = &route.mirror {
        destination(p, &path.key("mirror"), Some(mirror));
    }
    rules::optional_duration(p, &path.key("timeout"), route.timeout.as_ref());
    if let Some(rewrite) = &route.rewrite
        && rewrite.uri.is_empty()
        && rewrite.authority.is_empty()
    {
        p.add_accepting(
            &path.key("rewrite"),
            "rewrites nothing",
            "a uri, an authority or both",
        );
    }
    if let Some(retry) = &route.retries {
        retries(p, &path.key("retries"), retry);
    }
    if let Some(policy) = &route.cors_policy {
        cors(p, &path.key("corsPolicy"), policy);
    }
    if let Some(fault) = &route.fault {
        self::fault(p, &path.key("fault"), fault);
    }
    let path = path.key("route");
    for (i, d) in route.route.iter().enumerate() {
        let path = path.index(i);
        destination(p, &path.key("destination"), d.destination.as_ref());
        header_maps(
            p,
            &path,
            &[
                ("appendRequestHeaders", &d.append_request_headers),
                ("appendResponseHeaders", &d.append_response_headers),
            ],
        );
        header_names(
            p,
            &path.key("removeRequestHeaders"),
            &d.remove_request_headers,
        );
        header_names(
            p,
            &path.key("removeResponseHeaders"),
            &d.remove_response_headers,
        );
        headers(p, &path.key("headers"), d.headers.as_ref());
    }
    weights(p, &path, route.route.iter().map(|d| d.weight));
}

fn route_headers(p: &mut Problems, path: &FieldPath, route: &HttpRoute) {
    header_maps(
        p,
        path,
        &[
            ("appendHeaders", &route.append_headers),
            ("appendRequestHeaders", &route.append_request_headers),
            ("appendResponseHeaders", &route.append_response_headers),
        ],
    );
    header_names(
        p,
        &path.key("removeRequestHeaders"),
        &route.remove_request_headers,
    );
    header_names(
        p,
        &path.key("removeResponseHeaders"),
        &route.remove_response_headers,
    );
    headers(p, &path.key("headers"), route.headers.as_ref());
}

fn headers(p: &mut Problems, path: &FieldPath, headers: Option<&Headers>) {
    let Some(headers) = headers else { return };
    for (name, operations) in [
        ("request", &headers.request),
        ("response", &headers.response),
    ] {
        let Some(operations) = operations else {
            continue;
        };
        let path = path.key(name);
        header_maps(
            p,
            &path,
            &[("set", &operations.set), ("add", &operations.add)],
        );
        header_names(p, &path.key("remove"), &operations.remove);
    }
}

fn header_maps(p: &mut Problems, path: &FieldPath, maps: &[(&str, &BTreeMap<String, String>)]) {
    for (name, map) in maps {
        for header in map.keys() {
            header_name(p, &path.key(*name).key(header), header);
        }
    }
}

fn header_names(p: &mut Problems, path: &FieldPath, names: &[String]) {
    for (i, name) in names.iter().enumerate() {
        header_name(p, &path.index(i), name);
    }
}

fn header_name(p: &mut Problems, path: &FieldPath, name: &str) {
    if name.is_empty() {
        p.add(path, "the header has no name");
    }
}

fn http_match(p: &mut Problems, path: &FieldPath, m: &HttpMatchRequest) {
    for name in m.headers.keys() {
        header_name(p, &path.key("headers").key(name), name);
    }
    let single = [
        ("uri", &m.uri),
        ("scheme", &m.scheme),
        ("method", &m.method),
        ("authority", &m.authority),
    ];
    for (name, condition) in single {
        if let Some(condition) = condition {
            regex(p, &path.key(name), condition);
        }
    }
    for (field, map) in [("headers", &m.headers), ("queryParams", &m.query_params)] {
        for (name, condition) in map {
            regex(p, &path.key(field).key(name), condition);
        }
    }
    if m.port != 0 {
        rules::port(p, &path.key("port"), i64::from(m.port));
    }
    rules::labels(p, &path.key("sourceLabels"), &m.source_labels);
    rules::gateways(p, &path.key("gateways"), &m.gateways);
}

/// Envoy refuses a whole route configuration for one bad expression, so we look before it does.
fn regex(p: &mut Problems, path: &FieldPath, condition: &StringMatch) {
    let Some(string_match::MatchType::Regex(text)) = &condition.match_type else {
        return;
    };
    // A bare star is not RE2, but users of Istio write it, and it is translated to "anything".
    if text != "*" {
        rules::regex(p, &path.key("regex"), text);
    }
}

fn retries(p: &mut Problems, path: &FieldPath, retry: &HttpRetry) {
    rules::not_negative(p, &path.key("attempts"), retry.attempts);
    if retry.attempts == 0 && (retry.per_try_timeout.is_some() || !retry.retry_on.is_empty()) {
        p.add_accepting(
            &path.key("attempts"),
            "is 0, so perTryTimeout and retryOn have no effect",
            "1 or more",
        );
    }
    rules::optional_duration(
        p,
        &path.key("perTryTimeout"),
        retry.per_try_timeout.as_ref(),
    );
    if retry.retry_on.is_empty() {
        return;
    }
    for item in retry.retry_on.split(',') {
        let status = item
            .parse::<u16>()
            .is_ok_and(|code| (100..600).contains(&code));
        if !status && !RETRY_ON.contains(&item) && item != RETRY_ON_LAST {
            let accepted = format!(
                "{}, {RETRY_ON_LAST}, or an HTTP status, separated by commas without spaces",
                RETRY_ON.join(", ")
            );
            p.add_accepting(
                &path.key("retryOn"),
                format!("{item:?} is not a retry condition"),
                accepted,
            );
        }
    }
}

fn cors(p: &mut Problems, path: &FieldPath, policy: &CorsPolicy) {
    for (i, origin) in policy.allow_origin.iter().enumerate() {
        if !is_origin(origin) {
            p.add_accepting(
                &path.key("allowOrigin").index(i),
                format!("{origin:?} is not an origin"),
                "\"*\", or [http[s]://]host[:port]",
            );
        }
    }
    for (i, method) in policy.allow_methods.iter().enumerate() {
        if !METHODS.contains(&method.as_str()) {
            p.add_accepting(
                &path.key("allowMethods").index(i),
                format!("{method:?} is not a method"),
                METHODS.join(", "),
            );
        }
    }
    header_names(p, &path.key("allowHeaders"), &policy.allow_headers);
    header_names(p, &path.key("exposeHeaders"), &policy.expose_headers);
    if let Some(max_age) = &policy.max_age {
        let path = path.key("maxAge");
        rules::duration(p, &path, max_age);
        if max_age.nanos % 1_000_000_000 != 0 {
            p.add_accepting(
                &path,
                format!("{max_age} is finer than a second"),
                "whole seconds",
            );
        }
    }
}

fn is_origin(origin: &str) -> bool {
    if origin == "*" {
        return true;
    }
    let rest = ["https://", "http://"]
        .iter()
        .find_map(|scheme| origin.strip_prefix(scheme))
        .unwrap_or(origin);
    match rest.split_once(':') {
        None => rules::is_fqdn(rest),
        Some((host, port)) => {
            rules::is_fqdn(host) && port.parse::<u16>().is_ok_and(|port| port > 0)
        }
    }
}

fn fault(p: &mut Problems, path: &FieldPath, fault: &HttpFaultInjection) {
    if fault.abort.is_none() && fault.delay.is_none() {
        p.add_accepting(path, "does nothing", "abort, delay or both");
    }
    if let Some(abort) = &fault.abort {
        let path = path.key("abort");
        share(p, &path, abort.percentage.as_ref(), abort.percent);
        match &abort.error_type {
            Some(ErrorType::HttpStatus(status)) if !(200..=600).contains(status) => p
                .add_accepting(
                    &path.key("httpStatus"),
                    format!("{status} is not a status to abort with"),
                    "200 to 600",
                ),
            Some(ErrorType::HttpStatus(_)) => {}
            Some(ErrorType::GrpcStatus(_)) => {
                p.add_accepting(&path.key("grpcStatus"), "is not supported", "httpStatus")
            }
            Some(ErrorType::Http2Error(_)) => {
                p.add_accepting(&path.key("http2Error"), "is not supported", "httpStatus")
            }
            None => {}
        }
    }
    if let Some(delay) = &fault.delay {
        let path = path.key("delay");
        share(p, &path, delay.percentage.as_ref(), delay.percent);
        match &delay.http_delay_type {
            Some(HttpDelayType::FixedDelay(duration)) => {
                rules::duration(p, &path.key("fixedDelay"), duration)
            }
            Some(HttpDelayType::ExponentialDelay(_)) => {
                p.add_accepting(
                    &path.key("exponentialDelay"),
                    "is not supported",
                    "fixedDelay",
                );
            }
            None => {}
        }
    }
}

/// A percentage, or its older integer form.
fn share(p: &mut Problems, path: &FieldPath, percentage: Option<&Percent>, percent: i32) {
    match percentage {
        Some(percentage) => {
            rules::fractional_percent(p, &path.key("percentage").key("value"), percentage.value)
        }
        None => rules::percent(p, &path.key("percent"), i64::from(percent)),
    }
}

fn destination(p: &mut Problems, path: &FieldPath, destination: Option<&Destination>) {
    let Some(destination) = destination else {
        p.add_accepting(path, "is missing", "a destination with a host");
        return;
    };
    if destination.host == "*" {
        p.add_accepting(
            &path.key("host"),
            "\"*\" is not a destination",
            rules::HOST_ACCEPTED,
        );
    } else {
        rules::wildcard_domain(p, &path.key("host"), &destination.host);
    }
    if !destination.subset.is_empty() {
        rules::label(p, &path.key("subset"), &destination.subset);
    }
    if let Some(port) = &destination.port
        && port.number != 0
    {
        rules::port(p, &path.key("port").key("number"), i64::from(port.number));
    }
}

fn weights(p: &mut Problems, path: &FieldPath, weights: impl ExactSizeIterator<Item = i32>) {
    let several = weights.len() > 1;
    let mut sum = 0;
    for (i, weight) in weights.enumerate() {
        rules::percent(p, &path.index(i).key("weight"), i64::from(weight));
        sum += i64::from(weight);
    }
    if several && sum != 100 {
        p.add_accepting(
            path,
            format!("the weights sum to {sum}"),
            "weights that sum to 100",
        );
    }
}

fn routes(p: &mut Problems, path: &FieldPath, routes: &[RouteDestination]) {
    if routes.is_empty() {
        p.add_accepting(path, "is empty", "at least one destination");
    }
    for (i, route) in routes.iter().enumerate() {
        destination(
            p,
            &path.index(i).key("destination"),
            route.destination.as_ref(),
        );
    }
    weights(p, path, routes.iter().map(|r| r.weight));
}

fn tls_route(p: &mut Problems, path: &FieldPath, route: &TlsRoute, hosts: &[String]) {
    if route.r#match.is_empty() {
        p.add_accepting(
            &path.key("match"),
            "is empty",
            "at least one match with sniHosts",
        );
    }
    for (i, m) in route.r#match.iter().enumerate() {
        let path = path.key("match").index(i);
        if m.sni_hosts.is_empty() {
            p.add_accepting(&path.key("sniHosts"), "is empty", "at least one host");
        }
        for (i, sni) in m.sni_hosts.iter().enumerate() {
            let path = path.key("sniHosts").index(i);
            if !rules::is_ip(sni) && !rules::is_wildcard_domain(sni) {
                p.add_accepting(
                    &path,
                    format!("{sni:?} is not a host"),
                    rules::HOST_ACCEPTED,
                );
            } else if !hosts.iter().any(|host| rules::host_within(sni, host)) {
                p.add_accepting(
                    &path,
                    format!("{sni:?} is not within spec.hosts"),
                    hosts.join(", "),
                );
            }
        }
        l4_match(
            p,
            &path,
            &m.destination_subnets,
            m.port,
            &m.source_labels,
            &m.gateways,
        );
    }
    routes(p, &path.key("route"), &route.route);
}

fn tcp_route(p: &mut Problems, path: &FieldPath, route: &TcpRoute) {
    for (i, m) in route.r#match.iter().enumerate() {
        let path = path.key("match").index(i);
        if !m.source_subnet.is_empty() {
            rules::ipv4_subnet(p, &path.key("sourceSubnet"), &m.source_subnet);
        }
        l4_match(
            p,
            &path,
            &m.destination_subnets,
            m.port,
            &m.source_labels,
            &m.gateways,
        );
    }
    routes(p, &path.key("route"), &route.route);
}

fn l4_match(
    p: &mut Problems,
    path: &FieldPath,
    subnets: &[String],
    port: u32,
    labels: &BTreeMap<String, String>,
    gateways: &[String],
) {
    for (i, subnet) in subnets.iter().enumerate() {
        rules::ipv4_subnet(p, &path.key("destinationSubnets").index(i), subnet);
    }
    if port != 0 {
        rules::port(p, &path.key("port"), i64::from(port));
    }
    rules::labels(p, &path.key("sourceLabels"), labels);
    rules::gateways(p, &path.key("gateways"), gateways);
}
