//! From a pod's container to the specification its shim runs.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume, VolumeMount};

use super::{Context, sandbox::Sandbox};
use crate::{
    container::{ContainerSpec, Mount, privileges::Privileges},
    environment,
    images::Image,
    network::{CLUSTER_DOMAIN, DNS_IP},
    volumes,
};

/// Why a container cannot be made; the text is the waiting message.
#[derive(Debug)]
pub(crate) enum PlanError {
    /// `ErrImagePull`
    Image(String),
    /// `CreateContainerConfigError`
    Config(String),
}

/// One container to plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) container: &'a Container,
    pub(crate) attempt: u32,
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) pod_dir: &'a Path,
}

/// Directory of one run of a container.
pub(crate) fn run_dir(pod_dir: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_dir
        .join("containers")
        .join(container)
        .join(attempt.to_string())
}

/// Log file of one run of a container.
pub(crate) fn log_path(context: &Context, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
    let meta = &pod.metadata;
    context
        .state
        .container_logs(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
            meta.uid.as_deref().unwrap_or_default(),
            container,
        )
        .join(format!("{attempt}.log"))
}

/// Builds the specification.
pub(crate) fn plan(
    context: &Context,
    request: Request<'_>,
) -> Result<(ContainerSpec, Image), PlanError> {
    let Request {
        pod,
        container,
        attempt,
        sandbox,
        pod_dir,
    } = request;
    let image = context
        .images
        .resolve(container.image.as_deref().unwrap_or_default())
        .map_err(PlanError::Image)?;
    let spec = pod
        .spec
        .as_ref()
        .ok_or_else(|| PlanError::Config("the pod has no spec".into()))?;
    let privileges = privileges(spec, container).map_err(PlanError::Config)?;
    let services = context.services.borrow().clone();
    let inputs = environment::Inputs {
        pod,
        container,
        ip: sandbox.ip,
        hostname: hostname(pod),
        uid: privileges.uid,
        services: &services,
    };
    let env = environment::build(&inputs, &context.objects).map_err(PlanError::Config)?;
    let known = env.iter().cloned().collect();
    let expand = |words: Option<&Vec<String>>| -> Vec<String> {
        words
            .into_iter()
            .flatten()
            .map(|word| environment::expand(word, &known))
            .collect()
    };
    let mut argv = expand(
        container
            .command
            .as_ref()
            .filter(|command| !command.is_empty()),
    );
    if argv.is_empty() {
        argv.clone_from(&image.entrypoint);
    }
    argv.extend(expand(container.args.as_ref()));

    let dir = run_dir(pod_dir, &container.name, attempt);
    let mut mounts = own_files(pod_dir, &dir, container)
        .map_err(|error| PlanError::Config(format!("{error:#}")))?;
    for mount in container.volume_mounts.iter().flatten() {
        mounts.push(volume_mount(spec, mount, pod_dir, &known).map_err(PlanError::Config)?);
    }
    let spec = ContainerSpec {
        argv,
        env,
        cwd: container
            .working_dir
            .clone()
            .filter(|dir| !dir.is_empty())
            .unwrap_or_else(|| "/".into()),
        read_only_root: container
            .security_context
            .as_ref()
            .and_then(|s| s.read_only_root_filesystem)
            .unwrap_or(false),
        privileges,
        binaries: image.mounts(),
        mounts,
        pause: sandbox.pause,
        log: log_path(context, pod, &container.name, attempt),
        dir,
    };
    Ok((spec, image))
}

/// The pod's host name.
pub(crate) fn hostname(pod: &Pod) -> &str {
    let name = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.hostname.as_deref())
        .or(pod.metadata.name.as_deref())
        .unwrap_or("pod");
    let end = name.char_indices().nth(63).map_or(name.len(), |(at, _)| at);
    &name[..end]
}

fn privileges(spec: &PodSpec, container: &Container) -> Result<Privileges, String> {
    let pod = spec.security_context.as_ref();
    let own = container.security_context.as_ref();
    let id =
        |own: Option<i64>, pod: Option<i64>| u32::try_from(own.or(pod).unwrap_or(0)).unwrap_or(0);
    let uid = id(
        own.and_then(|s| s.run_as_user),
        pod.and_then(|s| s.run_as_user),
    );
    let gid = id(
        own.and_then(|s| s.run_as_group),
        pod.and_then(|s| s.run_as_group),
    );
    if uid == 0
        && own
            .and_then(|s| s.run_as_non_root)
            .or(pod.and_then(|s| s.run_as_non_root))
            == Some(true)
    {
        return Err("container has runAsNonRoot and image will run as root".into());
    }
    let groups = pod
        .and_then(|s| s.supplemental_groups.clone())
        .into_iter()
        .flatten()
        .chain(pod.and_then(|s| s.fs_group))
        .filter_map(|gid| u32::try_from(gid).ok())
        .collect();
    let capabilities = own.and_then(|s| s.capabilities.as_ref());
    Ok(Privileges {
        uid,
        gid,
        groups,
        add: capabilities.and_then(|c| c.add.clone()).unwrap_or_default(),
        drop: capabilities
            .and_then(|c| c.drop.clone())
            .unwrap_or_default(),
        privileged: own.and_then(|s| s.privileged).unwrap_or(false),
    })
}

