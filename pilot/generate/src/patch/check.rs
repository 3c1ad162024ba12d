//! What Envoy's code refuses beyond the rules that its API states, as far as patches of a mesh run into it.

use ahash::AHashSet;
use proto_envoy::{DynamicMessage, Finding, ReflectMessage as _, walk};

use super::filter;
use crate::envoy::{
    self,
    cluster::{
        Cluster,
        cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy},
    },
    core::CidrRange,
    listener::{FilterChain, FilterChainMatch, Listener},
    route::RouteConfiguration,
};

/// More combinations than this in the matches of one listener are not compared.
const MANY: usize = 20_000;

/// Every regular expression compiles, and within the limit that goes with it.
pub(super) fn expressions(message: &DynamicMessage) -> Result<(), String> {
    let checked = walk(message, &mut |path, message| {
        if message.descriptor().full_name() != "envoy.type.matcher.v3.RegexMatcher" {
            return Ok(());
        }
        let Some(regex) = message.get_field_by_name("regex") else {
            return Ok(());
        };
        let limited = message
            .descriptor()
            .get_field_by_name("google_re2")
            .is_some_and(|field| message.has_field(&field));
        let reason = match envoy::regex::matcher(regex.as_str().unwrap_or_default()) {
            Err(reason) => reason,
            Ok(needs) if needs.engine_type.is_some() && !limited => {
                "is too large for Envoy's default limit; accepted: google_re2: {max_program_size: …} beside it"
                    .to_owned()
            }
            Ok(_) => return Ok(()),
        };
        Err(Finding {
            path: path.field("regex"),
            reason,
        })
    });
    checked.map_err(|finding| finding.to_string())
}

/// Chains end well and can be told apart.
pub(super) fn listener(listener: &Listener) -> Result<(), String> {
    if listener.address.is_none() && listener.api_listener.is_none() {
        return Err("address: is missing".to_owned());
    }
    if listener.filter_chains.is_empty() && listener.default_filter_chain.is_none() {
        return Err("no filter chain is left".to_owned());
    }
    let chains = listener.filter_chains.iter().enumerate();
    let named = chains.map(|(i, chain)| (format!("filter_chains[{i}]"), chain));
    let default = listener.default_filter_chain.iter();
    for (path, chain) in named.chain(default.map(|c| ("default_filter_chain".to_owned(), c))) {
        self::chain(chain).map_err(|reason| format!("{path}: {reason}"))?;
    }
    distinct(&listener.filter_chains)
}

fn chain(chain: &FilterChain) -> Result<(), String> {
    filter::ends_well(&chain.filters)?;
    for (i, network) in chain.filters.iter().enumerate() {
        let Some(manager) = filter::manager(network) else {
            continue;
        };
        let path = |reason: String| format!("filters[{i}].typed_config: {reason}");
        filter::ends_well(&manager.http_filters).map_err(|r| path(format!("http_filters: {r}")))?;
        use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
        if let Some(RouteSpecifier::RouteConfig(config)) = &manager.route_specifier {
            routes(config).map_err(|r| path(format!("route_config: {r}")))?;
        }
    }
    Ok(())
}

/// Envoy compares every combination of what the lists in a match hold.
fn distinct(chains: &[FilterChain]) -> Result<(), String> {
    let mut seen: AHashSet<String> = AHashSet::new();
    for (i, chain) in chains.iter().enumerate() {
        let combinations = combinations(&chain.filter_chain_match.clone().unwrap_or_default());
        if seen.len() + combinations.len() > MANY {
            return Ok(());
        }
        for combination in combinations {
            if !seen.insert(combination) {
                return Err(format!(
                    "filter_chains[{i}]: another chain matches the same connections"
                ));
            }
        }
    }
    Ok(())
}

