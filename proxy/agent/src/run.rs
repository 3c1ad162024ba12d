//! The composition root.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use http::Method;
use mesh_service::{Drain, serve};
use tokio::net::{TcpListener, lookup_host};

use crate::{
    Environment,
    admin::Admin,
    args::{ProxyArgs, RequestArgs, Role},
    bootstrap::{self, Certificates, Inputs, RemoteService, Source},
    certificates,
    identity::{self, Identity},
    metadata, sds,
    status::{self, app_health::AppHealth, ready::Readiness},
    supervise::{self, End, Envoy},
};

/// `pilot-agent proxy`.
pub(crate) async fn proxy(
    args: Box<ProxyArgs>,
    environment: Environment,
) -> anyhow::Result<ExitCode> {
    // From here on a signal drains, also while the agent still waits for an address.
    let drain = Drain::on_signals().context("installing signal handlers")?;
    let prepared = tokio::select! {
        prepared = prepare(&args, &environment) => prepared?,
        () = drain.begun() => return Ok(ExitCode::SUCCESS),
    };
    let Prepared {
        identity,
        bootstrap,
    } = prepared;
    let admin = Admin::new(identity.localhost(), args.proxy_admin_port);

    let status_drain = Drain::default();
    if args.status_port != 0 {
        let readiness = Readiness::new(
            admin.clone(),
            &args.discovery_address,
            match args.role {
                Role::Router => application_ports(&args.application_ports)?,
                Role::Sidecar => Vec::new(),
            },
        );
        let probers = environment
            .get("ISTIO_KUBE_APP_PROBERS")
            .map_or("", String::as_str);
        let router = status::router(readiness, AppHealth::parse(probers)?, drain.clone());
        let address = SocketAddr::new(identity.wildcard().parse()?, args.status_port);
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("--statusPort: listening on {address}"))?;
        status_drain.spawn(serve::http(listener, router, status_drain.clone()));
    }

    let envoy = Envoy {
        binary: args.binary_path.clone(),
        arguments: supervise::arguments(
            &args,
            &identity.node_id(),
            identity.is_ipv6(),
            config_override(&environment)?,
        ),
        admin,
        restarts: args.envoy_restarts,
        drain_bounds: (
            Duration::from_secs(args.termination_drain_seconds),
            Duration::from_secs(
                args.termination_drain_maximum_seconds
                    .max(args.termination_drain_seconds),
            ),
        ),
    };
    let end = envoy
        .run(&drain, |epoch| bootstrap.file(&args, epoch))
        .await?;
    status_drain.begin();
    if status_drain.finish(Duration::from_secs(1)).await.is_err() {
        tracing::debug!("the status server ended early");
    }
    Ok(match end {
        End::Drained => ExitCode::SUCCESS,
        End::Exited(status) => exit_code(status),
    })
}

/// `pilot-agent request`.
pub(crate) async fn request(args: RequestArgs) -> anyhow::Result<ExitCode> {
    let RequestArgs {
        method,
        path,
        proxy_admin_port,
    } = args;
    let method: Method = method
        .to_ascii_uppercase()
        .parse()
        .context("METHOD must be GET or POST")?;
    let path = format!("/{}", path.trim_start_matches('/'));
    let (status, body) = Admin::new("127.0.0.1", proxy_admin_port)
        .call(method, &path)
        .await?;
    print!("{body}");
    if status.is_success() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("pilot-agent: Envoy answered {status}");
    Ok(ExitCode::FAILURE)
}

struct Prepared {
    identity: Identity,
    bootstrap: Bootstrap,
}

enum Bootstrap {
    File(PathBuf),
    Rendered(serde_json::Value),
}

impl Bootstrap {
    /// The file of an epoch, and whether it was written for it.
    fn file(&self, args: &ProxyArgs, epoch: u32) -> anyhow::Result<(PathBuf, bool)> {
        match self {
            Self::File(path) => Ok((path.clone(), false)),
            Self::Rendered(value) => {
                let path = bootstrap::write(&args.config_path, epoch, value).with_context(|| {
                    format!(
                        "writing the bootstrap into --configPath {}; it must be a directory that this user may write to",
                        args.config_path.display()
                    )
                })?;
                Ok((path, true))
            }
        }
    }
}

