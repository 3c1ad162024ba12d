//! The programs that talk to the kernel: finding them, and one transaction per address family.
//!
//! A machine may have two iptables side by side, over nftables and the original one; rules in both take effect at once
//! and in no useful order. So exactly one is chosen for installing, and what an earlier run left in the other is removed.

use std::{
    io::Write as _,
    net::IpAddr,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, bail};

use crate::{args::Variant, config::Config, plan, rules::RuleSet};

/// An address family, and with it a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `iptables`
    V4,
    /// `ip6tables`
    V6,
}

impl Family {
    /// The plain name of the program.
    pub fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }
}

/// One implementation of iptables, by the infix of its programs: `iptables<infix>-save`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flavour(&'static str);

const NFT: Flavour = Flavour("-nft");
const LEGACY: Flavour = Flavour("-legacy");
const PLAIN: Flavour = Flavour("");

/// The chosen implementation, and the other one if it holds rules of ours.
#[derive(Debug)]
pub struct Tools {
    chosen: Flavour,
    other: Option<Flavour>,
}

impl Tools {
    /// Chooses an implementation.
    pub fn find(variant: Variant) -> anyhow::Result<Self> {
        let (nft, legacy) = (NFT.is_present(), LEGACY.is_present());
        let chosen = match variant {
            Variant::Nft if nft => NFT,
            Variant::Legacy if legacy => LEGACY,
            Variant::Nft | Variant::Legacy => bail!(
                "--iptables-variant asks for {}, which is not in PATH; on Debian and Ubuntu it comes with the package \
                 iptables; nothing was changed",
                if variant == Variant::Nft {
                    "iptables-nft-restore"
                } else {
                    "iptables-legacy-restore"
                }
            ),
            Variant::Auto => match (nft, legacy) {
                (true, true) if LEGACY.holds_rules() || !NFT.works() => LEGACY,
                (true, _) => NFT,
                (false, true) => LEGACY,
                (false, false) if PLAIN.is_present() => PLAIN,
                (false, false) => bail!(
                    "neither iptables-restore nor iptables-save is in PATH; install the package iptables (Debian, \
                     Ubuntu, Alpine) or iptables-nft (Fedora); nothing was changed"
                ),
            },
        };
        let other = match chosen {
            NFT if legacy && LEGACY.holds_rules() => Some(LEGACY),
            LEGACY if nft && NFT.works() => Some(NFT),
            _ => None,
        };
        Ok(Self { chosen, other })
    }

    /// Installs the rules in place of those of an earlier run.
    pub fn install(&self, config: &Config, rules: &RuleSet) -> anyhow::Result<()> {
        if let Some(other) = self.other {
            other.clean()?;
        }
        for command in &rules.ip {
            let args: Vec<&str> = command.args.iter().map(String::as_str).collect();
            match command.cleanup {
                true => ip_quietly(&args),
                false => ip(&args)?,
            }
        }
        self.chosen.replace(Family::V4, rules)?;
        match self.chosen.replace(Family::V6, rules) {
            // A kernel without IPv6 has nothing to close.
            Err(error) if !config.ipv6 => {
                eprintln!("istio-iptables: IPv6 could not be closed, going on: {error:#}");
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Removes what is ours from every implementation that holds some.
    pub fn clean(&self) -> anyhow::Result<()> {
        if let Some(other) = self.other {
            other.clean()?;
        }
        self.chosen.clean()
    }

    /// What is installed in a table, as text.
    pub fn saved(&self, family: Family, table: &str) -> anyhow::Result<String> {
        self.chosen.save(family, Some(table))
    }
}

impl Flavour {
    fn name(self, family: Family, action: &str) -> String {
        format!("{}{}-{action}", family.program(), self.0)
    }

    fn is_present(self) -> bool {
        ["save", "restore"]
            .iter()
            .all(|action| in_path(&self.name(Family::V4, action)).is_some())
    }

    fn works(self) -> bool {
        self.save(Family::V4, Some("nat")).is_ok()
    }

    /// Whether legacy rules are in place in this network namespace. The kernel lists the legacy tables in use; asking
    /// iptables-legacy itself would create them.
    fn holds_rules(self) -> bool {
        let in_use = std::fs::read_to_string("/proc/self/net/ip_tables_names").unwrap_or_default();
        in_use.lines().any(|table| {
            self.save(Family::V4, Some(table))
                .is_ok_and(|text| text.lines().any(|line| line.starts_with("-A ")))
        })
    }

    fn save(self, family: Family, table: Option<&str>) -> anyhow::Result<String> {
        let mut command = Command::new(self.name(family, "save"));
        if let Some(table) = table {
            command.args(["-t", table]);
        }
        let output = command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting {}", self.name(family, "save")))?;
        check(&self.name(family, "save"), &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn replace(self, family: Family, rules: &RuleSet) -> anyhow::Result<()> {
        let installed = self.save(family, None)?;
        self.restore(family, &plan::transaction(&installed, rules.of(family)))
    }

    fn clean(self) -> anyhow::Result<()> {
        for family in [Family::V4, Family::V6] {
            // Whatever cannot be read (no IPv6 in this kernel, say) holds nothing of ours.
            if let Ok(installed) = self.save(family, None) {
                self.restore(family, &plan::transaction(&installed, &[]))?;
            }
        }
        Ok(())
    }

    fn restore(self, family: Family, text: &str) -> anyhow::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let name = self.name(family, "restore");
        let mut command = Command::new(&name);
        command.arg("--noflush");
        if self == LEGACY {
            // Somebody else may hold the lock of the legacy tables.
            command.arg("--wait=30");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // If it died early, its own message is the one that helps.
            let _ = stdin.write_all(text.as_bytes());
        }
        let output = child
            .wait_with_output()
            .with_context(|| format!("waiting for {name}"))?;
        check(&name, &output).with_context(|| {
            let numbered: String = text
                .lines()
                .enumerate()
                .map(|(at, line)| format!("{:>4}  {line}\n", at + 1))
                .collect();
            format!("the kernel refused this transaction, the table is unchanged:\n{numbered}")
        })
    }
}

/// Runs `ip`.
fn ip(args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("starting ip; on Debian and Ubuntu it comes with the package iproute2")?;
    check(&format!("ip {}", args.join(" ")), &output)
}

/// Runs `ip` for its effect, if it has one.
pub(crate) fn ip_quietly(args: &[&str]) {
    let _ = Command::new("ip").args(args).stdin(Stdio::null()).output();
}

fn check(what: &str, output: &Output) -> anyhow::Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let hint = match nix::unistd::geteuid().is_root() {
        true => "",
        false => " (this needs root and NET_ADMIN in this network namespace)",
    };
    bail!("{what} failed, {}: {}{hint}", output.status, said.trim());
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// The addresses of this network namespace by which others reach it.
pub fn pod_addresses() -> nix::Result<Vec<IpAddr>> {
    let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        if let Some(v4) = address.as_sockaddr_in() {
            return Some(IpAddr::V4(v4.ip()));
        }
        address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()))
    });
    Ok(addresses
        .filter(|address| match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            // ::6 is the passthrough address that an earlier run put on lo.
            IpAddr::V6(v6) => {
                !v6.is_loopback() && !v6.is_unicast_link_local() && v6.segments()[..7] != [0; 7]
            }
        })
        .collect())
}
