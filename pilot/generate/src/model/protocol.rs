//! The protocol of a service port, from its declaration and its name (Istio 1.4 `pkg/config/kube/conversion.go`).

use serde::{Deserialize, Serialize};

/// What a port speaks, as far as Pilot was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)] // the variants are the protocols of the same names
pub enum Protocol {
    Http,
    Http2,
    Grpc,
    GrpcWeb,
    Https,
    Tls,
    Tcp,
    Mongo,
    Redis,
    Mysql,
    Udp,
    /// Nobody said: the sidecar sniffs it (TCP where sniffing is off).
    Unsupported,
}

/// Ports where the server speaks first, or that are never HTTP: an unnamed one is TCP rather than sniffed.
const WELL_KNOWN_TCP: [u32; 4] = [25, 53, 3306, 27017];

impl Protocol {
    /// The protocol of a Kubernetes service port: UDP by declaration, else by the prefix of its name, else by number.
    pub fn of_kubernetes_port(number: u32, name: &str, transport: &str) -> Protocol {
        if transport.eq_ignore_ascii_case("UDP") {
            return Protocol::Udp;
        }
        let prefix_is_grpc_web = name
            .get(..8)
            .is_some_and(|p| p.eq_ignore_ascii_case("grpc-web"));
        let known = if prefix_is_grpc_web {
            Protocol::GrpcWeb
        } else {
            Protocol::parse(name.split('-').next().unwrap_or_default())
        };
        match known {
            Protocol::Unsupported if WELL_KNOWN_TCP.contains(&number) => Protocol::Tcp,
            known => known,
        }
    }

    /// A protocol by name, as ServiceEntry, Gateway and Sidecar ports spell it; case does not matter.
    pub fn parse(text: &str) -> Protocol {
        match text.to_ascii_lowercase().as_str() {
            "http" => Protocol::Http,
            "http2" => Protocol::Http2,
            "grpc" => Protocol::Grpc,
            "grpc-web" => Protocol::GrpcWeb,
            "https" => Protocol::Https,
            "tls" => Protocol::Tls,
            "tcp" => Protocol::Tcp,
            "mongo" => Protocol::Mongo,
            "redis" => Protocol::Redis,
            "mysql" => Protocol::Mysql,
            "udp" => Protocol::Udp,
            _ => Protocol::Unsupported,
        }
    }

    /// HTTP of any version, in clear text to the sidecar.
    pub fn is_http(self) -> bool {
        matches!(
            self,
            Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb
        )
    }

    /// HTTP/2 on the upstream connection.
    pub fn is_http2(self) -> bool {
        matches!(self, Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb)
    }

    /// Carried as bytes.
    pub fn is_tcp(self) -> bool {
        matches!(
            self,
            Protocol::Tcp
                | Protocol::Https
                | Protocol::Tls
                | Protocol::Mongo
                | Protocol::Redis
                | Protocol::Mysql
        )
    }

    /// Already encrypted by the application: only SNI is visible.
    pub fn is_tls(self) -> bool {
        matches!(self, Protocol::Https | Protocol::Tls)
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Protocol::Http => "HTTP",
            Protocol::Http2 => "HTTP2",
            Protocol::Grpc => "GRPC",
            Protocol::GrpcWeb => "GRPC-Web",
            Protocol::Https => "HTTPS",
            Protocol::Tls => "TLS",
            Protocol::Tcp => "TCP",
            Protocol::Mongo => "Mongo",
            Protocol::Redis => "Redis",
            Protocol::Mysql => "MySQL",
            Protocol::Udp => "UDP",
            Protocol::Unsupported => "UnsupportedProtocol",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_decide_before_numbers() {
        let of = Protocol::of_kubernetes_port;
        assert_eq!(of(80, "http-web", "TCP"), Protocol::Http);
        assert_eq!(of(80, "HTTP", "TCP"), Protocol::Http);
        assert_eq!(of(80, "GRPC-Web-x", "TCP"), Protocol::GrpcWeb);
        assert_eq!(of(80, "grpc-api", "TCP"), Protocol::Grpc);
        assert_eq!(of(53, "http-dns", "UDP"), Protocol::Udp);
        assert_eq!(of(3306, "", "TCP"), Protocol::Tcp);
        assert_eq!(of(3306, "mysql", "TCP"), Protocol::Mysql);
        assert_eq!(of(8080, "web", "TCP"), Protocol::Unsupported);
        assert_eq!(of(8080, "httpx", "TCP"), Protocol::Unsupported);
    }
}
