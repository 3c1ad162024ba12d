//! Filter chains of a gateway's port.

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::filters::network::sni_cluster::v3::SniCluster;

use super::{Port, Served, bound};
use crate::{
    compile::{L4Match, ServerClass, ServerKind, ServerTls},
    envoy::{
        self, Hcm, Routes,
        core::CidrRange,
        listener::{Filter, FilterChain},
        network_filter,
    },
    generate::{
        tcp::{self, Claims},
        tls,
    },
    model::{Protocol, host},
    names,
    report::{Report, metric},
    snapshot::Scope,
};

/// All chains of a port. No two of them match the same connections.
pub(super) fn of(
    scope: &Scope,
    listener: &str,
    number: u32,
    port: &Port<'_>,
    report: &mut Report,
) -> Vec<FilterChain> {
    if port.class() == Some(ServerClass::Http) {
        let web = |s: &Served<'_>| s.server.protocol == Protocol::GrpcWeb;
        let hcm = Hcm {
            listener,
            inbound: false,
            grpc_web: port.servers.iter().any(web),
            routes: Routes::Rds(names::gateway_http(number)),
        };
        let filters = vec![envoy::http_connection_manager(scope, hcm)];
        return vec![tcp::chain(Vec::new(), Vec::new(), filters)];
    }
    let mut claims = Claims::default();
    let mut out = Vec::new();
    for served in &port.servers {
        let chains = match &served.server.kind {
            ServerKind::Https(tls) => vec![https(scope, listener, served, tls)],
            ServerKind::TlsTcp(tls) => {
                let mut chains = l4(scope, served);
                for chain in &mut chains {
                    chain.transport_socket = Some(tls::server(scope, tls));
                }
                chains
            }
            ServerKind::AutoPassthrough => vec![auto_passthrough(scope, served)],
            ServerKind::Http | ServerKind::Tcp | ServerKind::Passthrough => l4(scope, served),
        };
        for mut chain in chains {
            let asked = chain.filter_chain_match.clone();
            let admitted = claims.admit(&mut chain);
            if !admitted || chain.filter_chain_match != asked {
                note_lost(served, report);
            }
            if admitted {
                out.push(chain);
            }
        }
    }
    out
}

fn note_lost(served: &Served<'_>, report: &mut Report) {
    let (gateway, server) = (&served.gateway.full_name, served.server);
    let key = format!("Gateway/{gateway}/{}.{}:routes", server.port, server.name);
    let message = format!(
        "some connections to server {} on port {} match an older rule of the port too; that one stands",
        server.name, server.port
    );
    report.event(metric::REJECTED_CONFIGS, key, message);
}

fn server_names(served: &Served<'_>) -> Vec<String> {
    served.sni.iter().map(ToString::to_string).collect()
}

fn https(scope: &Scope, listener: &str, served: &Served<'_>, tls: &ServerTls) -> FilterChain {
    let hcm = Hcm {
        listener,
        inbound: false,
        grpc_web: false,
        routes: Routes::Rds(served.https_route().unwrap_or_default()),
    };
    let filters = vec![envoy::http_connection_manager(scope, hcm)];
    FilterChain {
        transport_socket: Some(tls::server(scope, tls)),
        ..tcp::chain(server_names(served), Vec::new(), filters)
    }
}

/// Mesh mTLS of other clusters is passed on to the cluster that its SNI names, if there is one.
fn auto_passthrough(scope: &Scope, served: &Served<'_>) -> FilterChain {
    let by_sni = network_filter("envoy.filters.network.sni_cluster", &SniCluster::default());
    let carry = tcp::filters(scope, names::BLACK_HOLE, Protocol::Tcp);
    let filters: Vec<Filter> = std::iter::once(by_sni).chain(carry).collect();
    tcp::chain(server_names(served), Vec::new(), filters)
}

/// Chains of the tls rules (TLS that is passed on) or tcp rules of VirtualServices.
fn l4(scope: &Scope, served: &Served<'_>) -> Vec<FilterChain> {
    let server = served.server;
    let passthrough = server.kind == ServerKind::Passthrough;
    let mut out = Vec::new();
    for (config, hosts) in bound(scope, served) {
        let rules = if passthrough {
            &config.tls
        } else {
            &config.tcp
        };
        let matches = rules
            .iter()
            .flat_map(|rule| rule.matches.iter().map(move |m| (rule, m)))
            .filter(|(_, m)| tcp::holds(scope, m, &served.gateway.full_name, Some(server.port)));
        for (rule, m) in matches {
            let names = if passthrough {
                sni_of(m, &hosts)
            } else {
                server_names(served)
            };
            if passthrough && names.is_empty() {
                continue;
            }
            let filters = tcp::route_filters(scope, config, rule, server.port, server.protocol);
            out.push(tcp::chain(names, ranges(m), filters));
        }
    }
    out
}

fn sni_of(m: &L4Match, hosts: &[Arc<str>]) -> Vec<String> {
    let admitted = |name: &&String| hosts.iter().any(|h| host::subset_of(name, h));
    m.sni_hosts.iter().filter(admitted).cloned().collect()
}

fn ranges(m: &L4Match) -> Vec<CidrRange> {
    m.subnets
        .iter()
        .map(|n| envoy::cidr(n.addr(), n.prefix_len()))
        .collect()
}