fn combinations(m: &FilterChainMatch) -> Vec<String> {
    let ranges = |list: &[CidrRange]| -> Vec<String> { list.iter().map(prefix).collect() };
    let lists: [Vec<String>; 6] = [
        ranges(&m.prefix_ranges),
        m.server_names
            .iter()
            .map(|n| n.to_ascii_lowercase())
            .collect(),
        m.application_protocols.clone(),
        ranges(&m.direct_source_prefix_ranges),
        ranges(&m.source_prefix_ranges),
        m.source_ports.iter().map(u32::to_string).collect(),
    ];
    let port = m.destination_port.as_ref().map_or(0, |p| p.value);
    let mut out = vec![format!("{port}|{}|{}", m.transport_protocol, m.source_type)];
    for list in lists {
        let values = if list.is_empty() {
            vec![String::new()]
        } else {
            list
        };
        if out.len().saturating_mul(values.len()) > MANY {
            return Vec::new();
        }
        out = out
            .iter()
            .flat_map(|head| values.iter().map(move |v| format!("{head}|{v}")))
            .collect();
    }
    out
}

/// Two ranges that reduce to one prefix count as equal.
fn prefix(range: &CidrRange) -> String {
    let length = range.prefix_len.as_ref().map_or(0, |l| l.value);
    let address = range.address_prefix.parse::<std::net::IpAddr>().ok();
    let net = address.and_then(|a| ipnet::IpNet::new(a, u8::try_from(length).ok()?).ok());
    net.map_or_else(
        || format!("{}/{length}", range.address_prefix),
        |n| n.trunc().to_string(),
    )
}

/// No domain is claimed twice, and wildcards stand where they may.
pub(super) fn routes(config: &RouteConfiguration) -> Result<(), String> {
    let mut seen: AHashSet<String> = AHashSet::new();
    for (i, host) in config.virtual_hosts.iter().enumerate() {
        for domain in &host.domains {
            let inner = domain
                .strip_prefix('*')
                .or_else(|| domain.strip_suffix('*'));
            if inner.unwrap_or(domain).contains('*') {
                return Err(format!(
                    "virtual_hosts[{i}]: domain {domain:?} has a * that is not its only one at an end"
                ));
            }
            if !seen.insert(domain.to_ascii_lowercase()) {
                return Err(format!(
                    "virtual_hosts[{i}]: domain {domain:?} of {:?} is claimed by another virtual host",
                    host.name
                ));
            }
        }
    }
    Ok(())
}

/// Discovery type, load balancing and endpoints fit.
pub(super) fn cluster(cluster: &Cluster) -> Result<(), String> {
    let Some(ClusterDiscoveryType::Type(kind)) = cluster.cluster_discovery_type else {
        return match cluster.cluster_discovery_type {
            Some(_) => Ok(()),
            None => fits(cluster, DiscoveryType::Static),
        };
    };
    fits(cluster, DiscoveryType::try_from(kind).unwrap_or_default())
}

fn fits(cluster: &Cluster, kind: DiscoveryType) -> Result<(), String> {
    let provided = cluster.lb_policy() == LbPolicy::ClusterProvided;
    let own_endpoints = cluster.load_assignment.is_some();
    match kind {
        DiscoveryType::OriginalDst if !provided => {
            Err("lb_policy: accepted for ORIGINAL_DST: CLUSTER_PROVIDED".to_owned())
        }
        DiscoveryType::OriginalDst if own_endpoints => {
            Err("load_assignment: not accepted for ORIGINAL_DST".to_owned())
        }
        DiscoveryType::OriginalDst => Ok(()),
        _ if provided => Err(format!(
            "lb_policy: CLUSTER_PROVIDED is not accepted for {}",
            kind.as_str_name()
        )),
        DiscoveryType::Eds if own_endpoints => {
            Err("load_assignment: not accepted for EDS".to_owned())
        }
        DiscoveryType::Eds if cluster.eds_cluster_config.is_none() => {
            Err("eds_cluster_config: is missing for EDS".to_owned())
        }
        DiscoveryType::Eds => Ok(()),
        _ if cluster.eds_cluster_config.is_some() => Err(format!(
            "eds_cluster_config: not accepted for {}",
            kind.as_str_name()
        )),
        DiscoveryType::LogicalDns => {
            let localities = cluster.load_assignment.iter().flat_map(|a| &a.endpoints);
            match localities.map(|l| l.lb_endpoints.len()).collect::<Vec<_>>()[..] {
                [1] => Ok(()),
                _ => Err(
                    "load_assignment: LOGICAL_DNS needs one locality with one endpoint".to_owned(),
                ),
            }
        }
        _ => Ok(()),
    }
}
