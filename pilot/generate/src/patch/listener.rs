//! Patches of listeners, their chains, the filters in them, and routes that are written into listeners.

use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use proto_networking::networking::envoy_filter::{ApplyTo, patch::Operation};

use super::{
    Encoded, Side, check,
    compile::Patch,
    condition::origin,
    filter::{manager, patch_list, set_manager},
    route,
    run::{Effect, Resource, Run, Work, merged, typed},
    select::Step,
};
use crate::{
    envoy::{
        self,
        core::Address,
        listener::{FilterChain, Listener},
    },
    names,
    report::Report,
    snapshot::Scope,
};

impl Resource for Listener {
    const KIND: &'static str = "listener";

    fn name(&self) -> &str {
        &self.name
    }

    /// Routes in place are held against the clusters that are there; one that comes later, or never, must not cost the listener.
    fn tidy(&mut self) {
        for network in self
            .filter_chains
            .iter_mut()
            .chain(&mut self.default_filter_chain)
            .flat_map(|chain| &mut chain.filters)
        {
            let Some(mut content) = manager(network) else {
                continue;
            };
            if let Some(RouteSpecifier::RouteConfig(config)) = &mut content.route_specifier
                && config.validate_clusters.is_none()
            {
                config.validate_clusters = envoy::boolean(false);
                set_manager(network, &content);
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        check::listener(self)
    }
}

/// A generator's listeners, patched and encoded. Names and addresses stay unique.
pub fn listeners(
    scope: &Scope,
    side: Side,
    list: Vec<Listener>,
    report: &mut Report,
) -> Vec<Encoded<Listener>> {
    let steps = scope.key().patches.listeners(side);
    if steps.is_empty() {
        return list.into_iter().map(Encoded::plain).collect();
    }
    let mut run = Run::new(side);
    let apply = |listener: &mut Listener, patch: &Patch| apply(scope, side, listener, patch);
    let homes: Vec<(String, Option<Address>)> = list
        .iter()
        .map(|l| (l.name.clone(), l.address.clone()))
        .collect();
    let mut out: Vec<Encoded<Listener>> = Vec::with_capacity(list.len());
    for original in list {
        let concerned: Vec<&Step> = steps
            .iter()
            .filter(|step| concerns(scope, side, step.patch(), &original))
            .copied()
            .collect();
        let (name, address) = (original.name.clone(), original.address.clone());
        let beside = |patched: &Listener| {
            if patched.address == address {
                return Ok(());
            }
            let moved = out.iter().map(|l| (&l.name, &l.address));
            let mut others = homes.iter().map(|(n, a)| (n, a)).chain(moved);
            match others.find(|(n, a)| **n != name && **a == patched.address) {
                Some((other, _)) => Err(format!(
                    "the patch moves it to the address of listener {other}"
                )),
                None => Ok(()),
            }
        };
        let work = Work {
            apply: &apply,
            beside: &beside,
        };
        let settled = run.settle(original, &concerned, &work);
        out.extend(settled);
    }
    run.additions(
        ApplyTo::Listener,
        &steps,
        &mut out,
        |list, added: &Listener| {
            if list.iter().any(|l| l.name == added.name) || is_ours(&added.name) {
                return Some(
                    "a listener of this name is there already; accepted: another name, or MERGE"
                        .to_owned(),
                );
            }
            let other = list
                .iter()
                .find(|l| l.address.is_some() && l.address == added.address)?;
            Some(format!("its address is that of listener {}", other.name))
        },
    );
    run.finish(report);
    out
}

/// Listeners that every sidecar has.
fn is_ours(name: &str) -> bool {
    name == names::VIRTUAL_INBOUND || name == names::VIRTUAL_OUTBOUND
}

/// Whether a patch may change a listener; what is inside is asked when it is applied.
fn concerns(scope: &Scope, side: Side, patch: &Patch, listener: &Listener) -> bool {
    match patch.apply_to {
        ApplyTo::Listener => !patch.is_addition() && patch.listener.holds(scope, side, listener),
        ApplyTo::RouteConfiguration | ApplyTo::VirtualHost | ApplyTo::HttpRoute => {
            // Only the inbound side, and listeners of users, have routes in place.
            listener.filter_chains.iter().any(super::filter::is_http)
        }
        _ => {
            patch.listener.holds(scope, side, listener)
                || listener
                    .filter_chains
                    .iter()
                    .any(|chain| patch.listener.origin_holds(scope, side, chain))
        }
    }
}

fn apply(
    scope: &Scope,
    side: Side,
    listener: &mut Listener,
    patch: &Patch,
) -> Result<Effect, String> {
    let changed = match patch.apply_to {
        ApplyTo::Listener => return whole(scope, side, listener, patch),
        ApplyTo::FilterChain => chains(scope, side, listener, patch)?,
        _ => {
            let mut own = std::mem::take(&mut listener.filter_chains);
            let mut default = listener.default_filter_chain.take();
            let changed = own
                .iter_mut()
                .chain(&mut default)
                .try_fold(false, |changed, chain| {
                    Ok::<_, String>(inside(scope, side, listener, chain, patch)? || changed)
                });
            listener.filter_chains = own;
            listener.default_filter_chain = default;
            changed?
        }
    };
    Ok(match changed {
        true => Effect::Changed,
        false => Effect::Nothing,
    })
}

fn whole(
    scope: &Scope,
    side: Side,
    listener: &mut Listener,
    patch: &Patch,
) -> Result<Effect, String> {
    let m = &patch.listener;
    if !m.holds(scope, side, listener) || !m.some_chain_holds(listener) {
        return Ok(Effect::Nothing);
    }
    match (patch.operation, &patch.value) {
        (Operation::Remove, _) => Ok(Effect::Removed),
        (Operation::Merge, Some(value)) => {
            *listener = merged(listener, value)?;
            Ok(Effect::Changed)
        }
        _ => Ok(Effect::Nothing),
    }
}

fn chains(
    scope: &Scope,
    side: Side,
    listener: &mut Listener,
    patch: &Patch,
) -> Result<bool, String> {
    let holds = |frame: &Listener, chain: &FilterChain| {
        patch.listener.chain_holds(scope, side, frame, chain)
    };
    match (patch.operation, &patch.value) {
        (Operation::Remove, _) => {
            let frame = listener.clone();
            listener.filter_chains.retain(|chain| !holds(&frame, chain));
            Ok(listener.filter_chains.len() < frame.filter_chains.len())
        }
        (Operation::Merge, Some(value)) => {
            let frame = listener.clone();
            let mut changed = false;
            for chain in listener
                .filter_chains
                .iter_mut()
                .filter(|c| holds(&frame, c))
            {
                *chain = merged(chain, value)?;
                changed = true;
            }
            Ok(changed)
        }
        (_, Some(value)) => {
            let added = additions(scope, side, listener, patch, typed(value)?);
            let changed = !added.is_empty();
            match patch.operation {
                Operation::InsertFirst => drop(listener.filter_chains.splice(0..0, added)),
                _ => listener.filter_chains.extend(added),
            }
            Ok(changed)
        }
        _ => Ok(false),
    }
}

/// The chain to add: as it is if the listener is meant, else for each listener that `virtualInbound` has copies of and that
/// is meant, narrowed to its address and port.
fn additions(
    scope: &Scope,
    side: Side,
    listener: &Listener,
    patch: &Patch,
    chain: FilterChain,
) -> Vec<FilterChain> {
    if patch.listener.holds(scope, side, listener) {
        return vec![chain];
    }
    let mut out: Vec<FilterChain> = Vec::new();
    let mut seen: Vec<(String, u32)> = Vec::new();
    for copied in &listener.filter_chains {
        let Some((name, port)) = origin(copied) else {
            continue;
        };
        let known = seen.iter().any(|(n, p)| n == name && *p == port);
        if known
            || !patch.listener.names_listener()
            || !patch.listener.origin_holds(scope, side, copied)
        {
            continue;
        }
        seen.push((name.to_owned(), port));
        let place = copied.filter_chain_match.clone().unwrap_or_default();
        let mut narrowed = chain.clone();
        let m = narrowed
            .filter_chain_match
            .get_or_insert_with(Default::default);
        m.destination_port = place.destination_port;
        m.prefix_ranges = place.prefix_ranges;
        out.push(narrowed);
    }
    out
}

/// Patches filters and routes in one chain.
fn inside(
    scope: &Scope,
    side: Side,
    frame: &Listener,
    chain: &mut FilterChain,
    patch: &Patch,
) -> Result<bool, String> {
    let m = &patch.listener;
    let is_route = matches!(
        patch.apply_to,
        ApplyTo::RouteConfiguration | ApplyTo::VirtualHost | ApplyTo::HttpRoute
    );
    if !is_route && !m.chain_holds(scope, side, frame, chain) {
        return Ok(false);
    }
    if patch.apply_to == ApplyTo::NetworkFilter {
        return patch_list(&mut chain.filters, patch, m.filter.as_deref());
    }
    let mut changed = false;
    for network in &mut chain.filters {
        let Some(mut content) = manager(network) else {
            continue;
        };
        let done = if is_route {
            match &mut content.route_specifier {
                Some(RouteSpecifier::RouteConfig(config)) => {
                    route::apply(scope, side, config, patch)?
                }
                _ => false,
            }
        } else {
            patch_list(&mut content.http_filters, patch, m.sub_filter.as_deref())?
        };
        if done {
            set_manager(network, &content);
        }
        changed |= done;
    }
    Ok(changed)
}
