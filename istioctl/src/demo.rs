//! `istioctl demo`: the whole promise in one command. A lab of its own, every experiment, a report, nothing left behind.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use lab_chaos::experiments::{self, Namespaces};
use lab_chaos::{Outcome, Verdict};
use tokio_util::sync::CancellationToken;

use crate::cli::Global;
use crate::connect::connect;
use crate::lab::{StateDir, UpArgs, bring_up, take_down};
use crate::output::{Paint, print, print_json};
use crate::progress::Progress;
use crate::{chaos, stop};

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Where to write index.html and report.json.
    #[arg(long, default_value = "target/report", value_name = "DIR")]
    report_dir: PathBuf,
    /// Leave the lab running.
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    up: UpArgs,
    #[command(flatten)]
    load: chaos::LoadArgs,
}

pub(crate) async fn run(global: &Global, args: DemoArgs) -> anyhow::Result<ExitCode> {
    let stop = stop::on_signals()?;
    let progress = Progress::new();
    // A lab of its own, whatever else runs: the demo breaks things.
    let state = std::env::temp_dir().join(format!("mesozoic-demo-{}", std::process::id()));
    let here = Global {
        state_dir: Some(state.clone()),
        kubeconfig: None,
        context: None,
        ..global.clone()
    };
    let lab = StateDir::at(&state)?;
    let outcomes = experiments_in_lab(&here, &args, &progress, &stop).await;
    // Without a folder it never started, and why is all there is to say.
    if args.keep && state.exists() {
        progress.say(&format!(
            "the lab goes on running: istioctl lab status --state-dir {}",
            state.display()
        ));
    } else if state.exists() {
        let down = take_down(&lab, args.up.bin_dir.clone(), outcomes.is_ok(), &progress).await;
        if let (Err(_), false) = (&outcomes, state.join("lab.log").exists()) {
            // Nothing to look at: it never started.
            let _ = std::fs::remove_dir_all(&state);
        } else if outcomes.is_err() {
            progress.say(&format!("logs are kept in {}", state.display()));
        }
        // What went wrong first comes first.
        if outcomes.is_ok() {
            down?;
        }
    }
    let (outcomes, chosen) = outcomes?;
    if args.up.output.is_json() {
        print_json(&outcomes)?;
    } else {
        print(&format!(
            "\n{}\n{}\n",
            chaos::table(&outcomes),
            last_line(&outcomes, chosen, &args)
        ));
    }
    Ok(chaos::exit_code(&outcomes, chosen))
}

async fn experiments_in_lab(
    global: &Global,
    args: &DemoArgs,
    progress: &Progress,
    stop: &CancellationToken,
) -> anyhow::Result<(Vec<Outcome>, usize)> {
    tokio::select! {
        up = bring_up(global, &args.up, progress) => up.map(drop)?,
        () = stop.cancelled() => anyhow::bail!("stopped while the lab was starting"),
    }
    let cluster = connect(global).await?;
    let chosen = experiments::all(&Namespaces::from(&cluster));
    let outcomes = chaos::run_all(&cluster, &chosen, &args.load, progress, stop).await?;
    let environment = chaos::environment(&cluster).await;
    for name in ["index.html", "report.json"] {
        let file = args.report_dir.join(name);
        chaos::write_report(&file, &outcomes, &environment).context("the report")?;
    }
    Ok((outcomes, chosen.len()))
}

fn last_line(outcomes: &[Outcome], chosen: usize, args: &DemoArgs) -> String {
    let paint = Paint::stdout();
    let passed = outcomes
        .iter()
        .filter(|o| o.verdict == Verdict::Pass)
        .count();
    let line = format!("{passed} of {chosen} experiments passed.");
    let line = if passed == chosen {
        paint.good(&line)
    } else {
        paint.bad(&line)
    };
    let page = args.report_dir.join("index.html");
    format!("{line} The report: {}", page.display())
}
