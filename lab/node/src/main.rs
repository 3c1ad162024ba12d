//! `mesozoic-lab`: a Kubernetes node and control plane for one Linux machine, in one process.
//!
//! | Module | What it is | Who writes | Who reads |
//! |---|---|---|---|
//! | [`cli`] | the arguments and their dispatch | – | `main` |
//! | [`daemon`] | composition root: API server, controllers, node | starts everything | – |
//! | [`lab`] | the lab's own network and mount namespace, host sockets, `down` | daemon at start | everything |
//! | [`container`] | one process per container: shim, root file system, exec | shims (own processes) | [`pod`] by files |
//! | [`volumes`], [`environment`], [`images`] | what a container sees | [`pod`] workers | containers |
//! | [`pod`] | one worker task per pod: its life, probes, status | workers | API server |
//! | [`network`] | addresses, service VIPs, node ports, DNS | watchers of Services and EndpointSlices | pods |
//! | [`kubelet`] | logs, exec, port-forward, metrics for the API server | – | API server |
//! | [`node`] | Node object and its Lease | – | controllers, users |
//!
//! Namespaces are entered without `unsafe`: every step that needs a single-threaded process is a hidden subcommand of
//! this binary (`holder`, `pause`, `shim`, `container-init`, `enter`, `enter-exec`), which then execs what it prepared.

mod cli;
mod container;
mod daemon;
mod environment;
mod fields;
mod files;
mod images;
mod kubelet;
mod lab;
mod network;
mod node;
mod objects;
mod pod;
mod process;
mod tools;
mod volumes;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mesozoic-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
