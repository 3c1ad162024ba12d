//! Which views, scopes, proxies and resources a [`ChangeSet`] can touch.
//!
//! A change is told view by view: whoever neither sees nor saw what changed is not touched, so that its scopes are carried on
//! as they are and its proxies are not looked at. Every question costs O(changed objects), whatever the size of
//! the mesh, and is answered "no" only if the bytes are the same.

use std::{net::IpAddr, sync::Arc};

use super::{
    ChangeSet, Scope, Snapshot, View,
    change::{ChangedRule, EndpointUse},
    view::{Egress, RouteOf},
};
use crate::{
    compile::{DestinationRuleConfig, VirtualServiceConfig},
    model::{Protocol, Proxy, ProxyKind, Service, Visibility, host, selects},
    names,
};

/// Which resource types of a scope a change may touch at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Affected {
    pub clusters: bool,
    pub endpoints: bool,
    pub listeners: bool,
    pub routes: bool,
}

impl Affected {
    const ALL: Affected = Affected {
        clusters: true,
        endpoints: true,
        listeners: true,
        routes: true,
    };

    /// Whether there is anything.
    pub fn any(self) -> bool {
        self.clusters || self.endpoints || self.listeners || self.routes
    }
}

/// Which lists of a view a change may touch.
#[derive(Clone, Copy, Debug)]
pub(super) struct TouchedView {
    pub(super) everything: bool,
    pub(super) services: bool,
    pub(super) virtual_services: bool,
}

impl ChangeSet {
    /// Which lists of a view can differ.
    pub(super) fn touches_view(&self, view: &View) -> TouchedView {
        let id = view.key().sidecar.as_ref();
        TouchedView {
            everything: self.everything || self.sidecars.iter().any(|s| Some(&s.id) == id),
            services: self.services.values().flatten().any(|s| view.sees(s)),
            virtual_services: self.virtual_services.iter().any(|v| view.sees_routes(v)),
        }
    }

    /// Which types can be touched for those who see a view of either snapshot.
    pub fn affected(&self, view: &View) -> Affected {
        let touched = self.touches_view(view);
        if touched.everything {
            return Affected::ALL;
        }
        let seen = |hostname: &Arc<str>| view.services().has_host(hostname);
        let mut endpoints = self
            .endpoints
            .iter()
            .filter(|(h, _)| seen(h))
            .map(|(_, e)| *e);
        let used = endpoints.next().map(|first| {
            endpoints.fold(first, |all, e| EndpointUse {
                headless: all.headless || e.headless,
                dns: all.dns || e.dns,
                accounts: all.accounts || e.accounts,
            })
        });
        let (mut rules, mut hashing, mut by_address) = (false, false, false);
        let followed = |r: &&ChangedRule| concerns(&r.rule, view, &self.root);
        for rule in self.rules.iter().filter(followed) {
            rules = true;
            hashing |= rule.hashes;
            by_address |= rule.hashes_connections;
        }
        let l4 = touched.virtual_services
            && self
                .virtual_services
                .iter()
                .any(|v| !(v.tcp.is_empty() && v.tls.is_empty()) && view.sees_routes(v));
        let services = touched.services;
        let gateways = view.key().kind == ProxyKind::Router && !self.gateways.is_empty();
        Affected {
            clusters: services || rules || used.is_some_and(|e| e.dns || e.accounts),
            endpoints: services || rules || used.is_some(),
            listeners: services || l4 || gateways || by_address || used.is_some_and(|e| e.headless),
            routes: services || touched.virtual_services || gateways || hashing,
        }
    }

    /// Whether nothing of those who see a view can be relied on to be the same.
    pub fn touches_all(&self, view: &View) -> bool {
        self.touches_view(view).everything
    }

