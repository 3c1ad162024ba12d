//! A running Envoy that gets everything by ADS.

use std::{
    fs::{OpenOptions, Permissions},
    net::{Ipv4Addr, SocketAddr},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{
    ENVOY, Net, Pilot, Pod, Process, Request, Response, get, send, tail_on_failure, until,
};

/// How an Envoy in a pod is started.
pub(crate) struct Proxy {
    kind: &'static str,
    /// NAME.NAMESPACE.
    id: String,
    metadata: Value,
    locality: Value,
    delta: bool,
    bound: bool,
    /// Socket on which an agent serves secrets.
    secrets: Option<PathBuf>,
}

impl Proxy {
    /// The sidecar of workload `NAME.NAMESPACE`. Its label `app` is NAME up to the first `-`.
    pub(crate) fn sidecar(id: &str) -> Self {
        Self::new("sidecar", id)
    }

    /// A gateway, with the label `istio: ingressgateway`.
    pub(crate) fn router(id: &str) -> Self {
        Self::new("router", id).labels(json!({"istio": "ingressgateway"}))
    }

    fn new(kind: &'static str, id: &str) -> Self {
        let app = id.split(['-', '.']).next().unwrap();
        Self {
            kind,
            id: id.to_owned(),
            metadata: json!({"ISTIO_VERSION": "1.4.10", "LABELS": {"app": app}}),
            locality: json!({}),
            delta: true,
            bound: kind == "router",
            secrets: None,
        }
    }

    /// Envoy binds its listeners; nothing is redirected.
    pub(crate) fn bound(self) -> Self {
        let mut this = self.metadata("INTERCEPTION_MODE", json!("NONE"));
        this.bound = true;
        this
    }

    /// All labels of the workload.
    pub(crate) fn labels(self, labels: Value) -> Self {
        self.metadata("LABELS", labels)
    }

    /// A key of the node's metadata.
    pub(crate) fn metadata(mut self, key: &str, value: Value) -> Self {
        self.metadata[key] = value;
        self
    }

    /// `region/zone/subzone` of the node.
    pub(crate) fn locality(mut self, text: &str) -> Self {
        let mut parts = text.split('/');
        let mut part = || parts.next().unwrap_or_default();
        self.locality = json!({"region": part(), "zone": part(), "sub_zone": part()});
        self
    }

    /// Secrets are served at this socket, as pilot-agent does for its Envoy.
    pub(crate) fn secrets(mut self, socket: &Path) -> Self {
        self.secrets = Some(socket.to_owned());
        self.metadata("AGENT_SDS", json!("1"))
    }

    /// State of the world instead of delta.
    pub(crate) fn sotw(mut self) -> Self {
        self.delta = false;
        self
    }

    /// Starts it in a new pod and waits until it is live and has Pilot's newest world.
    pub(crate) async fn start(self, net: &Net, pilot: &Pilot) -> Envoy {
        self.start_in(net.pod(), pilot).await
    }

    /// As [`Proxy::start`], in a pod that exists.
    pub(crate) async fn start_in(self, pod: Pod, pilot: &Pilot) -> Envoy {
        if !self.bound {
            pod.redirect();
        }
        let (_, namespace) = self.id.split_once('.').expect("NAME.NAMESPACE");
        let node = format!(
            "{}~{}~{}~{namespace}.svc.cluster.local",
            self.kind, pod.ip, self.id
        );
        let mut bootstrap = bootstrap(pilot.grpc, self.delta, &node, &self.metadata);
        bootstrap["node"]["locality"] = self.locality;
        if let Some(socket) = &self.secrets {
            let clusters = bootstrap["static_resources"]["clusters"].as_array_mut();
            let clusters = clusters.unwrap();
            let mut cluster = clusters[0].clone();
            cluster["name"] = json!("sds-grpc");
            cluster["load_assignment"] = json!({"cluster_name": "sds-grpc", "endpoints": [{"lb_endpoints": [{
                "endpoint": {"address": {"pipe": {"path": socket}}}
            }]}]});
            clusters.push(cluster);
        }
        bootstrap["admin"]["address"]["socket_address"] =
            json!({"address": pod.ip.to_string(), "port_value": 15000});
        let mut envoy = Envoy::launch(node, &bootstrap, Some(pod)).await;
        envoy.on_loopback = self.kind == "sidecar" && self.bound;
        envoy.live().await;
        pilot.settle(&envoy).await;
        envoy
    }
}

/// A running Envoy that gets everything by ADS.
pub(crate) struct Envoy {
    _process: Process,
    folder: TempDir,
    pod: Option<Pod>,
    /// Its outbound listeners are bound to the loopback address.
    on_loopback: bool,
    pub node: String,
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

fn bootstrap(pilot: SocketAddr, delta: bool, node: &str, metadata: &Value) -> Value {
    let api_type = if delta { "DELTA_GRPC" } else { "GRPC" };
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    json!({
        "node": {"id": node, "cluster": "test", "metadata": metadata},
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
    })
}

impl Envoy {
    /// Starts it outside of pods, on loopback, with this node ID and metadata; returns once its admin answers.
    pub(crate) async fn start(
        pilot: SocketAddr,
        delta: bool,
        node_id: &str,
        metadata: Value,
    ) -> Self {
        let bootstrap = bootstrap(pilot, delta, node_id, &metadata);
        Self::launch(node_id.to_owned(), &bootstrap, None).await
    }

    async fn launch(node: String, bootstrap: &Value, pod: Option<Pod>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bootstrap.json");
        std::fs::write(&file, bootstrap.to_string()).unwrap();
        let admin_file = folder.path().join("admin");
        // Appended to, as access logs may be written through /dev/stdout at the same time.
        let log_file = folder.path().join("envoy.log");
        let mut log = OpenOptions::new();
        let log = log.create(true).append(true).open(&log_file).unwrap();
        let mut command = Command::new(envoy_binary());
        command
            .arg("-c")
            .arg(&file)
            .arg("--admin-address-path")
            .arg(&admin_file)
            .args(["--disable-hot-restart", "--concurrency", "1"])
            .args(["--log-level", "info"])
            .args(["--component-log-level", "main:warning"])
            .stdout(log.try_clone().unwrap())
            .stdin(Stdio::null())
            .stderr(log);
        let process = match &pod {
            None => Process::start(&mut command),
            Some(pod) => {
                // Envoy's own user writes there too.
                for (path, mode) in [(folder.path(), 0o777), (&log_file, 0o666)] {
                    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
                }
                command.uid(ENVOY).gid(ENVOY);
                pod.run(move || Process::start(&mut command))
            }
        };
        let mut this = Self {
            _process: process,
            folder,
            pod,
            on_loopback: false,
            node,
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        this.admin = until("envoy's admin address", async || {
            std::fs::read_to_string(&admin_file)
                .ok()?
                .trim()
                .parse()
                .ok()
        })
        .await;
        this
    }

    /// The pod it is in.
    pub(crate) fn pod(&self) -> &Pod {
        self.pod.as_ref().expect("this Envoy is in a pod")
    }

    /// The pod's address.
    pub(crate) fn ip(&self) -> Ipv4Addr {
        self.pod().ip
    }

    /// Connects from inside the pod, as its application would: where Envoy binds its listeners, to the port on loopback.
    pub(crate) async fn connect(&self, to: &str) -> std::io::Result<TcpStream> {
        let mut to: SocketAddr = to.parse().unwrap();
        if self.on_loopback {
            to.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        self.pod().connect(&to.to_string()).await
    }

    /// A request on a new connection from inside the pod, as its application would send it.
    pub(crate) async fn ask(&self, to: &str, request: Request) -> Result<Response, String> {
        let stream = self.connect(to).await.map_err(|e| format!("{to}: {e}"))?;
        send(stream, request).await
    }

    pub(crate) async fn admin(&self, path: &str) -> String {
        until(path, async || get(self.admin, "envoy", path).await)
            .await
            .1
    }

    /// A counter or gauge, 0 if there is none.
    pub(crate) async fn stat(&self, name: &str) -> u64 {
        // The filter is a regular expression: the name is quoted in it, then both for the URL.
        let name = name.replace('|', "%7C");
        let text = self
            .admin(&format!("/stats?filter=%5E%5CQ{name}%5CE$"))
            .await;
        let value = text.trim().rsplit(' ').next();
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    pub(crate) async fn live(&self) {
        until("envoy is live", async || {
            (get(self.admin, "envoy", "/ready").await?.0 == 200).then_some(())
        })
        .await;
    }

    /// Waits until nothing that was received is still being put into force.
    pub(crate) async fn warm(&self) {
        until("no listener and no cluster is warming", async || {
            let stats = self.admin("/stats?filter=warming").await;
            let mut lines = stats.lines();
            lines.all(|line| line.ends_with(": 0")).then_some(())
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

    /// Its log, and the access log where the mesh sends it to /dev/stdout.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("envoy.log")).unwrap()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        tail_on_failure(&self.node, &self.folder.path().join("envoy.log"));
    }
}
