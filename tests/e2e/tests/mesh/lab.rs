//! Brings a lab up by `istioctl`, and the few things that checks do with it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use lab_chaos::{
    cluster::{Cluster, eventually, is_ready},
    load::{Connection, Reply},
    mesh,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const SYSTEM: [&str; 2] = ["-n", "istio-system"];
const GATEWAY: &str = "istio-ingressgateway";
const GATEWAY_LABEL: &str = "istio=ingressgateway";

/// A running lab with Bookinfo.
pub(crate) struct Lab {
    state: TempDir,
    pub(crate) cluster: Cluster,
    /// `host:port` of the ingress gateway.
    pub(crate) ingress: String,
}

/// The workspace's root.
fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}

/// Where the workspace's binaries of this profile are: beside the folder of this test's own.
fn binaries() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own
        .ancestors()
        .nth(2)
        .context("the test binary has no folder")?;
    Ok(folder.to_owned())
}

/// What is missing for a lab on this machine, if anything.
pub(crate) fn can_run() -> Result<(), String> {
    let own_user = Command::new("id")
        .arg("-u")
        .output()
        .map_err(|error| format!("id: {error}"))?;
    if own_user.stdout.trim_ascii() != b"0" {
        return Err("the lab needs root here".into());
    }
    let envoy = root().join(".tools/envoy-1.40.0/envoy");
    if !envoy.exists() {
        return Err(format!("{} is missing; run `make setup`", envoy.display()));
    }
    Ok(())
}

impl Lab {
    pub(crate) async fn up() -> Result<Self> {
        let state = tempfile::Builder::new().prefix("mesozoic-e2e-").tempdir()?;
        let up = istioctl(
            state.path(),
            &["lab", "up", "--bookinfo", "--timeout", "180"],
        )?;
        // From here on `down` must run, also when a later step fails.
        let down = Down(state.path());
        if !up.status.success() {
            print_file(&state.path().join("lab.log"));
            bail!("istioctl lab up: {}{}", text(&up.stdout), text(&up.stderr));
        }
        let kubeconfig = kube::config::Kubeconfig::read_from(state.path().join("kubeconfig"))?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
        let cluster = Cluster {
            client: kube::Client::try_from(config)?,
            namespace: "default".into(),
            istio_namespace: "istio-system".into(),
        };
        let ingress = mesh::ingress(&cluster).await?;
        std::mem::forget(down);
        let lab = Self {
            state,
            cluster,
            ingress,
        };
        lab.settled().await?;
        Ok(lab)
    }

    /// Runs `istioctl` against this lab and hands back its standard output.
    pub(crate) fn istioctl(&self, arguments: &[&str]) -> Result<String> {
        let output = istioctl(self.state.path(), arguments)?;
        if !output.status.success() {
            bail!(
                "istioctl {}: {}{}",
                arguments.join(" "),
                text(&output.stdout),
                text(&output.stderr)
            );
        }
        Ok(text(&output.stdout))
    }

