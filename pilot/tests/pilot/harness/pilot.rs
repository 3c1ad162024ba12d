//! A running pilot-discovery over a config directory.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU64, Ordering},
};

use serde_json::Value;
use tempfile::TempDir;

use super::{Envoy, Process, get, tail_on_failure, until};

/// How Pilot is started.
pub(crate) struct PilotOptions {
    listen: IpAddr,
    mesh: Option<String>,
    args: Vec<String>,
    environment: Vec<(String, String)>,
}

impl PilotOptions {
    /// Where gRPC and HTTP are served; without this, on loopback.
    pub(crate) fn listen(mut self, address: IpAddr) -> Self {
        self.listen = address;
        self
    }

    /// Mesh settings, as YAML.
    pub(crate) fn mesh(mut self, yaml: &str) -> Self {
        self.mesh = Some(yaml.to_owned());
        self
    }

    /// More flags: `--name=value`.
    pub(crate) fn arg(mut self, flag: &str) -> Self {
        self.args.push(flag.to_owned());
        self
    }

    /// An environment variable, as Istio's users set them.
    pub(crate) fn env(mut self, key: &str, value: &str) -> Self {
        self.environment.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Starts it and waits until it is ready; the config directory may be filled before by `prepare`.
    pub(crate) async fn start(self, prepare: impl FnOnce(&Path)) -> Pilot {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("config")).unwrap();
        prepare(&folder.path().join("config"));
        if let Some(mesh) = &self.mesh {
            std::fs::write(folder.path().join("mesh"), mesh).unwrap();
        }
        let addresses = folder.path().join("addresses.json");
        let log = std::fs::File::create(folder.path().join("pilot.log")).unwrap();
        let any_port = SocketAddr::new(self.listen, 0).to_string();
        let process = Process::start(
            Command::new(env!("CARGO_BIN_EXE_pilot-discovery"))
                .arg("discovery")
                .args(["--grpcAddr", &any_port, "--httpAddr", &any_port])
                .args(["--monitoringAddr", &any_port])
                .args(["--log-level", "info,pilot=debug,pilot_xds=debug"])
                .args(["--debounceAfter", "10ms"])
                .arg("--addressFile")
                .arg(&addresses)
                .arg("--configDir")
                .arg(folder.path().join("config"))
                .arg("--meshConfig")
                .arg(folder.path().join("mesh"))
                .args(self.args)
                .env_remove("KUBECONFIG")
                .envs(self.environment)
                .stdout(Stdio::null())
                .stderr(log),
        );
        let mut pilot = Pilot {
            process,
            folder,
            grpc: SocketAddr::new(self.listen, 0),
            http: SocketAddr::new(self.listen, 0),
            marks: AtomicU64::new(0),
        };
        let addresses: Value = until("pilot's addresses", async || {
            serde_json::from_str(&std::fs::read_to_string(&addresses).ok()?).ok()
        })
        .await;
        let address = |key: &str| addresses[key].as_str().unwrap().parse().unwrap();
        (pilot.grpc, pilot.http) = (address("grpc"), address("http"));
        until("pilot is ready", async || {
            (get(pilot.http, "pilot", "/ready").await?.0 == 200).then_some(())
        })
        .await;
        pilot
    }
}

/// A running pilot-discovery over a config directory.
pub(crate) struct Pilot {
    process: Process,
    pub folder: TempDir,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    /// Counts the worlds that were waited for.
    marks: AtomicU64,
}

impl Pilot {
    /// On loopback, with defaults.
    pub(crate) async fn start(prepare: impl FnOnce(&Path)) -> Self {
        Self::options().start(prepare).await
    }

    pub(crate) fn options() -> PilotOptions {
        PilotOptions {
            listen: Ipv4Addr::LOCALHOST.into(),
            mesh: None,
            args: Vec::new(),
            environment: Vec::new(),
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Writes or replaces the file `NAME.yaml` of the config directory in one step.
    pub(crate) fn write(&self, name: &str, text: &str) {
        write(&self.folder.path().join("config"), name, text);
    }

    /// Removes a file that was written.
    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.folder.path().join(format!("config/{name}.yaml"))).unwrap();
    }

    /// Replaces the mesh settings.
    pub(crate) fn write_mesh(&self, text: &str) {
        let partial = self.folder.path().join("mesh.partial");
        std::fs::write(&partial, text).unwrap();
        std::fs::rename(partial, self.folder.path().join("mesh")).unwrap();
    }

    /// Waits until everything that was written before this call is in force at this proxy: Pilot has read it, the proxy
    /// has acknowledged the world made of it, and no listener or cluster of it is warming any more. (Mesh settings are
    /// another file: after [`Pilot::write_mesh`] wait for what they change.)
    pub(crate) async fn settle(&self, envoy: &Envoy) {
        let world = self.world().await;
        until("the proxy has the newest world", async || {
            let clients = self.json("/debug/adsz").await;
            let synced = clients.as_array()?.iter().filter(|client| {
                let node = client["node"].as_str().unwrap_or_default();
                node.rsplit_once('-').map(|(id, _)| id) == Some(&envoy.node)
            });
            let newest = synced.filter_map(|c| c["synced"].as_u64()).max()?;
            (newest >= world).then_some(())
        })
        .await;
        envoy.warm().await;
    }

    /// The number of a world that has everything that is written now: a service that nobody can see is written too, and once
    /// it is known, so is what was written before it.
    async fn world(&self) -> u64 {
        let mark = self.marks.fetch_add(1, Ordering::Relaxed);
        let host = format!("mark-{mark}.harness.invalid");
        self.write(
            "zz-mark",
            &format!(
                "apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata: {{name: mark, namespace: harness}}
spec: {{hosts: [{host}], exportTo: ['.'], resolution: STATIC, ports: [{{number: 1, name: tcp, protocol: TCP}}], endpoints: [{{address: 192.0.2.1}}]}}
"
            ),
        );
        until("pilot has read its config", async || {
            let services = self.json("/debug/registryz").await;
            let mut hosts = services.as_array()?.iter().map(|s| &s["hostname"]);
            hosts.any(|h| *h == *host).then_some(())
        })
        .await;
        let status = self.json("/debug/push_status").await;
        let version = status["Version"].as_str().unwrap();
        // Versions count from 0, worlds from 1.
        version.rsplit_once('/').unwrap().1.parse::<u64>().unwrap() + 1
    }

    pub(crate) async fn page(&self, path: &str) -> (u16, String) {
        until(path, async || get(self.http, "pilot", path).await).await
    }

    pub(crate) async fn json(&self, path: &str) -> Value {
        let (status, body) = self.page(path).await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("pilot.log")).unwrap()
    }

    /// Waits for the end and gives the exit status.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        self.process.exit().await
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        tail_on_failure("pilot", &self.folder.path().join("pilot.log"));
    }
}

/// Replaces a file in one step.
pub(crate) fn write(folder: &Path, name: &str, text: &str) {
    let partial = folder.join(format!("{name}.partial"));
    std::fs::write(&partial, text).unwrap();
    std::fs::rename(partial, folder.join(format!("{name}.yaml"))).unwrap();
}
