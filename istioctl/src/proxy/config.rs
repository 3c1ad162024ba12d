//! `proxy-config`: what one Envoy has.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Subcommand, ValueEnum};
use lab_chaos::mesh::ENVOY_ADMIN;
use serde_json::Value;

use super::dump::{self, Kind};
use super::resolve;
use crate::cli::Global;
use crate::connect::connect;
use crate::output::{OutputArgs, Paint, Table, print, print_json};

/// Subcommands of `proxy-config`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Clusters: dynamic active and static ones.
    #[command(visible_aliases = ["clusters", "c"])]
    Cluster(ClusterArgs),
    /// Listeners.
    #[command(visible_aliases = ["listeners", "l"])]
    Listener(ListenerArgs),
    /// Route configurations.
    #[command(visible_aliases = ["routes", "r"])]
    Route(RouteArgs),
    /// Endpoints with their health and outlier state.
    #[command(visible_aliases = ["endpoints", "ep"])]
    Endpoint(EndpointArgs),
    /// The bootstrap configuration, always as JSON.
    #[command(visible_alias = "b")]
    Bootstrap(PodArgs),
}

/// The pod.
#[derive(Debug, clap::Args)]
pub(crate) struct PodArgs {
    /// POD, POD.NAMESPACE or deploy/NAME.
    pod: String,
}

