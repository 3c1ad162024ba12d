//! What lies between two snapshots.
//!
//! Everything is told by pointer comparison of what snapshots share, in O(services + config objects + workloads), nothing
//! at all for parts that are the same `Arc`. Which scopes, proxies and resources that can touch is answered in
//! `touches.rs`, at a cost of O(changed objects) per question.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ahash::{AHashMap, AHashSet};

use super::{Shard, Snapshot};
use crate::{
    compile::{
        DestinationRuleConfig, GatewayConfig, HashKey, LoadBalancer, SidecarConfig,
        VirtualServiceConfig,
    },
    model::{EndpointAddress, EndpointMap, Resolution, Service, ServiceKey, WorkloadMap, host},
    patch::EnvoyFilterConfig,
};

/// What differs between two snapshots, told by pointer comparison of what they share.
///
/// Answers err on the safe side: "touched" means "may differ, generate and compare"; "not touched" means "the same bytes".
#[derive(Clone, Debug, Default)]
pub struct ChangeSet {
    pub(super) everything: bool,
    /// Added, removed, and both forms of changed ones.
    pub(super) services: AHashMap<Arc<str>, Vec<Arc<Service>>>,
    /// Hosts whose endpoints differ.
    pub(super) endpoints: AHashMap<Arc<str>, EndpointUse>,
    pub(super) virtual_services: Vec<Arc<VirtualServiceConfig>>,
    pub(super) rules: Vec<ChangedRule>,
    pub(super) gateways: Vec<Arc<GatewayConfig>>,
    pub(super) sidecars: Vec<Arc<SidecarConfig>>,
    /// Those that came, went, or changed: in both forms.
    pub(super) envoy_filters: Vec<Arc<EnvoyFilterConfig>>,
    pub(super) root: Arc<str>,
    pub(super) workloads: AHashSet<IpAddr>,
    /// Addresses whose locality config changed, where that matters.
    pub(super) places: AHashSet<IpAddr>,
    /// Services to which a changed rule applies.
    pub(super) ruled: Vec<Arc<Service>>,
    /// Addresses that services without a selector had or have among their endpoints, where service, rule or endpoints differ.
    pub(super) listed: AHashSet<IpAddr>,
}

/// Where else than in load assignments the endpoints of a host show.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EndpointUse {
    /// Listeners of their own.
    pub(super) headless: bool,
    /// The cluster has them itself.
    pub(super) dns: bool,
    /// They run as other service accounts than before, and clusters name these.
    pub(super) accounts: bool,
}

