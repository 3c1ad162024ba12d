//! One fake Envoy.

use std::{collections::BTreeSet, time::Instant};

use anyhow::Context as _;
use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    },
    google::protobuf::{Struct, Value, value::Kind},
};
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use super::lite;

const PREFIX: &str = "type.googleapis.com/envoy.config.";
const CDS: &str = "cluster.v3.Cluster";
const EDS: &str = "endpoint.v3.ClusterLoadAssignment";
const LDS: &str = "listener.v3.Listener";
const RDS: &str = "route.v3.RouteConfiguration";

/// What a proxy has seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// It has everything it asked for.
    pub(super) complete: bool,
    /// When the last response came.
    pub(super) at: Option<Instant>,
    pub(super) responses: u64,
    pub(super) resources: u64,
    pub(super) bytes: u64,
    pub(super) eds_responses: u64,
    pub(super) rds_responses: u64,
    pub(super) clusters: u64,
    pub(super) endpoints: u64,
    pub(super) listeners: u64,
    pub(super) routes: u64,
}

impl Progress {
    /// Responses of a service; of all with an empty name.
    pub(super) fn count(&self, service: &str) -> u64 {
        match service {
            "eds" => self.eds_responses,
            "rds" => self.rds_responses,
            _ => self.responses,
        }
    }

    pub(super) fn add(self, other: Self) -> Self {
        Self {
            complete: self.complete && other.complete,
            at: self.at.max(other.at),
            responses: self.responses + other.responses,
            resources: self.resources + other.resources,
            bytes: self.bytes + other.bytes,
            eds_responses: self.eds_responses + other.eds_responses,
            rds_responses: self.rds_responses + other.rds_responses,
            clusters: self.clusters + other.clusters,
            endpoints: self.endpoints + other.endpoints,
            listeners: self.listeners + other.listeners,
            routes: self.routes + other.routes,
        }
    }
}

pub(super) struct Proxy {
    node: Node,
    target: String,
    delta: bool,
    progress: watch::Sender<Progress>,
    clusters: BTreeSet<String>,
    listeners: BTreeSet<String>,
    wanted_endpoints: BTreeSet<String>,
    endpoints: BTreeSet<String>,
    wanted_routes: BTreeSet<String>,
    routes: BTreeSet<String>,
    nonces: [String; 4],
}

/// A response of either variant.
struct Response {
    ty: &'static str,
    nonce: String,
    version: String,
    resources: Vec<lite::Any>,
    removed: Vec<String>,
    bytes: u64,
}

fn index(ty: &str) -> usize {
    [CDS, EDS, LDS, RDS]
        .iter()
        .position(|known| *known == ty)
        .unwrap_or_default()
}

