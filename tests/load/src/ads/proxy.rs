//! One fake Envoy: a connection, a stream, and the subscriptions of a sidecar.

use std::{sync::Arc, time::Instant};

use anyhow::Context as _;
use bytes::Bytes;
use envoy_types::pb::{
    envoy::config::core::v3::Node,
    google::protobuf::{Struct, Value, value::Kind},
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use super::{
    holdings::{Holdings, Type, Wants},
    lite,
};

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
    /// Held now: clusters, endpoints, listeners, routes.
    pub(super) held: [u64; 4],
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
        let mut held = self.held;
        for (sum, more) in held.iter_mut().zip(other.held) {
            *sum += more;
        }
        Self {
            complete: self.complete && other.complete,
            at: self.at.max(other.at),
            responses: self.responses + other.responses,
            resources: self.resources + other.resources,
            bytes: self.bytes + other.bytes,
            eds_responses: self.eds_responses + other.eds_responses,
            rds_responses: self.rds_responses + other.rds_responses,
            held,
        }
    }
}

/// Who a fake Envoy is, and how it speaks.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) number: usize,
    pub(super) namespace: String,
    pub(super) target: String,
    pub(super) delta: bool,
}

impl Identity {
    /// The `number`th of a fleet that is spread over so many namespaces.
    pub(super) fn new(number: usize, namespaces: usize, target: &str, delta: bool) -> Self {
        let namespace = match namespaces {
            0 | 1 => crate::generate::NAMESPACE.to_owned(),
            many => format!("{}-{}", crate::generate::NAMESPACE, number % many),
        };
        Self {
            number,
            namespace,
            target: target.to_owned(),
            delta,
        }
    }

