//! Rules of EnvoyFilter.
//!
//! Two degrees. [`check`] are the rules that sources hold objects against: an object that breaks one is refused whole.
//! [`values`] asks besides whether each patch's value is the message of Envoy's API that it should be; that is for people
//! and for admission (`istioctl validate`, the webhook), since Pilot itself leaves out the one patch and uses the
//! others ([`crate::envoy_patch`] is what both ask).

use proto_networking::networking::EnvoyFilter;
use proto_networking::networking::envoy_filter::envoy_config_object_match::ObjectTypes;
use proto_networking::networking::envoy_filter::filter::FilterType;
use proto_networking::networking::envoy_filter::insert_position::Index;
use proto_networking::networking::envoy_filter::patch::Operation;
use proto_networking::networking::envoy_filter::{
    ApplyTo, EnvoyConfigObjectPatch, Filter, ListenerMatch,
};

use proto_envoy::{ReadError, Step};

use super::{FieldError, Problems, rules};
use crate::envoy_patch;
use crate::meta::Meta;
use crate::path::FieldPath;

/// Names of the filter that holds HTTP filters, in either API version.
const HTTP_CONNECTION_MANAGERS: [&str; 2] = [
    "envoy.http_connection_manager",
    "envoy.filters.network.http_connection_manager",
];

pub(super) fn check(p: &mut Problems, _: &Meta, spec: &EnvoyFilter) {
    let root = FieldPath::spec();
    if let Some(selector) = &spec.workload_selector {
        let path = root.key("workloadSelector").key("labels");
        if selector.labels.is_empty() {
            p.add_accepting(
                &path,
                "is empty",
                "labels, or no workloadSelector for the whole namespace",
            );
        }
        rules::labels(p, &path, &selector.labels);
    }
    if let Some((field, reason)) = envoy_patch::too_large(spec) {
        p.add(&root.key(field), reason);
    }
    for (i, f) in spec.filters.iter().enumerate() {
        filter(p, &root.key("filters").index(i), f);
    }
    for (i, patch) in spec.config_patches.iter().enumerate() {
        config_patch(p, &root.key("configPatches").index(i), patch);
    }
}

/// Whether the patches' values are what they should be.
pub(super) fn values(p: &mut Problems, spec: &EnvoyFilter) {
    let root = FieldPath::spec();
    for (i, patch) in spec.config_patches.iter().enumerate() {
        let apply_to = patch.apply_to();
        let path = root.key("configPatches").index(i).key("patch").key("value");
        let Some(body) = &patch.patch else { continue };
        let Some(value) = &body.value else { continue };
        if apply_to == ApplyTo::Invalid || body.operation() == Operation::Remove {
            continue;
        }
        if let Err(error) = envoy_patch::value(apply_to, body.operation(), value) {
            p.extend(vec![unreadable(&path, error)]);
        }
    }
    for (i, filter) in spec.filters.iter().enumerate() {
        let path = root.key("filters").index(i).key("filterConfig");
        if filter.filter_config.is_some()
            && let Err(error) = envoy_patch::filter(filter)
        {
            p.extend(vec![unreadable(&path, error)]);
        }
    }
}

/// The error with its path from the root of the object, as far down as the object goes.
fn unreadable(path: &FieldPath, error: ReadError) -> FieldError {
    let mut path = path.clone();
    for step in error.path.steps() {
        path = match step {
            Step::Field(name) | Step::Key(name) => path.key(name),
            Step::Index(index) => path.index(*index),
        };
    }
    FieldError::new(&path, error.message).accepted_opt(error.accepted)
}

fn filter(p: &mut Problems, path: &FieldPath, filter: &Filter) {
    if let Some(position) = &filter.insert_position
        && matches!(position.index(), Index::Before | Index::After)
        && position.relative_to.is_empty()
    {
        p.add_accepting(
            &path.key("insertPosition").key("relativeTo"),
            "is empty though index is BEFORE or AFTER",
            "the name of a filter",
        );
    }
    if filter.filter_type() == FilterType::Invalid {
        p.add_accepting(&path.key("filterType"), "is missing", "HTTP or NETWORK");
    }
    if filter.filter_name.is_empty() {
        p.add(&path.key("filterName"), "is empty");
    }
    if filter.filter_config.is_none() {
        p.add(&path.key("filterConfig"), "is missing");
    }
}

