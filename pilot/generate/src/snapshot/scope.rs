//! What a proxy may see, shared by all proxies that may see the same.
//!
//! A scope is a snapshot seen through a [`ScopeKey`]: visible services and VirtualServices, selected Gateways. Built in
//! O(services + VirtualServices) of pointer work; whoever generates keeps scopes by key for as long as the snapshot lives.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ahash::AHashMap;

use super::{MergedRule, Settings, Snapshot, Vantage};
use crate::{
    compile::{Destination, GatewayConfig, VirtualServiceConfig},
    model::{
        CertificateSources, InterceptionMode, Labels, Proxy, ProxyKind, RouterMode, Service,
        ServicePort, Visibility, host, selects,
    },
    names,
};

/// Everything of a proxy that its shared configuration depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScopeKey {
    /// Sidecar or router.
    pub kind: ProxyKind,
    /// Namespace whose config applies.
    pub namespace: Arc<str>,
    /// Domain from which short host names are understood.
    pub dns_domain: Arc<str>,
    /// Those labels that some config asks for.
    pub labels: BTreeMap<String, String>,
    /// Listeners are bound for real: traffic is not captured.
    pub bound: bool,
    /// Accept HTTP/1.0.
    pub http10: bool,
    /// Idle timeout the proxy asked for.
    pub idle_timeout: Option<Duration>,
    /// What its place means to locality load balancing.
    pub vantage: Vantage,
    /// Its network, where the mesh has several.
    pub network: Arc<str>,
    /// Networks whose endpoints it asked to see in clusters that resolve names, sorted; empty: the unnamed one.
    pub network_view: Vec<Arc<str>>,
    /// Whether the workload has IPv4 addresses (else the wildcard address is `::`).
    pub ipv4: bool,
    /// Where its certificates come from.
    pub certificates: Arc<CertificateSources>,
    /// A router that passes TLS on to the cluster that the SNI names.
    pub sni_dnat: bool,
}

impl ScopeKey {
    /// The key of a proxy under a snapshot. Cheap: ask anew for every snapshot, since which labels matter may change.
    pub fn of(snapshot: &Snapshot, proxy: &Proxy) -> ScopeKey {
        let all = snapshot.labels_of(proxy);
        let config = snapshot.config();
        let mut labels: BTreeMap<String, String> = BTreeMap::new();
        let mut keep = |key: &String| {
            if let Some(value) = all.get(key) {
                labels.insert(key.clone(), value.clone());
            }
        };
        match proxy.kind {
            ProxyKind::Sidecar => config.source_label_keys.iter().for_each(&mut keep),
            ProxyKind::Router => config
                .gateways
                .iter()
                .flat_map(|g| g.selector.keys())
                .for_each(&mut keep),
        }
        ScopeKey {
            kind: proxy.kind,
            namespace: proxy.namespace.clone(),
            dns_domain: proxy.dns_domain.clone(),
            labels,
            bound: proxy.kind == ProxyKind::Router || proxy.interception == InterceptionMode::None,
            http10: proxy.http10 || snapshot.settings().options.http10,
            idle_timeout: proxy.idle_timeout,
            vantage: match &snapshot.settings().locality_lb {
                Some(lb) => lb.vantage(&snapshot.locality_of(proxy)),
                None => Vantage::Anywhere,
            },
            network: match snapshot.networks().is_split() {
                true => proxy.network.clone(),
                false => Arc::default(),
            },
            network_view: network_view(proxy),
            ipv4: proxy.ipv4(),
            certificates: proxy.certificates.clone(),
            sni_dnat: proxy.kind == ProxyKind::Router && proxy.router_mode == RouterMode::SniDnat,
        }
    }
}

impl ScopeKey {
    /// Whether endpoints of a network are among those the proxy asked to see.
    pub fn sees_network(&self, network: &str) -> bool {
        match self.network_view.is_empty() {
            true => network.is_empty(),
            false => self.network_view.iter().any(|n| **n == *network),
        }
    }
}

fn network_view(proxy: &Proxy) -> Vec<Arc<str>> {
    let mut view = proxy.network_view.clone();
    view.sort();
    view.dedup();
    view
}

/// A snapshot seen through a [`ScopeKey`]: visible services and VirtualServices, selected Gateways.
///
/// Built in O(services + VirtualServices) of pointer work; whoever generates keeps scopes by key for as long as the
/// snapshot lives.
#[derive(Clone, Debug)]
pub struct Scope {
    snapshot: Arc<Snapshot>,
    key: ScopeKey,
    services: Vec<Arc<Service>>,
    by_host: AHashMap<Arc<str>, Vec<u32>>,
    virtual_services: Vec<Arc<VirtualServiceConfig>>,
    gateways: Vec<Arc<GatewayConfig>>,
}