/// Arguments of `cluster`.
#[derive(Debug, clap::Args)]
pub(crate) struct ClusterArgs {
    #[command(flatten)]
    pod: PodArgs,
    /// Part of the service's fully qualified name.
    #[arg(long)]
    fqdn: Option<String>,
    /// inbound or outbound.
    #[arg(long)]
    direction: Option<String>,
    /// Part of the subset's name.
    #[arg(long)]
    subset: Option<String>,
    /// Port.
    #[arg(long)]
    port: Option<u16>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Arguments of `listener`.
#[derive(Debug, clap::Args)]
pub(crate) struct ListenerArgs {
    #[command(flatten)]
    pod: PodArgs,
    /// Address.
    #[arg(long)]
    address: Option<String>,
    /// Port.
    #[arg(long)]
    port: Option<u16>,
    /// Type.
    #[arg(long = "type", value_enum, ignore_case = true)]
    kind: Option<ListenerType>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Type of a listener.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ListenerType {
    Http,
    Tcp,
}

impl ListenerType {
    fn word(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Tcp => "TCP",
        }
    }
}

/// Arguments of `route`.
#[derive(Debug, clap::Args)]
pub(crate) struct RouteArgs {
    #[command(flatten)]
    pod: PodArgs,
    /// Name of the route configuration.
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Arguments of `endpoint`.
#[derive(Debug, clap::Args)]
pub(crate) struct EndpointArgs {
    #[command(flatten)]
    pod: PodArgs,
    /// Address.
    #[arg(long)]
    address: Option<String>,
    /// Port.
    #[arg(long)]
    port: Option<u16>,
    /// Cluster.
    #[arg(long)]
    cluster: Option<String>,
    /// Health, such as healthy or unhealthy.
    #[arg(long)]
    status: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs a subcommand.
pub(crate) async fn config(global: &Global, command: ConfigCommand) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Cluster(args) => cluster(global, args).await,
        ConfigCommand::Listener(args) => listener(global, args).await,
        ConfigCommand::Route(args) => route(global, args).await,
        ConfigCommand::Endpoint(args) => endpoint(global, args).await,
        ConfigCommand::Bootstrap(args) => bootstrap(global, args).await,
    }?;
    Ok(ExitCode::SUCCESS)
}

async fn cluster(global: &Global, args: ClusterArgs) -> anyhow::Result<()> {
    let dump = ask(global, &args.pod, "/config_dump").await?;
    let mut found: Vec<_> = dump::resources(&dump, Kind::Cluster)
        .into_iter()
        .map(|c| (dump::cluster_row(c), c))
        .filter(|(row, _)| {
            let part =
                |want: &Option<String>, have: &str| want.as_ref().is_none_or(|w| have.contains(w));
            part(&args.fqdn, &row.fqdn)
                && part(&args.subset, &row.subset)
                && args
                    .direction
                    .as_ref()
                    .is_none_or(|d| d.eq_ignore_ascii_case(&row.direction))
                && args.port.is_none_or(|p| row.port == p.to_string())
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    if args.output.is_json() {
        return print_json(&found.iter().map(|(_, c)| c).collect::<Vec<_>>());
    }
    some(&found, "clusters")?;
    let mut table = Table::new(&["SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE"]).gap(5);
    for (row, _) in found {
        table.row([row.fqdn, row.port, row.subset, row.direction, row.kind]);
    }
    print(&table.render());
    Ok(())
}

async fn listener(global: &Global, args: ListenerArgs) -> anyhow::Result<()> {
    let dump = ask(global, &args.pod, "/config_dump").await?;
    let found: Vec<_> = dump::resources(&dump, Kind::Listener)
        .into_iter()
        .map(|l| (dump::listener_row(l), l))
        .filter(|((address, port, kind), _)| {
            args.address.as_ref().is_none_or(|a| a == address)
                && args.port.is_none_or(|p| u64::from(p) == *port)
                && args.kind.is_none_or(|k| k.word() == *kind)
        })
        .collect();
    if args.output.is_json() {
        return print_json(&found.iter().map(|(_, l)| l).collect::<Vec<_>>());
    }
    some(&found, "listeners")?;
    let mut table = Table::new(&["ADDRESS", "PORT", "TYPE"]).gap(5);
    for ((address, port, kind), _) in found {
        table.row([address, port.to_string(), kind.to_owned()]);
    }
    print(&table.render());
    Ok(())
}

async fn route(global: &Global, args: RouteArgs) -> anyhow::Result<()> {
    let dump = ask(global, &args.pod, "/config_dump").await?;
    let mut found: Vec<_> = dump::resources(&dump, Kind::Route)
        .into_iter()
        .map(|r| (dump::route_row(r), r))
        .filter(|((name, _), _)| args.name.as_ref().is_none_or(|n| n == name))
        .collect();
    // Ports by number, then names.
    found.sort_by_key(|((name, _), _)| (name.parse::<u32>().unwrap_or(u32::MAX), name.clone()));
    if args.output.is_json() {
        return print_json(&found.iter().map(|(_, r)| r).collect::<Vec<_>>());
    }
    some(&found, "routes")?;
    let mut table = Table::new(&["NAME", "VIRTUAL HOSTS"]).gap(5);
    for ((name, hosts), _) in found {
        table.row([name, hosts.to_string()]);
    }
    print(&format!(
        "NOTE: This output only contains routes loaded via RDS.\n{}",
        table.render()
    ));
    Ok(())
}

async fn endpoint(global: &Global, args: EndpointArgs) -> anyhow::Result<()> {
    let clusters = ask(global, &args.pod, "/clusters?format=json").await?;
    let mut found = dump::endpoint_rows(&clusters);
    found.retain(|row| {
        let same = |want: &Option<String>, have: &str| {
            want.as_ref().is_none_or(|w| w.eq_ignore_ascii_case(have))
        };
        same(&args.address, &row.address)
            && same(&args.cluster, &row.cluster)
            && same(&args.status, &row.status)
            && args.port.is_none_or(|p| u64::from(p) == row.port)
    });
    let outlier = |row: &dump::EndpointRow| if row.outlier_failed { "FAILED" } else { "OK" };
    if args.output.is_json() {
        let list: Vec<_> = found
            .iter()
            .map(|r| serde_json::json!({"endpoint": r.endpoint(), "status": r.status, "outlierCheck": outlier(r), "cluster": r.cluster}))
            .collect();
        return print_json(&list);
    }
    some(&found, "endpoints")?;
    let paint = Paint::stdout();
    let mut table = Table::new(&["ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER"]).gap(5);
    for row in &found {
        let check = match row.outlier_failed {
            true => paint.bad(outlier(row)),
            false => outlier(row).to_owned(),
        };
        table.row([
            row.endpoint(),
            row.status.clone(),
            check,
            row.cluster.clone(),
        ]);
    }
    print(&table.render());
    Ok(())
}

async fn bootstrap(global: &Global, pod: PodArgs) -> anyhow::Result<()> {
    let dump = ask(global, &pod, "/config_dump").await?;
    let sections = dump["configs"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let found = sections.iter().find(|s| s["bootstrap"].is_object());
    print_json(&found.context("the config dump has no bootstrap section")?["bootstrap"])
}

async fn ask(global: &Global, pod: &PodArgs, path: &str) -> anyhow::Result<Value> {
    let cluster = connect(global).await?;
    let (pod, namespace) = resolve(&pod.pod, &cluster).await?;
    let reply = cluster.pod_get(&namespace, &pod, ENVOY_ADMIN, path).await?;
    if reply.status != 200 {
        bail!(
            "Envoy in pod {namespace}/{pod} answers {path} with status {}: {}",
            reply.status,
            reply.text()
        );
    }
    serde_json::from_slice(&reply.body)
        .with_context(|| format!("Envoy in pod {namespace}/{pod}, {path}"))
}

fn some<T>(found: &[T], what: &str) -> anyhow::Result<()> {
    if found.is_empty() {
        bail!("no {what} found that match");
    }
    Ok(())
}