#[derive(Clone, Debug)]
pub(super) struct ChangedRule {
    pub(super) rule: Arc<DestinationRuleConfig>,
    /// It, or one that it hides or uncovers, balances by hash: then routes say what to hash.
    pub(super) hashes: bool,
    /// Likewise by the client's address: then listeners say so for connections.
    pub(super) hashes_connections: bool,
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
        // So do registries that come and go for those who are in them.
        let clusters = |s: &Snapshot| -> Vec<Arc<str>> {
            s.inputs.shards.iter().map(|s| s.cluster.clone()).collect()
        };
        if !Arc::ptr_eq(&old.settings, &new.settings)
            || !Arc::ptr_eq(&old.networks, &new.networks)
            || clusters(old) != clusters(new)
        {
            return ChangeSet::everything();
        }
        let mut set = ChangeSet {
            root: new.settings.root_namespace.clone(),
            ..ChangeSet::default()
        };
        set.compare_services(old, new);
        set.compare_config(old, new);
        let mut keys: AHashSet<ServiceKey> = AHashSet::new();
        for (before, after) in old.inputs.shards.iter().zip(&new.inputs.shards) {
            compare_endpoints(&before.endpoints, &after.endpoints, &mut keys);
            set.compare_workloads(before, after);
        }
        compare_endpoints(&old.external, &new.external, &mut keys);
        for key in &keys {
            set.note_endpoints(old, new, key);
        }
        set.list_addresses(old, new, keys);
        if new.settings.locality_lb.is_some() && !Arc::ptr_eq(&old.places, &new.places) {
            let all = old.places.keys().chain(new.places.keys()).copied();
            set.places = all
                .filter(|ip| old.places.get(ip) != new.places.get(ip))
                .collect();
        }
        set
    }

    fn compare_workloads(&mut self, before: &Shard, after: &Shard) {
        let (before, after): (&Arc<WorkloadMap>, _) = (&before.workloads, &after.workloads);
        if Arc::ptr_eq(before, after) {
            return;
        }
        let changed = after
            .iter()
            .filter(|(ip, w)| before.get(ip).is_none_or(|b| b != *w))
            .map(|(ip, _)| *ip);
        let gone = before.keys().filter(|ip| !after.contains_key(ip)).copied();
        self.workloads.extend(changed.chain(gone));
    }

    fn compare_services(&mut self, old: &Snapshot, new: &Snapshot) {
        if Arc::ptr_eq(&old.services, &new.services) {
            return;
        }
        let every = |s: &Snapshot| -> Vec<Arc<Service>> { s.services.every().cloned().collect() };
        for service in difference(&every(old), &every(new)) {
            self.services
                .entry(service.hostname.clone())
                .or_default()
                .push(service);
        }
    }

    fn compare_config(&mut self, old: &Snapshot, new: &Snapshot) {
        if Arc::ptr_eq(&old.config, &new.config) {
            return;
        }
        let services = &new.services;
        let (old, new) = (&old.config, &new.config);
        self.virtual_services = difference(&old.virtual_services, &new.virtual_services);
        self.gateways = difference(&old.gateways, &new.gateways);
        self.sidecars = difference(&old.sidecar_configs, &new.sidecar_configs);
        self.envoy_filters = difference(old.envoy_filters.all(), new.envoy_filters.all());
        // A rule that goes may uncover one behind it, and the other way round.
        let all = || old.destination_rules.iter().chain(&new.destination_rules);
        let changed = difference(&old.destination_rules, &new.destination_rules);
        self.rules = changed
            .into_iter()
            .map(|rule| ChangedRule {
                hashes: all().any(|r| host::matches(&r.host, &rule.host) && hashes(r, |_| true)),
                hashes_connections: all().any(|r| {
                    let by_address = |key: &Option<HashKey>| *key == Some(HashKey::SourceIp);
                    host::matches(&r.host, &rule.host) && hashes(r, by_address)
                }),
                rule,
            })
            .collect();
        let hosts: AHashSet<&Arc<str>> = self.rules.iter().map(|r| &r.rule.host).collect();
        self.ruled = hosts
            .into_iter()
            .flat_map(|host| services.matching(host))
            .flat_map(|service| services.forms(service))
            .cloned()
            .collect();
    }

    fn note_endpoints(&mut self, old: &Snapshot, new: &Snapshot, key: &ServiceKey) {
        // Where no rule asked for mesh mTLS so far, it is the rule that changes clusters.
        let named = old.config.names_accounts && new.config.names_accounts;
        let accounts = named && accounts_of(old, key) != accounts_of(new, key);
        let entry = self.endpoints.entry(key.hostname.clone()).or_default();
        let services = new.services.by_host(&key.hostname);
        for service in services.chain(old.services.by_host(&key.hostname)) {
            entry.headless |= service.headless;
            entry.dns |= service.resolution == Resolution::Dns;
        }
        entry.accounts |= accounts;
    }

    fn list_addresses(&mut self, old: &Snapshot, new: &Snapshot, endpoints: AHashSet<ServiceKey>) {
        let services = self.services.values().flatten().chain(&self.ruled);
        let mut keys: AHashSet<ServiceKey> = services
            .filter(|s| s.selector.is_empty())
            .map(|s| s.key())
            .collect();
        keys.extend(endpoints.into_iter().filter(|key| {
            let both = new.services.by_host(&key.hostname);
            let mut both = both.chain(old.services.by_host(&key.hostname));
            both.any(|s| s.selector.is_empty() && s.namespace == key.namespace)
        }));
        for key in &keys {
            let sets = old.endpoints(key).chain(new.endpoints(key));
            let addresses = sets.flat_map(|s| s.all()).map(|e| &e.address);
            self.listed.extend(addresses.filter_map(|a| match a {
                EndpointAddress::Ip(ip) => Some(*ip),
                _ => None,
            }));
        }
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        !self.everything
            && self.services.is_empty()
            && self.endpoints.is_empty()
            && self.virtual_services.is_empty()
            && self.rules.is_empty()
            && self.gateways.is_empty()
            && self.sidecars.is_empty()
            && self.envoy_filters.is_empty()
            && self.workloads.is_empty()
    }

    /// Whether only endpoints (and the workloads behind them) changed: nothing but load assignments can differ for
    /// proxies that [`ChangeSet::touches_proxy`] does not name.
    pub fn endpoints_only(&self) -> bool {
        !self.everything
            && self.services.is_empty()
            && self.virtual_services.is_empty()
            && self.rules.is_empty()
            && self.gateways.is_empty()
            && self.sidecars.is_empty()
            && self.envoy_filters.is_empty()
            && !self
                .endpoints
                .values()
                .any(|e| e.headless || e.dns || e.accounts)
    }
}

/// Notes the services whose endpoints are not the same set.
fn compare_endpoints(
    old: &Arc<EndpointMap>,
    new: &Arc<EndpointMap>,
    changed: &mut AHashSet<ServiceKey>,
) {
    if Arc::ptr_eq(old, new) {
        return;
    }
    let differing = new
        .iter()
        .filter(|(k, v)| old.get(*k).is_none_or(|o| !Arc::ptr_eq(o, v)))
        .map(|(k, _)| k);
    changed.extend(differing.cloned());
    changed.extend(old.keys().filter(|k| !new.contains_key(*k)).cloned());
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

/// Service accounts that the endpoints of a service run as.
fn accounts_of<'a>(snapshot: &'a Snapshot, key: &ServiceKey) -> BTreeSet<&'a str> {
    let endpoints = snapshot.endpoints(key).flat_map(|set| &set.endpoints);
    let accounts = endpoints.map(|e| &*e.service_account);
    accounts.filter(|a| !a.is_empty()).collect()
}

/// Whether some policy of a rule balances by hash.
fn hashes(rule: &DestinationRuleConfig, by: impl Fn(&Option<HashKey>) -> bool) -> bool {
    let policies = std::iter::once(&rule.policy).chain(rule.subsets.iter().map(|s| &s.policy));
    let mut with_ports = policies.flat_map(|p| std::iter::once(p).chain(p.ports.values()));
    with_ports.any(|p| matches!(&p.lb, Some(LoadBalancer::RingHash { key, .. }) if by(key)))
}
