//! Networks of a mesh whose endpoints cannot all be reached directly (split horizon).
//!
//! Written by [`Snapshot::build`](super::Snapshot::build) from MeshNetworks and the services that gateways are named by; read
//! when load assignments are made: an endpoint of another network than the client's is replaced by the gateways of its
//! network. Cost: O(networks) per snapshot, O(address ranges) per endpoint whose cluster names no network.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use mesh_config::mesh::{
    MeshNetworks,
    network::{IstioNetworkGateway, istio_network_gateway::Gw, network_endpoints::Ne},
};

use super::ServiceIndex;
use crate::{
    model::{Endpoint, EndpointAddress},
    report::{Rejection, Rejector},
};

/// Beyond this the common multiple of gateway counts is the least one instead of their product: weights stay small.
const MAX_PRODUCT: u64 = 1 << 20;

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Networks {
    known: bool,
    by_cluster: BTreeMap<String, Arc<str>>,
    /// The longest prefix first.
    by_range: Vec<(IpNet, Arc<str>)>,
    gateways: BTreeMap<Arc<str>, Vec<(IpAddr, u32)>>,
    pub(super) rejections: Vec<Rejection>,
}

impl Networks {
    pub(super) fn new(spec: &MeshNetworks, services: &ServiceIndex) -> Networks {
        let mut out = Networks {
            known: !spec.networks.is_empty(),
            ..Networks::default()
        };
        for (name, network) in &spec.networks {
            let mut rejector = Rejector {
                kind: "MeshNetworks",
                namespace: Arc::default(),
                name: name.as_str().into(),
                out: &mut out.rejections,
            };
            let name: Arc<str> = name.as_str().into();
            for (i, endpoints) in network.endpoints.iter().enumerate() {
                match &endpoints.ne {
                    Some(Ne::FromRegistry(cluster)) => {
                        out.by_cluster.insert(cluster.clone(), name.clone());
                    }
                    Some(Ne::FromCidr(text)) => match text.parse::<IpNet>() {
                        Ok(range) => out.by_range.push((range.trunc(), name.clone())),
                        Err(_) => rejector.reject(
                            format!("endpoints[{i}].fromCidr"),
                            format!("{text:?} is no range; accepted: a CIDR such as 10.0.0.0/8"),
                            "the range is left out",
                        ),
                    },
                    None => {}
                }
            }
            let mut addresses: Vec<(IpAddr, u32)> = Vec::new();
            for (i, gateway) in network.gateways.iter().enumerate() {
                for address in gateway_addresses(gateway, i, services, &mut rejector) {
                    if !addresses.contains(&address) {
                        addresses.push(address);
                    }
                }
            }
            out.gateways.insert(name, addresses);
        }
        out.by_range
            .sort_by(|(a, x), (b, y)| (b.prefix_len(), a, x).cmp(&(a.prefix_len(), b, y)));
        out
    }

    /// Whether endpoints of other networks are reached through gateways.
    pub fn is_split(&self) -> bool {
        self.known
    }

    /// The network of an endpoint: as written in its config, else that of its cluster, else that of its address; empty if
    /// nobody says.
    pub fn of<'a>(&'a self, endpoint: &'a Endpoint) -> &'a str {
        if !endpoint.network.is_empty() || endpoint.cluster.is_empty() {
            return &endpoint.network;
        }
        if let Some(network) = self.by_cluster.get(&*endpoint.cluster) {
            return network;
        }
        let EndpointAddress::Ip(ip) = &endpoint.address else {
            return "";
        };
        self.by_range
            .iter()
            .find(|(range, _)| range.contains(ip))
            .map_or("", |(_, network)| network)
    }

    /// The addresses of a network's gateways; none: its endpoints cannot be reached from elsewhere.
    pub fn gateways(&self, network: &str) -> &[(IpAddr, u32)] {
        self.gateways.get(network).map_or(&[], Vec::as_slice)
    }

