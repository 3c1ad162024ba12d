//! Which cluster is meant: `--kubeconfig`, else `$KUBECONFIG`, else the running lab, else `~/.kube/config`.
//!
//! With `--state-dir` (or `MESOZOIC_LAB`) given, the lab is meant whatever else is set: who names a lab wants that one.

use anyhow::Context as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use lab_chaos::cluster::Cluster;

use crate::cli::Global;
use crate::lab::StateDir;

/// Connects, and says in the error where it tried.
pub(crate) async fn connect(global: &Global) -> anyhow::Result<Cluster> {
    let options = KubeConfigOptions {
        context: global.context.clone(),
        ..KubeConfigOptions::default()
    };
    let (config, from) = match lab_kubeconfig(global)? {
        Some(path) => {
            let from = path.display().to_string();
            let file = Kubeconfig::read_from(&path)
                .with_context(|| format!("reading kubeconfig {from}"))?;
            (
                Config::from_custom_kubeconfig(file, &options)
                    .await
                    .with_context(|| format!("kubeconfig {from}"))?,
                from,
            )
        }
        None => (
            Config::from_kubeconfig(&options).await.context(
                "no cluster to talk to: give --kubeconfig, set KUBECONFIG, or start a lab with `istioctl lab up`",
            )?,
            "KUBECONFIG".to_owned(),
        ),
    };
    let namespace = global
        .namespace
        .clone()
        .unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).with_context(|| format!("kubeconfig {from}"))?;
    Ok(Cluster {
        client,
        namespace,
        istio_namespace: global.istio_namespace.clone(),
    })
}

fn lab_kubeconfig(global: &Global) -> anyhow::Result<Option<std::path::PathBuf>> {
    if let Some(path) = &global.kubeconfig {
        return Ok(Some(path.clone()));
    }
    let named = global.state_dir.is_some();
    if !named && std::env::var_os("KUBECONFIG").is_some_and(|v| !v.is_empty()) {
        return Ok(None);
    }
    let lab = StateDir::of(global)?;
    if lab.running().is_some() {
        return Ok(Some(lab.kubeconfig()));
    }
    if named {
        anyhow::bail!(
            "no lab runs in {}; start it with `istioctl lab up --state-dir {0}`",
            lab.path().display()
        );
    }
    Ok(None)
}
