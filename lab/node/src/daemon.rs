//! The composition root: API server, controllers and node in one process.
//!
//! Order of starting: bind on the host → enter the lab's namespaces (single-threaded) → runtime → API server → listeners →
//! watches → network → node → pods → controllers. Order of stopping: controllers → pods → the rest → namespaces, so that
//! nobody replaces what is being ended.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use lab_kubernetes::ApiServer;
use mesh_service::{Drain, logging};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    cli::DaemonArgs,
    files,
    images::Images,
    kubelet::{NodeKubelet, Sampler},
    lab::{
        self, Lab, down,
        host::HostNet,
        state::{LabInfo, StateDir},
    },
    network::{
        DNS_IP, GATEWAY, KUBERNETES_IP,
        addresses::Addresses,
        dns, node_ports,
        services::{self, ServiceTable},
        vips,
    },
    node,
    objects::Objects,
    pod::{Context, events, manager, table::PodTable},
    process::ProcId,
};

/// Port of the API server inside the lab, besides the VIP's 443.
const API_PORT: u16 = 6443;
/// Time for tasks to end after their stop signal.
const DRAIN: Duration = Duration::from_secs(10);

/// Runs the daemon until SIGTERM or SIGINT.
pub(crate) fn run(args: DaemonArgs) -> anyhow::Result<ExitCode> {
    let DaemonArgs {
        state_dir,
        bin_dir,
        envoy,
        images,
        listen,
        node_name,
        log,
    } = args;
    logging::init(&log)?;
    // Before anything is written: a refusal leaves nothing behind.
    lab::check_privilege()?;
    mesh_service::install_tls_provider();
    let state = StateDir::create(&state_dir)?;
    let lock = state.lock()?;
    let bin_dir = match bin_dir {
        Some(dir) => dir
            .canonicalize()
            .with_context(|| format!("--bin-dir {}", dir.display()))?,
        None => std::env::current_exe()
            .context("finding this program's directory")?
            .parent()
            .map(Path::to_owned)
            .unwrap_or_default(),
    };
    let envoy = find_envoy(envoy, &bin_dir)?;
    let images = Images::load(images.as_deref(), bin_dir, envoy)?;
    let host_listener = bind(listen, &state)?;
    let address = host_listener
        .local_addr()
        .context("address of the API listener")?;

    // From here on nothing of the host's network or mounts can be touched. No thread exists yet.
    let lab = Lab::enter(&state)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(serve(Parts {
            state,
            lab,
            images,
            host_listener,
            address,
            node_name,
        }))?;
    drop(lock);
    Ok(ExitCode::SUCCESS)
}

/// Same port as last time, if the user leaves the choice to us: kubeconfigs stay valid.
fn bind(listen: SocketAddr, state: &StateDir) -> anyhow::Result<TcpListener> {
    if listen.port() == 0
        && let Some(last) =
            files::read_json::<SocketAddr>(&state.root().join("listen.json")).unwrap_or(None)
        && last.ip() == listen.ip()
        && let Ok(listener) = TcpListener::bind(last)
    {
        return Ok(listener);
    }
    let listener = TcpListener::bind(listen).with_context(|| format!("listening on {listen}"))?;
    files::write_json(&state.root().join("listen.json"), &listener.local_addr()?)?;
    Ok(listener)
}

/// The given binary, or the nearest one.
fn find_envoy(given: Option<PathBuf>, bin_dir: &Path) -> anyhow::Result<Option<PathBuf>> {
    if let Some(path) = given {
        return path
            .canonicalize()
            .map(Some)
            .with_context(|| format!("--envoy {}", path.display()));
    }
    let beside = bin_dir.join("envoy");
    let tools = bin_dir
        .ancestors()
        .map(|dir| dir.join(".tools/envoy-1.40.0/envoy"));
    let found = std::iter::once(beside)
        .chain(tools)
        .find(|path| path.is_file());
    Ok(found.or_else(|| crate::tools::which("envoy")))
}

struct Parts {
    state: StateDir,
    lab: Lab,
    images: Images,
    host_listener: TcpListener,
    address: SocketAddr,
    node_name: String,
}

