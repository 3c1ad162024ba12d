//! istio-iptables

fn main() {}
