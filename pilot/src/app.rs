//! The composition root.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use kube::Client;
use mesh_service::{BuildInfo, Drain, Health, admin, serve};
use mesh_sources::{MeshSource, NetworksSource};
use pilot_xds::{Debounce, Engine, Publisher, Settings, server};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    args::{Discovery, OptionalAddress},
    debug::{self, Debug},
    inputs::{self, Intake},
    metrics::Metrics,
    networks, reflection, registry,
    secure::{self, SecurePort},
    source::PilotSource,
    sources::{self, MeshFollower},
};

/// How often `/metrics` takes in what generators found.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// How long requests under way may take once the drain has begun; connections get 10 s of it.
const DRAIN: Duration = Duration::from_secs(12);

/// Runs until a signal or until an essential part dies.
pub(crate) async fn run(args: Discovery) -> anyhow::Result<()> {
    let Discovery {
        grpc_addr,
        secure_grpc_addr,
        cert_dir,
        http_addr,
        monitoring_addr,
        address_file,
        registries,
        kubeconfig,
        config_dir,
        mesh_config,
        networks_config,
        namespace,
        app_namespace,
        domain,
        trust_domain,
        pod_name,
        keepalive_interval,
        keepalive_timeout,
        max_connection_age,
        max_connections,
        debounce_after,
        debounce_max,
        eds_debounce,
        push_throttle,
        generation,
    } = args;
    raise_file_limit();
    let drain = Drain::on_signals()?;
    let health = Health::default();
    let registered = mesh_service::Metrics::default();
    let metrics = Metrics::new(&registered);
    let xds_metrics = registered.with_registry(pilot_xds::Metrics::new);

    let default = if config_dir.is_some() {
        "Mock"
    } else {
        "Kubernetes"
    };
    let platforms = registry::platforms(&registries, default)?;
    let needs_kubernetes = platforms.iter().any(|p| p.needs_kubernetes);
    let client = match needs_kubernetes || config_dir.is_none() {
        true => Some(kubernetes_client(kubeconfig.as_deref()).await?),
        false => None,
    };

    // Sockets first: what cannot be bound should fail before anything runs.
    let in_cluster = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let host = if in_cluster {
        Ipv4Addr::UNSPECIFIED
    } else {
        Ipv4Addr::LOCALHOST
    };
    let or = |given: Option<SocketAddr>, port| given.unwrap_or(SocketAddr::from((host, port)));
    let grpc = bind("--grpcAddr", or(grpc_addr, 15010)).await?;
    let http = bind("--httpAddr", or(http_addr, 8080)).await?;
    let monitoring = bind("--monitoringAddr", or(monitoring_addr, 15014)).await?;
    let secure_address = match secure_grpc_addr {
        Some(OptionalAddress(address)) => address,
        None => Some(SocketAddr::from((host, 15012))),
    };
    let secure = match secure_address {
        Some(address) => Some(SecurePort::new(address, &cert_dir).await?),
        None => None,
    };

    let intake = Intake::new(metrics.clone());
    let publisher: Arc<Publisher<PilotSource>> = Arc::default();
    let engine = Engine::new(
        Arc::new(PilotSource),
        publisher.subscribe(),
        Settings {
            identifier: pod_name,
            push_throttle,
            ..Settings::default()
        },
        xds_metrics.clone(),
    );

    // Sources.
    let (contexts, context) = watch::channel(None);
    let source = MeshSource::new();
    let client_of = client.as_ref();
    let location = sources::mesh_location(mesh_config, client_of, &namespace, "mesh");
    drain.spawn(source.clone().run(location, drain.token()));
    let follower = MeshFollower {
        source,
        intake: intake.clone(),
        contexts,
        domain: domain.clone(),
        trust_domain,
        condition: health.condition("mesh"),
    };
    drain.spawn(follower.run(drain.clone()));
    let networks = NetworksSource::new();
    let location = sources::mesh_location(networks_config, client_of, &namespace, "meshNetworks");
    drain.spawn(networks.clone().run(location, drain.token()));
    drain.spawn(networks::follow(
        networks,
        intake.clone(),
        health.condition("mesh networks"),
        drain.clone(),
    ));
    let configs = sources::config_source(config_dir, client.as_ref(), &app_namespace, &drain);
    drain.spawn(sources::follow_configs(
        configs.clone(),
        intake.clone(),
        metrics.clone(),
        health.condition("config"),
        drain.clone(),
    ));
    let setup = registry::Setup {
        client,
        namespace: app_namespace,
        context,
        metrics: metrics.clone(),
    };
    registry::start(&platforms, &setup, &intake, &health, &drain)?;

    // Worlds.
    let debounce = Debounce {
        quiet: debounce_after,
        max: debounce_max,
        endpoints_quiet: if eds_debounce {
            Debounce::default().endpoints_quiet
        } else {
            Duration::ZERO
        },
        ..Debounce::default()
    };
    let ready = health.condition("snapshot");
    let options = Arc::new(generation.options(&domain));
    let rebuild = inputs::rebuild(intake.clone(), options, debounce, publisher.clone(), ready);
    drain.spawn_essential("snapshots", {
        let drain = drain.clone();
        async move {
            tokio::select! {
                () = rebuild => Err("ended by itself"),
                () = drain.begun() => Ok(()),
            }
        }
    });
    drain.spawn(report(publisher.clone(), metrics, drain.clone()));

    // Servers.
    let build = BuildInfo::new("pilot-discovery", env!("CARGO_PKG_VERSION"));
    let debug = Debug {
        engine: engine.clone(),
        publisher,
        intake,
        configs,
    };
    let pages = admin::router(&health, &registered, build).merge(debug::router(debug));
    let limits = server::ServerSettings {
        max_connections,
        keepalive_interval,
        keepalive_timeout,
        max_age: max_connection_age.0,
        ..server::ServerSettings::default()
    };
    let secure_address = secure.as_ref().and_then(SecurePort::address);
    let bound = [&grpc, &http, &monitoring];
    write_addresses(address_file.as_deref(), bound, secure_address)?;
    tracing::info!(
        grpc = %grpc.local_addr()?, http = %http.local_addr()?, monitoring = %monitoring.local_addr()?,
        "pilot-discovery {}", env!("CARGO_PKG_VERSION")
    );
    drain.spawn_essential("HTTP", serve::http(http, pages.clone(), drain.clone()));
    drain.spawn_essential(
        "monitoring",
        serve::http(monitoring, pages.clone(), drain.clone()),
    );
    let routes = grpc_routes(&engine, &health, &drain)?.prepare();
    let refused = xds_metrics.connections_refused.clone();
    if let Some(secure) = secure {
        let service = secure::dispatch(routes.clone(), pages);
        let (token, refused) = (drain.token(), refused.clone());
        let serve = async move |listener, tls| {
            let Ok(()) = server::serve(listener, service, Some(tls), limits, token, refused).await;
        };
        drain.spawn(secure.run(health.clone(), drain.clone(), serve));
    }
    drain.spawn_essential(
        "xDS",
        server::serve(grpc, routes, None, limits, drain.token(), refused),
    );
    drain.finish(DRAIN).await?;
    Ok(())
}

