//! What an `http[]` rule does, as an Envoy route without match and clusters.

use std::time::Duration;

use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use proto_networking::networking::{
    Destination as DestinationSpec, HttpRedirect, HttpRetry, HttpRoute as Rule,
    HttpRouteDestination,
};

use super::{
    duration,
    header_changes::{Changes, set_host},
    http_filters,
    virtual_service::{Destination, Mirror, Weighted},
};
use crate::{
    envoy::{
        self,
        route::{self, weighted_cluster::cluster_weight::HostRewriteSpecifier},
        safe,
    },
    model::host,
    report::Rejector,
};

/// Retried by default: what certainly did not reach the application, or asks to be tried again.
const RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled,resource-exhausted,retriable-status-codes";

/// Where a host is set by a header operation.
const SET_HOST: &str = "headers.request.set[host]";

/// A rule's action.
#[derive(Clone, Debug)]
pub(super) struct Action {
    pub(super) template: route::Route,
    pub(super) destinations: Vec<Weighted>,
    pub(super) mirror: Option<Mirror>,
}

pub(super) fn compile(
    rule: &Rule,
    path: &str,
    namespace: &str,
    domain: &str,
    rejector: &mut Rejector<'_>,
) -> Action {
    let mut template = route::Route::default();
    if let Some(spec) = &rule.redirect {
        template.action = Some(match redirect(spec, path, rejector) {
            Some(redirect) => route::route::Action::Redirect(redirect),
            None => refuse(),
        });
        Changes::of_route(&mut template).rule(rule, path, rejector);
        return Action {
            template,
            destinations: Vec::new(),
            mirror: None,
        };
    }
    let mut destinations = weighted(&rule.route, path, namespace, domain, rejector);
    Changes::of_route(&mut template).rule(rule, path, rejector);
    let mut own_host = None;
    if let [only] = destinations.as_mut_slice() {
        hoist(&mut template, &mut only.template);
        own_host = only.template.host_rewrite_specifier.take();
    }
    template.typed_per_filter_config = http_filters::compile(rule, path, rejector);
    template.action = Some(if destinations.is_empty() {
        rejector.reject(
            format!("{path}.route"),
            "no destination with a weight above 0 is left; accepted: redirect, or route with at least one destination",
            "requests of this rule get 503",
        );
        refuse()
    } else {
        let mut action = forward(rule, path, rejector);
        if let Some(HostRewriteSpecifier::HostRewriteLiteral(host)) = own_host {
            let literal = route::route_action::HostRewriteSpecifier::HostRewriteLiteral(host);
            action.host_rewrite_specifier = Some(literal);
        }
        route::route::Action::Route(action)
    });
    Action {
        template,
        destinations,
        mirror: mirror(rule, path, namespace, domain, rejector),
    }
}

/// The answer for a rule whose action cannot be carried out. Leaving the rule out instead would hand its requests to the
/// rules behind it, which the user did not mean.
fn refuse() -> route::route::Action {
    route::route::Action::DirectResponse(route::DirectResponseAction {
        status: 503,
        ..Default::default()
    })
}

/// A destination of any rule; short hosts are of the object's namespace.
pub(super) fn destination(
    spec: Option<&DestinationSpec>,
    path: &str,
    namespace: &str,
    domain: &str,
    rejector: &mut Rejector<'_>,
) -> Option<Destination> {
    let Some(spec) = spec else {
        rejector.reject(
            format!("{path}.destination"),
            "a destination is required",
            "the entry is left out",
        );
        return None;
    };
    let resolved = host::resolve(&spec.host, namespace, domain);
    if !host::is_valid(&resolved) {
        let reason = format!(
            "{:?} is no host; accepted: the name of a service",
            spec.host
        );
        rejector.reject(
            format!("{path}.destination.host"),
            reason,
            "the entry is left out",
        );
        return None;
    }
    if !spec
        .subset
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    {
        let reason = format!(
            "{:?} is no subset name; accepted: letters, digits, - _ .",
            spec.subset
        );
        rejector.reject(
            format!("{path}.destination.subset"),
            reason,
            "the entry is left out",
        );
        return None;
    }
    let port = spec.port.as_ref().map(|p| p.number).filter(|n| *n != 0);
    if let Some(port) = port.filter(|p| *p > 65535) {
        let reason = format!("{port} is no port; accepted: 1 to 65535");
        rejector.reject(
            format!("{path}.destination.port.number"),
            reason,
            "the entry is left out",
        );
        return None;
    }
    Some(Destination {
        host: resolved,
        subset: spec.subset.clone(),
        port,
    })
}

