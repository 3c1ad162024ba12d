//! The Node object and its heartbeat.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{
            Node, NodeAddress, NodeCondition, NodeSpec, NodeStatus, NodeSystemInfo, ObjectReference,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time},
    },
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use tokio_util::sync::CancellationToken;

use crate::{
    fields,
    network::{GATEWAY, POD_CIDR},
    pod::events::{NORMAL, Recorder},
};

const HEARTBEAT: Duration = Duration::from_secs(10);
const LEASE_SECONDS: i32 = 40;
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Kubernetes version the node claims; matches the API server's.
const KUBELET_VERSION: &str = "v1.32.0-mesozoic";

/// Registers the node, then renews its Lease until `stop`.
pub(crate) async fn run(client: Client, name: String, events: Recorder, stop: CancellationToken) {
    let mut uid = None;
    let mut announced = false;
    loop {
        let result = async {
            if uid.is_none() {
                uid = register(&client, &name).await?;
            }
            heartbeat(&client, &name, uid.as_deref()).await
        };
        let mut wait = HEARTBEAT;
        match result.await {
            Ok(()) if !announced => {
                announced = true;
                let about = ObjectReference {
                    kind: Some("Node".into()),
                    name: Some(name.clone()),
                    uid: Some(name.clone()),
                    ..Default::default()
                };
                events.emit(&about, NORMAL, "Starting", "Starting kubelet.".into());
                events.emit(
                    &about,
                    NORMAL,
                    "NodeReady",
                    format!("Node {name} status is now: NodeReady"),
                );
            }
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(%error, "the node's heartbeat failed, retrying");
                wait = Duration::from_secs(1);
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn register(client: &Client, name: &str) -> kube::Result<Option<String>> {
    let api: Api<Node> = Api::all(client.clone());
    let node = Node {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(
                [
                    ("kubernetes.io/hostname", name),
                    ("kubernetes.io/os", "linux"),
                    ("kubernetes.io/arch", go_arch()),
                    ("beta.kubernetes.io/os", "linux"),
                    ("beta.kubernetes.io/arch", go_arch()),
                    ("node-role.kubernetes.io/control-plane", "true"),
                ]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ),
            ..Default::default()
        },
        spec: Some(NodeSpec {
            pod_cidr: Some(POD_CIDR.into()),
            pod_cidrs: Some(vec![POD_CIDR.into()]),
            provider_id: Some(format!("mesozoic://{name}")),
            ..Default::default()
        }),
        status: None,
    };
    if api.get_opt(name).await?.is_none() {
        api.create(&PostParams::default(), &node).await?;
    }
    let patch = serde_json::json!({ "status": status(name) });
    let node = api
        .patch_status(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(node.metadata.uid)
}

fn status(name: &str) -> NodeStatus {
    let now = Timestamp::now();
    let condition = |type_: &str, status: &str, reason: &str, message: &str| NodeCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_heartbeat_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    let capacity = [
        ("cpu", Quantity(format!("{:.0}", fields::capacity("cpu")))),
        (
            "memory",
            Quantity(format!("{:.0}Ki", fields::capacity("memory") / 1024.0)),
        ),
        ("pods", Quantity("500".into())),
    ]
    .map(|(key, value)| (key.to_owned(), value));
    let text = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    NodeStatus {
        addresses: Some(vec![
            NodeAddress {
                type_: "InternalIP".into(),
                address: GATEWAY.to_string(),
            },
            NodeAddress {
                type_: "Hostname".into(),
                address: name.into(),
            },
        ]),
        capacity: Some(capacity.clone().into()),
        allocatable: Some(capacity.into()),
        conditions: Some(vec![
            condition(
                "MemoryPressure",
                "False",
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ),
            condition(
                "DiskPressure",
                "False",
                "KubeletHasNoDiskPressure",
                "kubelet has no disk pressure",
            ),
            condition(
                "PIDPressure",
                "False",
                "KubeletHasSufficientPID",
                "kubelet has sufficient PID available",
            ),
            condition(
                "Ready",
                "True",
                "KubeletReady",
                "kubelet is posting ready status",
            ),
        ]),
        node_info: Some(NodeSystemInfo {
            architecture: go_arch().into(),
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            container_runtime_version: format!("mesozoic://{}", env!("CARGO_PKG_VERSION")),
            kernel_version: text("/proc/sys/kernel/osrelease"),
            kube_proxy_version: KUBELET_VERSION.into(),
            kubelet_version: KUBELET_VERSION.into(),
            machine_id: text("/etc/machine-id"),
            operating_system: "linux".into(),
            os_image: os_image(),
            system_uuid: text("/etc/machine-id"),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn os_image() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or_else(
            || "Linux".to_owned(),
            |name| name.trim_matches('"').to_owned(),
        )
}

/// The architecture as Go names it.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

async fn heartbeat(client: &Client, name: &str, uid: Option<&str>) -> kube::Result<()> {
    let api: Api<Lease> = Api::namespaced(client.clone(), LEASE_NAMESPACE);
    let now = MicroTime(Timestamp::now());
    let renew = serde_json::json!({ "spec": { "holderIdentity": name, "renewTime": now } });
    match api
        .patch(name, &PatchParams::default(), &Patch::Merge(&renew))
        .await
    {
        Ok(_) => return Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(error),
    }
    let owner = uid.map(|uid| OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        ..Default::default()
    });
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            owner_references: owner.map(|owner| vec![owner]),
            ..Default::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(now),
            ..Default::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await.map(drop)
}
