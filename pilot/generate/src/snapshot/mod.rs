//! Everything Pilot knows at one moment, indexed, immutable.
//!
//! Written once by [`Snapshot::build`], published whole, read by everybody. Its parts sit behind their own `Arc`s: a part
//! whose input is the same `Arc` as before is the previous snapshot's. An endpoint change therefore touches no
//! index at all; a config change recompiles the changed objects; a service change re-sorts the services.

mod change;
mod config;
mod locality;
mod networks;
mod rules;
mod scope;
mod services;
mod settings;
mod shard;
mod sidecars;
mod touches;
mod view;
mod virtual_services;

use std::{net::IpAddr, sync::Arc};

use ahash::AHashMap;
use mesh_config::{Configs, MeshConfig, mesh::MeshNetworks};

pub(crate) use self::view::RouteOf;
pub use self::{
    change::ChangeSet,
    config::ConfigIndex,
    locality::{Arranged, Distribute, LocalityLb, Vantage, as_they_are},
    networks::Networks,
    rules::{MergedRule, RuleIndex},
    scope::{Scope, ScopeKey},
    services::{ClusterForm, ServiceIndex, ServiceSet},
    settings::{AccessLogSettings, Settings},
    shard::Shard,
    sidecars::SidecarIndex,
    touches::Affected,
    view::{Egress, View, ViewKey},
};
use crate::{
    Options,
    model::{
        EndpointAddress, EndpointMap, Labels, Locality, Proxy, Registry, ServiceEndpoints,
        ServiceKey, Workload,
    },
    report::{Report, metric},
};

/// What a snapshot is made of. Every part is shared: to change one, put a new `Arc` in its place.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// Mesh config.
    pub mesh: Arc<MeshConfig>,
    /// Networks of the mesh.
    pub networks: Arc<MeshNetworks>,
    /// Pilot's switches.
    pub options: Arc<Options>,
    /// Config objects.
    pub configs: Arc<Configs>,
    /// What the registries know, in the order in which they are asked.
    pub shards: Vec<Shard>,
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Snapshot {
    inputs: Inputs,
    settings: Arc<Settings>,
    config: Arc<ConfigIndex>,
    services: Arc<ServiceIndex>,
    external: Arc<EndpointMap>,
    /// Localities that config gives to addresses.
    places: Arc<AHashMap<IpAddr, Locality>>,
    networks: Arc<Networks>,
    report: Arc<Report>,
}

impl Snapshot {
    /// Builds a snapshot; `previous` is only read to take over what did not change.
    pub fn build(inputs: &Inputs, previous: Option<&Snapshot>) -> Snapshot {
        let same_settings = previous.filter(|p| {
            Arc::ptr_eq(&p.inputs.mesh, &inputs.mesh)
                && Arc::ptr_eq(&p.inputs.options, &inputs.options)
        });
        let settings = match same_settings {
            Some(p) => p.settings.clone(),
            None => {
                let settings = Settings::new(&inputs.mesh, &inputs.options);
                match previous.filter(|p| *p.settings == settings) {
                    Some(p) => p.settings.clone(),
                    None => Arc::new(settings),
                }
            }
        };
        let comparable = previous.filter(|p| {
            p.settings.compile.keeps(&settings.compile)
                && p.settings.root_namespace == settings.root_namespace
        });
        let config = match comparable.filter(|p| Arc::ptr_eq(&p.inputs.configs, &inputs.configs)) {
            Some(p) => p.config.clone(),
            None => Arc::new(ConfigIndex::new(
                &inputs.configs,
                &settings,
                comparable.map(|p| &*p.config),
            )),
        };
        let same_entries =
            previous.filter(|p| same_list(&p.config.service_entries, &config.service_entries));
        let services = match same_entries.filter(|p| same_services(&p.inputs, inputs)) {
            Some(p) => p.services.clone(),
            None => {
                let entries = config.service_entries.iter();
                Arc::new(ServiceIndex::new(
                    &inputs.shards,
                    entries.flat_map(|e| e.services.iter().cloned()),
                    previous.map(|p| &*p.services),
                ))
            }
        };
        let (external, places) = match same_entries {
            Some(p) => (p.external.clone(), p.places.clone()),
            None => {
                let endpoints = external_endpoints(&config, previous.map(|p| &*p.external));
                let places = places(&endpoints);
                (Arc::new(endpoints), Arc::new(places))
            }
        };
        let networks = match previous.filter(|p| {
            Arc::ptr_eq(&p.inputs.networks, &inputs.networks) && Arc::ptr_eq(&p.services, &services)
        }) {
            Some(p) => p.networks.clone(),
            None => {
                let networks = Networks::new(&inputs.networks, &services);
                match previous.filter(|p| *p.networks == networks) {
                    Some(p) => p.networks.clone(),
                    None => Arc::new(networks),
                }
            }
        };
        let same = previous.filter(|p| {
            Arc::ptr_eq(&p.config, &config)
                && Arc::ptr_eq(&p.services, &services)
                && Arc::ptr_eq(&p.networks, &networks)
                && same_reports(&p.inputs, inputs)
        });
        let report = match same {
            Some(p) => p.report.clone(),
            None => {
                let mut report = config.report.clone();
                report.merge(&services.report);
                for shard in &inputs.shards {
                    report.merge(&shard.report);
                }
                unknown_destinations(&config, &services, &mut report);
                report
                    .rejections
                    .extend(networks.rejections.iter().cloned());
                Arc::new(report)
            }
        };
        Snapshot {
            inputs: inputs.clone(),
            settings,
            config,
            services,
            external,
            places,
            networks,
            report,
        }
    }

