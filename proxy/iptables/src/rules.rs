//! Configuration to rules: a pure function.
//!
//! Chains of table `nat`:
//!
//! ```text
//! PREROUTING -> ISTIO_INBOUND -> ISTIO_IN_REDIRECT (inbound port)     what others send to this pod
//! OUTPUT     -> ISTIO_OUTPUT  -> ISTIO_REDIRECT    (outbound port)    what this pod sends
//!                             -> ISTIO_IN_REDIRECT                    what the app sends to itself by its service
//! ```
//!
//! Order inside ISTIO_OUTPUT:
//!
//! 1. excluded ports;
//! 2. from 127.0.0.6 over loopback: Envoy's inbound passthrough, which must not loop;
//! 3. over loopback to anything but 127.0.0.1: the app calling itself by its service address. Envoy picks its own pod,
//!    and the call must then enter by the inbound side. This stands before the UID rule because it is Envoy that dials;
//! 4. Envoy's UIDs and GIDs: what Envoy sends is final, also to the app on 127.0.0.1;
//! 5. to 127.0.0.1: the app talking to itself directly;
//! 6. excluded destinations; then the captured ones.
//!
//! IPv6 mirrors IPv4 with `::6` and `::1`. Upstream forgot the last inbound redirect there; it is present here. With no
//! IPv6 address, IPv6 is closed instead, so that nothing slips past Envoy.
//!
//! Only TCP is captured: DNS and other UDP stay as they are.

use std::{collections::BTreeSet, fmt::Write as _};

use ipnet::IpNet;

use crate::{
    apply::Family,
    config::{Config, Inbound, Mode, Outbound},
};

/// Istio's chains; whatever is in them belongs to us.
pub const CHAINS: [&str; 6] = [
    "ISTIO_INBOUND",
    "ISTIO_DIVERT",
    "ISTIO_TPROXY",
    "ISTIO_OUTPUT",
    "ISTIO_REDIRECT",
    "ISTIO_IN_REDIRECT",
];

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `nat`, `mangle` or `filter`.
    pub table: &'static str,
    /// The chain it goes into.
    pub chain: &'static str,
    /// Inserted at the head instead of appended.
    pub first: bool,
    /// Matches and target as iptables takes them.
    pub spec: String,
}

/// A command that is not iptables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpCommand {
    /// Arguments of `ip`.
    pub args: Vec<String>,
    /// Removes what an earlier run left; its failure means there was nothing.
    pub cleanup: bool,
}

/// Everything one run installs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSet {
    /// IPv4 rules, in order.
    pub v4: Vec<Rule>,
    /// IPv6 rules, in order.
    pub v6: Vec<Rule>,
    /// Addresses and routes.
    pub ip: Vec<IpCommand>,
}

struct Builder<'a> {
    config: &'a Config,
    family: Family,
    rules: Vec<Rule>,
}

impl RuleSet {
    /// The rules for a configuration.
    pub fn new(config: &Config) -> Self {
        let v4 = Builder::new(config, Family::V4).capture();
        let v6 = match config.ipv6 {
            true => Builder::new(config, Family::V6).capture(),
            false => Builder::new(config, Family::V6).close(),
        };
        Self {
            v4,
            v6,
            ip: ip_commands(config),
        }
    }

    /// The rules of a family.
    pub fn of(&self, family: Family) -> &[Rule] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// As commands an operator could type.
    pub fn as_commands(&self) -> String {
        let mut out = String::new();
        for command in &self.ip {
            let _ = writeln!(out, "ip {}", command.args.join(" "));
        }
        for family in [Family::V4, Family::V6] {
            let program = family.program();
            let mut chains = BTreeSet::new();
            for rule in self.of(family) {
                for chain in rule.istio_chains() {
                    if chains.insert((rule.table, chain)) {
                        let _ = writeln!(out, "{program} -t {} -N {chain}", rule.table);
                    }
                }
                let _ = writeln!(out, "{program} -t {} {}", rule.table, rule.line());
            }
        }
        out
    }

    /// As text for `iptables-restore --noflush` and `ip6tables-restore --noflush`, for an untouched pod.
    pub fn as_restore(&self) -> String {
        let mut out = String::new();
        for family in [Family::V4, Family::V6] {
            let text = crate::plan::transaction("", self.of(family));
            if !text.is_empty() {
                let _ = write!(out, "# {}-restore --noflush\n{text}", family.program());
            }
        }
        out
    }
}

