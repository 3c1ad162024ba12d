//! Lists of filters: of a filter chain, and of an HTTP connection manager. Both are patched alike.

use envoy_types::pb::envoy::extensions::filters::network::{
    http_connection_manager::v3::{
        HttpConnectionManager, HttpFilter, http_connection_manager::RouteSpecifier,
        http_filter::ConfigType as HttpConfig,
    },
    tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier},
};
use prost::{Message, Name};
use proto_envoy::{DynamicMessage, v2};
use proto_networking::networking::envoy_filter::patch::Operation;

use super::{
    compile::Patch,
    run::{merged, typed},
};
use crate::envoy::{
    Any,
    listener::{Filter as NetworkFilter, FilterChain, filter::ConfigType as NetworkConfig},
};

/// Network filters that end a chain: Envoy wants exactly one, and as the last.
const LAST_OF_NETWORK: [&str; 10] = [
    "envoy.extensions.filters.network.direct_response.v3.Config",
    "envoy.extensions.filters.network.dubbo_proxy.v3.DubboProxy",
    "envoy.extensions.filters.network.echo.v3.Echo",
    "envoy.extensions.filters.network.generic_proxy.v3.GenericProxy",
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "envoy.extensions.filters.network.redis_proxy.v3.RedisProxy",
    "envoy.extensions.filters.network.reverse_tunnel.v3.DrainAwareHttpConnectionManager",
    "envoy.extensions.filters.network.reverse_tunnel.v3.ReverseTunnel",
    "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
    "envoy.extensions.filters.network.thrift_proxy.v3.ThriftProxy",
];

/// HTTP filters that end a chain.
const LAST_OF_HTTP: [&str; 2] = [
    "envoy.extensions.filters.http.mcp_router.v3.McpRouter",
    "envoy.extensions.filters.http.router.v3.Router",
];

/// A network or HTTP filter.
pub(super) trait Filter: Message + Name + Default + Clone {
    fn name(&self) -> &str;
    fn config(&self) -> Option<&Any>;
    /// The v3 name of a filter of this kind.
    fn canonical(name: &str) -> &str;
    /// Messages of those that must be the last.
    fn last() -> &'static [&'static str];
}

impl Filter for NetworkFilter {
    fn name(&self) -> &str {
        &self.name
    }

    fn config(&self) -> Option<&Any> {
        match &self.config_type {
            Some(NetworkConfig::TypedConfig(any)) => Some(any),
            _ => None,
        }
    }

    fn canonical(name: &str) -> &str {
        v2::network_filter_name(name)
    }

    fn last() -> &'static [&'static str] {
        &LAST_OF_NETWORK
    }
}

impl Filter for HttpFilter {
    fn name(&self) -> &str {
        &self.name
    }

    fn config(&self) -> Option<&Any> {
        match &self.config_type {
            Some(HttpConfig::TypedConfig(any)) => Some(any),
            _ => None,
        }
    }

    fn canonical(name: &str) -> &str {
        v2::http_filter_name(name)
    }

    fn last() -> &'static [&'static str] {
        &LAST_OF_HTTP
    }
}

