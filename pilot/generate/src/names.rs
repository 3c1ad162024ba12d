//! The names of Envoy resources. They are an interface: statistics, EnvoyFilters, istioctl and dashboards rely on them.

use std::fmt::Write as _;

/// Cluster without endpoints: what is sent there is refused.
pub const BLACK_HOLE: &str = "BlackHoleCluster";
/// Cluster that keeps the client's destination address.
pub const PASSTHROUGH: &str = "PassthroughCluster";
/// As [`PASSTHROUGH`], on the inbound side, IPv4.
pub const INBOUND_PASSTHROUGH_V4: &str = "InboundPassthroughClusterIpv4";
/// As [`PASSTHROUGH`], on the inbound side, IPv6.
pub const INBOUND_PASSTHROUGH_V6: &str = "InboundPassthroughClusterIpv6";
/// The listener that outbound traffic is redirected to.
pub const VIRTUAL_OUTBOUND: &str = "virtualOutbound";
/// The listener that inbound traffic is redirected to.
pub const VIRTUAL_INBOUND: &str = "virtualInbound";
/// The port of [`VIRTUAL_INBOUND`].
pub const VIRTUAL_INBOUND_PORT: u32 = 15006;
/// Route configuration of the HTTP proxy listener.
pub const HTTP_PROXY: &str = "http_proxy";

/// Cluster of the bootstrap through which pilot-agent serves secrets to its Envoy.
pub const SDS_CLUSTER: &str = "sds-grpc";
/// Socket on which a gateway's secrets are served.
pub const GATEWAY_SDS_SOCKET: &str = "unix:/var/run/ingress_gateway/sds";
/// Secret with the workload's own certificate and key.
pub const WORKLOAD_SECRET: &str = "default";
/// Secret with the mesh's root certificates.
pub const ROOT_SECRET: &str = "ROOTCA";

/// `CREDENTIAL-cacert`: secret with the CAs that verify the clients of a server.
pub fn client_ca_secret(credential: &str) -> String {
    format!("{credential}-cacert")
}

/// `http.PORT`: routes of a gateway's plain HTTP servers.
pub fn gateway_http(port: u32) -> String {
    format!("http.{port}")
}

/// `https.PORT.PORTNAME.GATEWAY.NS`: routes of one server that ends TLS.
pub fn gateway_https(port: u32, port_name: &str, gateway: &str, namespace: &str) -> String {
    format!("https.{port}.{port_name}.{gateway}.{namespace}")
}

/// `outbound|PORT|SUBSET|HOST`.
pub fn outbound(port: u32, subset: &str, host: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// `outbound_.PORT_.SUBSET_.HOST`: SNI of mesh mTLS, and clusters of SNI-DNAT routers.
pub fn outbound_sni(port: u32, subset: &str, host: &str) -> String {
    format!("outbound_.{port}_.{subset}_.{host}")
}

/// `inbound|SERVICEPORT|PORTNAME|HOST`.
pub fn inbound(port: u32, port_name: &str, host: &str) -> String {
    format!("inbound|{port}|{port_name}|{host}")
}

/// `inbound|PORT|mgmt-PORT|mgmtCluster`: a probe port.
pub fn management(port: u32) -> String {
    format!("inbound|{port}|mgmt-{port}|mgmtCluster")
}

/// `ADDRESS_PORT`, with `_` for `:`; the address of a Unix socket, `unix://PATH`, stays as it is.
pub fn listener(address: &str, port: u32) -> String {
    if address.contains('/') {
        return format!("{address}_{port}");
    }
    format!("{}_{port}", address.replace(':', "_"))
}

/// An authority with a port; IPv6 addresses get brackets.
pub fn host_port(host: &str, port: u32) -> String {
    let mut out = String::with_capacity(host.len() + 6);
    if host.contains(':') {
        let _ = write!(out, "[{host}]:{port}");
    } else {
        let _ = write!(out, "{host}:{port}");
    }
    out
}

/// The parts of an outbound cluster name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Outbound<'a> {
    pub port: u32,
    pub subset: &'a str,
    pub host: &'a str,
}

/// Takes an outbound cluster name, in either form, apart again.
pub fn parse_outbound(name: &str) -> Option<Outbound<'_>> {
    let (rest, separator) = match name.strip_prefix("outbound|") {
        Some(rest) => (rest, "|"),
        None => (name.strip_prefix("outbound_.")?, "_."),
    };
    let (port, rest) = rest.split_once(separator)?;
    let (subset, host) = rest.split_once(separator)?;
    Some(Outbound {
        port: port.parse().ok()?,
        subset,
        host,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_apart_as_they_were_made() {
        let parts = Outbound {
            port: 80,
            subset: "v1",
            host: "a.b",
        };
        assert_eq!(parse_outbound(&outbound(80, "v1", "a.b")), Some(parts));
        assert_eq!(parse_outbound(&outbound_sni(80, "v1", "a.b")), Some(parts));
        assert_eq!(parse_outbound("inbound|80|http|a.b"), None);
        assert_eq!(listener("fd00::1", 80), "fd00__1_80");
        assert_eq!(host_port("fd00::1", 80), "[fd00::1]:80");
    }
}
