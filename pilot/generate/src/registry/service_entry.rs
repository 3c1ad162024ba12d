//! ServiceEntries to services and endpoints (Istio 1.4 `pilot/pkg/serviceregistry/external/conversion.go`).
//!
//! One service per host and address. Endpoints of all addresses of a host are the same, so they are filed once, under
//! host and namespace.

use std::{net::IpAddr, sync::Arc};

use ahash::AHashMap;
use mesh_config::{Meta, Object};
use proto_networking::networking::{
    ServiceEntry,
    service_entry::{Endpoint as EndpointSpec, Location, Resolution as ResolutionSpec},
};

use crate::{
    compile::Context,
    model::{
        Address, Endpoint, EndpointAddress, Locality, Protocol, Registry, Resolution, Service,
        ServiceKey, ServicePort, TargetPort, Visibility, host,
    },
    report::{Rejection, Rejector},
};

/// What a ServiceEntry amounts to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Converted {
    pub(crate) meta: Arc<Meta>,
    pub(crate) spec: Arc<ServiceEntry>,
    pub(crate) services: Vec<Arc<Service>>,
    pub(crate) endpoints: Vec<(ServiceKey, Vec<Endpoint>)>,
    pub(crate) rejections: Vec<Rejection>,
}

pub(crate) fn convert(object: &Object<ServiceEntry>, context: &Context) -> Converted {
    let (meta, spec) = (&object.meta, &object.spec);
    let mut rejections = Vec::new();
    let mut rejector = Rejector {
        kind: "ServiceEntry",
        namespace: meta.namespace.as_str().into(),
        name: meta.name.as_str().into(),
        out: &mut rejections,
    };
    let (mut services, mut endpoints) = (Vec::new(), Vec::new());
    let ports = ports(spec, &mut rejector);
    let resolution = match ResolutionSpec::try_from(spec.resolution) {
        Ok(ResolutionSpec::Static) => Resolution::ClientSideLb,
        Ok(ResolutionSpec::Dns) => Resolution::Dns,
        Ok(ResolutionSpec::None) | Err(_) => Resolution::Passthrough,
    };
    let addresses = addresses(spec, &mut rejector);
    let mut hosts: Vec<Arc<str>> = Vec::new();
    for (i, text) in spec.hosts.iter().enumerate() {
        let name: Arc<str> = text
            .trim()
            .trim_end_matches('.')
            .to_ascii_lowercase()
            .into();
        if !host::is_valid(&name) || &*name == "*" {
            let reason = format!(
                "{text:?} is no host; accepted: a DNS name, or a wildcard such as *.example.com"
            );
            rejector.reject(format!("hosts[{i}]"), reason, "the host is left out");
        } else if resolution == Resolution::Dns
            && spec.endpoints.is_empty()
            && host::is_wildcard(&name)
        {
            let reason =
                format!("{text:?} cannot be resolved; accepted: a full name, or endpoints");
            rejector.reject(format!("hosts[{i}]"), reason, "the host is left out");
        } else if !hosts.contains(&name) {
            hosts.push(name);
        }
    }
    if ports.is_empty() {
        hosts.clear(); // written down by `ports`
    }
    for name in hosts {
        let key = ServiceKey {
            hostname: name.clone(),
            namespace: meta.namespace.as_str().into(),
        };
        services.extend(addresses.iter().map(|address| {
            Arc::new(Service {
                hostname: name.clone(),
                name: meta.name.as_str().into(),
                namespace: meta.namespace.as_str().into(),
                registry: Registry::ServiceEntry,
                creation: meta.creation_timestamp,
                address: *address,
                ports: ports.clone(),
                resolution,
                mesh_external: Location::try_from(spec.location) != Ok(Location::MeshInternal),
                visibility: Visibility::of(&spec.export_to, &context.service_export_to),
                selector: Default::default(),
                headless: false,
                external_name: None,
                external_addresses: Vec::new(),
                service_accounts: Vec::new(),
            })
        }));
        endpoints.push((
            key,
            self::endpoints(spec, resolution, &name, &ports, &mut rejector),
        ));
        // Endpoints are the same for every host: say only once what is wrong with them.
        rejector.out.dedup();
    }
    let mut seen = ahash::AHashSet::new();
    rejections.retain(|r| seen.insert(r.clone()));
    Converted {
        meta: meta.clone(),
        spec: spec.clone(),
        services,
        endpoints,
        rejections,
    }
}

