//! The inbound side of a sidecar: what depends on the one workload.

use std::collections::BTreeMap;

use super::{
    cluster::{INBOUND_SOURCE, connection_pool, original_dst, protocol_options, stat_name},
    endpoint,
    instance::{Instance, instances},
    tcp::{self, Claims},
};
use crate::{
    compile::Pool,
    envoy::{
        self, Hcm, Routes,
        cluster::{
            Cluster,
            cluster::{ClusterDiscoveryType, DiscoveryType},
        },
        core,
        listener::{FilterChain, FilterChainMatch, Listener},
        route,
    },
    model::{InterceptionMode, Protocol, Proxy, ServicePort, Workload},
    names,
    report::{Report, metric},
    snapshot::Scope,
};

/// Where the application listens, seen from its sidecar.
fn loopback(proxy: &Proxy) -> &'static str {
    if proxy.ipv4() { "127.0.0.1" } else { "::1" }
}

/// One cluster per instance port, one per probe port, and the inbound passthrough per address family.
pub fn inbound_clusters(scope: &Scope, proxy: &Proxy, report: &mut Report) -> Vec<Cluster> {
    let mut by_name: BTreeMap<String, Cluster> = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    for instance in instances(scope.snapshot(), proxy, report) {
        let cluster = instance_cluster(scope, proxy, &instance);
        if by_name.contains_key(&cluster.name) {
            let message = "another service of this workload has the same host and port";
            report.event(metric::DUPLICATE_CLUSTERS, cluster.name, message);
        } else {
            order.push(cluster.name.clone());
            by_name.insert(cluster.name.clone(), cluster);
        }
    }
    let mut out: Vec<Cluster> = order
        .iter()
        .filter_map(|name| by_name.remove(name))
        .collect();
    if proxy.interception != InterceptionMode::None {
        out.extend(
            probe_ports(scope.snapshot().workload_of(proxy))
                .map(|port| static_cluster(scope, names::management(port), loopback(proxy), port)),
        );
    }
    for (name, source) in INBOUND_SOURCE {
        if (name == names::INBOUND_PASSTHROUGH_V4 && proxy.ipv4())
            || (name == names::INBOUND_PASSTHROUGH_V6 && proxy.ipv6())
        {
            let mut cluster = original_dst(name, scope.settings());
            // A source of its own tells this traffic from the application's: iptables lets it through to the application.
            cluster.upstream_bind_config = Some(core::BindConfig {
                source_address: Some(core::SocketAddress {
                    address: source.to_owned(),
                    port_specifier: Some(core::socket_address::PortSpecifier::PortValue(0)),
                    ..Default::default()
                }),
                ..Default::default()
            });
            out.push(cluster);
        }
    }
    out
}

fn instance_cluster(scope: &Scope, proxy: &Proxy, instance: &Instance) -> Cluster {
    let Instance {
        service,
        port,
        endpoint_port,
        ..
    } = instance;
    let name = names::inbound(port.number, &port.name, &service.hostname);
    let mut cluster = static_cluster(scope, name, loopback(proxy), *endpoint_port);
    cluster.alt_stat_name = stat_name(&scope.settings().inbound_stat_name, service, port, "");
    // The service's own rule decides, whoever calls.
    let rule = scope
        .snapshot()
        .config()
        .rules
        .find(&service.namespace, service);
    let pool = rule
        .and_then(|r| r.policy("", port.number).pool)
        .unwrap_or_default();
    connection_pool(&mut cluster, pool, scope.settings(), false);
    protocol_options(
        &mut cluster,
        port.protocol,
        pool,
        scope.settings().options.sniff_inbound,
    );
    cluster
}

fn static_cluster(scope: &Scope, name: String, address: &str, port: u32) -> Cluster {
    let mut cluster = Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        load_assignment: Some(endpoint::single(&name, address, port)),
        name,
        ..Default::default()
    };
    connection_pool(&mut cluster, Pool::default(), scope.settings(), false);
    cluster
}

fn probe_ports(workload: Option<&std::sync::Arc<Workload>>) -> impl Iterator<Item = u32> {
    let mut ports: Vec<u32> = workload
        .iter()
        .flat_map(|w| &w.probes)
        .map(|p| p.port)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports.into_iter()
}

/// One listener per address and port that a service has at this workload, one per further probe port, and `virtualInbound`, into
/// which all traffic to the workload is redirected and which repeats their chains.
pub fn inbound_listeners(scope: &Scope, proxy: &Proxy, report: &mut Report) -> Vec<Listener> {
    let settings = scope.settings();
    let mut out: Vec<Listener> = Vec::new();
    let mut claimed: BTreeMap<String, String> = BTreeMap::new();
    let mut chains: Vec<(String, u32, std::net::IpAddr, Vec<FilterChain>)> = Vec::new();
    let captured = proxy.interception != InterceptionMode::None;
    for instance in instances(scope.snapshot(), proxy, report)
        .iter()
        .filter(|_| captured)
    {
        let address = instance.address.to_string();
        let name = names::listener(&address, instance.endpoint_port);
        let host = instance.service.hostname.to_string();
        if let Some(first) = claimed.get(&name) {
            if *first != host {
                report.event(
                    metric::CONFLICT_INBOUND,
                    format!("{}:{name}", proxy.id),
                    format!("{first} keeps the port, {host} is served by its settings"),
                );
            }
            continue;
        }
        claimed.insert(name.clone(), host);
        let instance_chains = instance_chains(scope, instance, &name);
        chains.push((
            name,
            instance.endpoint_port,
            instance.address,
            instance_chains,
        ));
    }
    let probes = probe_ports(scope.snapshot().workload_of(proxy)).filter(|_| captured);
    for port in probes {
        let name = names::listener(&proxy.ips[0].to_string(), port);
        if !claimed.contains_key(&name) {
            let filters = tcp::filters(scope, &names::management(port), Protocol::Tcp);
            chains.push((
                name,
                port,
                proxy.ips[0],
                vec![tcp::chain(Vec::new(), Vec::new(), filters)],
            ));
        }
    }
    chains.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, port, address, chains) in &chains {
        let mut listener = Listener {
            name: name.clone(),
            address: Some(envoy::socket_address(address.to_string(), *port)),
            filter_chains: chains.clone(),
            bind_to_port: envoy::boolean(false),
            traffic_direction: core::TrafficDirection::Inbound.into(),
            ..Default::default()
        };
        super::listener::inspectors(&mut listener, settings.options.inbound_detection_timeout);
        out.push(listener);
    }
    // Without capture nothing is redirected here; the listener itself is harmless and keeps the set the same.
    out.push(virtual_inbound(scope, proxy, &chains));
    out
}

