//! The `filters` list that came before `configPatches`: a filter, a place among others, and conditions of its own.

use std::net::IpAddr;

use mesh_config::envoy_patch;
use proto_envoy::v2;
use proto_networking::networking::envoy_filter::{
    ApplyTo, DeprecatedListenerMatch, Filter, PatchContext,
    deprecated_listener_match::{ListenerProtocol, ListenerType},
    filter::FilterType,
    insert_position::Index,
    patch::Operation,
};

use super::{
    Side,
    compile::{LEFT_OUT, Patch},
    condition::{ListenerCondition, port_of, served},
};
use crate::{
    envoy::{
        core::address::Address::SocketAddress,
        listener::{FilterChain, Listener},
    },
    report::Rejector,
};

/// Conditions that only the old form has. Ports are service ports, on the inbound side as well.
#[derive(Clone, Debug, Hash)]
pub(super) struct OldCondition {
    port: Option<u32>,
    port_name_prefix: String,
    protocol: i32,
    addresses: Vec<String>,
}

/// The patch that an entry of `filters` stands for.
pub(super) fn compile(
    filter: &Filter,
    field: String,
    rejector: &mut Rejector<'_>,
) -> Option<Patch> {
    let apply_to = match filter.filter_type() {
        FilterType::Http => ApplyTo::HttpFilter,
        FilterType::Network => ApplyTo::NetworkFilter,
        FilterType::Invalid => {
            let reason = "is missing; accepted: HTTP, NETWORK";
            rejector.reject(format!("{field}.filterType"), reason, LEFT_OUT);
            return None;
        }
    };
    let value = match envoy_patch::filter(filter) {
        Ok(value) => value,
        Err(error) => {
            rejector.reject(format!("{field}.filterConfig"), error.to_string(), LEFT_OUT);
            return None;
        }
    };
    let position = filter.insert_position.clone().unwrap_or_default();
    let operation = match position.index() {
        Index::First => Operation::InsertFirst,
        Index::Last => Operation::Add,
        Index::Before => Operation::InsertBefore,
        Index::After => Operation::InsertAfter,
    };
    let relative = matches!(position.index(), Index::Before | Index::After);
    if relative && position.relative_to.is_empty() {
        let reason = "is missing; accepted: the name of a filter";
        rejector.reject(
            format!("{field}.insertPosition.relativeTo"),
            reason,
            LEFT_OUT,
        );
        return None;
    }
    let m = filter.listener_match.clone().unwrap_or_default();
    let mut listener = ListenerCondition::default();
    listener.old = Some(OldCondition::compile(&m));
    if relative {
        let to = position.relative_to.as_str();
        match apply_to {
            ApplyTo::HttpFilter => listener.sub_filter = Some(v2::http_filter_name(to).to_owned()),
            _ => listener.filter = Some(v2::network_filter_name(to).to_owned()),
        }
    }
    Some(Patch {
        field,
        apply_to,
        operation,
        listener,
        route: Default::default(),
        cluster: Default::default(),
        value: Some(value),
        context: match m.listener_type() {
            ListenerType::Any => PatchContext::Any,
            ListenerType::SidecarInbound => PatchContext::SidecarInbound,
            ListenerType::SidecarOutbound => PatchContext::SidecarOutbound,
            ListenerType::Gateway => PatchContext::Gateway,
        },
        version: None,
        metadata: Vec::new(),
    })
}

impl OldCondition {
    fn compile(m: &DeprecatedListenerMatch) -> Self {
        Self {
            port: (m.port_number != 0).then_some(m.port_number),
            port_name_prefix: m.port_name_prefix.to_ascii_lowercase(),
            protocol: m.listener_protocol,
            addresses: m.address.clone(),
        }
    }

    /// Whether a listener may be meant: what its chains must say is asked of them.
    pub(super) fn holds(&self, side: Side, listener: &Listener) -> bool {
        let address = listener.address.as_ref().and_then(|a| a.address.as_ref());
        let address = match address {
            Some(SocketAddress(socket)) => socket.address.as_str(),
            _ => "",
        };
        let port = side == Side::Inbound || self.port.is_none() || self.port == port_of(listener);
        port && self.address_holds(address)
    }

    /// Whether the listener that a chain was copied from may be meant.
    pub(super) fn origin_holds(&self, name: &str, port: u32) -> bool {
        let address = name.strip_suffix(&format!("_{port}")).unwrap_or(name);
        self.address_holds(&address.replace('_', ":"))
    }

    fn address_holds(&self, address: &str) -> bool {
        if self.addresses.is_empty() {
            return true;
        }
        let ip = address.parse::<IpAddr>().ok();
        self.addresses.iter().any(|wanted| {
            let net = wanted.parse::<ipnet::IpNet>().ok();
            let within = net.zip(ip).is_some_and(|(net, ip)| net.contains(&ip));
            wanted == address || within
        })
    }

    /// Whether a chain is meant.
    pub(super) fn chain_holds(&self, side: Side, chain: &FilterChain) -> bool {
        let is_http = super::filter::is_http(chain);
        let protocol = match ListenerProtocol::try_from(self.protocol).unwrap_or_default() {
            ListenerProtocol::All => true,
            ListenerProtocol::Http => is_http,
            ListenerProtocol::Tcp => !is_http,
        };
        if !protocol || side != Side::Inbound {
            return protocol;
        }
        let served = served(chain);
        let service =
            |holds: &dyn Fn(&super::condition::Served) -> bool| served.as_ref().is_some_and(holds);
        let port = self
            .port
            .is_none_or(|wanted| service(&|s| s.port == wanted));
        let named = self.port_name_prefix.is_empty()
            || service(&|s| {
                s.port_name
                    .to_ascii_lowercase()
                    .starts_with(&self.port_name_prefix)
            });
        port && named
    }
}