async fn prepare(args: &ProxyArgs, environment: &Environment) -> anyhow::Result<Prepared> {
    let identity = Identity::discover(args, environment).await?;
    tracing::info!(
        node = identity.node_id(),
        discovery = args.discovery_address,
        "proxy"
    );
    // Also for a bootstrap of the user's own, which may have a cluster for it.
    let secrets = serve_secrets(args, environment).await;
    let istio_bootstrap = environment.get("ISTIO_BOOTSTRAP").map(String::as_str);
    let bootstrap = match bootstrap::source(args, istio_bootstrap)? {
        Source::File(path) => Bootstrap::File(path),
        Source::BuiltIn => {
            let certificates = certificates::choose(args, environment).await;
            let mut flags = Vec::new();
            if matches!(certificates, Certificates::Sds(_)) {
                flags.extend(["SDS", "TRUSTJWT"]);
            }
            if secrets.is_some() {
                flags.push("AGENT_SDS");
            }
            let (metadata, errors) = metadata::collect(environment, &identity, &flags);
            for error in errors {
                tracing::warn!("{error}");
            }
            Bootstrap::Rendered(bootstrap::render(&Inputs {
                args,
                identity: &identity,
                metadata: &metadata,
                pilot_san: identity::pilot_san(args, environment),
                certificates,
                statsd: resolve_statsd(&args.statsd_udp_address).await,
                metrics_service: RemoteService::parse(
                    "--envoyMetricsService",
                    &args.envoy_metrics_service,
                )?,
                access_log_service: RemoteService::parse(
                    "--envoyAccessLogService",
                    &args.envoy_access_log_service,
                )?,
                secrets,
            })?)
        }
    };
    Ok(Prepared {
        identity,
        bootstrap,
    })
}

/// Serves secrets; where that cannot be, Pilot lets Envoy read certificate files by itself.
async fn serve_secrets(args: &ProxyArgs, environment: &Environment) -> Option<PathBuf> {
    match sds::start(args, environment).await {
        Ok(()) => Some(sds::socket(args, environment)),
        Err(error) => {
            tracing::error!(
                error = format!("{error:#}"),
                "no secret discovery for Envoy"
            );
            None
        }
    }
}

/// Envoy takes an IP address only; a name that cannot be resolved costs the sink, not the proxy.
async fn resolve_statsd(address: &str) -> Option<(IpAddr, u16)> {
    if address.is_empty() {
        return None;
    }
    match tokio::time::timeout(Duration::from_secs(15), lookup_host(address)).await {
        Ok(Ok(mut found)) => found.next().map(|found| (found.ip(), found.port())),
        Ok(Err(error)) => {
            tracing::warn!(address, %error, "--statsdUdpAddress cannot be resolved, going on without statsd");
            None
        }
        Err(_) => {
            tracing::warn!(
                address,
                "--statsdUdpAddress cannot be resolved in time, going on without statsd"
            );
            None
        }
    }
}

fn config_override(environment: &Environment) -> anyhow::Result<Option<String>> {
    let path = environment
        .get("ISTIO_BOOTSTRAP_OVERRIDE")
        .filter(|path| !path.is_empty());
    path.map(|path| {
        std::fs::read_to_string(path)
            .with_context(|| format!("reading ISTIO_BOOTSTRAP_OVERRIDE {path}"))
    })
    .transpose()
}

fn application_ports(text: &str) -> anyhow::Result<Vec<u16>> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| {
            part.parse().map_err(|_| {
                anyhow::anyhow!("--applicationPorts {text:?}: {part:?} is not a port; give ports separated by commas")
            })
        })
        .collect()
}

/// As a shell reports it: the exit status, or 128 and the signal.
fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