async fn serve(parts: Parts) -> anyhow::Result<()> {
    let Parts {
        state,
        lab,
        images,
        host_listener,
        address,
        node_name,
    } = parts;
    let Lab { host_net, adopted } = lab;
    let drain = Drain::on_signals().context("signal handlers")?;
    let api = open_api(&state, &node_name).await?;
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();

    listen(&api, &tasks, &stop, host_listener).await?;
    let client = api.client(&format!("system:node:{node_name}"));
    let objects = Arc::new(Objects::watch(&client, &tasks, &stop));
    let services = start_network(&objects, &client, host_net, &tasks, &stop)?;
    let (recorder, writer) = events::Recorder::new(client.clone(), node_name.clone());
    let writer_stop = stop.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = writer => {}
            () = writer_stop.cancelled() => {}
        }
    });
    let context = Arc::new(Context {
        client: client.clone(),
        node_name: node_name.clone(),
        addresses: Addresses::open(state.root().join("next-address")),
        state: state.clone(),
        images,
        objects,
        services,
        events: recorder.clone(),
        table: PodTable::default(),
    });
    let usage = Arc::new(Sampler::default());
    tasks.spawn(usage.clone().run(context.clone(), stop.clone()));
    api.set_kubelet(Arc::new(NodeKubelet {
        context: context.clone(),
        usage,
    }));
    tasks.spawn(node::run(
        client.clone(),
        node_name.clone(),
        recorder,
        stop.clone(),
    ));

    let stop_pods = CancellationToken::new();
    let pods = tokio::spawn(manager::run(context, stop_pods.clone()));
    let controllers = lab_controllers::Config {
        cluster_ca_pem: api.ca_certificate().to_owned(),
        ..Default::default()
    };
    let controllers = tokio::spawn(lab_controllers::run(
        api.client("system:kube-controller-manager"),
        controllers,
        drain.token(),
    ));
    announce(&api, &state, address, &node_name, adopted)?;

    drain.begun().await;
    tracing::info!("stopping: controllers, pods, node");
    if let Err(error) = controllers.await {
        tracing::error!(%error, "the controllers ended badly");
    }
    tracing::debug!("controllers have ended");
    stop_pods.cancel();
    if let Err(error) = pods.await {
        tracing::error!(%error, "the pods' manager ended badly");
    }
    tracing::debug!("pods have ended");
    // Watches end, so that serving ends without waiting for its clients.
    api.stop();
    stop.cancel();
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
    down::sweep(&state).await?;
    down::clean(&state, false)
}

async fn open_api(state: &StateDir, node_name: &str) -> anyhow::Result<ApiServer> {
    let config = lab_kubernetes::Config {
        db_path: state.db(),
        pki_dir: state.pki(),
        node_name: node_name.to_owned(),
        extra_sans: vec![KUBERNETES_IP.into(), GATEWAY.into()],
        advertise: Some((GATEWAY, API_PORT).into()),
        ..lab_kubernetes::Config::new(state.root())
    };
    ApiServer::open(config)
        .await
        .context("starting the API server")
}

/// Serves the API on the host's loopback, on the VIP, and on the node's address.
async fn listen(
    api: &ApiServer,
    tasks: &TaskTracker,
    stop: &CancellationToken,
    host_listener: TcpListener,
) -> anyhow::Result<()> {
    host_listener
        .set_nonblocking(true)
        .context("API listener")?;
    let host = tokio::net::TcpListener::from_std(host_listener).context("API listener")?;
    let mut listeners = vec![host];
    for inside in [
        SocketAddr::from((KUBERNETES_IP, 443)),
        SocketAddr::from((GATEWAY, API_PORT)),
    ] {
        let listener = tokio::net::TcpListener::bind(inside).await;
        listeners.push(listener.with_context(|| format!("listening on {inside} inside the lab"))?);
    }
    for listener in listeners {
        let (api, stop) = (api.clone(), stop.clone());
        tasks.spawn(async move { api.serve(listener, stop).await });
    }
    Ok(())
}

/// Starts everything that turns Services into reachable addresses.
fn start_network(
    objects: &Arc<Objects>,
    client: &kube::Client,
    host_net: std::fs::File,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> anyhow::Result<watch::Receiver<Arc<ServiceTable>>> {
    let (sender, table) = watch::channel(Arc::new(ServiceTable::default()));
    let publisher = objects.clone();
    let stopped = stop.clone();
    let rules = table.clone();
    let host = HostNet::start(host_net)?;
    let (node_ports, client) = (table.clone(), client.clone());
    let inner = tasks.clone();
    let dns_table = table.clone();
    let dns_stop = stop.clone();
    tasks.spawn(async move {
        if let Err(error) = dns::serve((DNS_IP, 53).into(), dns_table, dns_stop).await {
            tracing::error!("cluster DNS is not available: {error:#}");
        }
    });
    tasks.spawn(async move {
        // An empty table before the first list would tear down the rules of an adopted lab.
        publisher.ready().await;
        inner.spawn(services::publish(publisher, sender, stopped.clone()));
        let mut first = rules.clone();
        let _ = tokio::time::timeout(Duration::from_secs(5), first.changed()).await;
        inner.spawn(vips::run(rules, stopped.clone()));
        inner.spawn(node_ports::run(host, client, node_ports, stopped));
    });
    Ok(table)
}

/// Writes kubeconfig and lab.json, and says that the API is up.
fn announce(
    api: &ApiServer,
    state: &StateDir,
    address: SocketAddr,
    node: &str,
    adopted: bool,
) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let kubeconfig = state.kubeconfig();
    files::write_atomic(&kubeconfig, api.admin_kubeconfig(address).as_bytes())
        .context("writing the kubeconfig")?;
    std::fs::set_permissions(&kubeconfig, std::fs::Permissions::from_mode(0o600))
        .context("restricting the kubeconfig")?;
    let pid = i32::try_from(std::process::id()).context("pid out of range")?;
    let me = ProcId::of(pid).context("reading this process's start time")?;
    let info = LabInfo {
        pid,
        start_time: me.start,
        api_server: format!("https://{address}"),
        state_dir: state.root().to_owned(),
        kubeconfig: kubeconfig.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: node.to_owned(),
    };
    files::write_json(&state.lab_json(), &info)?;
    tracing::info!(
        adopted,
        "API server at {}, kubeconfig {}",
        info.api_server,
        kubeconfig.display()
    );
    println!(
        "API server at {}, kubeconfig {}",
        info.api_server,
        kubeconfig.display()
    );
    Ok(())
}