/// `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf` of the pod and the termination log of this run.
fn own_files(pod_dir: &Path, dir: &Path, container: &Container) -> anyhow::Result<Vec<Mount>> {
    let etc = pod_dir.join("etc");
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let log = dir.join("termination-log");
    fs::write(&log, "").with_context(|| format!("creating {}", log.display()))?;
    fs::set_permissions(&log, fs::Permissions::from_mode(0o666))
        .context("mode of the termination log")?;
    let mut mounts: Vec<Mount> = ["hosts", "hostname", "resolv.conf"]
        .map(|name| Mount {
            source: etc.join(name),
            target: Path::new("/etc").join(name),
            read_only: false,
        })
        .into();
    let target = container
        .termination_message_path
        .clone()
        .unwrap_or_else(|| "/dev/termination-log".into());
    mounts.push(Mount {
        source: log,
        target: target.into(),
        read_only: false,
    });
    Ok(mounts)
}

/// Writes the pod's files for `/etc`.
pub(crate) fn write_etc(pod: &Pod, ip: Ipv4Addr, pod_dir: &Path) -> anyhow::Result<()> {
    let etc = pod_dir.join("etc");
    fs::create_dir_all(&etc).with_context(|| format!("creating {}", etc.display()))?;
    let spec = pod.spec.as_ref().context("the pod has no spec")?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let hostname = hostname(pod);
    let mut names = String::new();
    if let Some(subdomain) = &spec.subdomain {
        names.push_str(&format!(
            "{hostname}.{subdomain}.{namespace}.svc.{CLUSTER_DOMAIN} "
        ));
    }
    names.push_str(hostname);
    let mut hosts = format!(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{ip}\t{names}\n"
    );
    for alias in spec.host_aliases.iter().flatten() {
        hosts.push_str(&format!(
            "{}\t{}\n",
            alias.ip,
            alias.hostnames.clone().unwrap_or_default().join("\t")
        ));
    }
    for (name, text) in [
        ("hosts", hosts),
        ("hostname", format!("{hostname}\n")),
        ("resolv.conf", resolv_conf(spec, namespace)),
    ] {
        let path = etc.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
            .context("mode of the pod's files")?;
    }
    Ok(())
}

fn resolv_conf(spec: &PodSpec, namespace: &str) -> String {
    let (mut servers, mut search, mut options) = match spec.dns_policy.as_deref() {
        Some("None") => (Vec::new(), Vec::new(), Vec::new()),
        Some("Default") => return fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        _ => (
            vec![DNS_IP.to_string()],
            vec![
                format!("{namespace}.svc.{CLUSTER_DOMAIN}"),
                format!("svc.{CLUSTER_DOMAIN}"),
                CLUSTER_DOMAIN.to_owned(),
            ],
            vec!["ndots:5".to_owned()],
        ),
    };
    if let Some(config) = &spec.dns_config {
        servers.extend(config.nameservers.clone().unwrap_or_default());
        search.extend(config.searches.clone().unwrap_or_default());
        options.extend(config.options.iter().flatten().filter_map(|option| {
            let name = option.name.as_ref()?;
            Some(
                option
                    .value
                    .as_ref()
                    .map_or_else(|| name.clone(), |value| format!("{name}:{value}")),
            )
        }));
    }
    let mut text = String::new();
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

fn volume_mount(
    spec: &PodSpec,
    mount: &VolumeMount,
    pod_dir: &Path,
    env: &std::collections::BTreeMap<String, String>,
) -> Result<Mount, String> {
    let volume = spec
        .volumes
        .iter()
        .flatten()
        .find(|volume| volume.name == mount.name)
        .ok_or_else(|| {
            format!(
                "volumeMounts: there is no volume \"{}\" in the pod",
                mount.name
            )
        })?;
    let base = match &volume.host_path {
        Some(host_path) => PathBuf::from(&host_path.path),
        None => volumes::path(pod_dir, &volume.name),
    };
    let expanded = mount
        .sub_path_expr
        .as_ref()
        .map(|text| environment::expand(text, env));
    let sub_path = expanded
        .as_deref()
        .or(mount.sub_path.as_deref())
        .filter(|path| !path.is_empty());
    let source = match sub_path {
        None => base,
        Some(sub_path) => sub_path_of(&base, sub_path, is_payload(volume))?,
    };
    Ok(Mount {
        source,
        target: PathBuf::from(&mount.mount_path),
        read_only: mount.read_only.unwrap_or(false) || is_payload(volume),
    })
}

/// Volumes that the node writes and containers only read.
fn is_payload(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some()
}

/// A path below a volume; must not leave it, not even through links.
fn sub_path_of(base: &Path, sub_path: &str, payload: bool) -> Result<PathBuf, String> {
    if Path::new(sub_path)
        .components()
        .any(|part| !matches!(part, std::path::Component::Normal(_)))
    {
        return Err(format!(
            "subPath \"{sub_path}\" must be relative and must not contain '..'"
        ));
    }
    let wanted = base.join(sub_path);
    if !wanted.exists() && !payload {
        fs::create_dir_all(&wanted)
            .map_err(|error| format!("failed to create subPath {sub_path}: {error}"))?;
        let _ = fs::set_permissions(&wanted, fs::Permissions::from_mode(0o777));
    }
    let real = wanted
        .canonicalize()
        .map_err(|error| format!("failed to prepare subPath {sub_path}: {error}"))?;
    let real_base = base
        .canonicalize()
        .map_err(|error| format!("{}: {error}", base.display()))?;
    if real.starts_with(&real_base) {
        Ok(real)
    } else {
        Err(format!("subPath \"{sub_path}\" leads out of the volume"))
    }
}
