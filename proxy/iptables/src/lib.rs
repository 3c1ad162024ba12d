//! istio-iptables: sends a pod's TCP traffic through its Envoy.
//!
//! Who runs it: the init container `istio-init`, as root with NET_ADMIN, in the pod's network namespace, before any
//! other process of the pod; or an operator by hand. Who reads its work: the kernel.
//!
//! The way through:
//!
//! 1. [`args`] parses the flags of Istio 1.4 (each also as an environment variable) into a [`config::Config`]; what does
//!    not parse (a CIDR, a port) is refused by name, nothing is silently dropped.
//! 2. [`rules`] turns the configuration into rules: a pure function, tested by golden files.
//! 3. [`plan`] compares them with what is installed (the text of `iptables-save`) and writes one `iptables-restore`
//!    transaction per address family. It removes what an earlier run left, so a re-run gives the same result, and
//!    it never touches a rule that is not Istio's.
//! 4. [`apply`] hands the transaction to the kernel: all of a table or nothing of it.
//! 5. [`validate`] proves, when asked, that a connection really is redirected.
//!
//! Cost: two processes per address family (save, restore), whatever the number of rules.
//!
//! The chains, and why their order matters, are described in [`rules`].

pub mod apply;
pub mod args;
pub mod clean;
pub mod config;
pub mod plan;
pub mod rules;
pub mod validate;

use std::process::ExitCode;

use anyhow::Context as _;

pub use args::Args;

use crate::{
    apply::{Family, Tools},
    args::Command,
    config::Config,
    rules::RuleSet,
};

/// Exit status of a failed validation, as the CNI repair controller expects it.
pub const VALIDATION_FAILED: u8 = 126;

/// Does what the command line says.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let addresses = apply::pod_addresses().context("reading this pod's addresses")?;
    let clean_only = args.clean || matches!(args.command, Some(Command::Clean));
    let config = Config::from_args(&args, &addresses)?;

    if clean_only {
        if args.dry_run {
            print!("{}", clean::as_commands(&config));
        } else {
            clean::run(&Tools::find(args.iptables_variant)?, &config)?;
        }
        return Ok(ExitCode::SUCCESS);
    }

    let rules = RuleSet::new(&config);
    if args.dry_run {
        match args.restore_format {
            true => print!("{}", rules.as_restore()),
            false => print!("{}", rules.as_commands()),
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !args.skip_rule_apply {
        println!("{config}");
        let tools = Tools::find(args.iptables_variant)?;
        tools.install(&config, &rules)?;
        print!("{}", tools.saved(Family::V4, "nat")?);
    }
    if args.run_validation
        && let Err(error) = validate::run(&config, args.probe_timeout)
    {
        eprintln!("istio-iptables: {error:#}");
        return Ok(ExitCode::from(VALIDATION_FAILED));
    }
    Ok(ExitCode::SUCCESS)
}
