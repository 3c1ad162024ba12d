//! Volumes of a pod.
//!
//! Each lives in `pods/UID/volumes/NAME` and is bound into containers from there. [`Volumes::sync`] is called before the first
//! container starts and again whenever a ConfigMap, a Secret or the pod's metadata changed or a token is due; it writes
//! only what differs, and containers see new content by the `..data` link ([`payload`]). Volumes with secrets are tmpfs.

pub(crate) mod payload;

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{
        ConfigMap, DownwardAPIVolumeFile, HostPathVolumeSource, KeyToPath, Pod, Secret,
        ServiceAccount, ServiceAccountTokenProjection, Volume,
    },
};
use kube::{Api, Client};
use nix::mount::{MsFlags, mount};
use payload::{File, Payload};

use crate::{fields, objects::Objects};

/// A volume that cannot be set up (yet).
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {message}")]
pub(crate) struct VolumeError {
    pub(crate) volume: String,
    pub(crate) message: String,
}

/// What a pod's volumes are made from.
pub(crate) struct Inputs<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) ip: Ipv4Addr,
    pub(crate) objects: &'a Objects,
    pub(crate) client: &'a Client,
    /// `pods/UID`.
    pub(crate) pod_dir: &'a Path,
}

/// Tokens that were issued for a pod, and what its volumes hold. Not kept across restarts: new tokens are issued.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    tokens: BTreeMap<(String, String), Token>,
    written: BTreeMap<String, Payload>,
}

#[derive(Debug)]
struct Token {
    value: String,
    renew_at: Timestamp,
}

/// Where a volume lives.
pub(crate) fn path(pod_dir: &Path, volume: &str) -> PathBuf {
    pod_dir.join("volumes").join(volume)
}

impl Volumes {
    /// When the next token is due.
    pub(crate) fn next_renewal(&self) -> Option<Timestamp> {
        self.tokens.values().map(|token| token.renew_at).min()
    }

    /// Sets up all volumes, or brings them up to date.
    pub(crate) async fn sync(&mut self, inputs: &Inputs<'_>) -> Result<(), VolumeError> {
        let volumes = inputs
            .pod
            .spec
            .as_ref()
            .and_then(|spec| spec.volumes.as_deref())
            .unwrap_or_default();
        for volume in volumes {
            self.sync_one(volume, inputs)
                .await
                .map_err(|message| VolumeError {
                    volume: volume.name.clone(),
                    message,
                })?;
        }
        Ok(())
    }

    async fn sync_one(&mut self, volume: &Volume, inputs: &Inputs<'_>) -> Result<(), String> {
        let dir = path(inputs.pod_dir, &volume.name);
        if let Some(host_path) = &volume.host_path {
            return check_host_path(host_path);
        }
        fs::create_dir_all(&dir).map_err(|error| format!("creating {}: {error}", dir.display()))?;
        let group = fs_group(inputs.pod);
        if let Some(empty) = &volume.empty_dir {
            if empty.medium.as_deref() == Some("Memory") {
                let size = empty
                    .size_limit
                    .as_ref()
                    .and_then(fields::parse_quantity)
                    .map_or_else(
                        || "mode=1777".to_owned(),
                        |bytes| format!("mode=1777,size={bytes:.0}"),
                    );
                mount_memory(&dir, &size)?;
            }
            return open_to_all(&dir, group);
        }
        let Some(payload) = self.payload(volume, inputs).await? else {
            return Err(
                "this kind of volume is not supported here: accepted are emptyDir, hostPath, configMap, secret, \
                 projected and downwardAPI"
                    .into(),
            );
        };
        if volume.secret.is_some() || volume.projected.is_some() {
            mount_memory(&dir, "mode=755,size=16m")?;
        }
        if self.written.get(&volume.name) != Some(&payload) {
            payload::write(&dir, &payload, group)
                .map_err(|error| format!("writing {}: {error}", dir.display()))?;
            self.written.insert(volume.name.clone(), payload);
        }
        Ok(())
    }

