//! The inbound side of a sidecar: what depends on the one workload.
//!
//! What a workload serves is what its services say, unless its Sidecar lists `ingress`: then it is that and nothing else. Without
//! capture there is no inbound side but that, for the sidecar would take the ports of the application.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    cluster::{INBOUND_SOURCE, connection_pool, original_dst, protocol_options, stat_name},
    endpoint,
    instance::{Instance, instances},
    tcp::{self, Claims},
};
use crate::{
    compile::{IngressEndpoint, IngressListener, Pool, SidecarConfig},
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
    model::{
        Address, InterceptionMode, Protocol, Proxy, Registry, Resolution, Service, ServicePort,
        TargetPort, Visibility, Workload,
    },
    names,
    report::{Report, metric},
    snapshot::Scope,
};

/// A port that the workload serves.
struct Served {
    /// The service that is served there, and where clients connect to.
    instance: Instance,
    /// Bound for real.
    bound: bool,
    /// Where the application listens.
    endpoint: IngressEndpoint,
}

fn captured(proxy: &Proxy) -> bool {
    proxy.interception != InterceptionMode::None
}

fn ingress(scope: &Scope) -> Option<&Arc<SidecarConfig>> {
    scope.sidecar().filter(|s| !s.ingress.is_empty())
}

fn served(scope: &Scope, proxy: &Proxy, report: &mut Report) -> Vec<Served> {
    let instances = instances(scope.snapshot(), proxy, report);
    if let Some(sidecar) = ingress(scope) {
        let listeners = sidecar.ingress.iter();
        return listeners
            .map(|listener| Served {
                instance: ingress_instance(proxy, sidecar, listener, &instances),
                bound: listener.bound || !captured(proxy),
                endpoint: listener.endpoint.clone(),
            })
            .collect();
    }
    let of_services = instances.into_iter().filter(|_| captured(proxy));
    of_services
        .map(|instance| Served {
            endpoint: IngressEndpoint::Port(instance.endpoint_port),
            instance,
            bound: false,
        })
        .collect()
}

/// An ingress listener serves the oldest service that has its port at this workload, or else one that is named after the Sidecar.
fn ingress_instance(
    proxy: &Proxy,
    sidecar: &SidecarConfig,
    listener: &IngressListener,
    instances: &[Instance],
) -> Instance {
    let number = listener.port.number;
    let service = instances.iter().find(|i| i.endpoint_port == number);
    let service = service.map(|i| i.service.clone()).unwrap_or_else(|| {
        let hostname = format!("{}.{}", sidecar.id.name, sidecar.id.namespace);
        Arc::new(Service {
            hostname: hostname.into(),
            name: sidecar.id.name.clone(),
            namespace: sidecar.id.namespace.clone(),
            registry: Registry::Kubernetes,
            creation: sidecar.meta.creation_timestamp,
            address: Address::Unspecified,
            ports: Vec::new(),
            resolution: Resolution::ClientSideLb,
            mesh_external: false,
            visibility: Visibility::Private,
            selector: Default::default(),
            headless: false,
            external_name: None,
            service_accounts: Vec::new(),
            external_addresses: Vec::new(),
        })
    });
    Instance {
        service,
        port: ServicePort {
            name: listener.port.name.clone(),
            number,
            protocol: listener.port.protocol,
            target: TargetPort::Number(number),
        },
        address: listener.bind.unwrap_or_else(|| own_address(proxy)),
        endpoint_port: number,
    }
}

/// The address of the workload that clients can reach.
fn own_address(proxy: &Proxy) -> IpAddr {
    let reachable = |ip: &&IpAddr| {
        let link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local)
    };
    let any = if proxy.ipv4() {
        IpAddr::from([0, 0, 0, 0])
    } else {
        IpAddr::from([0u16; 8])
    };
    proxy.ips.iter().find(reachable).copied().unwrap_or(any)
}