fn instance_chains(scope: &Scope, instance: &Instance, listener: &str) -> Vec<FilterChain> {
    let Instance { service, port, .. } = instance;
    let options = &scope.settings().options;
    let cluster = names::inbound(port.number, &port.name, &service.hostname);
    let http = |sniffed: bool| FilterChain {
        filter_chain_match: sniffed.then(super::listener::http_match),
        filters: vec![envoy::http_connection_manager(
            scope,
            Hcm {
                listener,
                inbound: true,
                grpc_web: port.protocol == Protocol::GrpcWeb,
                routes: Routes::Inline(Box::new(inline_route(&cluster, port))),
            },
        )],
        ..Default::default()
    };
    let tcp = || {
        tcp::chain(
            Vec::new(),
            Vec::new(),
            tcp::filters(scope, &cluster, port.protocol),
        )
    };
    if port.protocol.is_http() {
        vec![http(false)]
    } else if port.protocol == Protocol::Unsupported && options.sniff_inbound {
        vec![http(true), tcp()]
    } else {
        vec![tcp()]
    }
}

fn inline_route(cluster: &str, port: &ServicePort) -> route::RouteConfiguration {
    let mut action = super::route::to_cluster(cluster);
    crate::compile::set_timeout(&mut action, std::time::Duration::ZERO);
    let (_, host) = cluster.rsplit_once('|').unwrap_or_default();
    route::RouteConfiguration {
        name: cluster.to_owned(),
        virtual_hosts: vec![route::VirtualHost {
            name: format!("inbound|http|{}", port.number),
            domains: vec!["*".to_owned()],
            routes: vec![super::route::default_route(
                action,
                format!("{host}:{}/*", port.number),
            )],
            ..Default::default()
        }],
        validate_clusters: envoy::boolean(false),
        ..Default::default()
    }
}

fn virtual_inbound(
    scope: &Scope,
    proxy: &Proxy,
    listeners: &[(String, u32, std::net::IpAddr, Vec<FilterChain>)],
) -> Listener {
    use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
    let settings = scope.settings();
    let mut claims = Claims::default();
    let mut chains: Vec<FilterChain> = Vec::new();
    let mut admit = |mut chain: FilterChain| {
        if claims.admit(&mut chain) {
            chains.push(chain);
        }
    };
    // A connection to the capture port itself would be passed to itself, for ever.
    let black_hole = tcp::filters(scope, names::BLACK_HOLE, Protocol::Tcp);
    let mut loop_guard = tcp::chain(Vec::new(), Vec::new(), black_hole);
    loop_guard.filter_chain_match = Some(FilterChainMatch {
        destination_port: envoy::uint(names::VIRTUAL_INBOUND_PORT),
        ..Default::default()
    });
    admit(loop_guard);
    let families = [
        (proxy.ipv4(), "0.0.0.0", names::INBOUND_PASSTHROUGH_V4),
        (proxy.ipv6(), "::", names::INBOUND_PASSTHROUGH_V6),
    ];
    for (_, any, cluster) in families.into_iter().filter(|f| f.0) {
        let range = core::CidrRange {
            address_prefix: any.to_owned(),
            prefix_len: envoy::uint(0),
        };
        admit(tcp::chain(
            Vec::new(),
            vec![range],
            tcp::filters(scope, cluster, Protocol::Tcp),
        ));
    }
    for (name, port, address, own) in listeners {
        for chain in own {
            let mut chain = chain.clone();
            let m = chain
                .filter_chain_match
                .get_or_insert_with(Default::default);
            m.destination_port = envoy::uint(*port);
            m.prefix_ranges = vec![envoy::host_cidr(*address)];
            chain.metadata = Some(envoy::metadata(
                "pilot_meta",
                envoy::structure([("original_listener_name", envoy::string_value(name.clone()))]),
            ));
            admit(chain);
        }
    }
    let mut listener = Listener {
        name: names::VIRTUAL_INBOUND.to_owned(),
        address: Some(envoy::socket_address(
            scope.wildcard(),
            names::VIRTUAL_INBOUND_PORT,
        )),
        filter_chains: chains,
        traffic_direction: core::TrafficDirection::Inbound.into(),
        transparent: (proxy.interception == InterceptionMode::Tproxy)
            .then_some(true)
            .and_then(envoy::boolean),
        ..Default::default()
    };
    super::listener::inspectors(&mut listener, settings.options.inbound_detection_timeout);
    let original = envoy::listener_filter(
        "envoy.filters.listener.original_dst",
        &OriginalDst::default(),
    );
    listener.listener_filters.insert(0, original);
    listener.listener_filters_timeout = envoy::duration(settings.options.inbound_detection_timeout);
    listener.continue_on_listener_filters_timeout = true;
    listener
}
