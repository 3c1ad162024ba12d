//! `istioctl`: brings up the lab, runs failure experiments, and shows what Pilot and every Envoy know.
//!
//! Results go to stdout, progress and logs to stderr, so `-o json` is one document whatever else is said.

use std::process::ExitCode;

use clap::Parser as _;

mod chaos;
mod cli;
mod connect;
mod demo;
mod lab;
mod output;
mod progress;
mod proxy;
mod stop;

mod validate;
mod version;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::usage(&error),
    };
    // The only TLS provider in the house. A second installation would be an error, but this is the first line.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