async fn kubernetes_client(kubeconfig: Option<&std::path::Path>) -> anyhow::Result<Client> {
    let config = match kubeconfig.filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => {
            let file = kube::config::Kubeconfig::read_from(path)
                .with_context(|| format!("--kubeconfig {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(file, &Default::default())
                .await
                .with_context(|| format!("--kubeconfig {}", path.display()))?
        }
        None => kube::Config::infer().await.context(
            "no Kubernetes API: give --kubeconfig FILE, run in a cluster, or read config from files with --configDir",
        )?,
    };
    Ok(Client::try_from(config)?)
}

async fn report(publisher: Arc<Publisher<PilotSource>>, metrics: Metrics, drain: Drain) {
    let mut tick = tokio::time::interval(REPORT_EVERY);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = drain.begun() => return,
        }
        if let Some(published) = publisher.current() {
            metrics.report(&published.world.report());
        }
    }
}

fn grpc_routes(
    engine: &Arc<Engine<PilotSource>>,
    health: &Health,
    drain: &Drain,
) -> anyhow::Result<tonic::service::Routes> {
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let descriptors = reflection::descriptors();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(&descriptors)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    drain.spawn({
        let (health, drain) = (health.clone(), drain.clone());
        async move {
            reporter
                .set_service_status("", tonic_health::ServingStatus::NotServing)
                .await;
            tokio::select! {
                () = health.ready() => {}
                () = drain.begun() => return,
            }
            for service in pilot_xds::SERVICES.iter().chain([&""]) {
                reporter
                    .set_service_status(*service, tonic_health::ServingStatus::Serving)
                    .await;
            }
            drain.begun().await;
            reporter
                .set_service_status("", tonic_health::ServingStatus::NotServing)
                .await;
        }
    });
    Ok(pilot_xds::routes(engine)
        .add_service(health_service)
        .add_service(reflection))
}

async fn bind(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {flag} {address}"))
}

fn write_addresses(
    file: Option<&std::path::Path>,
    [grpc, http, monitoring]: [&TcpListener; 3],
    secure: Option<SocketAddr>,
) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    let addresses = serde_json::json!({
        "grpc": grpc.local_addr()?,
        "http": http.local_addr()?,
        "monitoring": monitoring.local_addr()?,
        "secureGrpc": secure,
    });
    // Whoever waits for the file must not read half of it.
    let partial = file.with_extension("partial");
    std::fs::write(&partial, addresses.to_string())
        .and_then(|()| std::fs::rename(&partial, file))
        .with_context(|| format!("--addressFile {}", file.display()))
}

/// Every proxy is a file descriptor; the soft limit is often 1024.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}
