//! The lab's network: one bridge, a veth and a /32 address per pod, everything routed through the gateway.
//!
//! Pods never talk to each other on layer 2: their only route is the gateway in the lab's namespace. So the address
//! translation of service VIPs sees every packet in both directions, and needs no help from the bridge.

pub(crate) mod addresses;
pub(crate) mod dns;
pub(crate) mod node_ports;
pub(crate) mod services;
pub(crate) mod vips;

use std::net::Ipv4Addr;

/// Name of the bridge in the lab's namespace.
pub(crate) const BRIDGE: &str = "mesh0";
/// The node: gateway of all pods.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// Prefix length of the pod network 10.244.0.0/16.
pub(crate) const POD_PREFIX: u8 = 16;
/// Network of the pods.
pub(crate) const POD_CIDR: &str = "10.244.0.0/16";
/// Network of service VIPs.
pub(crate) const SERVICE_CIDR: &str = "10.96.0.0/12";
/// VIP of the service `kubernetes`, served by the daemon itself.
pub(crate) const KUBERNETES_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Address of the cluster DNS, served by the daemon itself.
pub(crate) const DNS_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// DNS zone of the cluster.
pub(crate) const CLUSTER_DOMAIN: &str = "cluster.local";