/// A weight: a lone destination gets everything; of several, 0 means none.
pub(super) fn weight(
    weight: i32,
    several: bool,
    path: &str,
    rejector: &mut Rejector<'_>,
) -> Option<u32> {
    match (u32::try_from(weight), several) {
        (Ok(0), false) => Some(100),
        (Ok(0), true) => None,
        // Envoy adds weights in 32 bits.
        (Ok(weight), _) if weight <= 1_000_000 => Some(weight),
        _ => {
            let reason = format!("{weight} is no weight; accepted: 0 to 100");
            rejector.reject(
                format!("{path}.weight"),
                reason,
                "the destination is left out",
            );
            None
        }
    }
}

fn weighted(
    list: &[HttpRouteDestination],
    path: &str,
    namespace: &str,
    domain: &str,
    rejector: &mut Rejector<'_>,
) -> Vec<Weighted> {
    let several = list.len() > 1;
    let mut out = Vec::with_capacity(list.len());
    for (i, spec) in list.iter().enumerate() {
        let path = format!("{path}.route[{i}]");
        let Some(destination) = destination(
            spec.destination.as_ref(),
            &path,
            namespace,
            domain,
            rejector,
        ) else {
            continue;
        };
        let Some(weight) = weight(spec.weight, several, &path, rejector) else {
            continue;
        };
        let mut template = route::weighted_cluster::ClusterWeight::default();
        Changes::of_weight(&mut template).destination(spec, &path, rejector);
        if let Some(host) = set_host(spec.headers.as_ref()) {
            template.host_rewrite_specifier =
                literal(host, &format!("{path}.{SET_HOST}"), rejector)
                    .map(HostRewriteSpecifier::HostRewriteLiteral);
        }
        out.push(Weighted {
            destination,
            weight,
            template,
        });
    }
    out
}

/// With a single destination there is no weighted entry to carry its header operations: the route does.
fn hoist(route: &mut route::Route, weight: &mut route::weighted_cluster::ClusterWeight) {
    route
        .request_headers_to_add
        .append(&mut weight.request_headers_to_add);
    route
        .request_headers_to_remove
        .append(&mut weight.request_headers_to_remove);
    route
        .response_headers_to_add
        .append(&mut weight.response_headers_to_add);
    route
        .response_headers_to_remove
        .append(&mut weight.response_headers_to_remove);
}

/// The text of a host rewrite, if it can be one.
fn literal(host: &str, field: &str, rejector: &mut Rejector<'_>) -> Option<String> {
    let usable = match host {
        "" => Err("an empty host is none".to_owned()),
        host => safe::header_value(host),
    };
    match usable {
        Ok(()) => Some(host.to_owned()),
        Err(reason) => {
            rejector.reject(field, reason, "the host is not rewritten");
            None
        }
    }
}

/// Everything of a forwarding action that does not depend on clusters.
fn forward(rule: &Rule, path: &str, rejector: &mut Rejector<'_>) -> route::RouteAction {
    let mut action = route::RouteAction {
        retry_policy: retries(rule.retries.as_ref(), path, rejector),
        ..Default::default()
    };
    let timeout = rule
        .timeout
        .as_ref()
        .map(duration)
        .transpose()
        .unwrap_or_else(|reason| {
            rejector.reject(format!("{path}.timeout"), reason, "the rule has no timeout");
            None
        });
    set_timeout(&mut action, timeout.unwrap_or_default());
    let rewrite = rule.rewrite.as_ref();
    let authority = rewrite
        .map(|r| r.authority.as_str())
        .filter(|a| !a.is_empty());
    let host = match (authority, set_host(rule.headers.as_ref())) {
        (Some(authority), _) => literal(authority, &format!("{path}.rewrite.authority"), rejector),
        (None, Some(host)) => literal(host, &format!("{path}.{SET_HOST}"), rejector),
        (None, None) => None,
    };
    action.host_rewrite_specifier =
        host.map(route::route_action::HostRewriteSpecifier::HostRewriteLiteral);
    if let Some(uri) = rewrite.map(|r| &r.uri).filter(|u| !u.is_empty()) {
        match safe::header_value(uri) {
            Ok(()) => action.prefix_rewrite.clone_from(uri),
            Err(reason) => rejector.reject(
                format!("{path}.rewrite.uri"),
                reason,
                "the path is not rewritten",
            ),
        }
    }
    action
}

