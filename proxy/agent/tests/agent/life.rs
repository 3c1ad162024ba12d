//! An agent, its real Envoy, and what both do when asked to end.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, Command},
    sync::Notify,
    time::{Instant, sleep},
};

pub(super) struct Agent {
    child: Child,
    pub(super) directory: tempfile::TempDir,
    status: u16,
    pub(super) admin: u16,
}

pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl Agent {
    fn start(envoy: &Path, flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (status, admin) = (free_port(), free_port());
        Self::start_in(directory, status, admin, envoy, flags, environment)
    }

    pub(super) fn start_in(
        directory: tempfile::TempDir,
        status: u16,
        admin: u16,
        envoy: &Path,
        flags: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_pilot-agent"))
            .args([
                "proxy",
                "sidecar",
                "--concurrency",
                "1",
                "--prometheusPort",
                "0",
            ])
            .args([
                "--discoveryAddress",
                "127.0.0.1:1",
                "--terminationDrainDuration",
                "1",
            ])
            .args(["--binaryPath", envoy.to_str().unwrap()])
            .args([
                "--configPath",
                directory.path().join("proxy").to_str().unwrap(),
            ])
            .args([
                "--statusPort",
                &status.to_string(),
                "--proxyAdminPort",
                &admin.to_string(),
            ])
            .args(flags)
            .env("INSTANCE_IP", "127.0.0.1")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            child,
            directory,
            status,
            admin,
        }
    }

    /// An agent whose Envoy gets clusters and listeners from files, so that it becomes ready without a Pilot. The
    /// listener's port and an app's port are given back.
    fn with_config_files(envoy: &Path, app: u16) -> (Self, u16) {
        let directory = tempfile::tempdir().unwrap();
        let (status, admin, listener) = (free_port(), free_port(), free_port());
        let bootstrap = write_config_files(directory.path(), admin, listener, app);
        let flags = ["--customConfigFile", bootstrap.to_str().unwrap()];
        let agent = Self::start_in(directory, status, admin, envoy, &flags, &[]);
        (agent, listener)
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id().expect("the agent runs")).unwrap()
    }

    fn envoy_pid(&self) -> Option<i32> {
        let pid = self.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let envoy = children.split_whitespace().next()?.parse().ok()?;
        // Between fork and exec it still is the agent.
        let name = std::fs::read_to_string(format!("/proc/{envoy}/comm")).ok()?;
        name.starts_with("envoy").then_some(envoy)
    }

    async fn envoy_answers(&self) {
        until("Envoy's admin interface answers", self, async || {
            get(self.admin, "/ready").await.is_some()
        })
        .await;
    }

    async fn is_ready(&self) {
        until("the proxy is ready", self, async || {
            get(self.status, "/healthz/ready")
                .await
                .is_some_and(|(status, _)| status == 200)
        })
        .await;
    }

    async fn ended(mut self) -> (Option<i32>, String) {
        let ended = tokio::time::timeout(Duration::from_secs(30), self.child.wait()).await;
        let log = self.log();
        let status = ended
            .unwrap_or_else(|_| panic!("the agent does not end:\n{log}"))
            .unwrap();
        (status.code(), log)
    }
}

fn write_config_files(directory: &Path, admin: u16, listener: u16, app: u16) -> PathBuf {
    let socket =
        |port: u16| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let file = |name: &str, content: serde_json::Value| {
        let path = directory.join(name);
        std::fs::write(&path, content.to_string()).unwrap();
        path
    };
    let cds = file(
        "cds.json",
        json!({"resources": [{
            "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "name": "app", "type": "STATIC",
            "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(app)}}]}]},
        }]}),
    );
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "inbound_test",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s"}},
        ]}]},
        "http_filters": [{"name": "router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        }}],
    });
    let lds = file(
        "lds.json",
        json!({"resources": [{
            "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
            "name": "test", "address": socket(listener),
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
        }]}),
    );
    let source =
        |path: PathBuf| json!({"path_config_source": {"path": path}, "resource_api_version": "V3"});
    file(
        "bootstrap.json",
        json!({
            "node": {"id": "test", "cluster": "test"},
            "admin": {"address": socket(admin)},
            "dynamic_resources": {"cds_config": source(cds), "lds_config": source(lds)},
        }),
    )
}

/// Polls a real process for a condition.
pub(super) async fn until(what: &str, agent: &Agent, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(
            Instant::now() < deadline,
            "{what}: not within 30 s\n{}",
            agent.log()
        );
        sleep(Duration::from_millis(20)).await;
    }
}

async fn call(port: u16, method: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

fn status_of(answer: &str) -> u16 {
    answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0)
}

pub(super) async fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let answer = call(port, "GET", path).await?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((status_of(head), body.to_owned()))
}

/// An app that answers at once, or, on /slow, when it is told to.
async fn app() -> (u16, std::sync::Arc<(Notify, Notify)>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let gates = std::sync::Arc::new((Notify::new(), Notify::new()));
    let shared = gates.clone();
    let slow = move || {
        let gates = shared.clone();
        async move {
            gates.0.notify_one();
            gates.1.notified().await;
            "slow and whole"
        }
    };
    let router = axum::Router::new()
        .route("/", axum::routing::get(|| async { "fast" }))
        .route(
            "/teapot",
            axum::routing::get(|| async { axum::http::StatusCode::IM_A_TEAPOT }),
        )
        .route("/slow", axum::routing::get(slow));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (port, gates)
}

