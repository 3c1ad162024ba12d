//! The command line of Istio 1.4's istio-iptables, and the environment variables of its shell predecessor.

use std::time::Duration;

use clap::{ArgAction, Parser, Subcommand, ValueEnum};

/// Redirects the TCP traffic of this network namespace to Envoy.
#[derive(Clone, Debug, Parser)]
#[command(name = "istio-iptables", version, about)]
pub struct Args {
    /// What to do instead of installing rules.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Port of Envoy to which outbound TCP traffic goes (and, with TPROXY, inbound traffic too).
    #[arg(
        short = 'p',
        long,
        env = "ENVOY_PORT",
        default_value_t = 15001,
        value_name = "PORT"
    )]
    pub envoy_port: u16,

    /// Port of Envoy to which inbound TCP traffic goes when all inbound ports are captured (-b '*').
    #[arg(
        short = 'z',
        long,
        env = "INBOUND_CAPTURE_PORT",
        default_value_t = 15006,
        value_name = "PORT"
    )]
    pub inbound_capture_port: u16,

    /// UIDs whose outbound traffic is left alone, separated by commas. Absent: the user ENVOY_USER (istio-proxy) if it
    /// exists, else 1337, and root.
    #[arg(short = 'u', long, env = "PROXY_UID", value_name = "UIDS")]
    pub proxy_uid: Option<String>,

    /// GIDs whose outbound traffic is left alone, separated by commas. Absent: the UIDs.
    #[arg(short = 'g', long, env = "PROXY_GID", value_name = "GIDS")]
    pub proxy_gid: Option<String>,

    /// The user Envoy runs as when -u is absent.
    #[arg(
        long,
        env = "ENVOY_USER",
        default_value = "istio-proxy",
        value_name = "NAME"
    )]
    pub envoy_user: String,

    /// How inbound traffic is captured: REDIRECT or TPROXY. TPROXY keeps the caller's address, and needs an Envoy with
    /// NET_ADMIN.
    #[arg(
        short = 'm',
        long,
        env = "ISTIO_INBOUND_INTERCEPTION_MODE",
        default_value = "REDIRECT",
        value_name = "MODE"
    )]
    pub istio_inbound_interception_mode: String,

    /// Inbound ports to capture, separated by commas; '*' for all; empty for none.
    #[arg(
        short = 'b',
        long,
        env = "ISTIO_INBOUND_PORTS",
        default_value = "",
        value_name = "PORTS"
    )]
    pub istio_inbound_ports: String,

    /// Inbound ports left alone, separated by commas; heeded with -b '*' only.
    #[arg(
        short = 'd',
        long,
        env = "ISTIO_LOCAL_EXCLUDE_PORTS",
        default_value = "",
        value_name = "PORTS"
    )]
    pub istio_local_exclude_ports: String,

    /// Outbound destinations to capture: CIDRs separated by commas; '*' for all; empty for none.
    #[arg(
        short = 'i',
        long,
        env = "ISTIO_SERVICE_CIDR",
        default_value = "",
        value_name = "CIDRS"
    )]
    pub istio_service_cidr: String,

    /// Outbound destinations left alone: CIDRs separated by commas.
    #[arg(
        short = 'x',
        long,
        env = "ISTIO_SERVICE_EXCLUDE_CIDR",
        default_value = "",
        value_name = "CIDRS"
    )]
    pub istio_service_exclude_cidr: String,

    /// Outbound ports left alone, separated by commas.
    #[arg(
        short = 'o',
        long,
        env = "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE",
        default_value = "",
        value_name = "PORTS"
    )]
    pub istio_local_outbound_ports_exclude: String,

    /// Interfaces of virtual machines, separated by commas: what arrives on them counts as outbound.
    #[arg(
        short = 'k',
        long,
        env = "KUBEVIRT_INTERFACES",
        default_value = "",
        value_name = "IFACES"
    )]
    pub kube_virt_interfaces: String,

    /// Firewall mark of TPROXY traffic.
    #[arg(
        short = 't',
        long,
        env = "ISTIO_INBOUND_TPROXY_MARK",
        default_value_t = 1337,
        value_name = "MARK"
    )]
    pub istio_inbound_tproxy_mark: u32,

    /// Routing table of TPROXY traffic.
    #[arg(
        short = 'r',
        long,
        env = "ISTIO_INBOUND_TPROXY_ROUTE_TABLE",
        default_value_t = 133,
        value_name = "TABLE"
    )]
    pub istio_inbound_tproxy_route_table: u32,

    /// Leave the app's calls to its own service address alone (do not loop them through inbound).
    #[arg(long, env = "DISABLE_REDIRECTION_ON_LOCAL_LOOPBACK", default_missing_value = "true", num_args = 0..=1,
          value_parser = any_text_is_true, default_value = "", action = ArgAction::Set)]
    pub disable_redirection_on_local_loopback: bool,

    /// Print the commands, change nothing.
    #[arg(short = 'n', long, env = "DRY_RUN", global = true, action = ArgAction::SetTrue)]
    pub dry_run: bool,

    /// With --dry-run: print the text for iptables-restore instead of commands.
    #[arg(short = 'f', long, env = "RESTORE_FORMAT", action = ArgAction::SetTrue)]
    pub restore_format: bool,

    /// Remove Istio's rules and chains instead of installing them (same as the subcommand `clean`).
    #[arg(long, env = "CLEAN", action = ArgAction::SetTrue)]
    pub clean: bool,

    /// Install nothing; for use with --run-validation.
    #[arg(long, env = "SKIP_RULE_APPLY", action = ArgAction::SetTrue)]
    pub skip_rule_apply: bool,

    /// Prove with a connection that the rules redirect; exit status 126 if they do not.
    #[arg(long, env = "RUN_VALIDATION", action = ArgAction::SetTrue)]
    pub run_validation: bool,

    /// The port dialled by the validation; nothing needs to listen there.
    #[arg(
        long,
        env = "IPTABLES_PROBE_PORT",
        default_value_t = 15002,
        value_name = "PORT"
    )]
    pub iptables_probe_port: u16,

    /// How long the validation tries, in seconds.
    #[arg(long, env = "PROBE_TIMEOUT", default_value = "300", value_parser = seconds, value_name = "SECONDS")]
    pub probe_timeout: Duration,

    /// Which iptables to use. `auto` takes nft where the kernel has it, unless legacy rules are already in place.
    #[arg(
        long,
        env = "ISTIO_IPTABLES_VARIANT",
        default_value = "auto",
        global = true,
        value_enum
    )]
    pub iptables_variant: Variant,
}

/// Subcommands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Remove Istio's rules and chains, and nothing else.
    Clean,
}

/// The two implementations of iptables that a machine may have side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Variant {
    /// Find out.
    Auto,
    /// iptables over nftables.
    Nft,
    /// The original kernel interface.
    Legacy,
}

/// The shell script only asks whether the variable holds any text, so `0` counts as set there; here the usual words for
/// "no" mean no.
fn any_text_is_true(text: &str) -> Result<bool, std::convert::Infallible> {
    Ok(!matches!(
        text.to_ascii_lowercase().as_str(),
        "" | "0" | "false" | "no" | "off"
    ))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let digits = text.strip_suffix('s').unwrap_or(text);
    digits
        .parse()
        .map(Duration::from_secs)
        .map_err(|_| "give a whole number of seconds".to_owned())
}
