//! Header operations of routes and of weighted destinations.
//!
//! Envoy refuses operations on `host` and pseudo headers, and reads `%` in values as a command: names are checked, values
//! escaped. Setting the host is honoured as a host rewrite by [`super::route_action`], see [`set_host`].

use std::collections::BTreeMap;

use proto_networking::networking::{Headers, HttpRoute as Rule, HttpRouteDestination};

use crate::{
    envoy::{core, route, safe},
    report::Rejector,
};

/// The header operations of a route or of a weighted entry.
pub(super) struct Changes<'a> {
    request_add: &'a mut Vec<core::HeaderValueOption>,
    request_remove: &'a mut Vec<String>,
    response_add: &'a mut Vec<core::HeaderValueOption>,
    response_remove: &'a mut Vec<String>,
}

impl<'a> Changes<'a> {
    pub(super) fn of_route(r: &'a mut route::Route) -> Self {
        Changes {
            request_add: &mut r.request_headers_to_add,
            request_remove: &mut r.request_headers_to_remove,
            response_add: &mut r.response_headers_to_add,
            response_remove: &mut r.response_headers_to_remove,
        }
    }

    pub(super) fn of_weight(w: &'a mut route::weighted_cluster::ClusterWeight) -> Self {
        Changes {
            request_add: &mut w.request_headers_to_add,
            request_remove: &mut w.request_headers_to_remove,
            response_add: &mut w.response_headers_to_add,
            response_remove: &mut w.response_headers_to_remove,
        }
    }

    /// The operations of a rule, deprecated spellings included.
    pub(super) fn rule(&mut self, rule: &Rule, path: &str, rejector: &mut Rejector<'_>) {
        self.headers(rule.headers.as_ref(), path, rejector);
        self.put(
            true,
            false,
            &rule.append_headers,
            &format!("{path}.appendHeaders"),
            rejector,
        );
        self.put(
            true,
            false,
            &rule.append_request_headers,
            &format!("{path}.appendRequestHeaders"),
            rejector,
        );
        self.put(
            false,
            false,
            &rule.append_response_headers,
            &format!("{path}.appendResponseHeaders"),
            rejector,
        );
        self.remove(
            true,
            &rule.remove_request_headers,
            &format!("{path}.removeRequestHeaders"),
            rejector,
        );
        self.remove(
            false,
            &rule.remove_response_headers,
            &format!("{path}.removeResponseHeaders"),
            rejector,
        );
    }

    /// The operations of one destination.
    pub(super) fn destination(
        &mut self,
        spec: &HttpRouteDestination,
        path: &str,
        rejector: &mut Rejector<'_>,
    ) {
        self.headers(spec.headers.as_ref(), path, rejector);
        self.put(
            true,
            false,
            &spec.append_request_headers,
            &format!("{path}.appendRequestHeaders"),
            rejector,
        );
        self.put(
            false,
            false,
            &spec.append_response_headers,
            &format!("{path}.appendResponseHeaders"),
            rejector,
        );
        self.remove(
            true,
            &spec.remove_request_headers,
            &format!("{path}.removeRequestHeaders"),
            rejector,
        );
        self.remove(
            false,
            &spec.remove_response_headers,
            &format!("{path}.removeResponseHeaders"),
            rejector,
        );
    }

    fn headers(&mut self, spec: Option<&Headers>, path: &str, rejector: &mut Rejector<'_>) {
        let Some(spec) = spec else { return };
        for (request, side, operations) in [
            (true, "request", &spec.request),
            (false, "response", &spec.response),
        ] {
            let Some(operations) = operations else {
                continue;
            };
            let path = format!("{path}.headers.{side}");
            self.put(
                request,
                true,
                &operations.set,
                &format!("{path}.set"),
                rejector,
            );
            self.put(
                request,
                false,
                &operations.add,
                &format!("{path}.add"),
                rejector,
            );
            self.remove(
                request,
                &operations.remove,
                &format!("{path}.remove"),
                rejector,
            );
        }
    }

    fn put(
        &mut self,
        request: bool,
        overwrite: bool,
        map: &BTreeMap<String, String>,
        path: &str,
        rejector: &mut Rejector<'_>,
    ) {
        use core::header_value_option::HeaderAppendAction::{
            AppendIfExistsOrAdd, OverwriteIfExistsOrAdd,
        };
        for (name, value) in map {
            if request && overwrite && is_authority(name) {
                continue; // becomes a host rewrite, see `set_host`
            }
            if let Err(reason) = safe::changed_header(name).and_then(|()| safe::header_value(value))
            {
                rejector.reject(
                    format!("{path}[{name}]"),
                    reason,
                    "the header is left as it is",
                );
                continue;
            }
            let action = if overwrite {
                OverwriteIfExistsOrAdd
            } else {
                AppendIfExistsOrAdd
            };
            let list = if request {
                &mut *self.request_add
            } else {
                &mut *self.response_add
            };
            list.push(core::HeaderValueOption {
                header: Some(core::HeaderValue {
                    key: name.to_ascii_lowercase(),
                    value: safe::escaped_header_value(value),
                    ..Default::default()
                }),
                append_action: action.into(),
                keep_empty_value: value.is_empty(),
                ..Default::default()
            });
        }
    }

    fn remove(&mut self, request: bool, names: &[String], path: &str, rejector: &mut Rejector<'_>) {
        for (i, name) in names.iter().enumerate() {
            match safe::changed_header(name) {
                Ok(()) if request => self.request_remove.push(name.to_ascii_lowercase()),
                Ok(()) => self.response_remove.push(name.to_ascii_lowercase()),
                Err(reason) => rejector.reject(
                    format!("{path}[{i}]"),
                    reason,
                    "the header is left as it is",
                ),
            }
        }
    }
}

/// The host that header operations set, if they do: not a header to Envoy, but a rewrite.
pub(super) fn set_host(spec: Option<&Headers>) -> Option<&str> {
    let set = &spec?.request.as_ref()?.set;
    let (_, value) = set.iter().find(|(name, _)| is_authority(name))?;
    Some(value)
}

fn is_authority(name: &str) -> bool {
    name == ":authority" || name.eq_ignore_ascii_case("host")
}