impl Proxy {
    pub(super) fn new(
        number: usize,
        namespaces: usize,
        target: String,
        delta: bool,
        progress: watch::Sender<Progress>,
    ) -> Self {
        let namespace = match namespaces {
            0 | 1 => crate::generate::NAMESPACE.to_owned(),
            many => format!("{}-{}", crate::generate::NAMESPACE, number % many),
        };
        let address = format!("10.1.{}.{}", number / 250, number % 250 + 1);
        let id =
            format!("sidecar~{address}~proxy-{number}.{namespace}~{namespace}.svc.cluster.local");
        let text = |text: &str| Value {
            kind: Some(Kind::StringValue(text.to_owned())),
        };
        let metadata = [
            ("ISTIO_VERSION", "1.4.10"),
            ("INSTANCE_IPS", &address),
            ("CONFIG_NAMESPACE", &namespace),
            ("NAMESPACE", &namespace),
            ("CLUSTER_ID", "Kubernetes"),
            ("LABELS", &format!(r#"{{"app":"proxy-{number}"}}"#)),
        ];
        let fields = metadata
            .iter()
            .map(|(key, value)| ((*key).to_owned(), text(value)))
            .collect();
        let node = Node {
            id,
            cluster: format!("proxy.{namespace}"),
            metadata: Some(Struct { fields }),
            ..Node::default()
        };
        Self {
            node,
            target,
            delta,
            progress,
            clusters: BTreeSet::new(),
            listeners: BTreeSet::new(),
            wanted_endpoints: BTreeSet::new(),
            endpoints: BTreeSet::new(),
            wanted_routes: BTreeSet::new(),
            routes: BTreeSet::new(),
            nonces: Default::default(),
        }
    }

    pub(super) async fn run(self) -> anyhow::Result<()> {
        let endpoint = Channel::from_shared(format!("http://{}", self.target))
            .with_context(|| format!("--target {:?}: expected HOST:PORT", self.target))?
            // Envoy's own windows are larger than any response.
            .initial_stream_window_size(16 << 20)
            .initial_connection_window_size(24 << 20)
            .tcp_nodelay(true);
        let channel = endpoint
            .connect()
            .await
            .with_context(|| format!("--target {}: cannot connect", self.target))?;
        let mut grpc = Grpc::new(channel).max_decoding_message_size(256 << 20);
        grpc.ready().await.context("the connection was closed")?;
        if self.delta {
            self.run_delta(grpc).await
        } else {
            self.run_sotw(grpc).await
        }
    }

    async fn run_sotw(mut self, mut grpc: Grpc<Channel>) -> anyhow::Result<()> {
        let (sender, receiver) = mpsc::channel::<DiscoveryRequest>(64);
        let request = |ty: &str| DiscoveryRequest {
            type_url: format!("{PREFIX}{ty}"),
            ..Default::default()
        };
        sender
            .send(DiscoveryRequest {
                node: Some(self.node.clone()),
                ..request(CDS)
            })
            .await?;
        let codec = ProstCodec::<DiscoveryRequest, lite::DiscoveryResponse>::default();
        let path =
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
        let receiver = tonic::Request::new(ReceiverStream::new(receiver));
        let response = grpc.streaming(receiver, path.parse()?, codec).await?;
        let mut responses: Streaming<lite::DiscoveryResponse> = response.into_inner();
        while let Some(message) = responses.message().await? {
            let bytes = message.encoded_len() as u64;
            let Some(response) = Response::new(
                &message.type_url,
                message.nonce,
                message.version_info,
                message.resources,
                Vec::new(),
                bytes,
            ) else {
                continue;
            };
            let (ty, nonce, version) = (
                response.ty,
                response.nonce.clone(),
                response.version.clone(),
            );
            let former = self.wanted(EDS).clone();
            let former_routes = self.wanted(RDS).clone();
            let first = self.nonces[index(ty)].is_empty();
            self.take(&response, true)?;
            self.nonces[index(ty)] = nonce.clone();
            // What it needs next, before the answer: as Envoy does.
            for (needs, former) in [(EDS, &former), (RDS, &former_routes)] {
                let wanted = self.wanted(needs);
                if wanted != former && ty != needs {
                    let request = DiscoveryRequest {
                        resource_names: wanted.iter().cloned().collect(),
                        response_nonce: self.nonces[index(needs)].clone(),
                        ..request(needs)
                    };
                    sender.send(request).await?;
                }
            }
            let names = self.wanted(ty).iter().cloned().collect();
            let ack = DiscoveryRequest {
                version_info: version,
                response_nonce: nonce,
                resource_names: names,
                ..request(ty)
            };
            sender.send(ack).await?;
            // Listeners are asked for once the clusters are there.
            if first && (ty == EDS || (ty == CDS && self.wanted_endpoints.is_empty())) {
                sender.send(request(LDS)).await?;
            }
        }
        anyhow::bail!("the server ended the stream of {}", self.node.id)
    }

    async fn run_delta(mut self, mut grpc: Grpc<Channel>) -> anyhow::Result<()> {
        let (sender, receiver) = mpsc::channel::<DeltaDiscoveryRequest>(64);
        let request = |ty: &str| DeltaDiscoveryRequest {
            type_url: format!("{PREFIX}{ty}"),
            ..Default::default()
        };
        sender
            .send(DeltaDiscoveryRequest {
                node: Some(self.node.clone()),
                ..request(CDS)
            })
            .await?;
        let codec = ProstCodec::<DeltaDiscoveryRequest, lite::DeltaDiscoveryResponse>::default();
        let path =
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
        let receiver = tonic::Request::new(ReceiverStream::new(receiver));
        let response = grpc.streaming(receiver, path.parse()?, codec).await?;
        let mut responses: Streaming<lite::DeltaDiscoveryResponse> = response.into_inner();
        while let Some(message) = responses.message().await? {
            let bytes = message.encoded_len() as u64;
            let resources = message
                .resources
                .into_iter()
                .filter_map(|r| r.resource)
                .collect();
            let removed = message.removed_resources;
            let Some(response) = Response::new(
                &message.type_url,
                message.nonce,
                String::new(),
                resources,
                removed,
                bytes,
            ) else {
                continue;
            };
            let ty = response.ty;
            let (former, former_routes) = (self.wanted(EDS).clone(), self.wanted(RDS).clone());
            let first = self.nonces[index(ty)].is_empty();
            self.take(&response, false)?;
            self.nonces[index(ty)].clone_from(&response.nonce);
            for (needs, former) in [(EDS, &former), (RDS, &former_routes)] {
                let wanted = self.wanted(needs);
                if wanted != former {
                    let request = DeltaDiscoveryRequest {
                        resource_names_subscribe: wanted.difference(former).cloned().collect(),
                        resource_names_unsubscribe: former.difference(wanted).cloned().collect(),
                        ..request(needs)
                    };
                    sender.send(request).await?;
                }
            }
            let ack = DeltaDiscoveryRequest {
                response_nonce: response.nonce,
                ..request(ty)
            };
            sender.send(ack).await?;
            if first && (ty == EDS || (ty == CDS && self.wanted_endpoints.is_empty())) {
                sender.send(request(LDS)).await?;
            }
        }
        anyhow::bail!("the server ended the stream of {}", self.node.id)
    }

    /// The names it subscribes to for a type.
    fn wanted(&self, ty: &str) -> &BTreeSet<String> {
        static NOTHING: BTreeSet<String> = BTreeSet::new();
        match ty {
            EDS => &self.wanted_endpoints,
            RDS => &self.wanted_routes,
            _ => &NOTHING,
        }
    }

    /// Takes in a response; `whole` if clusters and listeners that are not in it are gone.
    fn take(&mut self, response: &Response, whole: bool) -> anyhow::Result<()> {
        let bodies = || response.resources.iter().map(|any| &any.value[..]);
        match response.ty {
            CDS => {
                if whole {
                    self.clusters.clear();
                    self.wanted_endpoints.clear();
                }
                for body in bodies() {
                    let cluster = lite::Cluster::decode(body)?;
                    if cluster.discovery_type == lite::EDS {
                        self.wanted_endpoints.insert(cluster.name.clone());
                    }
                    self.clusters.insert(cluster.name);
                }
                for name in &response.removed {
                    self.clusters.remove(name);
                    self.wanted_endpoints.remove(name);
                }
                self.endpoints
                    .retain(|name| self.wanted_endpoints.contains(name));
            }
            EDS => {
                for body in bodies() {
                    self.endpoints
                        .insert(lite::ClusterLoadAssignment::decode(body)?.cluster_name);
                }
            }
            LDS => {
                if whole {
                    self.listeners.clear();
                    self.wanted_routes.clear();
                }
                for body in bodies() {
                    let listener = lite::Listener::decode(body)?;
                    self.wanted_routes.extend(listener.routes());
                    self.listeners.insert(listener.name);
                }
                for name in &response.removed {
                    self.listeners.remove(name);
                }
            }
            _ => {
                for body in bodies() {
                    self.routes
                        .insert(lite::RouteConfiguration::decode(body)?.name);
                }
            }
        }
        let complete = !self.listeners.is_empty()
            && self.wanted_endpoints.is_subset(&self.endpoints)
            && self.wanted_routes.is_subset(&self.routes);
        self.progress.send_modify(|progress| {
            progress.complete = complete;
            progress.at = Some(Instant::now());
            progress.responses += 1;
            progress.resources += response.resources.len() as u64;
            progress.bytes += response.bytes;
            progress.eds_responses += u64::from(response.ty == EDS);
            progress.rds_responses += u64::from(response.ty == RDS);
            progress.clusters = self.clusters.len() as u64;
            progress.endpoints = self.endpoints.len() as u64;
            progress.listeners = self.listeners.len() as u64;
            progress.routes = self.routes.len() as u64;
        });
        Ok(())
    }
}

impl Response {
    /// `None` for a type that was not asked for.
    fn new(
        type_url: &str,
        nonce: String,
        version: String,
        resources: Vec<lite::Any>,
        removed: Vec<String>,
        bytes: u64,
    ) -> Option<Self> {
        let short = type_url.strip_prefix(PREFIX)?;
        let ty = [CDS, EDS, LDS, RDS]
            .into_iter()
            .find(|known| *known == short)?;
        Some(Self {
            ty,
            nonce,
            version,
            resources,
            removed,
            bytes,
        })
    }
}
