//! What a proxy may see, shared by all proxies that may see the same.
//!
//! A scope is a snapshot seen through a [`View`], by proxies that are alike in everything else that their shared
//! configuration depends on. It costs nothing to make from the two, and a few pointers to keep: services and VirtualServices
//! are the view's, endpoints and DestinationRules are read from the snapshot.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{MergedRule, Settings, Snapshot, Vantage, View, ViewKey, view::Egress};
use crate::{
    compile::{Destination, GatewayConfig, SidecarConfig, SidecarId, VirtualServiceConfig},
    model::{
        CertificateSources, Client, InterceptionMode, Labels, Proxy, ProxyKind, RouterMode,
        Service, ServicePort, selects,
    },
    names,
    patch::PatchSet,
};

/// Everything of a proxy that its shared configuration depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScopeKey {
    /// Sidecar or router.
    pub kind: ProxyKind,
    /// Envoy, or a gRPC library.
    pub client: Client,
    /// Namespace whose config applies.
    pub namespace: Arc<str>,
    /// The Sidecar that applies: which one says it all, its content is the snapshot's.
    pub sidecar: Option<SidecarId>,
    /// Its cluster, if that is another one than the first: services have other addresses there.
    pub cluster: Arc<str>,
    /// Domain from which short host names are understood.
    pub dns_domain: Arc<str>,
    /// Those labels that some VirtualService in view, or (routers) some Gateway, asks for.
    pub labels: BTreeMap<String, String>,
    /// How traffic is captured.
    pub interception: InterceptionMode,
    /// Accept HTTP/1.0.
    pub http10: bool,
    /// Idle timeout the proxy asked for.
    pub idle_timeout: Option<Duration>,
    /// Whether the workload has IPv4 addresses (else the wildcard address is `::`).
    pub ipv4: bool,
    /// What its place means to locality load balancing.
    pub vantage: Vantage,
    /// Its network, where the mesh has several.
    pub network: Arc<str>,
    /// Networks whose endpoints it asked to see in clusters that resolve names, sorted; empty: the unnamed one.
    pub network_view: Vec<Arc<str>>,
    /// Where its certificates come from.
    pub certificates: Arc<CertificateSources>,
    /// A router that passes TLS on to the cluster that the SNI names.
    pub sni_dnat: bool,
    /// The patches of EnvoyFilters; none for nearly everybody.
    pub patches: PatchSet,
}

impl ScopeKey {
    /// The key of a proxy under a snapshot and its view of it. Cheap: ask anew for every snapshot, since which labels matter
    /// may change.
    pub fn of(snapshot: &Snapshot, view: &View, proxy: &Proxy) -> ScopeKey {
        let all = snapshot.labels_of(proxy);
        let mut labels: BTreeMap<String, String> = BTreeMap::new();
        let mut keep = |key: &String| {
            if let Some(value) = all.get(key) {
                labels.insert(key.clone(), value.clone());
            }
        };
        match proxy.kind {
            ProxyKind::Sidecar => view.label_keys().iter().for_each(&mut keep),
            ProxyKind::Router => snapshot
                .config()
                .gateways
                .iter()
                .flat_map(|g| g.selector.keys())
                .for_each(&mut keep),
        }
        let ViewKey {
            kind,
            namespace,
            sidecar,
            cluster,
        } = view.key().clone();
        ScopeKey {
            kind,
            client: proxy.client,
            namespace,
            sidecar,
            cluster,
            dns_domain: proxy.dns_domain.clone(),
            labels,
            interception: match proxy.kind {
                ProxyKind::Sidecar => proxy.interception,
                ProxyKind::Router => InterceptionMode::None,
            },
            http10: proxy.http10 || snapshot.settings().options.http10,
            idle_timeout: proxy.idle_timeout,
            ipv4: proxy.ipv4(),
            vantage: match &snapshot.settings().locality_lb {
                Some(lb) => lb.vantage(&snapshot.locality_of(proxy)),
                None => Vantage::Anywhere,
            },
            network: match snapshot.networks().is_split() {
                true => proxy.network.clone(),
                false => Arc::default(),
            },
            network_view: network_view(proxy),
            certificates: proxy.certificates.clone(),
            sni_dnat: proxy.kind == ProxyKind::Router && proxy.router_mode == RouterMode::SniDnat,
            patches: PatchSet::of(snapshot, proxy),
        }
    }

