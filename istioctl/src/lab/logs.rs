//! `lab logs`: of the daemon, a component, or a pod.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use futures::{AsyncBufReadExt as _, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, LogParams};
use kube::{Api, Client, ResourceExt};

use super::StateDir;
use crate::cli::Global;
use crate::connect::connect;
use crate::output::{Paint, print};

/// Arguments of `lab logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    /// A component (istio-pilot, reviews-v1, reviews …) or a pod; without it, the lab's own log.
    component: Option<String>,
    /// Container [default: the first one of the pod].
    #[arg(long, value_name = "NAME")]
    container: Option<String>,
    /// Go on printing what comes.
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines.
    #[arg(long, default_value_t = 200, value_name = "LINES")]
    tail: i64,
}

pub(super) async fn run(global: &Global, args: LogsArgs) -> anyhow::Result<ExitCode> {
    let lab = StateDir::of(global)?;
    let Some(component) = args.component.clone() else {
        return daemon_log(&lab, &args).await;
    };
    lab.require_running()?;
    let here = Global {
        kubeconfig: Some(lab.kubeconfig()),
        ..global.clone()
    };
    let cluster = connect(&here).await?;
    let pods = Api::<Pod>::all(cluster.client.clone())
        .list(&ListParams::default())
        .await?;
    let chosen: Vec<Pod> = pods
        .iter()
        .filter(|p| matches(p, &component))
        .cloned()
        .collect();
    if chosen.is_empty() {
        let names: Vec<String> = pods.iter().map(ResourceExt::name_any).collect();
        bail!(
            "nothing is called {component:?}; there are the pods {}",
            names.join(", ")
        );
    }
    let several = chosen.len() > 1;
    let tails = chosen
        .iter()
        .map(|pod| tail(&cluster.client, pod, &args, several));
    futures::future::try_join_all(tails).await?;
    Ok(ExitCode::SUCCESS)
}

async fn daemon_log(lab: &StateDir, args: &LogsArgs) -> anyhow::Result<ExitCode> {
    let path = lab.log();
    if !path.exists() {
        bail!("there is no {}: no lab was started there", path.display());
    }
    let mut command = tokio::process::Command::new("tail");
    command.arg("-n").arg(args.tail.to_string());
    if args.follow {
        command.arg("-F");
    }
    let status = command.arg(&path).status().await.context("starting tail")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// By pod name, by the beginning of it, or by label `app` or `istio`.
fn matches(pod: &Pod, component: &str) -> bool {
    let name = pod.name_any();
    let labelled = |key| pod.labels().get(key).is_some_and(|v| v == component);
    name == component
        || name.starts_with(&format!("{component}-"))
        || labelled("app")
        || labelled("istio")
}

async fn tail(client: &Client, pod: &Pod, args: &LogsArgs, prefix: bool) -> anyhow::Result<()> {
    let name = pod.name_any();
    let namespace = pod.namespace().unwrap_or_default();
    let first = pod
        .spec
        .as_ref()
        .and_then(|s| s.containers.first())
        .map(|c| c.name.clone());
    let params = LogParams {
        container: args.container.clone().or(first),
        follow: args.follow,
        tail_lines: Some(args.tail),
        ..LogParams::default()
    };
    let lines = Api::<Pod>::namespaced(client.clone(), &namespace)
        .log_stream(&name, &params)
        .await
        .with_context(|| {
            format!(
                "log of {} in pod {namespace}/{name}",
                params.container.as_deref().unwrap_or("?")
            )
        })?
        .lines();
    let head = match prefix {
        true => Paint::stdout().dim(&format!("{name} ")),
        false => String::new(),
    };
    let mut lines = lines.boxed();
    while let Some(line) = lines.try_next().await? {
        print(&format!("{head}{line}\n"));
    }
    Ok(())
}
