//! Addresses of services: EndpointSlices, or Endpoints objects where an API server has no slices.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::{core::v1::Endpoints, discovery::v1::EndpointSlice};
use pilot_generate::{
    Report,
    model::ServiceEndpoints,
    registry::kubernetes::{self as convert, PodName},
    report::metric,
};

use super::{Index, Name};
use crate::source::Event;

/// A service's label on its slices.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Which addresses of which service: one slice, or an Endpoints object.
pub(super) enum Addresses {
    Slice(Box<EndpointSlice>),
    Endpoints(Box<Endpoints>),
}

impl Addresses {
    fn texts(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Self::Slice(slice) => Box::new(
                slice
                    .endpoints
                    .iter()
                    .flat_map(|e| &e.addresses)
                    .map(String::as_str),
            ),
            Self::Endpoints(object) => Box::new(
                object
                    .subsets
                    .iter()
                    .flatten()
                    .flat_map(|subset| subset.addresses.iter().flatten())
                    .map(|address| address.ip.as_str()),
            ),
        }
    }

    fn ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.texts().filter_map(|ip| ip.parse().ok())
    }
}

impl Index {
    /// Whether it is new. A slice that went over to another service leaves the old one.
    pub(super) fn set_slice(&mut self, (name, namespace): Name, slice: Box<EndpointSlice>) -> bool {
        let labels = slice.metadata.labels.as_ref();
        let service = labels.and_then(|labels| labels.get(SERVICE_NAME)).cloned();
        let Some(service) = service else {
            self.delete_addresses(&(name, namespace));
            return false;
        };
        let service = (service, namespace);
        let elsewhere = self.services_with(&(name.clone(), service.1.clone()));
        for other in elsewhere.into_iter().filter(|other| *other != service) {
            self.set_addresses(other, name.clone(), None);
        }
        self.set_addresses(service, name, Some(Addresses::Slice(slice)))
    }

    /// Forgets a slice or an Endpoints object.
    pub(super) fn delete_addresses(&mut self, name: &Name) {
        for service in self.services_with(name) {
            self.set_addresses(service, name.0.clone(), None);
        }
    }

    /// Services of which a slice (or Endpoints object) of this name has addresses. Its labels may have changed since, so
    /// what is known decides.
    fn services_with(&self, (name, namespace): &Name) -> Vec<Name> {
        let all = self.addresses.iter();
        all.filter(|((_, ns), by_name)| ns == namespace && by_name.contains_key(name))
            .map(|(service, _)| service.clone())
            .collect()
    }

    pub(super) fn known_addresses(&self) -> Vec<Name> {
        let all = self.addresses.iter();
        all.flat_map(|((_, namespace), by_name)| {
            by_name.keys().map(|name| (name.clone(), namespace.clone()))
        })
        .collect()
    }

    /// Sets or removes what one object tells of a service; whether it is new.
    pub(super) fn set_addresses(
        &mut self,
        service: Name,
        name: String,
        addresses: Option<Addresses>,
    ) -> bool {
        let by_name = self.addresses.entry(service.clone()).or_default();
        let is_set = addresses.is_some();
        let former = match addresses {
            Some(addresses) => {
                for ip in addresses.ips() {
                    let listed_in = self.listed_in.entry(ip).or_default();
                    listed_in.insert(service.clone());
                }
                by_name.insert(name, addresses)
            }
            None => by_name.remove(&name),
        };
        // Addresses that no slice of the service lists any more.
        for ip in former.iter().flat_map(Addresses::ips) {
            let still = by_name
                .values()
                .flat_map(Addresses::ips)
                .any(|other| other == ip);
            if !still && let Some(services) = self.listed_in.get_mut(&ip) {
                services.remove(&service);
                if services.is_empty() {
                    self.listed_in.remove(&ip);
                }
            }
        }
        if by_name.is_empty() {
            self.addresses.remove(&service);
        }
        self.dirty.insert(service);
        is_set && former.is_none()
    }

    /// Makes the endpoints of a service from its addresses and the pods behind them.
    pub(super) fn make_endpoints(&mut self, service: &Name) {
        let lookup = |ip: IpAddr, pod: Option<PodName<'_>>| {
            let named = pod.and_then(|(name, namespace)| {
                self.pods.get(&(name.to_owned(), namespace.to_owned()))
            });
            match named {
                // By its name, for pods that share the address of their node are not known by it.
                Some(pod) if pod.ips.contains(&ip) => pod.workload.clone(),
                _ => self.shard.workloads.get(&ip).cloned(),
            }
        };
        let computed = self.addresses.get(service).map(|by_name| {
            let object = by_name.values().find_map(|addresses| match addresses {
                Addresses::Endpoints(object) => Some(object),
                Addresses::Slice(_) => None,
            });
            let slices = by_name.values().filter_map(|addresses| match addresses {
                Addresses::Slice(slice) => Some(&**slice),
                Addresses::Endpoints(_) => None,
            });
            match object {
                Some(object) => convert::endpoints(object, &lookup, &self.context),
                None => convert::endpoint_slices(slices, &lookup, &self.context),
            }
        });
        let (endpoints, without_pod) = computed.unzip();
        self.set_without_pod(service, without_pod.unwrap_or_default());
        let key = self.context.key(&service.0, &service.1);
        let known = self.shard.endpoints.get(&key);
        // Nothing listed and nothing known is the same.
        let nothing = ServiceEndpoints::default();
        let unchanged = match (&endpoints, known) {
            (Some(endpoints), known) => *endpoints == **known.unwrap_or(&Arc::new(nothing)),
            (None, known) => known.is_none(),
        };
        if unchanged {
            return;
        }
        let map = Arc::make_mut(&mut self.shard.endpoints);
        match endpoints {
            Some(endpoints) => map.insert(key, Arc::new(endpoints)),
            None => map.remove(&key),
        };
        self.note(Event::Endpoints);
    }

    fn set_without_pod(&mut self, service: &Name, without_pod: Vec<IpAddr>) {
        let known = self.without_pod.get(service).map_or(&[][..], Vec::as_slice);
        if known == without_pod {
            return;
        }
        let new = without_pod.iter().filter(|ip| !known.contains(ip)).count();
        self.metrics.endpoints_without_pod.inc_by(new as u64);
        if without_pod.is_empty() {
            self.without_pod.remove(service);
        } else {
            self.without_pod.insert(service.clone(), without_pod);
        }
        self.without_pod_changed = true;
        self.note(Event::Endpoints);
    }

    pub(super) fn report(&self) -> Report {
        let mut report = Report::default();
        for ((name, namespace), ips) in &self.without_pod {
            let ips: Vec<String> = ips.iter().map(ToString::to_string).collect();
            report.event(
                metric::ENDPOINT_NO_POD,
                &*self.context.hostname(name, namespace),
                format!("left out until their pods are known: {}", ips.join(", ")),
            );
        }
        report
    }
}
