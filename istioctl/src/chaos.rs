//! `istioctl chaos …`: lists and runs the experiments of `lab-chaos`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use lab_chaos::cluster::Cluster;
use lab_chaos::engine;
use lab_chaos::experiments::{self, Namespaces};
use lab_chaos::load::Plan;
use lab_chaos::mesh::{self, Application};
use lab_chaos::report::{self, Environment};
use lab_chaos::{Definition, Experiment, Observer, Options, Outcome, Verdict};
use tokio_util::sync::CancellationToken;

use crate::cli::Global;
use crate::connect::connect;
use crate::output::{OutputArgs, Paint, Table, print, print_json};
use crate::progress::{Progress, Step};
use crate::stop;

/// Subcommands of `chaos`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The experiments there are: what each breaks, and what must be seen.
    List(OutputArgs),
    /// Run experiments; exit status 0 only if all of them pass.
    Run(RunArgs),
}

/// Arguments of `chaos run`.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Names of experiments, see `istioctl chaos list`.
    #[arg(required_unless_present = "all", value_name = "NAME")]
    names: Vec<String>,
    /// All of them.
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Write a report: a page (.html) or JSON (.json). May be given several times.
    #[arg(long, value_name = "FILE")]
    report: Vec<PathBuf>,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// The load that runs all the while.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Load")]
pub(crate) struct LoadArgs {
    /// Address of the ingress gateway [default: from Service istio-ingressgateway].
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) ingress: Option<String>,
    /// Host header of the load [default: the ingress address].
    #[arg(long, value_name = "HOST")]
    pub(crate) host: Option<String>,
    /// Paths to request in turn.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "PATH,…",
        default_value = "/productpage,/api/v1/products/0,/api/v1/products/0/reviews,/api/v1/products/0/ratings"
    )]
    pub(crate) path: Vec<String>,
    /// A page with this text counts as failed, whatever its status. May be given several times.
    #[arg(long, value_name = "TEXT", default_value = "currently unavailable")]
    pub(crate) fail_on: Vec<String>,
    /// Requests per second.
    #[arg(long, default_value_t = 40.0, value_name = "NUMBER", value_parser = positive)]
    pub(crate) rate: f64,
    /// Kept-alive connections that share the rate.
    #[arg(long, default_value_t = 4, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) connections: u16,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 100_000.0 => Ok(rate),
        _ => Err("give a number above 0 and up to 100000".to_owned()),
    }
}

pub(crate) async fn run(global: &Global, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List(output) => list(global, output),
        Command::Run(args) => run_named(global, args).await,
    }
}

fn list(global: &Global, output: OutputArgs) -> anyhow::Result<ExitCode> {
    let all = experiments::all(&namespaces(global));
    let definitions: Vec<&Definition> = all.iter().map(|e| e.definition()).collect();
    if output.is_json() {
        print_json(&definitions)?;
        return Ok(ExitCode::SUCCESS);
    }
    let paint = Paint::stdout();
    let mut text = String::new();
    for definition in definitions {
        text.push_str(&format!(
            "{}  {} {} ({})\n  {}\n",
            paint.bold(definition.name),
            definition.action,
            definition.target,
            definition.mode,
            definition.summary
        ));
        let mut table = Table::new(&[]);
        for probe in &definition.probes {
            table.row([
                format!("    {}", probe.name),
                probe.mode.to_string(),
                probe.expected.clone(),
            ]);
        }
        text.push_str(&table.render());
        text.push('\n');
    }
    print(text.trim_start());
    Ok(ExitCode::SUCCESS)
}

fn namespaces(global: &Global) -> Namespaces {
    Namespaces {
        application: global
            .namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned()),
        istio: global.istio_namespace.clone(),
    }
}

async fn run_named(global: &Global, args: RunArgs) -> anyhow::Result<ExitCode> {
    let RunArgs {
        names,
        all,
        report,
        load,
        output,
    } = args;
    // Wrong names and wrong files are cheaper to find out now than after minutes.
    experiments::named(&namespaces(global), &names)?;
    for file in &report {
        report_kind(file)?;
    }
    let cluster = connect(global).await?;
    let chosen = match all {
        true => experiments::all(&Namespaces::from(&cluster)),
        false => experiments::named(&Namespaces::from(&cluster), &names)?,
    };
    let stop = stop::on_signals()?;
    let progress = Progress::new();
    let outcomes = run_all(&cluster, &chosen, &load, &progress, &stop).await?;
    let environment = environment(&cluster).await;
    for file in &report {
        write_report(file, &outcomes, &environment)?;
        progress.say(&format!("report: {}", file.display()));
    }
    if output.is_json() {
        print_json(&outcomes)?;
    } else {
        print(&table(&outcomes));
    }
    Ok(exit_code(&outcomes, chosen.len()))
}