impl Rule {
    /// The rule as a line of iptables-restore.
    pub fn line(&self) -> String {
        match (self.spec.as_str(), self.first) {
            ("", _) => format!("-F {}", self.chain),
            (spec, true) => format!("-I {} 1 {spec}", self.chain),
            (spec, false) => format!("-A {} {spec}", self.chain),
        }
    }

    /// Chains of ours that the rule stands in or jumps to.
    pub fn istio_chains(&self) -> impl Iterator<Item = &'static str> {
        CHAINS.into_iter().filter(move |chain| {
            self.chain == *chain
                || self
                    .spec
                    .strip_suffix(chain)
                    .is_some_and(|rest| rest.ends_with("-j "))
        })
    }
}

impl<'a> Builder<'a> {
    fn new(config: &'a Config, family: Family) -> Self {
        Self {
            config,
            family,
            rules: Vec::new(),
        }
    }

    fn add(&mut self, table: &'static str, chain: &'static str, spec: impl Into<String>) {
        self.rules.push(Rule {
            table,
            chain,
            first: false,
            spec: spec.into(),
        });
    }

    fn insert(&mut self, chain: &'static str, spec: String) {
        self.rules.push(Rule {
            table: "nat",
            chain,
            first: true,
            spec,
        });
    }

    fn capture(mut self) -> Vec<Rule> {
        let config = self.config;
        self.add(
            "nat",
            "ISTIO_REDIRECT",
            format!("-p tcp -j REDIRECT --to-ports {}", config.envoy_port),
        );
        self.add(
            "nat",
            "ISTIO_IN_REDIRECT",
            format!("-p tcp -j REDIRECT --to-ports {}", config.inbound_port()),
        );
        // TPROXY is IPv4 only, as in Istio 1.4: the routing rule behind it exists for IPv4 alone.
        match (config.mode, self.family) {
            (Mode::Tproxy, Family::V4) => self.inbound_tproxy(),
            _ => self.inbound_redirect(),
        }
        self.outbound();
        self.rules
    }

    fn inbound_redirect(&mut self) {
        let config = self.config;
        if config.inbound == Inbound::None {
            return;
        }
        self.add("nat", "PREROUTING", "-p tcp -j ISTIO_INBOUND");
        match &config.inbound {
            Inbound::None => {}
            Inbound::AllBut(excluded) => {
                self.leave_alone("nat", excluded);
                self.add("nat", "ISTIO_INBOUND", "-p tcp -j ISTIO_IN_REDIRECT");
            }
            Inbound::Only(ports) => {
                for port in ports {
                    self.add(
                        "nat",
                        "ISTIO_INBOUND",
                        format!("-p tcp --dport {port} -j ISTIO_IN_REDIRECT"),
                    );
                }
            }
        }
    }

    fn inbound_tproxy(&mut self) {
        let config = self.config;
        if config.inbound == Inbound::None {
            return;
        }
        let mark = config.mark;
        self.add(
            "mangle",
            "ISTIO_DIVERT",
            format!("-j MARK --set-mark {mark}"),
        );
        self.add("mangle", "ISTIO_DIVERT", "-j ACCEPT");
        self.add(
            "mangle",
            "ISTIO_TPROXY",
            format!(
                "! -d 127.0.0.1/32 -p tcp -j TPROXY --on-port {} --tproxy-mark {mark}/0xffffffff",
                config.envoy_port
            ),
        );
        self.add("mangle", "PREROUTING", "-p tcp -j ISTIO_INBOUND");
        match &config.inbound {
            Inbound::None => {}
            Inbound::AllBut(excluded) => {
                self.leave_alone("mangle", excluded);
                self.add(
                    "mangle",
                    "ISTIO_INBOUND",
                    "-p tcp -m socket -j ISTIO_DIVERT",
                );
                self.add("mangle", "ISTIO_INBOUND", "-p tcp -j ISTIO_TPROXY");
            }
            Inbound::Only(ports) => {
                for port in ports {
                    self.add(
                        "mangle",
                        "ISTIO_INBOUND",
                        format!("-p tcp --dport {port} -m socket -j ISTIO_DIVERT"),
                    );
                    self.add(
                        "mangle",
                        "ISTIO_INBOUND",
                        format!("-p tcp --dport {port} -j ISTIO_TPROXY"),
                    );
                }
            }
        }
    }

