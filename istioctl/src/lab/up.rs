//! `lab up`: preflight, daemon, manifests, readiness, and what to do next.

use std::path::PathBuf;
use std::process::{Child, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use lab_chaos::cluster::Cluster;
use lab_chaos::mesh;
use serde_json::json;

use super::state::LabInfo;
use super::{StateDir, apply, binaries, daemon, manifests};
use crate::cli::Global;
use crate::connect::connect;
use crate::output::{OutputArgs, Paint, print, print_json};
use crate::progress::Progress;

const API_WITHIN: Duration = Duration::from_secs(30);

/// Arguments of `lab up`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct UpArgs {
    /// With the sample application Bookinfo (the default).
    #[arg(long, conflicts_with = "minimal")]
    pub(crate) bookinfo: bool,
    /// Only the control plane and the ingress gateway.
    #[arg(long)]
    pub(crate) minimal: bool,
    /// Directory with the mesh's programs [default: that of this program].
    #[arg(long, env = "MESOZOIC_LAB_BIN_DIR", value_name = "DIR")]
    pub(crate) bin_dir: Option<PathBuf>,
    /// Envoy [default: in --bin-dir, in .tools above it, or on PATH].
    #[arg(long, env = "MESOZOIC_LAB_ENVOY", value_name = "FILE")]
    pub(crate) envoy: Option<PathBuf>,
    /// YAML map from image names to local programs, for workloads of your own.
    #[arg(long, env = "MESOZOIC_LAB_IMAGES", value_name = "FILE")]
    pub(crate) images: Option<PathBuf>,
    /// How long to wait until everything is available.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// A lab that is up.
#[derive(Debug)]
pub(crate) struct Up {
    info: LabInfo,
    ingress: Option<String>,
    already: bool,
    took: Duration,
}

pub(super) async fn run(global: &Global, args: UpArgs) -> anyhow::Result<ExitCode> {
    let progress = Progress::new();
    let lab = StateDir::of(global)?;
    let up = bring_up(global, &args, &progress).await?;
    let kubeconfig = lab.kubeconfig();
    let url = up
        .ingress
        .as_ref()
        .map(|address| format!("http://{address}"));
    if args.output.is_json() {
        print_json(&json!({
            "stateDir": lab.path(),
            "kubeconfig": kubeconfig,
            "apiServer": up.info.api_server,
            "ingress": url,
            "pid": up.info.pid,
            "alreadyRunning": up.already,
            "seconds": (up.took.as_secs_f64() * 10.0).round() / 10.0,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let paint = Paint::stdout();
    let mut text = match up.already {
        true => format!(
            "The lab in {} runs already (pid {}).\n",
            lab.path().display(),
            up.info.pid
        ),
        false => format!("The lab is up after {:.1} s.\n", up.took.as_secs_f64()),
    };
    text.push_str(&format!("\n  export KUBECONFIG={}\n", kubeconfig.display()));
    if let Some(url) = url {
        let page = if args.minimal { "" } else { "/productpage" };
        text.push_str(&format!("  curl {}\n", paint.bold(&format!("{url}{page}"))));
    }
    text.push_str("  istioctl lab status\n  istioctl chaos run --all\n");
    print(&text);
    Ok(ExitCode::SUCCESS)
}

/// Starts what is not running yet and waits until all of it is available.
pub(crate) async fn bring_up(
    global: &Global,
    args: &UpArgs,
    progress: &Progress,
) -> anyhow::Result<Up> {
    let began = Instant::now();
    let lab = StateDir::of(global)?;
    let already = lab.running();
    if already.is_none() {
        let binaries = binaries::find(args.bin_dir.clone(), args.envoy.clone())?;
        let step = progress.step("starting the lab's API server, controllers and node");
        let child = daemon::spawn(&lab, &binaries, args.images.as_ref())?;
        if let Err(error) = answers(&lab, child).await {
            step.fail("the lab did not start");
            return Err(error);
        }
        step.done("API server, controllers and node");
    }
    let info = lab.require_running()?;
    // Whatever else is set: this lab is meant.
    let here = Global {
        kubeconfig: Some(lab.kubeconfig()),
        ..global.clone()
    };
    let cluster = connect(&here).await?;
    apply_manifests(&cluster, args, progress).await?;
    wait_available(&cluster, Duration::from_secs(args.timeout), progress)
        .await
        .with_context(|| format!("the lab goes on running; look at it with `istioctl lab status` and {}, end it with `istioctl lab down`", lab.log().display()))?;
    let ingress = mesh::ingress(&cluster).await.ok();
    Ok(Up {
        info,
        ingress,
        already: already.is_some(),
        took: began.elapsed(),
    })
}

/// Waits until the new daemon has written where it is and its API answers.
async fn answers(lab: &StateDir, mut daemon: Child) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut last = "it has not said where its API is".to_owned();
    loop {
        if let Some(status) = daemon.try_wait()? {
            bail!(
                "the lab's daemon ended at once ({status}); the end of {}:\n  {}",
                lab.log().display(),
                daemon::last_words(lab)
            );
        }
        // The pid makes sure that it is this daemon's word and not that of one before it.
        if lab
            .running()
            .is_some_and(|i| u32::try_from(i.pid) == Ok(daemon.id()))
        {
            match ready(lab).await {
                Ok(()) => return Ok(()),
                Err(error) => last = format!("{error:#}"),
            }
        }
        if began.elapsed() > API_WITHIN {
            bail!(
                "the lab's API does not answer after {} s: {last}; the end of {}:\n  {}",
                API_WITHIN.as_secs(),
                lab.log().display(),
                daemon::last_words(lab)
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn ready(lab: &StateDir) -> anyhow::Result<()> {
    let file = kube::config::Kubeconfig::read_from(lab.kubeconfig())?;
    let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await?;
    Client::try_from(config)?.apiserver_version().await?;
    Ok(())
}

async fn apply_manifests(
    cluster: &Cluster,
    args: &UpArgs,
    progress: &Progress,
) -> anyhow::Result<()> {
    let mut parts = vec![(
        "base",
        "the control plane's manifests",
        cluster.istio_namespace.as_str(),
    )];
    if !args.minimal {
        parts.push((
            "bookinfo",
            "Bookinfo's manifests",
            cluster.namespace.as_str(),
        ));
    }
    for (folder, what, namespace) in parts {
        let objects = manifests::folder(folder)?;
        let count = objects.len();
        let step = progress.step(format!("applying {what}"));
        apply::apply(&cluster.client, objects, namespace, &step).await?;
        step.done(&format!("{what} ({count} objects)"));
    }
    Ok(())
}

/// Waits for every Deployment of both namespaces, each with its own line.
async fn wait_available(
    cluster: &Cluster,
    timeout: Duration,
    progress: &Progress,
) -> anyhow::Result<()> {
    let mut waits = Vec::new();
    let mut namespaces = vec![&cluster.istio_namespace];
    if cluster.namespace != cluster.istio_namespace {
        namespaces.push(&cluster.namespace);
    }
    for namespace in namespaces {
        let api = Api::<Deployment>::namespaced(cluster.client.clone(), namespace);
        let all = api
            .list(&ListParams::default())
            .await
            .with_context(|| format!("listing Deployments in {namespace}"))?;
        for deployment in all {
            let name = deployment.name_any();
            let replicas = deployment.spec.and_then(|s| s.replicas).unwrap_or(1);
            let step = progress.step(format!("waiting for {name}"));
            waits.push(async move {
                match cluster.available(namespace, &name, replicas, timeout).await {
                    Ok(()) => step.done(&name),
                    Err(error) => {
                        step.fail(&name);
                        return Some(error.to_string());
                    }
                }
                None
            });
        }
    }
    let problems: Vec<String> = futures::future::join_all(waits)
        .await
        .into_iter()
        .flatten()
        .collect();
    if problems.is_empty() {
        return Ok(());
    }
    bail!("{}", problems.join("\n"))
}