/// Runs experiments one after another until the user stops it.
pub(crate) async fn run_all(
    cluster: &Cluster,
    chosen: &[Box<dyn Experiment>],
    load: &LoadArgs,
    progress: &Progress,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<Outcome>> {
    let address = match &load.ingress {
        Some(address) => address.clone(),
        None => mesh::ingress(cluster).await?,
    };
    let mut plan = Plan::new(address, load.path.clone());
    plan.rate = load.rate;
    plan.degraded.clone_from(&load.fail_on);
    plan.connections = load.connections.into();
    if let Some(host) = &load.host {
        plan.host.clone_from(host);
    }
    let options = Options {
        application: Application::default(),
        load: plan,
        steady_timeout: Duration::from_secs(30),
        baseline: Duration::from_secs(2),
    };
    let mut outcomes = Vec::new();
    for experiment in chosen {
        if stop.is_cancelled() {
            break;
        }
        let watcher = Arc::new(Watcher::new(progress.clone()));
        outcomes.push(engine::run(experiment.as_ref(), cluster, &options, watcher, stop).await);
    }
    Ok(outcomes)
}

/// Shows progress: the last event on the spinner, every event and verdict as a line.
struct Watcher {
    progress: Progress,
    step: std::sync::Mutex<Option<Step>>,
    paint: Paint,
}

impl Watcher {
    fn new(progress: Progress) -> Self {
        Self {
            progress,
            step: std::sync::Mutex::new(None),
            paint: Paint::stderr(),
        }
    }

    fn with_step(&self, then: impl FnOnce(&mut Option<Step>)) {
        then(&mut self.step.lock().unwrap_or_else(|e| e.into_inner()));
    }
}

impl Observer for Watcher {
    fn started(&self, definition: &Definition) {
        self.progress.say(&format!(
            "{} {} {}",
            self.paint.bold(definition.name),
            definition.action,
            definition.target
        ));
        self.with_step(|step| *step = Some(self.progress.step(definition.name)));
    }

    fn event(&self, _: &str, t: Duration, event: &str) {
        let time = self.paint.dim(&format!("{:6.1} s", t.as_secs_f64()));
        self.progress.say(&format!("  {time}  {event}"));
        self.with_step(|step| {
            if let Some(step) = step {
                step.update(event);
            }
        });
    }

    fn probe(&self, _: &str, name: &str, verdict: Verdict, observed: &str) {
        let mark = match verdict {
            Verdict::Pass => self.paint.good("✓"),
            Verdict::Fail => self.paint.bad("✗"),
            Verdict::Stopped => self.paint.warn("-"),
        };
        self.progress
            .say(&format!("          {mark} {name}: {observed}"));
    }

    fn finished(&self, outcome: &Outcome) {
        let text = format!("{} {}", outcome.name, outcome.verdict);
        self.with_step(|step| {
            let Some(step) = step.take() else { return };
            match outcome.verdict {
                Verdict::Pass => step.done(&text),
                _ => step.fail(&match &outcome.error {
                    Some(error) => format!("{text}: {error}"),
                    None => text,
                }),
            }
        });
    }
}

/// Expected against seen, one line per probe.
pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let paint = Paint::stdout();
    let coloured = |verdict: Verdict| {
        let text = verdict.to_string();
        match verdict {
            Verdict::Pass => paint.good(&text),
            Verdict::Fail => paint.bad(&text),
            Verdict::Stopped => paint.warn(&text),
        }
    };
    let mut table = Table::new(&[
        "EXPERIMENT",
        "TARGET",
        "ACTION",
        "VERDICT",
        "PROBES",
        "REQUESTS",
        "FAILED",
        "RECOVERY",
        "TOOK",
    ]);
    for outcome in outcomes {
        let passed = outcome
            .probes
            .iter()
            .filter(|p| p.verdict == Verdict::Pass)
            .count();
        table.row([
            outcome.name.to_owned(),
            outcome.target.clone(),
            outcome.action.clone(),
            coloured(outcome.verdict),
            format!("{passed}/{}", outcome.probes.len()),
            outcome.requests.total.to_string(),
            outcome.requests.failed.to_string(),
            outcome
                .recovery_seconds
                .map_or("-".to_owned(), |s| format!("{s:.1} s")),
            format!("{:.0} s", outcome.seconds),
        ]);
    }
    let mut text = table.render();
    for outcome in outcomes.iter().filter(|o| o.verdict != Verdict::Pass) {
        text.push_str(&format!("\n{}\n", paint.bold(outcome.name)));
        if let Some(error) = &outcome.error {
            text.push_str(&format!("  {error}\n"));
        }
        for probe in outcome.probes.iter().filter(|p| p.verdict != Verdict::Pass) {
            text.push_str(&format!(
                "  {} {} ({})\n    expected: {}\n    seen:     {}\n",
                coloured(probe.verdict),
                probe.name,
                probe.mode,
                probe.expected,
                probe.observed
            ));
        }
    }
    text
}