    /// Parsed mesh settings.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// Compiled config.
    pub fn config(&self) -> &ConfigIndex {
        &self.config
    }

    /// Services.
    pub fn services(&self) -> &ServiceIndex {
        &self.services
    }

    /// Networks.
    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    /// What it was built from.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// Config that could not be used, and duplicates in it: independent of any proxy.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Endpoint sets of a service: of every registry that has it, and of ServiceEntries of the same host and namespace.
    pub fn endpoints(&self, key: &ServiceKey) -> impl Iterator<Item = &Arc<ServiceEndpoints>> {
        let shards = self.inputs.shards.iter();
        shards
            .filter_map(|shard| shard.endpoints.get(key))
            .chain(self.external.get(key))
    }

    /// The workload of an address, in the first registry that knows one.
    pub fn workload(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        let mut shards = self.inputs.shards.iter();
        shards.find_map(|shard| shard.workloads.get(&ip))
    }

    /// The registries that a proxy may belong to: the one it names, if there is one of that name (addresses of several
    /// clusters may overlap), else all.
    pub fn shards_of<'a>(&'a self, proxy: &'a Proxy) -> impl Iterator<Item = &'a Shard> {
        let shards = &self.inputs.shards;
        let named = shards.iter().any(|s| s.cluster == proxy.cluster_id);
        shards
            .iter()
            .filter(move |s| !named || s.cluster == proxy.cluster_id)
    }

    /// The registry that knows a proxy's workload, and the workload, by the first of its addresses that is known.
    fn found_in<'a>(&'a self, proxy: &'a Proxy) -> Option<(&'a Shard, &'a Arc<Workload>)> {
        self.shards_of(proxy).find_map(|shard| {
            let workload = proxy.ips.iter().find_map(|ip| shard.workloads.get(ip))?;
            Some((shard, workload))
        })
    }

    /// A registry by its name.
    pub fn shard(&self, cluster: &str) -> Option<&Shard> {
        self.inputs.shards.iter().find(|s| &*s.cluster == cluster)
    }

    /// The workload of a proxy.
    pub fn workload_of<'a>(&'a self, proxy: &'a Proxy) -> Option<&'a Arc<Workload>> {
        self.found_in(proxy).map(|(_, workload)| workload)
    }

    /// The cluster a proxy is in, if that is one of Kubernetes but not the first of them; else empty.
    fn other_cluster_of(&self, proxy: &Proxy) -> Arc<str> {
        let mut clusters = self.inputs.shards.iter();
        let first = clusters.find(|s| s.registry == Registry::Kubernetes);
        if clusters.all(|s| s.registry != Registry::Kubernetes) {
            return Arc::default();
        }
        let cluster = self.cluster_of(proxy);
        let of_kubernetes = self
            .shard(&cluster)
            .is_some_and(|s| s.registry == Registry::Kubernetes);
        match first {
            Some(first) if of_kubernetes && first.cluster != cluster => cluster,
            _ => Arc::default(),
        }
    }

    /// The cluster a proxy is in: what it told itself, else the one that knows its workload; empty if none does.
    pub fn cluster_of(&self, proxy: &Proxy) -> Arc<str> {
        if self.shard(&proxy.cluster_id).is_some() {
            return proxy.cluster_id.clone();
        }
        let found = self.found_in(proxy);
        found.map_or_else(|| proxy.cluster_id.clone(), |(s, _)| s.cluster.clone())
    }

    /// Where a proxy runs: what the registries know of its addresses, else what it told itself.
    pub fn locality_of(&self, proxy: &Proxy) -> Locality {
        let of_workload = self.workload_of(proxy).map(|w| &w.locality);
        of_workload
            .filter(|l| !l.is_empty())
            .or_else(|| proxy.ips.iter().find_map(|ip| self.places.get(ip)))
            .or(proxy.locality.as_ref())
            .cloned()
            .unwrap_or_default()
    }

    /// Labels of a proxy: what it told itself, else what the registry knows.
    pub fn labels_of(&self, proxy: &Proxy) -> Arc<Labels> {
        proxy
            .labels
            .clone()
            .or_else(|| self.workload_of(proxy).map(|w| w.labels.clone()))
            .unwrap_or_default()
    }
}