    /// What endpoints weigh, so that the weight of a remote endpoint can be shared evenly by the gateways of any network.
    pub fn multiple(&self) -> u64 {
        let counts = || {
            self.gateways
                .values()
                .map(|g| g.len() as u64)
                .filter(|n| *n > 1)
        };
        let product = counts().try_fold(1u64, |all, n| {
            all.checked_mul(n).filter(|all| *all <= MAX_PRODUCT)
        });
        product.unwrap_or_else(|| {
            counts()
                .fold(1, |all, n| (all / gcd(all, n)).saturating_mul(n))
                .min(MAX_PRODUCT)
        })
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn gateway_addresses(
    gateway: &IstioNetworkGateway,
    index: usize,
    services: &ServiceIndex,
    rejector: &mut Rejector<'_>,
) -> Vec<(IpAddr, u32)> {
    let path = format!("gateways[{index}]");
    const LEFT_OUT: &str = "the gateway is left out";
    if !(1..=65535).contains(&gateway.port) {
        let reason = format!("{} is no port; accepted: 1 to 65535", gateway.port);
        rejector.reject(format!("{path}.port"), reason, LEFT_OUT);
        return Vec::new();
    }
    let texts: Vec<Arc<str>> = match &gateway.gw {
        Some(Gw::Address(address)) => vec![address.as_str().into()],
        Some(Gw::RegistryServiceName(name)) => {
            let name = name.to_ascii_lowercase();
            let of_service = services.by_host(&name).flat_map(|s| &s.external_addresses);
            let all: Vec<Arc<str>> = of_service.cloned().collect();
            if all.is_empty() {
                let reason = format!(
                    "no service {name:?} has an external address (yet); accepted: the full name of a LoadBalancer service"
                );
                rejector.reject(format!("{path}.registryServiceName"), reason, LEFT_OUT);
            }
            all
        }
        None => {
            let reason = "neither address nor registryServiceName is given; accepted: one of them";
            rejector.reject(path, reason, LEFT_OUT);
            return Vec::new();
        }
    };
    let mut out = Vec::with_capacity(texts.len());
    for text in texts {
        match text.parse() {
            Ok(ip) => out.push((ip, gateway.port)),
            Err(_) => {
                let reason = format!(
                    "{text:?} is not resolved (yet); accepted: an IP address, or a name that DNS knows"
                );
                rejector.reject(format!("{path}.address"), reason, LEFT_OUT);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn networks(text: &str) -> Networks {
        let spec = mesh_config::mesh::networks_from_yaml(text, "meshNetworks").unwrap();
        Networks::new(&spec, &ServiceIndex::default())
    }

    fn endpoint(ip: &str, cluster: &str, network: &str) -> Endpoint {
        Endpoint {
            cluster: cluster.into(),
            network: network.into(),
            ..Endpoint::at(EndpointAddress::Ip(ip.parse().unwrap()), 80, "http")
        }
    }

    #[test]
    fn config_then_cluster_then_the_longest_range_names_the_network() {
        let networks = networks(
            "networks:\n  one: {endpoints: [{fromRegistry: east}, {fromCidr: 10.0.0.0/8}]}\n  two: {endpoints: [{fromCidr: 10.1.0.0/16}]}\n",
        );
        let of = |ip, cluster, network| networks.of(&endpoint(ip, cluster, network)).to_owned();
        assert_eq!(of("10.1.0.1", "east", "mine"), "mine");
        assert_eq!(of("10.1.0.1", "east", ""), "one");
        assert_eq!(of("10.1.0.1", "west", ""), "two");
        assert_eq!(of("10.2.0.1", "west", ""), "one");
        assert_eq!(of("192.0.2.1", "west", ""), "");
        // Config that names no network means the unnamed one.
        assert_eq!(of("10.1.0.1", "", ""), "");
    }

    #[test]
    fn the_multiple_is_divisible_by_every_count() {
        let gateways = |n: usize, from: usize| -> String {
            let list: Vec<String> = (0..n)
                .map(|i| format!("{{address: 192.0.{from}.{i}, port: 443}}"))
                .collect();
            format!("  n{from}: {{gateways: [{}]}}\n", list.join(", "))
        };
        let text = format!(
            "networks:\n{}{}{}",
            gateways(1, 1),
            gateways(2, 2),
            gateways(3, 3)
        );
        assert_eq!(networks(&text).multiple(), 6);
        let many: String = (1..30).map(|i| gateways(2 + i % 3, i)).collect();
        assert_eq!(networks(&format!("networks:\n{many}")).multiple(), 12);
    }

    #[test]
    fn what_is_no_gateway_is_said() {
        let networks = networks(
            "networks:\n  one: {gateways: [{address: gw.example.com, port: 443}, {registryServiceName: gw.infra.svc.cluster.local, port: 443}]}\n",
        );
        assert!(networks.gateways("one").is_empty() && networks.is_split());
        assert_eq!(networks.rejections.len(), 2, "{:?}", networks.rejections);
    }
}