/// 0 only if every chosen experiment ran and passed.
pub(crate) fn exit_code(outcomes: &[Outcome], chosen: usize) -> ExitCode {
    let passed = outcomes
        .iter()
        .filter(|o| o.verdict == Verdict::Pass)
        .count();
    match passed == chosen && chosen > 0 {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// What the experiments ran on, for the report. What cannot be found out is left out.
pub(crate) async fn environment(cluster: &Cluster) -> Environment {
    let server = cluster.client.apiserver_version().await.ok();
    let proxies = cluster.proxies().await.map(|p| p.len()).ok();
    let pilots = cluster
        .pods(&cluster.istio_namespace, "istio=pilot")
        .await
        .map(|p| p.len())
        .ok();
    let mut facts = vec![("istioctl", env!("CARGO_PKG_VERSION").to_owned())];
    facts.extend(server.map(|s| ("Kubernetes API", s.git_version)));
    facts.extend(envoy_version(cluster).await.map(|v| ("Envoy", v)));
    facts.extend(proxies.map(|n| ("Proxies", n.to_string())));
    facts.extend(pilots.map(|n| ("Pilots", n.to_string())));
    facts.push((
        "Namespaces",
        format!("{}, {}", cluster.namespace, cluster.istio_namespace),
    ));
    if let Ok(cores) = std::thread::available_parallelism() {
        facts.push(("Cores here", cores.to_string()));
    }
    Environment {
        facts: facts.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
    }
}

async fn envoy_version(cluster: &Cluster) -> Option<String> {
    use kube::ResourceExt as _;
    let pod = cluster.proxies().await.ok()?.into_iter().next()?;
    let reply = cluster
        .pod_get(
            &pod.namespace()?,
            &pod.name_any(),
            mesh::ENVOY_ADMIN,
            "/server_info",
        )
        .await
        .ok()?;
    let info: serde_json::Value = serde_json::from_slice(&reply.body).ok()?;
    // COMMIT/VERSION/Clean/RELEASE/TLS
    info["version"]
        .as_str()?
        .split('/')
        .nth(1)
        .map(str::to_owned)
}

enum ReportKind {
    Html,
    Json,
}

fn report_kind(file: &Path) -> anyhow::Result<ReportKind> {
    match file.extension().and_then(|e| e.to_str()) {
        Some("html" | "htm") => Ok(ReportKind::Html),
        Some("json") => Ok(ReportKind::Json),
        _ => bail!(
            "--report {}: the name must end in .html or .json",
            file.display()
        ),
    }
}

/// Writes one report file, with the directories above it.
pub(crate) fn write_report(
    file: &Path,
    outcomes: &[Outcome],
    environment: &Environment,
) -> anyhow::Result<()> {
    let text = match report_kind(file)? {
        ReportKind::Html => report::html(outcomes, environment),
        ReportKind::Json => format!("{}\n", serde_json::to_string_pretty(outcomes)?),
    };
    if let Some(parent) = file.parent() {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("creating {}", parent.display()))?;
    }
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_make_sense() {
        assert_eq!(positive("2.5"), Ok(2.5));
        for wrong in ["0", "-1", "NaN", "inf", "many"] {
            assert!(positive(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_report_that_nobody_can_read_is_refused_before_anything_runs() {
        let error = report_kind(Path::new("report.pdf")).err().expect("refused");
        assert!(error.to_string().contains(".html or .json"));
    }

    #[test]
    fn nothing_run_is_no_success() {
        assert_eq!(exit_code(&[], 0), ExitCode::FAILURE);
        assert_eq!(exit_code(&[], 1), ExitCode::FAILURE);
    }
}