    /// Runs kubectl against this lab, with `input` on its standard input.
    pub(crate) fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String> {
        use std::io::Write as _;
        let program = [
            ".tools/kubectl/kubectl",
            ".tools/kubectl-1.20/usr/bin/kubectl",
        ]
        .map(|path| root().join(path))
        .into_iter()
        .find(|path| path.exists())
        .context("no kubectl in .tools; run `make setup`")?;
        let mut child = Command::new(program)
            .arg("--kubeconfig")
            .arg(self.state.path().join("kubeconfig"))
            .args(arguments)
            // The discovery cache belongs to this lab alone.
            .env("HOME", self.state.path())
            .current_dir(root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child
            .stdin
            .take()
            .context("no standard input")?
            .write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "kubectl {}: {}{}",
                arguments.join(" "),
                text(&output.stdout),
                text(&output.stderr)
            );
        }
        Ok(text(&output.stdout))
    }

    /// Applies YAML and waits until every sidecar has acknowledged what follows from it.
    pub(crate) async fn apply(&self, yaml: &str) -> Result<Applied<'_>> {
        self.kubectl(&["apply", "-f", "-"], yaml)?;
        let applied = Applied {
            lab: self,
            undo: Undo::Delete(yaml.to_owned()),
        };
        self.settled().await?;
        Ok(applied)
    }

    /// Holds the ingress gateway at one replica, so that one pod sees all requests and keeps its counters.
    pub(crate) async fn one_gateway(&self) -> Result<Applied<'_>> {
        let autoscaler = ["get", "hpa", GATEWAY, "-o", "json"];
        let autoscaler = self.kubectl(&[&SYSTEM, &autoscaler[..]].concat(), "")?;
        let autoscaler: Value = serde_json::from_str(&autoscaler)?;
        let limits = json!({
            "minReplicas": autoscaler["spec"]["minReplicas"],
            "maxReplicas": autoscaler["spec"]["maxReplicas"],
        });
        self.limit_gateways(&json!({"minReplicas": 1, "maxReplicas": 1}))?;
        let applied = Applied {
            lab: self,
            undo: Undo::Autoscaler(limits),
        };
        // One that is on its way out still counts: it drains, and may get connections until everybody knows.
        let alone = || async {
            let pods = self.cluster.pods(SYSTEM[1], GATEWAY_LABEL).await?;
            Ok(match pods.as_slice() {
                [only] if is_ready(only) => Ok(()),
                _ => Err(format!("{} pods", pods.len())),
            })
        };
        let (limit, pause) = (Duration::from_secs(90), Duration::from_millis(200));
        eventually("one ingress gateway", limit, pause, alone).await?;
        Ok(applied)
    }

    fn limit_gateways(&self, limits: &Value) -> Result<()> {
        let patch = json!({"spec": limits}).to_string();
        let arguments = ["patch", "hpa", GATEWAY, "--type=merge", "-p", &patch];
        self.kubectl(&[&SYSTEM, &arguments[..]].concat(), "")
            .map(drop)
    }

    /// Waits until Pilot has pushed and every proxy has acknowledged.
    ///
    /// A change needs the debounce time to become a push, so one acknowledged state is not enough: it must hold.
    pub(crate) async fn settled(&self) -> Result<()> {
        let mut quiet = 0;
        eventually(
            "every proxy to acknowledge",
            Duration::from_secs(30),
            Duration::from_millis(150),
            || {
                let acked = mesh::all_acked(&self.cluster);
                quiet += 1;
                let rounds = quiet;
                async move {
                    let acked = acked.await?;
                    Ok(acked.and_then(|_| {
                        if rounds >= 4 {
                            Ok(())
                        } else {
                            Err("it must hold".into())
                        }
                    }))
                }
            },
        )
        .await?;
        Ok(())
    }

    /// One request through the ingress gateway on a connection of its own.
    pub(crate) async fn get(&self, host: &str, path: &str) -> Result<Reply> {
        Connection::new(self.ingress.clone())
            .get(host, path)
            .await
            .map_err(anyhow::Error::msg)
    }

    /// The sum of the ingress gateway's statistics whose name holds `name`.
    pub(crate) async fn gateway_stat(&self, name: &str) -> Result<u64> {
        let mut sum = 0;
        for pod in self
            .cluster
            .pods("istio-system", "istio=ingressgateway")
            .await?
        {
            let pod = pod.metadata.name.unwrap_or_default();
            let path = format!("/stats?filter={name}");
            let reply = self
                .cluster
                .pod_get("istio-system", &pod, mesh::ENVOY_ADMIN, &path)
                .await?;
            sum += reply
                .text()
                .lines()
                .filter_map(|line| line.rsplit_once(": ")?.1.parse::<u64>().ok())
                .sum::<u64>();
        }
        Ok(sum)
    }

    /// What helps to understand a failure.
    pub(crate) async fn print_evidence(&self) {
        for arguments in [
            &["get", "pods", "-A", "-o", "wide"][..],
            &["get", "events", "-A"],
        ] {
            println!(
                "$ kubectl {}\n{}",
                arguments.join(" "),
                self.kubectl(arguments, "")
                    .unwrap_or_else(|error| error.to_string())
            );
        }
        print_file(&self.state.path().join("lab.log"));
    }
}

/// What one check changed; it is undone when the check ends.
pub(crate) struct Applied<'a> {
    lab: &'a Lab,
    undo: Undo,
}

enum Undo {
    /// Delete these objects.
    Delete(String),
    /// Give the gateway's autoscaler its limits back: minimum and maximum.
    Autoscaler(Value),
}

impl Drop for Applied<'_> {
    fn drop(&mut self) {
        let undone = match &self.undo {
            Undo::Delete(yaml) => {
                let arguments = ["delete", "--ignore-not-found", "-f", "-"];
                self.lab.kubectl(&arguments, yaml).map(drop)
            }
            Undo::Autoscaler(limits) => self.lab.limit_gateways(limits),
        };
        if let Err(error) = undone {
            println!("     clean-up: {error:#}");
        }
    }
}

struct Down<'a>(&'a Path);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        let _ = istioctl(self.0, &["lab", "down"]);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(Down(self.state.path()));
    }
}

fn istioctl(state: &Path, arguments: &[&str]) -> Result<std::process::Output> {
    let folder = binaries()?;
    Command::new(folder.join("istioctl"))
        .args(arguments)
        .arg("--state-dir")
        .arg(state)
        .env("KUBECONFIG", state.join("kubeconfig"))
        .current_dir(root())
        .stdin(Stdio::null())
        .output()
        .with_context(|| {
            format!(
                "{}: build it first with `cargo build --workspace --bins`",
                folder.join("istioctl").display()
            )
        })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn print_file(path: &Path) {
    let contents = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = contents.lines().collect();
    println!("--- {} (last lines)", path.display());
    for line in &lines[lines.len().saturating_sub(60)..] {
        println!("{line}");
    }
}
