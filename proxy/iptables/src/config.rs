//! What the flags mean, parsed: after this module no text is left to interpret.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;

use crate::args::Args;

/// Which inbound ports are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// `-b ''`
    None,
    /// `-b '*'`, but for port 22 and these.
    AllBut(Vec<u16>),
    /// `-b LIST`
    Only(Vec<u16>),
}

/// Which outbound destinations are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// `-i '*'`
    All,
    /// `-i LIST`; an empty list captures nothing.
    Only(Vec<IpNet>),
}

/// How inbound traffic is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Destination rewritten to Envoy; the app sees Envoy's address as the caller.
    Redirect,
    /// Delivered to Envoy's transparent socket; the caller's address stays.
    Tproxy,
}

/// The parsed configuration of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Envoy's outbound port.
    pub envoy_port: u16,
    /// Envoy's inbound port with `-b '*'`.
    pub inbound_capture_port: u16,
    /// UIDs left alone.
    pub uids: Vec<u32>,
    /// GIDs left alone.
    pub gids: Vec<u32>,
    /// REDIRECT or TPROXY.
    pub mode: Mode,
    /// Captured inbound ports.
    pub inbound: Inbound,
    /// Captured destinations.
    pub outbound: Outbound,
    /// Destinations left alone.
    pub exclude: Vec<IpNet>,
    /// Destination ports left alone.
    pub exclude_ports: Vec<u16>,
    /// Interfaces of virtual machines.
    pub kubevirt: Vec<String>,
    /// Loop an app's calls to itself through inbound.
    pub redirect_loopback: bool,
    /// TPROXY's mark.
    pub mark: u32,
    /// TPROXY's routing table.
    pub table: u32,
    /// Whether the pod has an IPv6 address, so that IPv6 is captured; otherwise it is closed.
    pub ipv6: bool,
    /// The port the validation dials.
    pub probe_port: u16,
}

/// A flag that does not parse.
#[derive(Debug, thiserror::Error)]
#[error("{flag} {given:?}: {what:?} is not {accepted}; nothing was changed")]
pub struct ConfigError {
    /// The flag and its environment variable.
    pub flag: &'static str,
    /// Its whole value.
    pub given: String,
    /// The part that is wrong.
    pub what: String,
    /// What would be accepted.
    pub accepted: &'static str,
}

const PORTS: &str = "a port; give '*', nothing, or ports 1 to 65535 separated by commas";
const CIDRS: &str =
    "an address or CIDR; give '*' (for -i), nothing, or e.g. 10.0.0.0/8 separated by commas";
const IDS: &str = "a numeric ID; give IDs separated by commas, e.g. 1337";
const INTERFACES: &str = "an interface name; give names of at most 15 characters separated by commas, a trailing + matches any ending";

impl Config {
    /// Parses the flags; `addresses` are those of this network namespace, loopback and link-local ones excluded.
    pub fn from_args(args: &Args, addresses: &[IpAddr]) -> Result<Self, ConfigError> {
        let uids = match &args.proxy_uid {
            Some(text) => list("-u (PROXY_UID)", text, IDS)?,
            None => vec![user_id(&args.envoy_user).unwrap_or(1337), 0],
        };
        let gids = match &args.proxy_gid {
            Some(text) => list("-g (PROXY_GID)", text, IDS)?,
            None => uids.clone(),
        };
        let mode = match args.istio_inbound_interception_mode.as_str() {
            "REDIRECT" => Mode::Redirect,
            "TPROXY" => Mode::Tproxy,
            other => {
                return Err(ConfigError {
                    flag: "-m (ISTIO_INBOUND_INTERCEPTION_MODE)",
                    given: other.to_owned(),
                    what: other.to_owned(),
                    accepted: "REDIRECT or TPROXY",
                });
            }
        };
        let inbound = match args.istio_inbound_ports.trim() {
            "" => Inbound::None,
            "*" => Inbound::AllBut(ports(
                "-d (ISTIO_LOCAL_EXCLUDE_PORTS)",
                &args.istio_local_exclude_ports,
            )?),
            text => Inbound::Only(ports("-b (ISTIO_INBOUND_PORTS)", text)?),
        };
        let outbound = match args.istio_service_cidr.trim() {
            "*" => Outbound::All,
            text => Outbound::Only(cidrs("-i (ISTIO_SERVICE_CIDR)", text)?),
        };
        Ok(Self {
            envoy_port: args.envoy_port,
            inbound_capture_port: args.inbound_capture_port,
            uids,
            gids,
            mode,
            inbound,
            outbound,
            exclude: cidrs(
                "-x (ISTIO_SERVICE_EXCLUDE_CIDR)",
                &args.istio_service_exclude_cidr,
            )?,
            exclude_ports: ports(
                "-o (ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE)",
                &args.istio_local_outbound_ports_exclude,
            )?,
            kubevirt: interfaces(&args.kube_virt_interfaces)?,
            redirect_loopback: !args.disable_redirection_on_local_loopback,
            mark: args.istio_inbound_tproxy_mark,
            table: args.istio_inbound_tproxy_route_table,
            ipv6: addresses.iter().any(IpAddr::is_ipv6),
            probe_port: args.iptables_probe_port,
        })
    }

