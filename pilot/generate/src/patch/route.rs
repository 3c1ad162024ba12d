//! Patches of route configurations, whether they travel alone or inside a listener.

use proto_networking::networking::envoy_filter::{ApplyTo, patch::Operation};

use super::{
    Encoded, Side, check,
    compile::Patch,
    run::{Effect, Resource, Run, Work, merged, typed},
};
use crate::{
    envoy::route::{Route, RouteConfiguration, VirtualHost},
    model::ProxyKind,
    report::Report,
    snapshot::Scope,
};

impl Resource for RouteConfiguration {
    const KIND: &'static str = "route configuration";

    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) -> Result<(), String> {
        check::routes(self)
    }
}

/// A generator's route configuration, patched and encoded.
pub fn routes(
    scope: &Scope,
    config: RouteConfiguration,
    report: &mut Report,
) -> Encoded<RouteConfiguration> {
    let side = match scope.key().kind {
        ProxyKind::Sidecar => Side::Outbound,
        ProxyKind::Router => Side::Gateway,
    };
    let mut steps = scope.key().patches.routes(side);
    steps.retain(|step| step.patch().route.holds(scope, side, &config));
    if steps.is_empty() {
        return Encoded::plain(config);
    }
    let mut run = Run::new(side);
    let unpatched = config.clone();
    let apply = |config: &mut RouteConfiguration, patch: &Patch| {
        Ok(match apply(scope, side, config, patch)? {
            true => Effect::Changed,
            false => Effect::Nothing,
        })
    };
    let work = Work {
        apply: &apply,
        beside: &|_| Ok(()),
    };
    let settled = run.settle(config, &steps, &work);
    run.finish(report);
    settled.unwrap_or_else(|| Encoded::plain(unpatched))
}

/// Applies a patch; says whether it changed anything.
pub(super) fn apply(
    scope: &Scope,
    side: Side,
    config: &mut RouteConfiguration,
    patch: &Patch,
) -> Result<bool, String> {
    if !patch.route.holds(scope, side, config) {
        return Ok(false);
    }
    match (patch.apply_to, patch.operation, &patch.value) {
        (ApplyTo::RouteConfiguration, Operation::Merge, Some(value)) => {
            *config = merged(config, value)?;
            Ok(true)
        }
        (ApplyTo::VirtualHost, Operation::Remove, _) => {
            let before = config.virtual_hosts.len();
            config
                .virtual_hosts
                .retain(|host| !patch.route.host_holds(host));
            Ok(config.virtual_hosts.len() < before)
        }
        (ApplyTo::VirtualHost, Operation::Merge, Some(value)) => {
            let hosts = config.virtual_hosts.iter_mut();
            let mut changed = false;
            for host in hosts.filter(|host| patch.route.host_holds(host)) {
                *host = merged(host, value)?;
                changed = true;
            }
            Ok(changed)
        }
        (ApplyTo::VirtualHost, _, Some(value)) => {
            config.virtual_hosts.push(typed::<VirtualHost>(value)?);
            Ok(true)
        }
        (ApplyTo::HttpRoute, ..) => {
            let mut changed = false;
            let hosts = config.virtual_hosts.iter_mut();
            for host in hosts.filter(|host| patch.route.host_holds(host)) {
                changed |= routes_of(host, patch)?;
            }
            Ok(changed)
        }
        _ => Ok(false),
    }
}

/// Order matters among routes: the first that matches is taken.
fn routes_of(host: &mut VirtualHost, patch: &Patch) -> Result<bool, String> {
    let routes = &mut host.routes;
    let Some(value) = &patch.value else {
        let before = routes.len();
        routes.retain(|route| !patch.route.route_holds(route));
        return Ok(routes.len() < before);
    };
    if patch.operation == Operation::Merge {
        let mut changed = false;
        for route in routes
            .iter_mut()
            .filter(|route| patch.route.route_holds(route))
        {
            *route = merged(route, value)?;
            changed = true;
        }
        return Ok(changed);
    }
    let anchored = patch.route.route.is_some();
    let found = routes
        .iter()
        .position(|route| patch.route.route_holds(route));
    let at = match (patch.operation, anchored) {
        (Operation::InsertFirst | Operation::InsertBefore, false) => Some(0),
        (Operation::InsertFirst, true) => found.map(|_| 0),
        (Operation::InsertBefore, true) => found,
        (Operation::InsertAfter, true) => found.map(|at| at + 1),
        _ => Some(routes.len()),
    };
    if let Some(at) = at {
        routes.insert(at, typed::<Route>(value)?);
    }
    Ok(at.is_some())
}