    /// The files of a volume that is made of objects; `None` for other kinds of volume.
    async fn payload(
        &mut self,
        volume: &Volume,
        inputs: &Inputs<'_>,
    ) -> Result<Option<Payload>, String> {
        let namespace = inputs
            .pod
            .metadata
            .namespace
            .as_deref()
            .unwrap_or("default");
        let mut payload = Payload::new();
        if let Some(source) = &volume.config_map {
            let optional = source.optional == Some(true);
            let map = inputs.objects.config_map(namespace, &source.name);
            let data = select(
                map.as_deref().map(config_map_data),
                "configmap",
                &source.name,
                source.items.as_deref(),
                optional,
            )?;
            add(&mut payload, data, source.default_mode);
            return Ok(Some(payload));
        }
        if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let optional = source.optional == Some(true);
            let secret = inputs.objects.secret(namespace, name);
            let data = select(
                secret.as_deref().map(secret_data),
                "secret",
                name,
                source.items.as_deref(),
                optional,
            )?;
            add(&mut payload, data, source.default_mode);
            return Ok(Some(payload));
        }
        if let Some(source) = &volume.downward_api {
            let data = downward(source.items.as_deref().unwrap_or_default(), inputs)?;
            add(&mut payload, data, source.default_mode);
            return Ok(Some(payload));
        }
        let Some(projected) = &volume.projected else {
            return Ok(None);
        };
        for source in projected.sources.iter().flatten() {
            if let Some(part) = &source.config_map {
                let map = inputs.objects.config_map(namespace, &part.name);
                let optional = part.optional == Some(true);
                let data = select(
                    map.as_deref().map(config_map_data),
                    "configmap",
                    &part.name,
                    part.items.as_deref(),
                    optional,
                )?;
                add(&mut payload, data, projected.default_mode);
            }
            if let Some(part) = &source.secret {
                let secret = inputs.objects.secret(namespace, &part.name);
                let optional = part.optional == Some(true);
                let data = select(
                    secret.as_deref().map(secret_data),
                    "secret",
                    &part.name,
                    part.items.as_deref(),
                    optional,
                )?;
                add(&mut payload, data, projected.default_mode);
            }
            if let Some(part) = &source.downward_api {
                let data = downward(part.items.as_deref().unwrap_or_default(), inputs)?;
                add(&mut payload, data, projected.default_mode);
            }
            if let Some(part) = &source.service_account_token {
                let token = self.token(&volume.name, part, namespace, inputs).await?;
                add(
                    &mut payload,
                    vec![(part.path.clone(), token.into_bytes(), None)],
                    projected.default_mode,
                );
            }
        }
        Ok(Some(payload))
    }

    /// The current token for a projection; a new one when 80 % of its life (or a day) is over.
    async fn token(
        &mut self,
        volume: &str,
        projection: &ServiceAccountTokenProjection,
        namespace: &str,
        inputs: &Inputs<'_>,
    ) -> Result<String, String> {
        let key = (volume.to_owned(), projection.path.clone());
        let now = Timestamp::now();
        if let Some(token) = self.tokens.get(&key).filter(|token| token.renew_at > now) {
            return Ok(token.value.clone());
        }
        let spec = inputs.pod.spec.as_ref();
        let account = spec
            .and_then(|spec| spec.service_account_name.as_deref())
            .unwrap_or("default");
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: projection.audience.clone().into_iter().collect(),
                expiration_seconds: Some(projection.expiration_seconds.unwrap_or(3600)),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: inputs.pod.metadata.name.clone(),
                    uid: inputs.pod.metadata.uid.clone(),
                }),
            },
            ..Default::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(inputs.client.clone(), namespace);
        let issued = api
            .create_token_request(account, &Default::default(), &request)
            .await
            .map_err(|error| format!("failed to fetch token: {error}"))?;
        let status = issued
            .status
            .ok_or("failed to fetch token: the answer has no status")?;
        // Tokens may be valid for longer than asked (the API's own audience); what was asked decides on renewal.
        let asked = request.spec.expiration_seconds.unwrap_or(3600);
        let life = status
            .expiration_timestamp
            .0
            .duration_since(now)
            .as_secs()
            .min(asked)
            .clamp(1, 86_400);
        let renew_at = now
            .checked_add(SignedDuration::from_secs(life * 4 / 5))
            .unwrap_or(now);
        let value = status.token;
        self.tokens.insert(
            key,
            Token {
                value: value.clone(),
                renew_at,
            },
        );
        Ok(value)
    }
}

