//! The program around [`istio_iptables`]: parse, plan, apply.

use std::process::ExitCode;

use clap::Parser as _;
use istio_iptables::{Args, run};

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("istio-iptables: {error:#}");
            ExitCode::FAILURE
        }
    }
}
