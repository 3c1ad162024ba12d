//! `meshload`: load against the services of the mesh, measured beside the goals.

mod ads;
mod generate;
mod http;
mod plot;
mod process;
mod table;

use clap::{Parser, Subcommand, ValueEnum};

/// Load against the services of the mesh: rate, latency, and what it costs the server.
#[derive(Parser)]
#[command(name = "meshload", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Connect fake Envoys to Pilot, measure first config and pushes of single changes.
    Ads(Box<ads::Args>),
    /// Change Pilot's config for a while with proxies coming and going: no leak, and nobody is left behind.
    Soak(Box<ads::SoakArgs>),
    /// Draw what `ads -o json` measured, as SVG.
    Plot(plot::Args),
    /// Write a config directory of generated services for `ads`.
    Gen(generate::Args),
    /// Closed-loop HTTP load.
    Http(http::Args),
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// One JSON document.
    Json,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Ads(args) => ads::run(*args).await,
        Command::Soak(args) => ads::soak(*args).await,
        Command::Plot(args) => plot::run(&args),
        Command::Gen(args) => generate::run(&args),
        Command::Http(args) => http::run(args).await,
    }
}