type Data = Vec<(String, Vec<u8>, Option<i32>)>;

fn config_map_data(map: &ConfigMap) -> BTreeMap<&str, Vec<u8>> {
    let text = map
        .data
        .iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value.clone().into_bytes()));
    let binary = map
        .binary_data
        .iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value.0.clone()));
    text.chain(binary).collect()
}

fn secret_data(secret: &Secret) -> BTreeMap<&str, Vec<u8>> {
    secret
        .data
        .iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value.0.clone()))
        .collect()
}

/// All keys, or those that `items` names at the paths it gives.
fn select(
    data: Option<BTreeMap<&str, Vec<u8>>>,
    kind: &str,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
) -> Result<Data, String> {
    let Some(data) = data else {
        return if optional {
            Ok(Vec::new())
        } else {
            Err(format!("{kind} \"{name}\" not found"))
        };
    };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(data
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value, None))
            .collect());
    };
    let mut selected = Vec::new();
    for item in items {
        match data.get(item.key.as_str()) {
            Some(value) => selected.push((item.path.clone(), value.clone(), item.mode)),
            None if optional => {}
            None => return Err(format!("references non-existent {kind} key: {}", item.key)),
        }
    }
    Ok(selected)
}

fn downward(items: &[DownwardAPIVolumeFile], inputs: &Inputs<'_>) -> Result<Data, String> {
    items
        .iter()
        .map(|item| {
            let text = if let Some(selector) = &item.field_ref {
                fields::field(inputs.pod, inputs.ip, selector)?
            } else if let Some(selector) = &item.resource_field_ref {
                let name = selector.container_name.as_deref().unwrap_or_default();
                let container = inputs
                    .pod
                    .spec
                    .as_ref()
                    .and_then(|spec| {
                        spec.containers
                            .iter()
                            .find(|container| container.name == name)
                    })
                    .ok_or_else(|| format!("resourceFieldRef: there is no container \"{name}\""))?;
                fields::resource(container, selector)?
            } else {
                return Err(format!(
                    "downwardAPI item {} needs fieldRef or resourceFieldRef",
                    item.path
                ));
            };
            Ok((item.path.clone(), text.into_bytes(), item.mode))
        })
        .collect()
}

fn add(payload: &mut Payload, data: Data, default_mode: Option<i32>) {
    for (path, content, mode) in data {
        let mode = mode
            .or(default_mode)
            .and_then(|mode| u32::try_from(mode).ok())
            .unwrap_or(0o644);
        payload.insert(
            path,
            File {
                content,
                mode: mode & 0o777,
            },
        );
    }
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// Mounts a tmpfs unless one is there already.
fn mount_memory(dir: &Path, options: &str) -> Result<(), String> {
    let parent = dir.parent().unwrap_or(dir);
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev());
    if matches!((device(dir), device(parent)), (Ok(a), Ok(b)) if a != b) {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some(options))
        .map_err(|error| format!("mounting a tmpfs: {error}"))
}

fn open_to_all(dir: &Path, group: Option<u32>) -> Result<(), String> {
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    if group.is_some() {
        std::os::unix::fs::chown(dir, None, group)
            .map_err(|error| format!("changing the group: {error}"))?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
        .map_err(|error| format!("changing the mode: {error}"))
}

fn check_host_path(source: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    let fail = |what: &str| {
        Err(format!(
            "hostPath type check failed: {} is not {what}",
            source.path
        ))
    };
    match source.type_.as_deref().unwrap_or("") {
        "DirectoryOrCreate" if !path.exists() => {
            fs::create_dir_all(path).map_err(|error| format!("creating {}: {error}", source.path))
        }
        "FileOrCreate" if !path.exists() => fs::File::create(path)
            .map(drop)
            .map_err(|error| format!("creating {}: {error}", source.path)),
        "Directory" | "DirectoryOrCreate" if !path.is_dir() => fail("a directory"),
        "File" | "FileOrCreate" if !path.is_file() => fail("a file"),
        "" if !path.exists() => {
            fs::create_dir_all(path).map_err(|error| format!("creating {}: {error}", source.path))
        }
        _ if !path.exists() => fail("there"),
        _ => Ok(()),
    }
}