    /// Whose view it is.
    pub fn view(&self) -> ViewKey {
        ViewKey {
            kind: self.kind,
            namespace: self.namespace.clone(),
            sidecar: self.sidecar.clone(),
            cluster: self.cluster.clone(),
        }
    }

    /// Whether listeners are bound for real: traffic is not captured.
    pub fn bound(&self) -> bool {
        self.interception == InterceptionMode::None
    }

    /// Whether a network's endpoints are among those the proxy asked to see.
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

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Scope {
    snapshot: Arc<Snapshot>,
    view: Arc<View>,
    key: Arc<ScopeKey>,
    gateways: Arc<[Arc<GatewayConfig>]>,
}

impl Scope {
    /// The scope of a proxy, with a view of its own.
    pub fn of(snapshot: &Arc<Snapshot>, proxy: &Proxy) -> Scope {
        let view = Arc::new(View::of(snapshot, proxy));
        let key = ScopeKey::of(snapshot, &view, proxy);
        Scope::new(snapshot.clone(), view, Arc::new(key))
    }

    /// A scope from its parts: O(1), O(Gateways) for routers. The view must be of the snapshot and of the key.
    pub fn new(snapshot: Arc<Snapshot>, view: Arc<View>, key: Arc<ScopeKey>) -> Scope {
        let own_only = snapshot.settings().options.scope_gateway_to_namespace;
        let gateways = match key.kind {
            ProxyKind::Sidecar => Arc::from([]),
            ProxyKind::Router => snapshot
                .config()
                .gateways
                .iter()
                .filter(|g| selects(&g.selector, &key.labels))
                .filter(|g| !own_only || g.meta.namespace.as_str() == &*key.namespace)
                .cloned()
                .collect(),
        };
        Scope {
            snapshot,
            view,
            key,
            gateways,
        }
    }

    /// The snapshot it looks at.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Services and VirtualServices it sees.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Mesh settings.
    pub fn settings(&self) -> &Settings {
        self.snapshot.settings()
    }

    /// Its key.
    pub fn key(&self) -> &Arc<ScopeKey> {
        &self.key
    }

    /// The Sidecar that applies.
    pub fn sidecar(&self) -> Option<&Arc<SidecarConfig>> {
        self.view.sidecar()
    }

    /// Egress listeners in order; one without a port of its own is the last.
    pub fn egress(&self) -> impl Iterator<Item = Egress<'_>> {
        self.view.egress()
    }

    /// Whether destinations that nobody knows may be called.
    pub fn allow_any(&self) -> bool {
        let own = self.sidecar().and_then(|s| s.allow_any);
        own.unwrap_or(self.settings().allow_any)
    }

    /// Visible services, the oldest first.
    pub fn services(&self) -> &[Arc<Service>] {
        self.view.services().all()
    }

    /// Visible VirtualServices, the oldest first: for sidecars those that apply to the mesh, for routers those of
    /// Gateways.
    pub fn virtual_services(&self) -> &[Arc<VirtualServiceConfig>] {
        self.view.virtual_services()
    }

    /// Gateways that select this router, the oldest first.
    pub fn gateways(&self) -> &[Arc<GatewayConfig>] {
        &self.gateways
    }

    /// Visible services of exactly this host.
    pub fn by_host(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.view.services().by_host(hostname)
    }

    /// Visible services that a possibly wildcard host of a config object stands for.
    pub fn matching<'a>(
        &'a self,
        pattern: &'a str,
    ) -> Box<dyn Iterator<Item = &'a Arc<Service>> + 'a> {
        self.view.services().matching(pattern)
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

    /// Address of listeners for the workload alone.
    pub(crate) fn localhost(&self) -> &'static str {
        if self.key.ipv4 { "127.0.0.1" } else { "::1" }
    }
}
