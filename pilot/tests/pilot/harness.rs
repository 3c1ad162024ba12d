//! Processes, files and small HTTP requests. Everything ends with the value that started it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Polls against real processes; what is waited for is a condition, never a time.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "waited 60 s for: {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Status and body; `None` if there was no complete answer.
pub(crate) async fn get(address: SocketAddr, host: &str, path: &str) -> Option<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let chunked = head
            .to_ascii_lowercase()
            .contains("transfer-encoding: chunked");
        Some((
            status,
            if chunked {
                dechunk(body)
            } else {
                body.to_owned()
            },
        ))
    };
    tokio::time::timeout(Duration::from_secs(10), exchange)
        .await
        .ok()?
}

fn dechunk(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        if size == 0 || size > rest.len() {
            break;
        }
        out += &rest[..size];
        body = rest[size..].trim_start_matches("\r\n");
    }
    out
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running pilot-discovery over a config directory.
pub(crate) struct Pilot {
    process: Process,
    pub folder: tempfile::TempDir,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
}

impl Pilot {
    /// Starts it; the directory may be filled before by `prepare`.
    pub(crate) async fn start(prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("config")).unwrap();
        prepare(&folder.path().join("config"));
        let addresses = folder.path().join("addresses.json");
        let log = std::fs::File::create(folder.path().join("pilot.log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_pilot-discovery"))
            .arg("discovery")
            .args(["--grpcAddr", "127.0.0.1:0", "--httpAddr", "127.0.0.1:0"])
            .args([
                "--monitoringAddr",
                "127.0.0.1:0",
                "--log-level",
                "info,pilot_xds=debug",
            ])
            .arg("--addressFile")
            .arg(&addresses)
            .arg("--configDir")
            .arg(folder.path().join("config"))
            .arg("--meshConfig")
            .arg(folder.path().join("mesh"))
            .env_remove("KUBECONFIG")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let process = Process(child);
        let addresses: Value = until("pilot's addresses", || async {
            serde_json::from_str(&std::fs::read_to_string(&addresses).ok()?).ok()
        })
        .await;
        let address = |key: &str| addresses[key].as_str().unwrap().parse().unwrap();
        let pilot = Self {
            process,
            folder,
            grpc: address("grpc"),
            http: address("http"),
        };
        until("pilot is ready", || async {
            (get(pilot.http, "pilot", "/ready").await?.0 == 200).then_some(())
        })
        .await;
        pilot
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.process.0.id()).unwrap()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        write(&self.folder.path().join("config"), name, text);
    }

    pub(crate) async fn page(&self, path: &str) -> (u16, String) {
        until(path, || get(self.http, "pilot", path)).await
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
    pub(crate) async fn exit(&mut self) -> std::process::ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.process.0.try_wait().unwrap() {
                return status;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "pilot does not end: {}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Replaces a file in one step.
pub(crate) fn write(folder: &Path, name: &str, text: &str) {
    let partial = folder.join(format!("{name}.partial"));
    std::fs::write(&partial, text).unwrap();
    std::fs::rename(partial, folder.join(format!("{name}.yaml"))).unwrap();
}

/// A running Envoy that gets everything by ADS.
pub(crate) struct Envoy {
    _process: Process,
    folder: tempfile::TempDir,
    pub admin: SocketAddr,
}

/// Where the pinned Envoy is.
fn envoy_binary() -> PathBuf {
    let pinned = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/envoy-1.40.0/envoy");
    match std::env::var_os("ENVOY") {
        Some(path) => path.into(),
        None if pinned.exists() => pinned,
        None => {
            panic!("no Envoy: run `make setup`, or name a binary in the environment variable ENVOY")
        }
    }
}

impl Envoy {
    /// Starts it with this node ID and metadata; returns once its admin answers.
    pub(crate) async fn start(
        pilot: SocketAddr,
        delta: bool,
        node_id: &str,
        metadata: Value,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let api_type = if delta { "DELTA_GRPC" } else { "GRPC" };
        let ads = json!({"ads": {}, "resource_api_version": "V3"});
        let bootstrap = json!({
            "node": {"id": node_id, "cluster": "test", "metadata": metadata},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": api_type, "transport_api_version": "V3",
                    "set_node_on_first_message_only": true,
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}]
                },
                "cds_config": ads, "lds_config": ads
            },
            "static_resources": {"clusters": [{
                "name": "xds-grpc", "type": "STATIC", "connect_timeout": "1s",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": {"http2_protocol_options": {}}
                    }
                },
                "load_assignment": {"cluster_name": "xds-grpc", "endpoints": [{"lb_endpoints": [{
                    "endpoint": {"address": {"socket_address": {
                        "address": pilot.ip().to_string(), "port_value": pilot.port()
                    }}}
                }]}]}
            }]}
        });
        let file = folder.path().join("bootstrap.json");
        std::fs::write(&file, bootstrap.to_string()).unwrap();
        let admin_file = folder.path().join("admin");
        let log = std::fs::File::create(folder.path().join("envoy.log")).unwrap();
        let child = Command::new(envoy_binary())
            .arg("-c")
            .arg(&file)
            .arg("--admin-address-path")
            .arg(&admin_file)
            .args([
                "--disable-hot-restart",
                "--concurrency",
                "1",
                "--log-level",
                "info",
            ])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let process = Process(child);
        let admin = until("envoy's admin address", || async {
            std::fs::read_to_string(&admin_file)
                .ok()?
                .trim()
                .parse()
                .ok()
        })
        .await;
        Self {
            _process: process,
            folder,
            admin,
        }
    }

    pub(crate) async fn admin(&self, path: &str) -> String {
        until(path, || get(self.admin, "envoy", path)).await.1
    }

    /// A counter or gauge, 0 if there is none.
    pub(crate) async fn stat(&self, name: &str) -> u64 {
        let text = self
            .admin(&format!("/stats?filter=^{}$", name.replace('|', "%7C")))
            .await;
        text.trim()
            .rsplit(' ')
            .next()
            .and_then(|value| value.parse().ok())
            .unwrap_or(0)
    }

    pub(crate) async fn live(&self) {
        until("envoy is live", || async {
            (get(self.admin, "envoy", "/ready").await?.0 == 200).then_some(())
        })
        .await;
    }

    /// Every kind of update, and none of them refused.
    pub(crate) async fn assert_nothing_rejected(&self) {
        let stats = self.admin("/stats?filter=update_rejected").await;
        let bad: Vec<&str> = stats
            .lines()
            .filter(|line| !line.ends_with(": 0"))
            .collect();
        assert!(
            stats.contains("cluster_manager.cds.update_rejected: 0"),
            "{stats}"
        );
        assert!(
            stats.contains("listener_manager.lds.update_rejected: 0"),
            "{stats}"
        );
        assert!(bad.is_empty(), "{bad:?}\n{}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("envoy.log")).unwrap()
    }
}
