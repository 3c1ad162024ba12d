//! Who this proxy is: addresses, ID, domain, and whom it expects Pilot to be.

use std::{net::IpAddr, time::Duration};

use nix::ifaddrs::getifaddrs;

use crate::{
    Environment,
    args::{ProxyArgs, Registry, Role},
};

/// The identity of one proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// sidecar or router.
    pub role: Role,
    /// Its addresses, the one given by flag or INSTANCE_IP first.
    pub addresses: Vec<IpAddr>,
    /// ID within its registry.
    pub id: String,
    /// DNS domain.
    pub domain: String,
    /// POD_NAMESPACE.
    pub namespace: String,
}

/// How long to wait for an address to appear on an interface.
const ADDRESS_WAIT: Duration = Duration::from_secs(120);

impl Identity {
    /// Finds out, waiting for an address if there is none yet.
    pub async fn discover(args: &ProxyArgs, environment: &Environment) -> anyhow::Result<Self> {
        let given = match &args.ip {
            Some(text) if !text.is_empty() => Some(text.parse::<IpAddr>().map_err(|_| {
                anyhow::anyhow!("--ip (INSTANCE_IP) {text:?} is not an IP address")
            })?),
            _ => None,
        };
        let mut own = private_addresses();
        if given.is_none() && own.is_empty() {
            tracing::info!("waiting for an address to appear on an interface");
            let deadline = tokio::time::Instant::now() + ADDRESS_WAIT;
            while own.is_empty() && tokio::time::Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(200)).await;
                own = private_addresses();
            }
        }
        Ok(Self::new(args, environment, given, &own))
    }

    /// The pure part.
    pub fn new(
        args: &ProxyArgs,
        environment: &Environment,
        given: Option<IpAddr>,
        own: &[IpAddr],
    ) -> Self {
        let mut addresses: Vec<IpAddr> = given.into_iter().collect();
        for address in own {
            if !addresses.contains(address) {
                addresses.push(*address);
            }
        }
        if addresses.is_empty() {
            addresses.push(IpAddr::from([127, 0, 0, 1]));
        }
        let first = addresses[0];
        let get = |key: &str| environment.get(key).cloned().unwrap_or_default();
        let (name, namespace) = (get("POD_NAME"), get("POD_NAMESPACE"));
        let or = |given: &Option<String>, formed: String| match given {
            Some(given) if !given.is_empty() => given.clone(),
            _ => formed,
        };
        let (id, domain) = match args.service_registry {
            Registry::Kubernetes => (
                format!("{name}.{namespace}"),
                format!("{namespace}.svc.cluster.local"),
            ),
            Registry::Consul => (format!("{first}.service.consul"), "service.consul".into()),
            Registry::Mock => (first.to_string(), String::new()),
        };
        Self {
            role: args.role,
            id: or(&args.id, id),
            domain: or(&args.domain, domain),
            namespace,
            addresses,
        }
    }

    /// `ROLE~IP~ID~DOMAIN`, by which Pilot knows this proxy.
    pub fn node_id(&self) -> String {
        let address = self.addresses[0];
        format!(
            "{}~{address}~{}~{}",
            self.role.as_str(),
            self.id,
            self.domain
        )
    }

    /// Whether all its addresses are IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.addresses.iter().all(IpAddr::is_ipv6)
    }

    /// The wildcard to bind to.
    pub fn wildcard(&self) -> &'static str {
        if self.is_ipv6() { "::" } else { "0.0.0.0" }
    }

    /// The loopback address.
    pub fn localhost(&self) -> &'static str {
        if self.is_ipv6() { "::1" } else { "127.0.0.1" }
    }
}

/// The SAN that Pilot's certificate must bear.
pub fn pilot_san(args: &ProxyArgs, environment: &Environment) -> String {
    if !args.pilot_identity.is_empty() {
        return args.pilot_identity.clone();
    }
    let trust_domain = match args.trust_domain.as_str() {
        "" => "cluster.local",
        given => given,
    };
    let namespace = control_plane_namespace(args, environment);
    format!("spiffe://{trust_domain}/ns/{namespace}/sa/istio-pilot-service-account")
}

/// Pilot's namespace, read off the discovery address.
fn control_plane_namespace(args: &ProxyArgs, environment: &Environment) -> String {
    let get = |key: &str| {
        environment
            .get(key)
            .filter(|value| !value.is_empty())
            .cloned()
    };
    let host = args
        .discovery_address
        .rsplit_once(':')
        .map_or(args.discovery_address.as_str(), |(host, _)| host);
    let labels: Vec<&str> = host.split('.').collect();
    let from_host = match labels.as_slice() {
        [_] => get("POD_NAMESPACE"),
        [_, namespace] => Some((*namespace).to_owned()),
        _ => get("ISTIO_NAMESPACE"),
    };
    from_host.unwrap_or_else(|| "istio-system".to_owned())
}

fn private_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else {
        return Vec::new();
    };
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        if let Some(v4) = address.as_sockaddr_in() {
            return Some(IpAddr::V4(v4.ip()));
        }
        address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()))
    });
    addresses
        .filter(|address| match address {
            IpAddr::V4(v4) => v4.is_private(),
            IpAddr::V6(v6) => v6.is_unique_local(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(line: &str) -> ProxyArgs {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        match Cli::try_parse_leniently(words).unwrap().0.command {
            Command::Proxy(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn environment() -> Environment {
        [("POD_NAME", "reviews-v1-abc"), ("POD_NAMESPACE", "default")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into()
    }

    #[test]
    fn node_ids() {
        let own: Vec<IpAddr> = vec!["10.0.0.9".parse().unwrap(), "10.244.1.5".parse().unwrap()];
        let given = Some("10.244.1.5".parse().unwrap());
        for (line, id) in [
            (
                "pilot-agent proxy sidecar",
                "sidecar~10.244.1.5~reviews-v1-abc.default~default.svc.cluster.local",
            ),
            (
                "pilot-agent proxy router --id a.b --domain c",
                "router~10.244.1.5~a.b~c",
            ),
            (
                "pilot-agent proxy --serviceregistry Consul",
                "sidecar~10.244.1.5~10.244.1.5.service.consul~service.consul",
            ),
        ] {
            let identity = Identity::new(&args(line), &environment(), given, &own);
            assert_eq!(identity.node_id(), id);
            assert_eq!(identity.addresses.len(), 2);
        }
    }

    #[test]
    fn pilots_san_follows_the_discovery_address() {
        for (address, san) in [
            (
                "istio-pilot:15011",
                "spiffe://cluster.local/ns/default/sa/istio-pilot-service-account",
            ),
            (
                "istio-pilot.mesh:15011",
                "spiffe://cluster.local/ns/mesh/sa/istio-pilot-service-account",
            ),
            (
                "a.b.c:15011",
                "spiffe://cluster.local/ns/istio-system/sa/istio-pilot-service-account",
            ),
        ] {
            let args = args(&format!("pilot-agent proxy --discoveryAddress {address}"));
            assert_eq!(pilot_san(&args, &environment()), san);
        }
    }
}