impl Scope {
    /// The scope of a proxy.
    pub fn of(snapshot: &Arc<Snapshot>, proxy: &Proxy) -> Scope {
        Scope::build(snapshot, ScopeKey::of(snapshot, proxy))
    }

    /// Builds a scope.
    pub fn build(snapshot: &Arc<Snapshot>, key: ScopeKey) -> Scope {
        let visible = |visibility: Visibility, namespace: &str| {
            key.kind == ProxyKind::Router
                || visibility == Visibility::Public
                || namespace == &*key.namespace
        };
        let all = snapshot.services().all();
        let services: Vec<Arc<Service>> = all
            .iter()
            .filter(|s| visible(s.visibility, &s.namespace))
            .cloned()
            .collect();
        let mut by_host: AHashMap<Arc<str>, Vec<u32>> = AHashMap::with_capacity(services.len());
        for (i, service) in (0..).zip(&services) {
            by_host.entry(service.hostname.clone()).or_default().push(i);
        }
        let config = snapshot.config();
        let virtual_services = config
            .virtual_services
            .iter()
            .filter(|v| {
                v.visibility == Visibility::Public || v.meta.namespace.as_str() == &*key.namespace
            })
            .filter(|v| key.kind == ProxyKind::Router || v.on_mesh())
            .cloned()
            .collect();
        let own_only = snapshot.settings().options.scope_gateway_to_namespace;
        let gateways = match key.kind {
            ProxyKind::Sidecar => Vec::new(),
            ProxyKind::Router => config
                .gateways
                .iter()
                .filter(|g| selects(&g.selector, &key.labels))
                .filter(|g| !own_only || g.meta.namespace.as_str() == &*key.namespace)
                .cloned()
                .collect(),
        };
        Scope {
            snapshot: snapshot.clone(),
            key,
            services,
            by_host,
            virtual_services,
            gateways,
        }
    }

    /// The snapshot it looks at.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Mesh settings.
    pub fn settings(&self) -> &Settings {
        self.snapshot.settings()
    }

    /// Its key.
    pub fn key(&self) -> &ScopeKey {
        &self.key
    }

    /// Visible services, the oldest first.
    pub fn services(&self) -> &[Arc<Service>] {
        &self.services
    }

    /// Visible VirtualServices, the oldest first; for sidecars only those that apply to the mesh.
    pub fn virtual_services(&self) -> &[Arc<VirtualServiceConfig>] {
        &self.virtual_services
    }

    /// Gateways that select this router, the oldest first.
    pub fn gateways(&self) -> &[Arc<GatewayConfig>] {
        &self.gateways
    }

    /// Visible services of exactly this host.
    pub fn by_host(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.by_host
            .get(hostname)
            .into_iter()
            .flatten()
            .filter_map(|i| self.services.get(*i as usize))
    }

    /// Visible services that a possibly wildcard host of a config object stands for.
    pub fn matching<'a>(
        &'a self,
        pattern: &'a str,
    ) -> Box<dyn Iterator<Item = &'a Arc<Service>> + 'a> {
        if host::is_wildcard(pattern) {
            Box::new(
                self.services
                    .iter()
                    .filter(move |s| host::matches(&s.hostname, pattern)),
            )
        } else {
            Box::new(self.by_host(pattern))
        }
    }

    /// The service and port behind a cluster: of several services with the host, the oldest that has the port.
    pub fn service_port(&self, hostname: &str, port: u32) -> Option<(&Arc<Service>, &ServicePort)> {
        self.by_host(hostname)
            .find_map(|s| Some((s, s.port(port)?)))
    }

    /// The DestinationRule that clients of this scope follow for a service.
    pub fn rule(&self, service: &Service) -> Option<&Arc<MergedRule>> {
        self.snapshot
            .config()
            .rules
            .find(&self.key.namespace, service)
    }

    /// Host, port and subset of a route's destination: without a port it is the service's only one, else the one the
    /// client called.
    pub fn destination_port(&self, destination: &Destination, listener_port: u32) -> u32 {
        destination.port.unwrap_or_else(|| {
            let mut services = self.by_host(&destination.host);
            match (services.next(), services.next()) {
                (Some(only), None) if only.ports.len() == 1 => only.ports[0].number,
                _ => listener_port,
            }
        })
    }

    /// Cluster of a destination. The service need not exist: requests then get 503, which says what is wrong.
    pub fn destination_cluster(&self, destination: &Destination, listener_port: u32) -> String {
        let port = self.destination_port(destination, listener_port);
        names::outbound(port, &destination.subset, &destination.host)
    }

    /// Whether the client's labels are those a match asks for (sidecars; routers are not asked).
    pub(crate) fn has_labels(&self, wanted: &Labels) -> bool {
        selects(wanted, &self.key.labels)
    }

    /// Address of wildcard listeners.
    pub(crate) fn wildcard(&self) -> &'static str {
        if self.key.ipv4 { "0.0.0.0" } else { "::" }
    }
}
