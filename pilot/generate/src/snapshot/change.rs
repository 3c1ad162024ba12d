//! What lies between two snapshots, and which resources that can touch.
//!
//! Everything is told by pointer comparison of what snapshots share, in O(services + config objects + workloads), nothing
//! at all for parts that are the same `Arc`. Answers err on the safe side: "touched" means "may differ, generate and
//! compare"; "not touched" means "the same bytes".

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ahash::{AHashMap, AHashSet};

use super::{Scope, Snapshot};
use crate::{
    compile::{DestinationRuleConfig, LoadBalancer, VirtualServiceConfig},
    model::{EndpointMap, Proxy, Service, ServiceEndpoints, ServiceKey, host, selects},
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

/// What differs between two snapshots, told by pointer comparison of what they share.
///
/// Answers err on the safe side: "touched" means "may differ, generate and compare"; "not touched" means "the same bytes".
#[derive(Clone, Debug, Default)]
pub struct ChangeSet {
    everything: bool,
    services: AHashMap<Arc<str>, Vec<Arc<Service>>>,
    endpoints: AHashSet<Arc<str>>,
    virtual_services: Vec<Arc<VirtualServiceConfig>>,
    rules: Vec<Arc<str>>,
    hashing_rules: bool,
    gateways: bool,
    headless_endpoints: bool,
    /// Hosts whose endpoints run as other service accounts than before, where clusters name these.
    accounts: AHashSet<Arc<str>>,
    workloads: AHashSet<IpAddr>,
    /// Addresses whose locality config changed, where that matters.
    places: AHashSet<IpAddr>,
}

impl ChangeSet {
    /// A change of everything, as before the first snapshot.
    pub fn everything() -> ChangeSet {
        ChangeSet {
            everything: true,
            ..ChangeSet::default()
        }
    }

    /// What changed from one snapshot to another.
    pub fn between(old: &Snapshot, new: &Snapshot) -> ChangeSet {
        // Networks say which endpoints there are for whom: a rare change of everything.
        if !Arc::ptr_eq(&old.settings, &new.settings) || !Arc::ptr_eq(&old.networks, &new.networks)
        {
            return ChangeSet::everything();
        }
        let mut set = ChangeSet::default();
        set.compare_services(old, new);
        set.compare_config(old, new);
        let accounts = old.config.names_accounts && new.config.names_accounts;
        set.compare_endpoints(&old.inputs.endpoints, &new.inputs.endpoints, accounts);
        set.compare_endpoints(&old.external, &new.external, accounts);
        set.headless_endpoints = set.endpoints.iter().any(|host| {
            new.services
                .by_host(host)
                .chain(old.services.by_host(host))
                .any(|s| s.headless)
        });
        if new.settings.locality_lb.is_some() && !Arc::ptr_eq(&old.places, &new.places) {
            let all = old.places.keys().chain(new.places.keys()).copied();
            set.places = all
                .filter(|ip| old.places.get(ip) != new.places.get(ip))
                .collect();
        }
        if !Arc::ptr_eq(&old.inputs.workloads, &new.inputs.workloads) {
            let (before, after) = (&old.inputs.workloads, &new.inputs.workloads);
            let changed = after
                .iter()
                .filter(|(ip, w)| before.get(ip).is_none_or(|b| b != *w))
                .map(|(ip, _)| *ip);
            let gone = before.keys().filter(|ip| !after.contains_key(ip)).copied();
            set.workloads = changed.chain(gone).collect();
        }
        set
    }

    fn compare_services(&mut self, old: &Snapshot, new: &Snapshot) {
        if Arc::ptr_eq(&old.services, &new.services) {
            return;
        }
        let identity = |s: &Arc<Service>| Arc::as_ptr(s) as usize;
        let before: AHashMap<usize, &Arc<Service>> = old
            .services
            .all()
            .iter()
            .map(|s| (identity(s), s))
            .collect();
        let after: AHashSet<usize> = new.services.all().iter().map(identity).collect();
        let added = new
            .services
            .all()
            .iter()
            .filter(|s| !before.contains_key(&identity(s)));
        let removed = old
            .services
            .all()
            .iter()
            .filter(|s| !after.contains(&identity(s)));
        for service in added.chain(removed) {
            self.services
                .entry(service.hostname.clone())
                .or_default()
                .push(service.clone());
        }
    }

    fn compare_config(&mut self, old: &Snapshot, new: &Snapshot) {
        if Arc::ptr_eq(&old.config, &new.config) {
            return;
        }
        let (old, new) = (&old.config, &new.config);
        self.virtual_services = difference(&old.virtual_services, &new.virtual_services);
        let rules = difference(&old.destination_rules, &new.destination_rules);
        // A rule that goes may uncover one behind it, and the other way round.
        let all = || old.destination_rules.iter().chain(&new.destination_rules);
        self.hashing_rules = rules
            .iter()
            .any(|changed| all().any(|r| host::matches(&r.host, &changed.host) && hashes(r)));
        self.rules = rules.into_iter().map(|r| r.host.clone()).collect();
        self.gateways = !difference(&old.gateways, &new.gateways).is_empty();
    }

    fn compare_endpoints(
        &mut self,
        old: &Arc<EndpointMap>,
        new: &Arc<EndpointMap>,
        accounts: bool,
    ) {
        if Arc::ptr_eq(old, new) {
            return;
        }
        if accounts {
            self.compare_accounts(old, new);
        }
        let note = |key: &ServiceKey| key.hostname.clone();
        let changed = new
            .iter()
            .filter(|(k, v)| old.get(*k).is_none_or(|o| !Arc::ptr_eq(o, v)))
            .map(|(k, _)| note(k));
        self.endpoints.extend(changed);
        self.endpoints
            .extend(old.keys().filter(|k| !new.contains_key(*k)).map(note));
    }

    fn compare_accounts(&mut self, old: &EndpointMap, new: &EndpointMap) {
        let differs = |key: &ServiceKey| match (old.get(key), new.get(key)) {
            (Some(a), Some(b)) => !Arc::ptr_eq(a, b) && accounts_of(a) != accounts_of(b),
            (Some(one), None) | (None, Some(one)) => !accounts_of(one).is_empty(),
            (None, None) => false,
        };
        let keys = new.keys().chain(old.keys());
        let changed = keys.filter(|k| differs(k)).map(|k| k.hostname.clone());
        self.accounts.extend(changed);
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        !self.everything
            && self.services.is_empty()
            && self.endpoints.is_empty()
            && self.virtual_services.is_empty()
            && self.rules.is_empty()
            && !self.gateways
            && self.workloads.is_empty()
    }

    /// Whether only endpoints (and the workloads behind them) changed: nothing but load assignments can differ for
    /// proxies that [`ChangeSet::touches_proxy`] does not name.
    pub fn endpoints_only(&self) -> bool {
        !self.everything
            && self.services.is_empty()
            && self.virtual_services.is_empty()
            && self.rules.is_empty()
            && !self.gateways
            && !self.headless_endpoints
            && self.accounts.is_empty()
    }

    /// Which types can be touched.
    pub fn affected(&self) -> Affected {
        if self.everything {
            return Affected {
                clusters: true,
                endpoints: true,
                listeners: true,
                routes: true,
            };
        }
        let services = !self.services.is_empty();
        let l4 = self
            .virtual_services
            .iter()
            .any(|v| !v.tcp.is_empty() || !v.tls.is_empty());
        Affected {
            clusters: services || !self.rules.is_empty() || !self.accounts.is_empty(),
            endpoints: services || !self.rules.is_empty() || !self.endpoints.is_empty(),
            listeners: services || l4 || self.gateways || self.headless_endpoints,
            routes: services
                || !self.virtual_services.is_empty()
                || self.gateways
                || self.hashing_rules,
        }
    }

    fn host_changed(&self, hostname: &str) -> bool {
        self.services.contains_key(hostname)
            || self.rules.iter().any(|r| host::subset_of(hostname, r))
    }

    /// Whether an outbound cluster may differ. A cluster with endpoints in it (STRICT_DNS) changes with them.
    pub fn touches_cluster(&self, name: &str) -> bool {
        self.everything
            || names::parse_outbound(name)
                .is_some_and(|n| self.host_changed(n.host) || self.endpoints.contains(n.host))
    }

    /// Whether a load assignment may differ.
    pub fn touches_endpoints(&self, cluster: &str) -> bool {
        self.everything
            || names::parse_outbound(cluster)
                .is_some_and(|n| self.endpoints.contains(n.host) || self.host_changed(n.host))
    }

    /// Whether a route configuration of a scope of the newer snapshot may differ.
    pub fn touches_route(&self, scope: &Scope, name: &str) -> bool {
        if self.everything || self.gateways || self.hashing_rules {
            return true;
        }
        let Ok(port) = name.parse::<u32>() else {
            // By host, of gateways, http_proxy: any change of services or routes.
            return !self.services.is_empty() || !self.virtual_services.is_empty();
        };
        let has_port = |service: &Arc<Service>| service.port(port).is_some();
        // A host that no service has gets its virtual host on port 80.
        let on_port = |v: &VirtualServiceConfig| {
            port == 80 || v.hosts.iter().any(|h| scope.matching(h).any(has_port))
        };
        let in_use = || scope.virtual_services().iter().filter(|v| on_port(v));
        self.virtual_services.iter().any(|v| on_port(v))
            || self.services.values().flatten().any(has_port)
            || (!self.services.is_empty() && in_use().any(|v| self.routes_to_changed(v)))
    }

    /// Whether routes of a VirtualService hang on a service that changed: a destination without a port takes that of its
    /// service, wherever the route is; and a service that comes takes its host off the ports of others.
    fn routes_to_changed(&self, config: &VirtualServiceConfig) -> bool {
        let destinations = config.http.iter().flat_map(|r| {
            let mirror = r.mirror.iter().map(|m| &m.destination);
            r.destinations.iter().map(|d| &d.destination).chain(mirror)
        });
        let mut without_port = destinations.filter(|d| d.port.is_none());
        let named = |h: &Arc<str>| self.services.keys().any(|s| host::matches(s, h));
        without_port.any(|d| self.services.contains_key(&d.host)) || config.hosts.iter().any(named)
    }

    /// Whether the proxy's own part (inbound clusters and listeners, scope) may differ: its workload changed, or a service
    /// that selects it.
    pub fn touches_proxy(&self, snapshot: &Snapshot, proxy: &Proxy) -> bool {
        let moved = |ip: &IpAddr| self.workloads.contains(ip) || self.places.contains(ip);
        if self.everything || proxy.ips.iter().any(moved) {
            return true;
        }
        if self.services.is_empty() && self.rules.is_empty() && self.endpoints.is_empty() {
            return false;
        }
        let labels = snapshot.labels_of(proxy);
        let selected = |s: &Arc<Service>| !s.selector.is_empty() && selects(&s.selector, &labels);
        let by_selector = self.services.values().flatten().any(selected);
        let by_rule = || {
            snapshot
                .services()
                .all()
                .iter()
                .any(|s| selected(s) && self.host_changed(&s.hostname))
        };
        by_selector || by_rule()
    }
}

/// Objects that are in one list only, by identity.
fn difference<T>(old: &[Arc<T>], new: &[Arc<T>]) -> Vec<Arc<T>> {
    let identity = |x: &Arc<T>| Arc::as_ptr(x) as usize;
    let before: AHashSet<usize> = old.iter().map(identity).collect();
    let after: AHashSet<usize> = new.iter().map(identity).collect();
    let added = new.iter().filter(|x| !before.contains(&identity(x)));
    let removed = old.iter().filter(|x| !after.contains(&identity(x)));
    added.chain(removed).cloned().collect()
}

/// Service accounts that endpoints run as.
fn accounts_of(set: &ServiceEndpoints) -> BTreeSet<&str> {
    let accounts = set.endpoints.iter().map(|e| &*e.service_account);
    accounts.filter(|a| !a.is_empty()).collect()
}

/// Whether some policy of a rule balances by hash: then routes say what to hash.
fn hashes(rule: &DestinationRuleConfig) -> bool {
    let policies = std::iter::once(&rule.policy).chain(rule.subsets.iter().map(|s| &s.policy));
    let mut with_ports = policies.flat_map(|p| std::iter::once(p).chain(p.ports.values()));
    with_ports.any(|p| matches!(p.lb, Some(LoadBalancer::RingHash { .. })))
}
