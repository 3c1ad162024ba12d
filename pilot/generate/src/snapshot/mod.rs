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
    services::{ServiceIndex, ServiceSet},
    settings::{AccessLogSettings, Settings},
    sidecars::SidecarIndex,
    touches::Affected,
    view::{Egress, View, ViewKey},
};
use crate::{
    Options,
    model::{
        EndpointAddress, EndpointMap, Labels, Locality, Proxy, Service, ServiceEndpoints,
        ServiceKey, Workload, WorkloadMap,
    },
    report::{Report, metric},
};

/// What a snapshot is made of. Every part is shared: to change one, clone the map behind it (a pointer per entry),
/// change the clone, and put a new `Arc` here.
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
    /// Services of all registries but ServiceEntries, which are config.
    pub services: Arc<AHashMap<ServiceKey, Arc<Service>>>,
    /// Endpoints of these services.
    pub endpoints: Arc<EndpointMap>,
    /// Workloads by address.
    pub workloads: Arc<WorkloadMap>,
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
        let services =
            match same_entries.filter(|p| Arc::ptr_eq(&p.inputs.services, &inputs.services)) {
                Some(p) => p.services.clone(),
                None => {
                    let external = config
                        .service_entries
                        .iter()
                        .flat_map(|e| e.services.iter().cloned());
                    Arc::new(ServiceIndex::new(
                        inputs.services.values().cloned().chain(external),
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
        });
        let report = match same {
            Some(p) => p.report.clone(),
            None => {
                let mut report = config.report.clone();
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

    /// Endpoint sets of a service: of its registry, and of ServiceEntries of the same host and namespace.
    pub fn endpoints(&self, key: &ServiceKey) -> impl Iterator<Item = &Arc<ServiceEndpoints>> {
        self.inputs
            .endpoints
            .get(key)
            .into_iter()
            .chain(self.external.get(key))
    }

    /// The workload of an address.
    pub fn workload(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.inputs.workloads.get(&ip)
    }

    /// The workload of a proxy, by the first of its addresses that is known.
    pub fn workload_of(&self, proxy: &Proxy) -> Option<&Arc<Workload>> {
        proxy.ips.iter().find_map(|ip| self.workload(*ip))
    }

    /// Where a proxy runs: what the registries know of its addresses, else what it told itself.
    pub fn locality_of(&self, proxy: &Proxy) -> Locality {
        let known = proxy.ips.iter().find_map(|ip| {
            let of_workload = self.workload(*ip).map(|w| &w.locality);
            of_workload
                .filter(|l| !l.is_empty())
                .or_else(|| self.places.get(ip))
        });
        known
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