/// One cluster per served port, one per probe port, and the inbound passthrough per address family.
pub(super) fn inbound_clusters(scope: &Scope, proxy: &Proxy, report: &mut Report) -> Vec<Cluster> {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut out: Vec<Cluster> = Vec::new();
    for served in served(scope, proxy, report) {
        let cluster = served_cluster(scope, &served);
        if seen.insert(cluster.name.clone()) {
            out.push(cluster);
        } else {
            let message = "another service of this workload has the same host and port";
            report.event(metric::DUPLICATE_CLUSTERS, cluster.name, message);
        }
    }
    out.extend(probe_ports(scope, proxy).map(|port| {
        let address = envoy::socket_address(scope.localhost(), port);
        static_cluster(scope, names::management(port), address)
    }));
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

fn served_cluster(scope: &Scope, served: &Served) -> Cluster {
    let Instance { service, port, .. } = &served.instance;
    let name = names::inbound(port.number, &port.name, &service.hostname);
    let address = match &served.endpoint {
        IngressEndpoint::Port(number) => envoy::socket_address(scope.localhost(), *number),
        IngressEndpoint::Unix(path) => envoy::pipe(&**path),
    };
    let mut cluster = static_cluster(scope, name, address);
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

fn static_cluster(scope: &Scope, name: String, address: core::Address) -> Cluster {
    let mut cluster = Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        load_assignment: Some(endpoint::at(&name, address)),
        name,
        ..Default::default()
    };
    connection_pool(&mut cluster, Pool::default(), scope.settings(), false);
    cluster
}

/// Ports that the kubelet probes. A Sidecar that lists what is served lists all of it.
fn probe_ports(scope: &Scope, proxy: &Proxy) -> impl Iterator<Item = u32> + use<> {
    let served = captured(proxy) && ingress(scope).is_none();
    let workload: Option<&Arc<Workload>> = scope.snapshot().workload_of(proxy).filter(|_| served);
    let probes = workload.into_iter().flat_map(|w| &w.probes);
    let ports: BTreeSet<u32> = probes.map(|p| p.port).collect();
    ports.into_iter()
}

/// A listener of the inbound side.
struct Inbound {
    name: String,
    address: IpAddr,
    port: u32,
    bound: bool,
    chains: Vec<FilterChain>,
}

/// One listener per served address and port, one per further probe port, and `virtualInbound`, into which all traffic to the
/// workload is redirected and which repeats the chains of those that are not bound.
pub(super) fn inbound_listeners(
    scope: &Scope,
    proxy: &Proxy,
    report: &mut Report,
) -> Vec<Listener> {
    let settings = scope.settings();
    let mut claimed: BTreeMap<String, String> = BTreeMap::new();
    let mut all: Vec<Inbound> = Vec::new();
    for Served {
        instance, bound, ..
    } in served(scope, proxy, report)
    {
        let name = names::listener(&instance.address.to_string(), instance.endpoint_port);
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
        all.push(Inbound {
            chains: instance_chains(scope, &instance, &name),
            name,
            address: instance.address,
            port: instance.endpoint_port,
            bound,
        });
    }
    for port in probe_ports(scope, proxy) {
        for ip in &proxy.ips {
            let name = names::listener(&ip.to_string(), port);
            if claimed.insert(name.clone(), String::new()).is_none() {
                let filters = tcp::filters(scope, &names::management(port), Protocol::Tcp);
                all.push(Inbound {
                    name,
                    address: *ip,
                    port,
                    bound: false,
                    chains: vec![tcp::chain(Vec::new(), Vec::new(), filters)],
                });
            }
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let mut out: Vec<Listener> = Vec::new();
    for inbound in &all {
        let mut listener = Listener {
            name: inbound.name.clone(),
            address: Some(envoy::socket_address(
                inbound.address.to_string(),
                inbound.port,
            )),
            filter_chains: inbound.chains.clone(),
            bind_to_port: envoy::boolean(inbound.bound),
            traffic_direction: core::TrafficDirection::Inbound.into(),
            ..Default::default()
        };
        super::listener::inspectors(&mut listener, settings.options.inbound_detection_timeout);
        out.push(listener);
    }
    // Without capture nothing is redirected here; the listener itself is harmless and keeps the set the same.
    all.retain(|inbound| !inbound.bound);
    out.push(virtual_inbound(scope, proxy, &all));
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

fn virtual_inbound(scope: &Scope, proxy: &Proxy, listeners: &[Inbound]) -> Listener {
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
        let name = names::VIRTUAL_INBOUND;
        let tcp = tcp::filters(scope, cluster, Protocol::Tcp);
        let tcp = tcp::chain(Vec::new(), vec![range.clone()], tcp);
        admit(named_after(name, tcp));
        if settings.options.sniff_inbound {
            admit(named_after(name, http_passthrough(scope, cluster, range)));
        }
    }
    for inbound in listeners {
        for chain in &inbound.chains {
            let mut chain = chain.clone();
            let m = chain
                .filter_chain_match
                .get_or_insert_with(Default::default);
            m.destination_port = envoy::uint(inbound.port);
            m.prefix_ranges = vec![envoy::host_cidr(inbound.address)];
            admit(named_after(&inbound.name, chain));
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

/// A chain that says which listener it is from.
fn named_after(listener: &str, chain: FilterChain) -> FilterChain {
    let name = envoy::string_value(listener);
    FilterChain {
        metadata: Some(envoy::metadata(
            "pilot_meta",
            envoy::structure([("original_listener_name", name)]),
        )),
        ..chain
    }
}

/// HTTP to ports that no service has, where ports are sniffed: it is logged and counted as what it is.
fn http_passthrough(scope: &Scope, cluster: &str, range: core::CidrRange) -> FilterChain {
    let port = ServicePort {
        name: names::VIRTUAL_INBOUND.into(),
        number: names::VIRTUAL_INBOUND_PORT,
        protocol: Protocol::Http,
        target: TargetPort::Number(names::VIRTUAL_INBOUND_PORT),
    };
    let hcm = Hcm {
        listener: names::VIRTUAL_INBOUND,
        inbound: true,
        grpc_web: false,
        routes: Routes::Inline(Box::new(inline_route(cluster, &port))),
    };
    FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            prefix_ranges: vec![range],
            ..super::listener::http_match()
        }),
        filters: vec![envoy::http_connection_manager(scope, hcm)],
        ..Default::default()
    }
}