    /// Where redirected inbound connections go.
    pub fn inbound_port(&self) -> u16 {
        match self.inbound {
            Inbound::AllBut(_) => self.inbound_capture_port,
            Inbound::None | Inbound::Only(_) => self.envoy_port,
        }
    }
}

/// The summary an operator finds at the head of istio-init's log.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "outbound -> {}: {}",
            self.envoy_port,
            match &self.outbound {
                Outbound::All => "all destinations".to_owned(),
                Outbound::Only(nets) if nets.is_empty() => "none".to_owned(),
                Outbound::Only(nets) => join(nets),
            }
        )?;
        writeln!(
            f,
            "outbound left alone: destinations [{}], ports [{}], UIDs [{}], GIDs [{}]",
            join(&self.exclude),
            join(&self.exclude_ports),
            join(&self.uids),
            join(&self.gids)
        )?;
        writeln!(
            f,
            "inbound -> {} ({:?}): {}",
            if self.mode == Mode::Tproxy {
                self.envoy_port
            } else {
                self.inbound_port()
            },
            self.mode,
            match &self.inbound {
                Inbound::None => "none".to_owned(),
                Inbound::AllBut(ports) => format!("all ports but 22, {}", join(ports)),
                Inbound::Only(ports) => format!("ports {}", join(ports)),
            }
        )?;
        write!(
            f,
            "IPv6: {}",
            if self.ipv6 {
                "captured alike"
            } else {
                "closed, this pod has no IPv6 address"
            }
        )
    }
}

fn join<T: fmt::Display>(items: &[T]) -> String {
    items
        .iter()
        .map(T::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

fn list<T: FromStr>(
    flag: &'static str,
    text: &str,
    accepted: &'static str,
) -> Result<Vec<T>, ConfigError> {
    parts(text)
        .map(|part| {
            part.parse().map_err(|_| ConfigError {
                flag,
                given: text.to_owned(),
                what: part.to_owned(),
                accepted,
            })
        })
        .collect()
}

fn ports(flag: &'static str, text: &str) -> Result<Vec<u16>, ConfigError> {
    Ok(list::<std::num::NonZeroU16>(flag, text, PORTS)?
        .into_iter()
        .map(std::num::NonZeroU16::get)
        .collect())
}

fn cidrs(flag: &'static str, text: &str) -> Result<Vec<IpNet>, ConfigError> {
    parts(text)
        .map(|part| {
            part.parse::<IpNet>()
                .or_else(|_| part.parse::<IpAddr>().map(IpNet::from))
                .map(|net| net.trunc())
                .map_err(|_| ConfigError {
                    flag,
                    given: text.to_owned(),
                    what: part.to_owned(),
                    accepted: CIDRS,
                })
        })
        .collect()
}

/// Interface names go into a transaction's text, so nothing but a name may pass.
fn interfaces(text: &str) -> Result<Vec<String>, ConfigError> {
    parts(text)
        .map(|part| {
            let name = part.strip_suffix('+').unwrap_or(part);
            let fits = (1..=15).contains(&part.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-@".contains(&b));
            if fits {
                return Ok(part.to_owned());
            }
            Err(ConfigError {
                flag: "-k",
                given: text.to_owned(),
                what: part.to_owned(),
                accepted: INTERFACES,
            })
        })
        .collect()
}

fn user_id(name: &str) -> Option<u32> {
    let user = nix::unistd::User::from_name(name).ok().flatten()?;
    Some(user.uid.as_raw())
}