/// Full name of the message in an `Any`.
fn message(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

/// Whether a filter must be the last of its list.
pub(super) fn is_last<F: Filter>(filter: &F) -> bool {
    filter
        .config()
        .is_some_and(|any| F::last().contains(&message(any)))
}

/// Applies a patch to a list of filters. `anchor` is the v3 name of the filter that the match names.
pub(super) fn patch_list<F: Filter>(
    filters: &mut Vec<F>,
    patch: &Patch,
    anchor: Option<&str>,
) -> Result<bool, String> {
    let named = |filter: &F| anchor.is_none_or(|wanted| F::canonical(filter.name()) == wanted);
    let value = || {
        patch
            .value
            .as_ref()
            .ok_or_else(|| "it has no value".to_owned())
    };
    match patch.operation {
        Operation::Remove => {
            let before = filters.len();
            filters.retain(|filter| !named(filter));
            Ok(filters.len() < before)
        }
        Operation::Replace => {
            let value: F = typed(value()?)?;
            let mut changed = false;
            for filter in filters.iter_mut().filter(|f| named(f)) {
                filter.clone_from(&value);
                changed = true;
            }
            Ok(changed)
        }
        Operation::Merge => merge(filters, value()?, anchor),
        _ => insert(filters, patch.operation, typed(value()?)?, anchor),
    }
}

/// Merges into the filters that the match names, else into those of the value's type, else of its name.
fn merge<F: Filter>(
    filters: &mut [F],
    value: &DynamicMessage,
    anchor: Option<&str>,
) -> Result<bool, String> {
    let like: F = typed(value)?;
    let meant = |filter: &F| match (anchor, like.config()) {
        (Some(wanted), _) => F::canonical(filter.name()) == wanted,
        (None, Some(any)) => filter
            .config()
            .is_some_and(|own| message(own) == message(any)),
        (None, None) => F::canonical(filter.name()) == F::canonical(like.name()),
    };
    let mut changed = false;
    for filter in filters.iter_mut().filter(|f| meant(f)) {
        *filter = merged(filter, value)?;
        changed = true;
    }
    Ok(changed)
}

fn insert<F: Filter>(
    filters: &mut Vec<F>,
    operation: Operation,
    value: F,
    anchor: Option<&str>,
) -> Result<bool, String> {
    let found = |wanted: &str| {
        filters
            .iter()
            .position(|f| F::canonical(f.name()) == wanted)
    };
    // Where the filter goes that must be the last, if there is one.
    let end = match filters.last() {
        Some(last) if is_last(last) && !is_last(&value) => filters.len() - 1,
        _ => filters.len(),
    };
    let at = match (operation, anchor) {
        (Operation::InsertBefore | Operation::InsertFirst, None) => Some(0),
        (Operation::InsertBefore, Some(name)) => found(name),
        (Operation::InsertFirst, Some(name)) => found(name).map(|_| 0),
        (Operation::InsertAfter, Some(name)) => match found(name) {
            Some(at) if is_last(&filters[at]) => {
                return Err(format!(
                    "nothing can come after {}, which must be the last filter; accepted: INSERT_BEFORE",
                    filters[at].name()
                ));
            }
            at => at.map(|at| at + 1),
        },
        _ => Some(end),
    };
    if let Some(at) = at {
        filters.insert(at, value);
    }
    Ok(at.is_some())
}

/// Whether a list ends with the one filter that must be its last.
pub(super) fn ends_well<F: Filter>(filters: &[F]) -> Result<(), String> {
    let Some((last, others)) = filters.split_last() else {
        return Err("has no filter".to_owned());
    };
    if let Some(early) = others.iter().find(|f| is_last(*f)) {
        return Err(format!(
            "{} must be the last filter, and {} comes after it",
            early.name(),
            last.name()
        ));
    }
    if !is_last(last) && last.config().is_some() {
        return Err(format!(
            "ends with {}, which passes on what nobody takes; a filter such as {} must be the last",
            last.name(),
            F::last().last().copied().unwrap_or_default(),
        ));
    }
    Ok(())
}

/// The HTTP connection manager in a network filter, if it is one.
pub(super) fn manager(filter: &NetworkFilter) -> Option<HttpConnectionManager> {
    let any = filter
        .config()
        .filter(|any| message(any) == HttpConnectionManager::full_name())?;
    HttpConnectionManager::decode(&*any.value).ok()
}

/// Puts a connection manager back into its network filter.
pub(super) fn set_manager(filter: &mut NetworkFilter, manager: &HttpConnectionManager) {
    filter.config_type = Some(NetworkConfig::TypedConfig(crate::envoy::any(manager)));
}

/// Whether a chain speaks HTTP.
pub(super) fn is_http(chain: &FilterChain) -> bool {
    let managers = |f: &NetworkFilter| {
        f.config()
            .is_some_and(|any| message(any) == HttpConnectionManager::full_name())
    };
    chain.filters.iter().any(managers)
}

/// The cluster that a network filter leads to; of a connection manager with routes in place, their name.
pub(super) fn leads_to(filter: &NetworkFilter) -> Option<String> {
    if let Some(manager) = manager(filter) {
        return match manager.route_specifier {
            Some(RouteSpecifier::RouteConfig(config)) => Some(config.name),
            _ => None,
        };
    }
    let any = filter
        .config()
        .filter(|any| message(any) == TcpProxy::full_name())?;
    match TcpProxy::decode(&*any.value).ok()?.cluster_specifier {
        Some(ClusterSpecifier::Cluster(cluster)) => Some(cluster),
        _ => None,
    }
}