/// The localities that ServiceEntries give to addresses.
fn places(endpoints: &EndpointMap) -> AHashMap<IpAddr, Locality> {
    let mut keys: Vec<_> = endpoints.keys().collect();
    keys.sort();
    let mut out = AHashMap::new();
    for endpoint in keys.into_iter().flat_map(|key| &endpoints[key].endpoints) {
        if let EndpointAddress::Ip(ip) = endpoint.address
            && !endpoint.locality.is_empty()
        {
            out.entry(ip).or_insert_with(|| endpoint.locality.clone());
        }
    }
    out
}

/// Notes destinations that cannot work: whoever wrote the route wants to know before the first 503.
fn unknown_destinations(config: &ConfigIndex, services: &ServiceIndex, report: &mut Report) {
    for owner in &config.virtual_services {
        let http = owner.http.iter().flat_map(|r| {
            let mirror = r.mirror.iter().map(|m| &m.destination);
            r.destinations.iter().map(|d| &d.destination).chain(mirror)
        });
        let l4 = owner
            .tcp
            .iter()
            .chain(&owner.tls)
            .flat_map(|r| r.destinations.iter().map(|(d, _)| d));
        for destination in http.chain(l4) {
            let problem = match services.by_host(&destination.host).next() {
                None => format!("no service has the host {}", destination.host),
                Some(_) if destination.subset.is_empty() => continue,
                Some(service) => {
                    let rule = config.rules.find(&owner.meta.namespace, service);
                    if rule.is_some_and(|r| r.subset(&destination.subset).is_some()) {
                        continue;
                    }
                    format!(
                        "no DestinationRule declares subset {} of {}",
                        destination.subset, destination.host
                    )
                }
            };
            let key = format!("{}/{}: {problem}", owner.meta.namespace, owner.meta.name);
            report.event(
                metric::UNKNOWN_DESTINATION,
                key,
                "requests of this route get 503",
            );
        }
    }
}

fn same_services(a: &Inputs, b: &Inputs) -> bool {
    a.shards.len() == b.shards.len()
        && a.shards
            .iter()
            .zip(&b.shards)
            .all(|(a, b)| a.same_services(b))
}

fn same_reports(a: &Inputs, b: &Inputs) -> bool {
    a.shards.len() == b.shards.len()
        && a.shards
            .iter()
            .zip(&b.shards)
            .all(|(a, b)| Arc::ptr_eq(&a.report, &b.report))
}

fn same_list<T>(a: &[Arc<T>], b: &[Arc<T>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
}

/// Endpoints of ServiceEntries; entries of one host and namespace are joined. Equal sets keep their identity.
fn external_endpoints(config: &ConfigIndex, previous: Option<&EndpointMap>) -> EndpointMap {
    let mut joined: AHashMap<ServiceKey, Vec<_>> = AHashMap::new();
    for (key, endpoints) in config.service_entries.iter().flat_map(|e| &e.endpoints) {
        joined
            .entry(key.clone())
            .or_default()
            .extend(endpoints.iter().cloned());
    }
    joined
        .into_iter()
        .map(|(key, list)| {
            let set = ServiceEndpoints::new(list);
            let before = previous
                .and_then(|p| p.get(&key))
                .filter(|before| ***before == set);
            let set = before.cloned().unwrap_or_else(|| Arc::new(set));
            (key, set)
        })
        .collect()
}