    /// The hosts whose load assignments may differ for those who see a view, if endpoints and nothing else that load
    /// assignments depend on differ.
    pub fn endpoint_hosts<'a>(
        &'a self,
        view: &'a View,
    ) -> Option<impl Iterator<Item = &'a Arc<str>>> {
        let touched = self.touches_view(view);
        let mut rules = self.rules.iter();
        let others = touched.everything
            || touched.services
            || rules.any(|r| concerns(&r.rule, view, &self.root));
        let hosts = self
            .endpoints
            .keys()
            .filter(|h| view.services().has_host(h));
        (!others).then_some(hosts)
    }

    fn host_changed(&self, hostname: &str) -> bool {
        self.services.contains_key(hostname)
            || self
                .rules
                .iter()
                .any(|r| host::subset_of(hostname, &r.rule.host))
    }

    /// Whether an outbound cluster may differ. A cluster with endpoints in it (STRICT_DNS) changes with them.
    pub fn touches_cluster(&self, name: &str) -> bool {
        self.everything
            || names::parse_outbound(name)
                .is_some_and(|n| self.host_changed(n.host) || self.endpoints.contains_key(n.host))
    }

    /// Whether a load assignment may differ.
    pub fn touches_endpoints(&self, cluster: &str) -> bool {
        self.touches_cluster(cluster)
    }

    /// Whether a route configuration of a scope of the newer snapshot may differ.
    pub fn touches_route(&self, scope: &Scope, name: &str) -> bool {
        let view = scope.view();
        let touched = self.touches_view(view);
        let hashing = |r: &ChangedRule| r.hashes && concerns(&r.rule, view, &self.root);
        if touched.everything || self.rules.iter().any(hashing) {
            return true;
        }
        if view.key().kind == ProxyKind::Router {
            return touched.services || touched.virtual_services || !self.gateways.is_empty();
        }
        if !touched.services && !touched.virtual_services {
            return false;
        }
        match view.route(name) {
            None => false,
            Some(RouteOf::Everything(_)) => true,
            Some(RouteOf::Port(egress, port)) => self.touches_port(view, egress, port),
            Some(RouteOf::Host(egress, hostname, port)) => {
                self.touches_host(egress, hostname, port)
            }
        }
    }

    fn touches_port(&self, view: &View, egress: Egress<'_>, port: u32) -> bool {
        let has_port = |service: &Arc<Service>| service.port(port).is_some();
        let mut changed = self.services.values().flatten().filter(|s| view.sees(s));
        // A host that no service has gets its virtual host where the services of its VirtualService are, or on port 80.
        let on_port = |v: &VirtualServiceConfig| {
            port == 80
                || v.hosts
                    .iter()
                    .any(|h| egress.services.matching(h).any(has_port))
        };
        let mut routes = self.virtual_services.iter().filter(|v| view.sees_routes(v));
        let mut in_use = egress.virtual_services.iter().filter(|v| on_port(v));
        routes.any(|v| on_port(v))
            || changed.any(has_port)
            || (!self.services.is_empty() && in_use.any(|v| self.hangs_on_changed(v)))
    }

    /// A route configuration of one host: its own virtual host, or everything on the port if there is none.
    fn touches_host(&self, egress: Egress<'_>, hostname: &str, port: u32) -> bool {
        let routed = |s: &Arc<Service>| {
            s.port(port)
                .is_some_and(|p| p.protocol.is_http() || p.protocol == Protocol::Unsupported)
        };
        let of_host =
            |v: &Arc<VirtualServiceConfig>| v.hosts.iter().any(|h| host::matches(hostname, h));
        let mut applying = egress.virtual_services.iter().filter(|v| of_host(v));
        !egress.services.by_host(hostname).any(routed)
            || self.services.contains_key(hostname)
            || self.virtual_services.iter().any(of_host)
            || (!self.services.is_empty() && applying.any(|v| self.hangs_on_changed(v)))
    }

    /// Whether what a VirtualService makes hangs on a service that changed: a destination without a port takes that of its
    /// service, wherever the route is; and a service that comes takes its host from those without one.
    fn hangs_on_changed(&self, config: &VirtualServiceConfig) -> bool {
        let destinations = config.http.iter().flat_map(|r| {
            let mirror = r.mirror.iter().map(|m| &m.destination);
            r.destinations.iter().map(|d| &d.destination).chain(mirror)
        });
        let mut without_port = destinations.filter(|d| d.port.is_none());
        let named = |h: &Arc<str>| {
            self.services.contains_key(h)
                || (host::is_wildcard(h) && self.services.keys().any(|s| host::matches(s, h)))
        };
        without_port.any(|d| self.services.contains_key(&d.host)) || config.hosts.iter().any(named)
    }

    /// Whether the proxy's own part (inbound clusters and listeners, scope) may differ: its workload, its Sidecar or an EnvoyFilter
    /// for it changed, or a service that selects it, or one that lists its address.
    pub fn touches_proxy(&self, snapshot: &Snapshot, proxy: &Proxy) -> bool {
        let moved = |ip: &IpAddr| self.workloads.contains(ip) || self.places.contains(ip);
        let concerned = |ip: &IpAddr| moved(ip) || self.listed.contains(ip);
        if self.everything || proxy.ips.iter().any(concerned) {
            return true;
        }
        let unchanged =
            self.services.is_empty() && self.ruled.is_empty() && self.sidecars.is_empty();
        if unchanged && self.envoy_filters.is_empty() {
            return false;
        }
        // Services select by what the registry knows, Sidecars by what the proxy says of itself.
        let labels = snapshot.labels_of(proxy);
        let mut filters = self.envoy_filters.iter();
        if filters.any(|f| f.touches(&self.root, proxy, &labels)) {
            return true;
        }
        let workload = snapshot.workload_of(proxy);
        let of_pod = workload.map_or(&labels, |w| &w.labels);
        let namespace = workload.map_or(&proxy.namespace, |w| &w.namespace);
        let selected = |s: &Arc<Service>| {
            !s.selector.is_empty() && s.namespace == *namespace && selects(&s.selector, of_pod)
        };
        let sidecars = &snapshot.config().sidecars;
        self.services.values().flatten().any(selected)
            || self.ruled.iter().any(selected)
            || (proxy.kind == ProxyKind::Sidecar
                && self
                    .sidecars
                    .iter()
                    .any(|s| sidecars.may_select(s, &proxy.namespace, &labels)))
    }
}

/// Whether clients with this view may follow a rule for some service that they see.
fn concerns(rule: &DestinationRuleConfig, view: &View, root: &Arc<str>) -> bool {
    let namespace = rule.meta.namespace.as_str();
    let own = *view.key().namespace == *namespace && **root != *namespace;
    let public = rule.visibility == Visibility::Public;
    let for_all = own || (public && **root == *namespace);
    (for_all || public)
        && view
            .services()
            .matching(&rule.host)
            .any(|s| for_all || *s.namespace == *namespace)
}