    /// SSH stays reachable without Envoy, and so do the excluded ports.
    fn leave_alone(&mut self, table: &'static str, excluded: &[u16]) {
        for port in std::iter::once(&22).chain(excluded) {
            self.add(
                table,
                "ISTIO_INBOUND",
                format!("-p tcp --dport {port} -j RETURN"),
            );
        }
    }

    fn outbound(&mut self) {
        let config = self.config;
        let (local, passthrough) = match self.family {
            Family::V4 => ("127.0.0.1/32", "127.0.0.6/32"),
            Family::V6 => ("::1/128", "::6/128"),
        };
        self.add("nat", "OUTPUT", "-p tcp -j ISTIO_OUTPUT");
        for port in &config.exclude_ports {
            self.add(
                "nat",
                "ISTIO_OUTPUT",
                format!("-p tcp --dport {port} -j RETURN"),
            );
        }
        self.add(
            "nat",
            "ISTIO_OUTPUT",
            format!("-s {passthrough} -o lo -j RETURN"),
        );
        if config.redirect_loopback {
            self.add(
                "nat",
                "ISTIO_OUTPUT",
                format!("! -d {local} -o lo -j ISTIO_IN_REDIRECT"),
            );
        }
        for uid in &config.uids {
            self.add(
                "nat",
                "ISTIO_OUTPUT",
                format!("-m owner --uid-owner {uid} -j RETURN"),
            );
        }
        for gid in &config.gids {
            self.add(
                "nat",
                "ISTIO_OUTPUT",
                format!("-m owner --gid-owner {gid} -j RETURN"),
            );
        }
        self.add("nat", "ISTIO_OUTPUT", format!("-d {local} -j RETURN"));
        for net in self.own(&config.exclude) {
            self.add("nat", "ISTIO_OUTPUT", format!("-d {net} -j RETURN"));
        }
        for interface in &config.kubevirt {
            self.insert("PREROUTING", format!("-i {interface} -j RETURN"));
        }
        match &config.outbound {
            Outbound::All => {
                self.add("nat", "ISTIO_OUTPUT", "-j ISTIO_REDIRECT");
                for interface in &config.kubevirt {
                    self.insert("PREROUTING", format!("-i {interface} -j ISTIO_REDIRECT"));
                }
            }
            Outbound::Only(nets) => {
                let nets = self.own(nets);
                for net in &nets {
                    self.add("nat", "ISTIO_OUTPUT", format!("-d {net} -j ISTIO_REDIRECT"));
                }
                for interface in &config.kubevirt {
                    for net in &nets {
                        self.insert(
                            "PREROUTING",
                            format!("-d {net} -i {interface} -j ISTIO_REDIRECT"),
                        );
                    }
                }
                if !nets.is_empty() {
                    self.add("nat", "ISTIO_OUTPUT", "-j RETURN");
                }
            }
        }
    }

    /// No IPv6 in this pod: answers to what is open, loopback, nothing else.
    fn close(mut self) -> Vec<Rule> {
        self.add("filter", "INPUT", "");
        self.add("filter", "INPUT", "-m state --state ESTABLISHED -j ACCEPT");
        self.add("filter", "INPUT", "-d ::1/128 -i lo -j ACCEPT");
        self.add("filter", "INPUT", "-j REJECT");
        self.rules
    }

    fn own(&self, nets: &[IpNet]) -> Vec<IpNet> {
        nets.iter()
            .filter(|net| match self.family {
                Family::V4 => net.addr().is_ipv4(),
                Family::V6 => net.addr().is_ipv6(),
            })
            .copied()
            .collect()
    }
}

fn ip_commands(config: &Config) -> Vec<IpCommand> {
    let mut commands = Vec::new();
    let mut push = |line: String, cleanup: bool| {
        commands.push(IpCommand {
            args: line.split(' ').map(str::to_owned).collect(),
            cleanup,
        });
    };
    if config.ipv6 {
        push("-6 addr replace ::6/128 dev lo".into(), false);
    }
    if config.mode == Mode::Tproxy && config.inbound != Inbound::None {
        let (mark, table) = (config.mark, config.table);
        // `ip rule add` happily adds the same rule again.
        push(format!("-4 rule del fwmark {mark} lookup {table}"), true);
        push(format!("-4 rule add fwmark {mark} lookup {table}"), false);
        push(
            format!("-4 route replace local default dev lo table {table}"),
            false,
        );
    }
    commands
}