fn config_patch(p: &mut Problems, path: &FieldPath, patch: &EnvoyConfigObjectPatch) {
    let apply_to = patch.apply_to();
    if apply_to == ApplyTo::Invalid {
        p.add_accepting(
            &path.key("applyTo"),
            "is missing",
            "LISTENER, FILTER_CHAIN, NETWORK_FILTER, HTTP_FILTER, ROUTE_CONFIGURATION, VIRTUAL_HOST, HTTP_ROUTE or CLUSTER",
        );
        return;
    }
    let Some(body) = &patch.patch else {
        p.add(&path.key("patch"), "is missing");
        return;
    };
    if body.operation() == Operation::Invalid {
        p.add_accepting(
            &path.key("patch").key("operation"),
            "is missing",
            "MERGE, ADD, REMOVE, INSERT_BEFORE, INSERT_AFTER, INSERT_FIRST or REPLACE",
        );
        return;
    }
    if let Some(accepted) = envoy_patch::misplaced(apply_to, body.operation()) {
        p.add_accepting(
            &path.key("patch").key("operation"),
            format!(
                "{} is not for {}",
                body.operation().as_str_name(),
                apply_to.as_str_name()
            ),
            accepted,
        );
    }
    if body.operation() != Operation::Remove && body.value.is_none() {
        p.add(&path.key("patch").key("value"), "is missing");
        return;
    }
    let Some(condition) = &patch.r#match else {
        return;
    };
    let path = path.key("match");
    if let Some(proxy) = condition
        .proxy
        .as_ref()
        .filter(|proxy| !proxy.proxy_version.is_empty())
    {
        rules::regex(
            p,
            &path.key("proxy").key("proxyVersion"),
            &proxy.proxy_version,
        );
    }
    let wanted = match apply_to {
        ApplyTo::RouteConfiguration | ApplyTo::VirtualHost | ApplyTo::HttpRoute => {
            "routeConfiguration"
        }
        ApplyTo::Cluster => "cluster",
        _ => "listener",
    };
    let given = match &condition.object_types {
        None => return,
        Some(ObjectTypes::Listener(_)) => "listener",
        Some(ObjectTypes::RouteConfiguration(_)) => "routeConfiguration",
        Some(ObjectTypes::Cluster(_)) => "cluster",
    };
    if given != wanted {
        let message = format!("does not fit applyTo {}", apply_to.as_str_name());
        p.add_accepting(&path.key(given), message, wanted);
    } else if let Some(ObjectTypes::Listener(listener)) = &condition.object_types {
        listener_match(p, &path.key("listener"), listener, apply_to);
    }
}

fn listener_match(p: &mut Problems, path: &FieldPath, listener: &ListenerMatch, apply_to: ApplyTo) {
    let Some(filter) = listener
        .filter_chain
        .as_ref()
        .and_then(|chain| chain.filter.as_ref())
    else {
        return;
    };
    let path = path.key("filterChain").key("filter");
    if filter.name.is_empty() {
        p.add_accepting(&path.key("name"), "is empty", "the name of a filter");
    }
    let Some(sub_filter) = &filter.sub_filter else {
        return;
    };
    let path_sub = path.key("subFilter");
    if apply_to != ApplyTo::HttpFilter {
        p.add_accepting(&path_sub, "has no meaning here", "applyTo HTTP_FILTER");
    }
    if !HTTP_CONNECTION_MANAGERS.contains(&filter.name.as_str()) {
        p.add_accepting(
            &path.key("name"),
            format!("{:?} has no sub-filters", filter.name),
            HTTP_CONNECTION_MANAGERS[1],
        );
    }
    if sub_filter.name.is_empty() {
        p.add_accepting(
            &path_sub.key("name"),
            "is empty",
            "the name of an HTTP filter",
        );
    }
}
