//! `lab down`: `mesozoic-lab down` does the work, also when the daemon is dead.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde_json::json;

use super::StateDir;
use crate::cli::Global;
use crate::output::{OutputArgs, print, print_json};
use crate::progress::Progress;

/// Arguments of `lab down`.
#[derive(Debug, clap::Args)]
pub(crate) struct DownArgs {
    /// Also remove the state directory: all objects, keys and logs.
    #[arg(long)]
    purge: bool,
    /// Directory with the mesh's programs [default: that of this program].
    #[arg(long, env = "MESOZOIC_LAB_BIN_DIR", value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(global: &Global, args: DownArgs) -> anyhow::Result<ExitCode> {
    let DownArgs {
        purge,
        bin_dir,
        output,
    } = args;
    let lab = StateDir::of(global)?;
    let existed = lab.path().exists();
    let was_running = lab.running().is_some();
    if existed {
        take_down(&lab, bin_dir, purge, &Progress::new()).await?;
    }
    if output.is_json() {
        print_json(
            &json!({"stateDir": lab.path(), "wasRunning": was_running, "purged": existed && purge}),
        )?;
    } else if !existed {
        print(&format!("There is no lab in {}.\n", lab.path().display()));
    } else if !was_running {
        print(&format!(
            "No lab was running in {}; what was left of it is gone.\n",
            lab.path().display()
        ));
    } else {
        print("The lab is down.\n");
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends the lab and everything it runs.
pub(crate) async fn take_down(
    lab: &StateDir,
    bin_dir: Option<PathBuf>,
    purge: bool,
    progress: &Progress,
) -> anyhow::Result<()> {
    let program = match bin_dir {
        Some(dir) => dir.join("mesozoic-lab"),
        None => std::env::current_exe()?.with_file_name("mesozoic-lab"),
    };
    let step = progress.step("taking the lab down");
    let mut command = tokio::process::Command::new(&program);
    command.arg("down").arg("--state-dir").arg(lab.path());
    if purge {
        command.arg("--purge");
    }
    let output = command
        .output()
        .await
        .with_context(|| format!("starting {}", program.display()))?;
    if !output.status.success() {
        step.fail("the lab is not down");
        bail!(
            "{} down: {}",
            program.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    step.done("lab taken down");
    Ok(())
}
