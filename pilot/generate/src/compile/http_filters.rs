//! Options of the fault and CORS filters for one route.

use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::{
    common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier},
    http::{
        cors::v3::CorsPolicy,
        fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType},
    },
};
use proto_networking::networking::{
    CorsPolicy as CorsSpec, HttpFaultInjection, HttpRoute as Rule, Percent,
    http_fault_injection::{abort, delay},
};

use super::duration;
use crate::{
    envoy::{self, core, kind, safe},
    report::Rejector,
};

const FAULT: &str = "envoy.filters.http.fault";
const CORS: &str = "envoy.filters.http.cors";

/// Options of the fault and CORS filters for one route.
pub(super) fn compile(
    rule: &Rule,
    path: &str,
    rejector: &mut Rejector<'_>,
) -> std::collections::HashMap<String, envoy::Any> {
    let fault = rule.fault.as_ref().and_then(|f| fault(f, path, rejector));
    let cors = rule.cors_policy.as_ref().map(|c| cors(c, path, rejector));
    envoy::stable_map(
        cors.map(|c| (CORS.to_owned(), envoy::any(&c)))
            .into_iter()
            .chain(fault.map(|f| (FAULT.to_owned(), envoy::any(&f)))),
    )
}

fn fault(spec: &HttpFaultInjection, path: &str, rejector: &mut Rejector<'_>) -> Option<HttpFault> {
    let mut out = HttpFault::default();
    if let Some(spec) = &spec.delay {
        let path = format!("{path}.fault.delay");
        match &spec.http_delay_type {
            Some(delay::HttpDelayType::FixedDelay(time)) => match duration(time) {
                // Envoy refuses a delay of zero.
                Ok(time) if time >= Duration::from_millis(1) => {
                    out.delay = percentage(spec.percentage.as_ref(), spec.percent, &path, rejector)
                        .map(|percentage| FaultDelay {
                            percentage: Some(percentage),
                            fault_delay_secifier: envoy::duration(time)
                                .map(FaultDelaySecifier::FixedDelay),
                        });
                }
                Ok(_) => rejector.reject(
                    format!("{path}.fixedDelay"),
                    "a delay of 0 does nothing; accepted: at least 1ms",
                    "no delay is injected",
                ),
                Err(reason) => {
                    rejector.reject(format!("{path}.fixedDelay"), reason, "no delay is injected")
                }
            },
            _ => rejector.reject(path, "only fixedDelay is supported", "no delay is injected"),
        }
    }
    if let Some(spec) = &spec.abort {
        let path = format!("{path}.fault.abort");
        match &spec.error_type {
            Some(abort::ErrorType::HttpStatus(status)) if (200..600).contains(status) => {
                out.abort = percentage(spec.percentage.as_ref(), spec.percent, &path, rejector)
                    .map(|percentage| FaultAbort {
                        percentage: Some(percentage),
                        error_type: u32::try_from(*status).ok().map(ErrorType::HttpStatus),
                        ..Default::default()
                    });
            }
            Some(abort::ErrorType::HttpStatus(status)) => {
                let reason = format!("{status} is no status; accepted: 200 to 599");
                rejector.reject(format!("{path}.httpStatus"), reason, "nothing is aborted");
            }
            _ => rejector.reject(path, "only httpStatus is supported", "nothing is aborted"),
        }
    }
    (out.delay.is_some() || out.abort.is_some()).then_some(out)
}

/// `percentage`, or the older integer `percent`; neither: 0%.
fn percentage(
    percentage: Option<&Percent>,
    percent: i32,
    path: &str,
    rejector: &mut Rejector<'_>,
) -> Option<kind::FractionalPercent> {
    let value = percentage.map_or(f64::from(percent), |p| p.value);
    if !(0.0..=100.0).contains(&value) {
        let reason = format!("{value} is no percentage; accepted: 0 to 100");
        rejector.reject(
            format!("{path}.percentage"),
            reason,
            "the fault is not injected",
        );
        return None;
    }
    Some(kind::FractionalPercent {
        // At most 1,000,000.
        numerator: (value * 10_000.0).round() as u32,
        denominator: kind::fractional_percent::DenominatorType::Million.into(),
    })
}

fn cors(spec: &CorsSpec, path: &str, rejector: &mut Rejector<'_>) -> CorsPolicy {
    let path = format!("{path}.corsPolicy");
    let mut join = |field: &str, list: &[String]| {
        let text = list.join(",");
        safe::header_value(&text)
            .map(|()| text)
            .unwrap_or_else(|reason| {
                rejector.reject(format!("{path}.{field}"), reason, "the list is left empty");
                String::new()
            })
    };
    let mut policy = CorsPolicy {
        allow_origin_string_match: spec.allow_origin.iter().map(envoy::exact).collect(),
        allow_methods: join("allowMethods", &spec.allow_methods),
        allow_headers: join("allowHeaders", &spec.allow_headers),
        expose_headers: join("exposeHeaders", &spec.expose_headers),
        allow_credentials: spec
            .allow_credentials
            .as_ref()
            .and_then(|b| envoy::boolean(b.value)),
        filter_enabled: Some(core::RuntimeFractionalPercent {
            default_value: Some(kind::FractionalPercent {
                numerator: 100,
                denominator: kind::fractional_percent::DenominatorType::Hundred.into(),
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    match spec.max_age.as_ref().map(duration).transpose() {
        Ok(Some(age)) => policy.max_age = age.as_secs().to_string(),
        Ok(None) => {}
        Err(reason) => rejector.reject(format!("{path}.maxAge"), reason, "no maximum age is sent"),
    }
    policy
}