    fn node(&self) -> Node {
        let Self {
            number, namespace, ..
        } = self;
        let address = format!("10.1.{}.{}", number / 250, number % 250 + 1);
        let text = |text: &str| Value {
            kind: Some(Kind::StringValue(text.to_owned())),
        };
        let metadata = [
            ("ISTIO_VERSION", "1.4.10"),
            ("INSTANCE_IPS", &address),
            ("CONFIG_NAMESPACE", namespace),
            ("NAMESPACE", namespace),
            ("CLUSTER_ID", "Kubernetes"),
            ("LABELS", &format!(r#"{{"app":"proxy-{number}"}}"#)),
        ];
        let fields = metadata
            .iter()
            .map(|(key, value)| ((*key).to_owned(), text(value)))
            .collect();
        Node {
            id: format!(
                "sidecar~{address}~proxy-{number}.{namespace}~{namespace}.svc.cluster.local"
            ),
            cluster: format!("proxy.{namespace}"),
            metadata: Some(Struct { fields }),
            ..Node::default()
        }
    }
}

/// A fake Envoy.
pub(super) struct Proxy {
    identity: Identity,
    progress: watch::Sender<Progress>,
    holdings: Arc<Mutex<Holdings>>,
    nonces: [String; 4],
}

/// A response of either variant.
struct Response {
    ty: Type,
    nonce: String,
    version: String,
    resources: Vec<lite::Any>,
    removed: Vec<Bytes>,
}

impl Proxy {
    pub(super) fn new(
        identity: Identity,
        progress: watch::Sender<Progress>,
        holdings: Arc<Mutex<Holdings>>,
    ) -> Self {
        Self {
            identity,
            progress,
            holdings,
            nonces: Default::default(),
        }
    }

    /// Lives until the server ends the stream, which is an error.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let target = &self.identity.target;
        let endpoint = Channel::from_shared(format!("http://{target}"))
            .with_context(|| format!("--target {target:?}: expected HOST:PORT"))?
            // Envoy's own windows are larger than any response.
            .initial_stream_window_size(16 << 20)
            .initial_connection_window_size(24 << 20)
            .tcp_nodelay(true);
        let channel = endpoint
            .connect()
            .await
            .with_context(|| format!("--target {target}: cannot connect"))?;
        let mut grpc = Grpc::new(channel).max_decoding_message_size(256 << 20);
        grpc.ready().await.context("the connection was closed")?;
        if self.identity.delta {
            self.run_delta(grpc).await
        } else {
            self.run_sotw(grpc).await
        }
    }

    async fn run_sotw(mut self, mut grpc: Grpc<Channel>) -> anyhow::Result<()> {
        let (sender, receiver) = mpsc::channel::<lite::DiscoveryRequest>(64);
        let request = |ty: Type| lite::DiscoveryRequest {
            type_url: ty.url().to_owned(),
            ..Default::default()
        };
        sender
            .send(lite::DiscoveryRequest {
                node: Some(self.identity.node()),
                ..request(Type::Cluster)
            })
            .await?;
        let codec = ProstCodec::<lite::DiscoveryRequest, lite::DiscoveryResponse>::default();
        let path =
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
        let receiver = tonic::Request::new(ReceiverStream::new(receiver));
        let response = grpc.streaming(receiver, path.parse()?, codec).await?;
        let mut responses: Streaming<lite::DiscoveryResponse> = response.into_inner();
        while let Some(message) = responses.message().await? {
            let bytes = prost::Message::encoded_len(&message) as u64;
            let Some(ty) = Type::of(&message.type_url) else {
                continue;
            };
            let response = Response {
                ty,
                nonce: message.nonce,
                version: message.version_info,
                resources: message.resources,
                removed: Vec::new(),
            };
            let first = self.nonces[ty as usize].is_empty();
            let wants = self.take(&response, bytes)?;
            self.nonces[ty as usize].clone_from(&response.nonce);
            // What it needs next, before the answer: as Envoy does.
            if let Some(needs) = needs(ty).filter(|_| !wants.is_empty()) {
                let request = lite::DiscoveryRequest {
                    resource_names: self.names(needs),
                    response_nonce: self.nonces[needs as usize].clone(),
                    ..request(needs)
                };
                sender.send(request).await?;
            }
            let ack = lite::DiscoveryRequest {
                version_info: response.version,
                response_nonce: response.nonce,
                resource_names: self.names(ty),
                ..request(ty)
            };
            sender.send(ack).await?;
            if first && self.warmed_by(ty) {
                sender.send(request(Type::Listener)).await?;
            }
        }
        anyhow::bail!("the server ended the stream of {}", self.identity.node().id)
    }

    async fn run_delta(mut self, mut grpc: Grpc<Channel>) -> anyhow::Result<()> {
        let (sender, receiver) = mpsc::channel::<lite::DeltaDiscoveryRequest>(64);
        let request = |ty: Type| lite::DeltaDiscoveryRequest {
            type_url: ty.url().to_owned(),
            ..Default::default()
        };
        sender
            .send(lite::DeltaDiscoveryRequest {
                node: Some(self.identity.node()),
                ..request(Type::Cluster)
            })
            .await?;
        let codec =
            ProstCodec::<lite::DeltaDiscoveryRequest, lite::DeltaDiscoveryResponse>::default();
        let path =
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
        let receiver = tonic::Request::new(ReceiverStream::new(receiver));
        let response = grpc.streaming(receiver, path.parse()?, codec).await?;
        let mut responses: Streaming<lite::DeltaDiscoveryResponse> = response.into_inner();
        while let Some(message) = responses.message().await? {
            let bytes = prost::Message::encoded_len(&message) as u64;
            let Some(ty) = Type::of(&message.type_url) else {
                continue;
            };
            let resources = message.resources.into_iter().filter_map(|r| r.resource);
            let response = Response {
                ty,
                nonce: message.nonce,
                version: String::new(),
                resources: resources.collect(),
                removed: message.removed_resources,
            };
            let first = self.nonces[ty as usize].is_empty();
            let wants = self.take(&response, bytes)?;
            self.nonces[ty as usize].clone_from(&response.nonce);
            if let Some(needs) = needs(ty).filter(|_| !wants.is_empty()) {
                let request = lite::DeltaDiscoveryRequest {
                    resource_names_subscribe: wants.added,
                    resource_names_unsubscribe: wants.removed,
                    ..request(needs)
                };
                sender.send(request).await?;
            }
            let ack = lite::DeltaDiscoveryRequest {
                response_nonce: response.nonce,
                ..request(ty)
            };
            sender.send(ack).await?;
            if first && self.warmed_by(ty) {
                sender.send(request(Type::Listener)).await?;
            }
        }
        anyhow::bail!("the server ended the stream of {}", self.identity.node().id)
    }

    /// Listeners are asked for once the clusters are there with their endpoints.
    fn warmed_by(&self, ty: Type) -> bool {
        match ty {
            Type::Endpoint => true,
            Type::Cluster => !self.holdings.lock().wants_endpoints(),
            Type::Listener | Type::Route => false,
        }
    }

    fn names(&self, ty: Type) -> Vec<Bytes> {
        self.holdings.lock().wanted(ty).cloned().collect()
    }

    fn take(&mut self, response: &Response, bytes: u64) -> anyhow::Result<Wants> {
        let Response {
            ty,
            resources,
            removed,
            ..
        } = response;
        let whole = !self.identity.delta;
        let mut holdings = self.holdings.lock();
        let wants = holdings.take(*ty, resources, removed, whole)?;
        let (complete, held) = (holdings.complete(), holdings.counts());
        drop(holdings);
        self.progress.send_modify(|progress| {
            progress.complete = complete;
            progress.at = Some(Instant::now());
            progress.responses += 1;
            progress.resources += resources.len() as u64;
            progress.bytes += bytes;
            progress.eds_responses += u64::from(*ty == Type::Endpoint);
            progress.rds_responses += u64::from(*ty == Type::Route);
            progress.held = held;
        });
        Ok(wants)
    }
}

/// What resources of a type name.
fn needs(ty: Type) -> Option<Type> {
    match ty {
        Type::Cluster => Some(Type::Endpoint),
        Type::Listener => Some(Type::Route),
        Type::Endpoint | Type::Route => None,
    }
}