fn ports(spec: &ServiceEntry, rejector: &mut Rejector<'_>) -> Vec<ServicePort> {
    let mut out: Vec<ServicePort> = Vec::with_capacity(spec.ports.len());
    for (i, port) in spec.ports.iter().enumerate() {
        if !(1..=65535).contains(&port.number) {
            let reason = format!("{} is no port; accepted: 1 to 65535", port.number);
            rejector.reject(format!("ports[{i}].number"), reason, "the port is left out");
        } else if out
            .iter()
            .any(|p| p.number == port.number || p.name.as_ref() == port.name)
        {
            rejector.reject(
                format!("ports[{i}]"),
                "its number or name is taken by an earlier port",
                "the port is left out",
            );
        } else {
            out.push(ServicePort {
                name: port.name.as_str().into(),
                number: port.number,
                protocol: Protocol::parse(&port.protocol),
                target: TargetPort::Number(port.number),
            });
        }
    }
    if out.is_empty() {
        rejector.reject(
            "ports",
            "at least one usable port is required",
            "the entry is left out",
        );
    }
    out
}

fn addresses(spec: &ServiceEntry, rejector: &mut Rejector<'_>) -> Vec<Address> {
    let mut out = Vec::with_capacity(spec.addresses.len());
    for (i, text) in spec.addresses.iter().enumerate() {
        match Address::parse(text) {
            Some(address) if !out.contains(&address) => out.push(address),
            Some(_) => {}
            None => {
                let reason = format!(
                    "{text:?} is no address; accepted: an IP, or a CIDR such as 10.0.0.0/8"
                );
                rejector.reject(format!("addresses[{i}]"), reason, "the address is left out");
            }
        }
    }
    if spec.addresses.is_empty() {
        out.push(Address::Unspecified);
    }
    out
}

fn endpoints(
    spec: &ServiceEntry,
    resolution: Resolution,
    hostname: &Arc<str>,
    ports: &[ServicePort],
    rejector: &mut Rejector<'_>,
) -> Vec<Endpoint> {
    if resolution == Resolution::Passthrough {
        return Vec::new();
    }
    if resolution == Resolution::Dns && spec.endpoints.is_empty() {
        let address = EndpointAddress::Host(hostname.clone());
        return ports
            .iter()
            .map(|p| Endpoint::at(address.clone(), p.number, p.name.clone()))
            .collect();
    }
    let mut labels: AHashMap<usize, Arc<crate::model::Labels>> = AHashMap::new();
    let mut out = Vec::with_capacity(spec.endpoints.len() * ports.len());
    for (i, endpoint) in spec.endpoints.iter().enumerate() {
        let Some(address) = address(endpoint, resolution, i, rejector) else {
            continue;
        };
        for port in ports {
            let number = match &address {
                EndpointAddress::Pipe(_) => 0,
                _ => endpoint
                    .ports
                    .get(&*port.name)
                    .copied()
                    .unwrap_or(port.number),
            };
            if number > 65535 {
                let reason = format!("{number} is no port; accepted: 1 to 65535");
                rejector.reject(
                    format!("endpoints[{i}].ports[{}]", port.name),
                    reason,
                    "the endpoint is left out",
                );
                continue;
            }
            out.push(Endpoint {
                labels: labels
                    .entry(i)
                    .or_insert_with(|| Arc::new(endpoint.labels.clone()))
                    .clone(),
                // Envoy refuses a weight of 0 and adds weights in 32 bits.
                weight: endpoint.weight.clamp(1, 1_000_000),
                locality: Locality::parse(&endpoint.locality),
                network: endpoint.network.as_str().into(),
                ..Endpoint::at(address.clone(), number, port.name.clone())
            });
        }
    }
    out
}

fn address(
    endpoint: &EndpointSpec,
    resolution: Resolution,
    index: usize,
    rejector: &mut Rejector<'_>,
) -> Option<EndpointAddress> {
    let text = endpoint.address.as_str();
    if let Some(path) = text.strip_prefix("unix://") {
        // Envoy takes socket paths of up to 107 bytes.
        let usable = path.starts_with(['/', '@']) && path.len() < 108;
        if usable && resolution == Resolution::ClientSideLb {
            return Some(EndpointAddress::Pipe(path.into()));
        }
    } else if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(EndpointAddress::Ip(ip));
    } else if resolution == Resolution::Dns
        && host::is_valid(&text.to_ascii_lowercase())
        && !host::is_wildcard(text)
    {
        return Some(EndpointAddress::Host(text.to_ascii_lowercase().into()));
    }
    let accepted = if resolution == Resolution::Dns {
        "an IP, or a full name"
    } else {
        "an IP, or unix:///PATH"
    };
    let reason = format!("{text:?} is no endpoint address; accepted: {accepted}");
    rejector.reject(
        format!("endpoints[{index}].address"),
        reason,
        "the endpoint is left out",
    );
    None
}