#[tokio::test]
async fn without_pilot_the_proxy_says_what_it_waits_for() {
    let Some(envoy) = super::envoy() else { return };
    let probers = format!(
        r#"{{"/app-health/a/readyz":{{"path":"/teapot","port":{}}},"/app-health/a/livez":{{"port":1}}}}"#,
        app().await.0
    );
    let environment = [("ISTIO_KUBE_APP_PROBERS", probers.as_str())];
    let agent = Agent::start(&envoy, &["--unheardOf", "flag"], &environment);
    agent.envoy_answers().await;
    let (status, body) = get(agent.status, "/healthz/ready").await.unwrap();
    assert_eq!(status, 503);
    assert!(
        body.starts_with(
            "Envoy proxy is NOT ready: config not received from Pilot (is Pilot running?): cds updates: 0 successful, 0 rejected; \
             lds updates: 0 successful, 0 rejected"
        ),
        "{body}"
    );
    for (path, expected) in [
        ("/app-health/a/readyz", 418),
        ("/app-health/a/livez", 500),
        ("/app-health/b/livez", 400),
        ("/quitquitquit", 405),
        ("/elsewhere", 404),
    ] {
        assert_eq!(get(agent.status, path).await.unwrap().0, expected, "{path}");
    }
    assert!(
        agent
            .directory
            .path()
            .join("proxy/envoy-rev0.json")
            .is_file()
    );
    let quit = call(agent.status, "POST", "/quitquitquit").await.unwrap();
    assert_eq!(status_of(&quit), 200);
    let bootstrap = agent.directory.path().join("proxy/envoy-rev0.json");
    let (code, log) = agent.ended().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(
        !bootstrap.exists(),
        "the bootstrap is removed with its epoch"
    );
    assert!(log.contains("--unheardOf"), "{log}");
}

#[tokio::test]
async fn a_drain_serves_what_comes_and_finishes_what_is_under_way() {
    let Some(envoy) = super::envoy() else { return };
    let (port, gates) = app().await;
    let (agent, listener) = Agent::with_config_files(&envoy, port);
    agent.is_ready().await;
    let slow = tokio::spawn(async move { get(listener, "/slow").await });
    gates.0.notified().await;
    kill(Pid::from_raw(agent.pid()), Signal::SIGTERM).unwrap();
    until("readiness ends", &agent, async || {
        get(agent.status, "/healthz/ready")
            .await
            .is_some_and(|(status, body)| status == 503 && body.contains("DRAINING"))
    })
    .await;
    // Past the minimum of one second new connections are served while a request is under way.
    let least = Instant::now() + Duration::from_millis(1500);
    let mut served = 0;
    while Instant::now() < least {
        let answer = call(listener, "GET", "/")
            .await
            .expect("a new connection is accepted");
        assert_eq!(status_of(&answer), 200, "{answer}");
        assert!(
            answer.to_ascii_lowercase().contains("connection: close"),
            "{answer}"
        );
        served += 1;
    }
    assert!(served > 0);
    gates.1.notify_one();
    assert_eq!(
        slow.await.unwrap(),
        Some((200, "slow and whole".to_owned()))
    );
    let (code, log) = agent.ended().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("Envoy is drained"), "{log}");
}

#[tokio::test]
async fn the_agent_ends_with_its_envoy() {
    let Some(envoy) = super::envoy() else { return };
    let agent = Agent::start(&envoy, &[], &[]);
    agent.envoy_answers().await;
    kill(Pid::from_raw(agent.envoy_pid().unwrap()), Signal::SIGKILL).unwrap();
    let (code, log) = agent.ended().await;
    assert_eq!(code, Some(137), "{log}");
    assert!(log.contains("possibly for want of memory"), "{log}");
}

#[tokio::test]
async fn envoy_is_started_again_if_so_wanted() {
    let Some(envoy) = super::envoy() else { return };
    let agent = Agent::start(&envoy, &["--envoyRestarts", "1"], &[]);
    agent.envoy_answers().await;
    let first = agent.envoy_pid().unwrap();
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    until("another Envoy runs", &agent, async || {
        agent.envoy_pid().is_some_and(|pid| pid != first)
            && get(agent.admin, "/ready").await.is_some()
    })
    .await;
    assert!(
        agent
            .directory
            .path()
            .join("proxy/envoy-rev1.json")
            .is_file()
    );
    kill(Pid::from_raw(agent.envoy_pid().unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(agent.ended().await.0, Some(137), "the budget is spent");
}

#[tokio::test]
async fn no_envoy_outlives_its_agent() {
    let Some(envoy) = super::envoy() else { return };
    let agent = Agent::start(&envoy, &[], &[]);
    agent.envoy_answers().await;
    let pid = agent.envoy_pid().unwrap();
    kill(Pid::from_raw(agent.pid()), Signal::SIGKILL).unwrap();
    until("Envoy is gone", &agent, async || {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        state.is_empty() || state.contains(") Z ")
    })
    .await;
}

#[tokio::test]
async fn a_missing_envoy_is_named() {
    let agent = Agent::start(Path::new("/does/not/exist"), &[], &[]);
    let (code, log) = agent.ended().await;
    assert_eq!(code, Some(1));
    assert!(
        log.contains("--binaryPath /does/not/exist: no such file"),
        "{log}"
    );
}
