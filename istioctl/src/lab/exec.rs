//! `lab exec`: a command in a pod, with its exit status as our own.

use std::process::ExitCode;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::AttachParams;

use super::StateDir;
use crate::cli::Global;
use crate::connect::connect;

/// Arguments of `lab exec`.
#[derive(Debug, clap::Args)]
pub(crate) struct ExecArgs {
    /// POD, POD.NAMESPACE or deploy/NAME.
    pod: String,
    /// Container [default: the first one of the pod].
    #[arg(long, value_name = "NAME")]
    container: Option<String>,
    /// Pass on what comes on stdin.
    #[arg(long)]
    stdin: bool,
    /// What to run, after `--`.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) async fn run(global: &Global, args: ExecArgs) -> anyhow::Result<ExitCode> {
    let ExecArgs {
        pod,
        container,
        stdin,
        command,
    } = args;
    let lab = StateDir::of(global)?;
    lab.require_running()?;
    let here = Global {
        kubeconfig: Some(lab.kubeconfig()),
        ..global.clone()
    };
    let cluster = connect(&here).await?;
    let (pod, namespace) = crate::proxy::resolve(&pod, &cluster).await?;
    let params = AttachParams {
        container,
        stdin,
        stdout: true,
        stderr: true,
        ..AttachParams::default()
    };
    let mut process = Api::<Pod>::namespaced(cluster.client.clone(), &namespace)
        .exec(&pod, &command, &params)
        .await
        .with_context(|| format!("running {:?} in pod {namespace}/{pod}", command.join(" ")))?;
    let status = process.take_status();
    let (out, err) = (process.stdout(), process.stderr());
    if let Some(mut input) = process.stdin() {
        tokio::spawn(async move {
            let mut from = tokio::io::stdin();
            // A command that does not read any more is its own affair.
            let _ = tokio::io::copy(&mut from, &mut input).await;
        });
    }
    let copy_out = async {
        if let Some(mut out) = out {
            tokio::io::copy(&mut out, &mut tokio::io::stdout()).await?;
        }
        std::io::Result::Ok(())
    };
    let copy_err = async {
        if let Some(mut err) = err {
            tokio::io::copy(&mut err, &mut tokio::io::stderr()).await?;
        }
        std::io::Result::Ok(())
    };
    tokio::try_join!(copy_out, copy_err)?;
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    Ok(exit_code(status.as_ref()))
}

/// The API says `Success`, or `Failure` with the exit code among its causes.
fn exit_code(status: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Status>) -> ExitCode {
    let Some(status) = status else {
        return ExitCode::FAILURE;
    };
    if status.status.as_deref() == Some("Success") {
        return ExitCode::SUCCESS;
    }
    let causes = status
        .details
        .iter()
        .flat_map(|d| d.causes.iter().flatten());
    let code = causes
        .filter(|c| c.reason.as_deref() == Some("ExitCode"))
        .find_map(|c| c.message.as_ref()?.parse::<u8>().ok());
    match code {
        Some(code) => ExitCode::from(code),
        None => {
            eprintln!(
                "Error: {}",
                status.message.as_deref().unwrap_or("the command failed")
            );
            ExitCode::FAILURE
        }
    }
}