/// Sets the timeout of a route; zero means none, and a gRPC deadline is then obeyed as it comes.
///
/// With `max_stream_duration` Envoy ignores `timeout`, so a real timeout caps gRPC deadlines through the older
/// field, which Envoy 1.40 still takes.
pub(crate) fn set_timeout(action: &mut route::RouteAction, timeout: Duration) {
    action.timeout = envoy::duration(timeout);
    if timeout.is_zero() {
        action.max_stream_duration = Some(route::route_action::MaxStreamDuration {
            max_stream_duration: envoy::duration(timeout),
            grpc_timeout_header_max: envoy::duration(timeout),
            ..Default::default()
        });
    } else {
        #[allow(deprecated)]
        {
            action.max_grpc_timeout = envoy::duration(timeout);
        }
    }
}

/// What outbound routes without a word about retries get.
pub(crate) fn default_retries() -> route::RetryPolicy {
    route::RetryPolicy {
        retry_on: RETRY_ON.to_owned(),
        num_retries: envoy::uint(2),
        retriable_status_codes: vec![503],
        retry_host_predicate: vec![route::retry_policy::RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
            config_type: Some(
                route::retry_policy::retry_host_predicate::ConfigType::TypedConfig(envoy::any(
                    &PreviousHostsPredicate::default(),
                )),
            ),
        }],
        host_selection_retry_max_attempts: 5,
        ..Default::default()
    }
}

fn retries(
    spec: Option<&HttpRetry>,
    path: &str,
    rejector: &mut Rejector<'_>,
) -> Option<route::RetryPolicy> {
    let mut policy = default_retries();
    let Some(spec) = spec else {
        return Some(policy);
    };
    let attempts = u32::try_from(spec.attempts).ok().filter(|n| *n > 0)?;
    policy.num_retries = envoy::uint(attempts.min(1000));
    if !spec.retry_on.is_empty() {
        let (codes, tokens): (Vec<&str>, Vec<&str>) = spec
            .retry_on
            .split(',')
            .map(str::trim)
            .filter(|t| !t.is_empty())
            .partition(|t| {
                t.parse::<u16>()
                    .is_ok_and(|code| (100..600).contains(&code))
            });
        policy.retry_on = tokens.join(",");
        policy.retriable_status_codes = codes.iter().filter_map(|c| c.parse().ok()).collect();
    }
    match spec.per_try_timeout.as_ref().map(duration).transpose() {
        Ok(Some(timeout)) if !timeout.is_zero() => {
            policy.per_try_timeout = envoy::duration(timeout)
        }
        Ok(_) => {}
        Err(reason) => rejector.reject(
            format!("{path}.retries.perTryTimeout"),
            reason,
            "tries have no timeout of their own",
        ),
    }
    Some(policy)
}

fn redirect(
    spec: &HttpRedirect,
    path: &str,
    rejector: &mut Rejector<'_>,
) -> Option<route::RedirectAction> {
    use route::redirect_action::{
        PathRewriteSpecifier::PathRedirect, RedirectResponseCode as Code,
    };
    let texts = [("authority", &spec.authority), ("uri", &spec.uri)];
    for (field, text) in texts {
        if let Err(reason) = safe::header_value(text) {
            rejector.reject(
                format!("{path}.redirect.{field}"),
                reason,
                "requests of this rule get 503",
            );
            return None;
        }
    }
    let code = match spec.redirect_code {
        0 | 301 => Code::MovedPermanently,
        302 => Code::Found,
        303 => Code::SeeOther,
        307 => Code::TemporaryRedirect,
        308 => Code::PermanentRedirect,
        other => {
            let reason = format!("{other} is no redirect code; accepted: 301, 302, 303, 307, 308");
            rejector.reject(
                format!("{path}.redirect.redirectCode"),
                reason,
                "requests of this rule get 503",
            );
            return None;
        }
    };
    Some(route::RedirectAction {
        host_redirect: spec.authority.clone(),
        response_code: code.into(),
        path_rewrite_specifier: (!spec.uri.is_empty()).then(|| PathRedirect(spec.uri.clone())),
        ..Default::default()
    })
}

fn mirror(
    rule: &Rule,
    path: &str,
    namespace: &str,
    domain: &str,
    rejector: &mut Rejector<'_>,
) -> Option<Mirror> {
    let path = format!("{path}.mirror");
    let spec = rule.mirror.as_ref()?;
    let percent = rule.mirror_percent.as_ref().map_or(100, |p| p.value);
    if percent > 100 {
        let reason = format!("{percent} is no percentage; accepted: 0 to 100");
        rejector.reject(
            format!("{path}Percent"),
            reason,
            "requests are not mirrored",
        );
        return None;
    }
    let destination = destination(Some(spec), &path, namespace, domain, rejector)?;
    (percent > 0).then_some(Mirror {
        destination,
        percent,
    })
}
