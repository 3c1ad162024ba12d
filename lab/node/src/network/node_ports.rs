//! Node ports: TCP listeners on the host's loopback, for Services of type NodePort and LoadBalancer.
//!
//! A connection goes straight to a ready endpoint (no VIP in between). If dialling fails, the next endpoint is tried, so
//! a pod that dies between being ready and being known dead costs no connection. Bytes are copied both ways with
//! half-close. LoadBalancer services are told `127.0.0.1` as their ingress once their listeners stand.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use rand::seq::SliceRandom as _;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};
use tokio_util::sync::CancellationToken;

use super::services::{Kind, ServiceTable};
use crate::lab::host::HostNet;

/// Connections per lab over all node ports; further ones wait in the backlog.
const MAX_CONNECTIONS: usize = 16_384;
const DIAL: Duration = Duration::from_secs(2);
/// How long a new connection waits for the service's first endpoint before it is given up.
const NO_ENDPOINT: Duration = Duration::from_millis(500);

/// One port of one service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    namespace: String,
    service: String,
    port: u16,
    node_port: u16,
}

/// Keeps one listener per node port, until `stop`.
pub(crate) async fn run(
    host: HostNet,
    client: Client,
    mut table: watch::Receiver<Arc<ServiceTable>>,
    stop: CancellationToken,
) {
    let mut open: BTreeMap<Key, CancellationToken> = BTreeMap::new();
    let mut failed: HashSet<Key> = HashSet::new();
    let mut announced: HashSet<(String, String)> = HashSet::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let current = table.borrow_and_update().clone();
        let wanted = wanted(&current);
        open.retain(|key, cancel| {
            let keep = wanted.contains_key(key);
            if !keep {
                cancel.cancel();
            }
            keep
        });
        failed.retain(|key| wanted.contains_key(key));
        let missing: Vec<&Key> = wanted
            .keys()
            .filter(|key| !open.contains_key(*key))
            .collect();
        for key in missing {
            match host
                .listen((Ipv4Addr::LOCALHOST, key.node_port).into())
                .await
            {
                Ok(listener) => {
                    failed.remove(key);
                    tracing::info!(service = %format!("{}/{}", key.namespace, key.service), port = key.port, "reachable at 127.0.0.1:{}", key.node_port);
                    let cancel = stop.child_token();
                    open.insert(key.clone(), cancel.clone());
                    tokio::spawn(accept(
                        listener,
                        key.clone(),
                        table.clone(),
                        slots.clone(),
                        cancel,
                    ));
                }
                Err(error) => {
                    if failed.insert(key.clone()) {
                        tracing::warn!(service = %format!("{}/{}", key.namespace, key.service), "node port 127.0.0.1:{} cannot be opened: {error}; choosing another one", key.node_port);
                        move_port(&client, key).await;
                    }
                }
            }
        }
        announced.retain(|(ns, name)| {
            current
                .get(ns, name)
                .is_some_and(|s| s.kind == Kind::LoadBalancer)
        });
        for (key, _) in wanted.iter().filter(|(_, balanced)| **balanced) {
            let name = (key.namespace.clone(), key.service.clone());
            if open.contains_key(key) && !announced.contains(&name) && announce(&client, key).await
            {
                announced.insert(name);
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = table.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(Duration::from_secs(2)), if !failed.is_empty() => failed.clear(),
        }
    }
}

/// Node ports of the table; the value says whether the service is a load balancer.
fn wanted(table: &ServiceTable) -> BTreeMap<Key, bool> {
    let mut wanted = BTreeMap::new();
    for service in table.services.values() {
        let balanced = service.kind == Kind::LoadBalancer;
        if !balanced && service.kind != Kind::NodePort {
            continue;
        }
        for port in service.ports.iter().filter(|port| port.protocol == "TCP") {
            if let Some(node_port) = port.node_port {
                let key = Key {
                    namespace: service.namespace.clone(),
                    service: service.name.clone(),
                    port: port.port,
                    node_port,
                };
                wanted.insert(key, balanced);
            }
        }
    }
    wanted
}

/// The port is taken by someone else on this machine: asks the API server to record another one.
async fn move_port(client: &Client, key: &Key) {
    let api: Api<Service> = Api::namespaced(client.clone(), &key.namespace);
    let Ok(Some(mut service)) = api.get_opt(&key.service).await else {
        return;
    };
    let candidate = rand::random_range(30_000..=32_767);
    let ports = service.spec.as_mut().and_then(|spec| spec.ports.as_mut());
    for port in ports.into_iter().flatten() {
        if port.node_port == Some(i32::from(key.node_port)) {
            port.node_port = Some(candidate);
        }
    }
    if let Err(error) = api
        .replace(&key.service, &kube::api::PostParams::default(), &service)
        .await
    {
        tracing::warn!(service = %format!("{}/{}", key.namespace, key.service), %error, "choosing another node port failed");
    }
}

async fn announce(client: &Client, key: &Key) -> bool {
    let api: Api<Service> = Api::namespaced(client.clone(), &key.namespace);
    let status =
        serde_json::json!({"status": {"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}]}}});
    match api
        .patch_status(
            &key.service,
            &PatchParams::default(),
            &Patch::Merge(&status),
        )
        .await
    {
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(service = %format!("{}/{}", key.namespace, key.service), %error, "announcing the load balancer's address failed");
            false
        }
    }
}

async fn accept(
    listener: TcpListener,
    key: Key,
    table: watch::Receiver<Arc<ServiceTable>>,
    slots: Arc<Semaphore>,
    cancel: CancellationToken,
) {
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((client, _)) = accepted else {
            // Out of descriptors: let some close.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (key, table) = (key.clone(), table.clone());
        tokio::spawn(async move {
            if let Err(error) = proxy(client, &key, table).await {
                tracing::debug!(?key, %error, "node port connection ended");
            }
            drop(slot);
        });
    }
}

async fn proxy(
    mut client: TcpStream,
    key: &Key,
    table: watch::Receiver<Arc<ServiceTable>>,
) -> io::Result<()> {
    let mut server = dial(key, table).await?;
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    tokio::io::copy_bidirectional(&mut client, &mut server)
        .await
        .map(drop)
}

/// Connects to some ready endpoint, trying each once per version of the table.
async fn dial(key: &Key, mut table: watch::Receiver<Arc<ServiceTable>>) -> io::Result<TcpStream> {
    let deadline = tokio::time::Instant::now() + NO_ENDPOINT;
    let mut tried: HashSet<SocketAddrV4> = HashSet::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the service has no ready endpoint");
    loop {
        let mut targets = targets(&table.borrow_and_update(), key);
        targets.retain(|target| !tried.contains(target));
        targets.shuffle(&mut rand::rng());
        for target in targets {
            tried.insert(target);
            match tokio::time::timeout(DIAL, TcpStream::connect(target)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        match tokio::time::timeout_at(deadline, table.changed()).await {
            Ok(Ok(())) => {}
            _ => return Err(last),
        }
    }
}

fn targets(table: &ServiceTable, key: &Key) -> Vec<SocketAddrV4> {
    table
        .get(&key.namespace, &key.service)
        .and_then(|service| {
            service
                .ports
                .iter()
                .find(|port| port.port == key.port && port.protocol == "TCP")
        })
        .map(|port| port.targets.clone())
        .unwrap_or_default()
}
