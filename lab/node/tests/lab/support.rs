//! A lab for tests, and waiting for conditions.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::wait::await_condition,
};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_mesozoic-lab");

/// Why this machine cannot run the test.
pub(crate) fn cannot_run() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root for network and mount namespaces".into());
    }
    let probe = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "true"])
        .status();
    match probe {
        Ok(status) if status.success() => None,
        other => Some(format!(
            "this machine does not allow namespaces ({other:?})"
        )),
    }
}

/// A running lab in a temporary directory; taken down on drop.
pub(crate) struct Lab {
    pub(crate) state: tempfile::TempDir,
    pub(crate) daemon: Child,
    pub(crate) client: Client,
}

impl Lab {
    pub(crate) async fn up() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let state = tempfile::tempdir().unwrap();
        let daemon = start(state.path());
        let client = client(state.path()).await;
        let lab = Self {
            state,
            daemon,
            client,
        };
        lab.settled().await;
        lab
    }

    /// Service accounts and the node are there, so pods can be created.
    async fn settled(&self) {
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = self.api();
        eventually("the default service account", || async {
            accounts.get_opt("default").await.unwrap()
        })
        .await;
        let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(self.client.clone());
        eventually("the node", || async {
            nodes.get_opt("node0").await.unwrap()
        })
        .await;
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Kills the daemon and starts another one on the same state.
    pub(crate) async fn replace_daemon(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
        self.daemon = start(self.state.path());
        self.client = client(self.state.path()).await;
    }

    pub(crate) async fn create(&self, pod: Value) -> Pod {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        self.api::<Pod>()
            .create(&PostParams::default(), &pod)
            .await
            .unwrap()
    }

    pub(crate) async fn pod(&self, name: &str) -> Pod {
        self.api::<Pod>().get(name).await.unwrap()
    }

    pub(crate) async fn delete(&self, name: &str, grace: u32) {
        let params = DeleteParams {
            grace_period_seconds: Some(grace),
            ..Default::default()
        };
        self.api::<Pod>().delete(name, &params).await.unwrap();
    }

    /// Waits until the pod satisfies a condition.
    pub(crate) async fn until(
        &self,
        name: &str,
        what: &str,
        condition: impl Fn(&Pod) -> bool,
    ) -> Pod {
        let wait = await_condition(self.api::<Pod>(), name, |pod: Option<&Pod>| {
            pod.is_some_and(&condition)
        });
        match tokio::time::timeout(Duration::from_secs(60), wait).await {
            Ok(pod) => pod.unwrap().unwrap(),
            Err(_) => panic!(
                "{name}: {what} did not happen; status {:#?}",
                self.pod(name).await.status
            ),
        }
    }

    pub(crate) async fn until_ready(&self, name: &str) -> Pod {
        self.until(name, "becoming ready", is_ready).await
    }

    pub(crate) async fn until_gone(&self, name: &str) {
        let wait = await_condition(self.api::<Pod>(), name, |pod: Option<&Pod>| pod.is_none());
        tokio::time::timeout(Duration::from_secs(60), wait)
            .await
            .expect("pod did not go")
            .unwrap();
    }

    /// Runs a command in a pod; its standard output.
    pub(crate) async fn exec(&self, pod: &str, command: &[&str]) -> String {
        let params = kube::api::AttachParams::default()
            .stdout(true)
            .stderr(true)
            .stdin(false);
        let mut process = self
            .api::<Pod>()
            .exec(pod, command.iter().copied(), &params)
            .await
            .unwrap();
        let mut text = String::new();
        let mut stdout = process.stdout().unwrap();
        tokio::io::AsyncReadExt::read_to_string(&mut stdout, &mut text)
            .await
            .unwrap();
        text
    }

    pub(crate) fn print_log(&self) {
        println!(
            "{}",
            std::fs::read_to_string(self.state.path().join("test.log")).unwrap_or_default()
        );
        println!(
            "{}",
            std::fs::read_to_string(self.state.path().join("processes.log")).unwrap_or_default()
        );
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let down = Command::new(BINARY)
            .args(["down", "--purge", "--state-dir"])
            .arg(self.state.path())
            .status();
        if !down.is_ok_and(|status| status.success()) {
            eprintln!(
                "the lab in {} was not taken down",
                self.state.path().display()
            );
        }
    }
}

fn start(state: &Path) -> Child {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(state.join("test.log"))
        .unwrap();
    let mut daemon = Command::new(BINARY)
        .args([
            "daemon",
            "--log-level",
            "info,mesozoic_lab=debug",
            "--state-dir",
        ])
        .arg(state)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(daemon.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(
        line.starts_with("API server at"),
        "the daemon did not come up: {}",
        std::fs::read_to_string(state.join("test.log")).unwrap()
    );
    daemon
}

async fn client(state: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig(state)).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap();
    Client::try_from(config).unwrap()
}

fn kubeconfig(state: &Path) -> PathBuf {
    state.join("kubeconfig")
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Polls until there is a value: what is looked at is the state of other processes (files, sockets, answers), which
/// nothing tells of. Bounded; the pause only keeps the looking from using up a processor.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    for _ in 0..600 {
        if let Some(value) = look().await {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what} did not appear within a minute");
}

/// A pod with one container `c` that runs a shell script.
pub(crate) fn shell_pod(name: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "bash", "command": ["bash", "-c", script]}]}
    })
}

/// A pod with a Python web server on port 8080 that serves its own name.
pub(crate) fn web_pod(name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": app}},
        "spec": {"containers": [{
            "name": "c", "image": "python3",
            "command": ["bash", "-c", "cd /tmp && hostname > index.html && exec python3 -m http.server 8080"],
            "ports": [{"name": "http", "containerPort": 8080}],
            "readinessProbe": {"httpGet": {"path": "/", "port": "http"}}
        }]}
    })
}

/// A service for pods with label `app`.
pub(crate) fn service(name: &str, app: &str, extra: &Value) -> Value {
    let mut spec = json!({
        "selector": {"app": app},
        "ports": [{"name": "http", "port": 80, "targetPort": "http"}]
    });
    for (key, value) in extra.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}
