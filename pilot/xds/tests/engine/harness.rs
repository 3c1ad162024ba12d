//! A server with a source in memory, and clients that speak either variant.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        },
    },
    google::rpc::Status as RpcStatus,
};
use pilot_xds::{
    Change, Collection, Engine, Metrics, NodeError, Publisher, Resource, ResourceSource,
    ResourceType, Settings, Touched,
    server::{self, ServerSettings},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming, transport::Channel};

pub(crate) use ResourceType::{Cluster, Endpoint, Listener, Route, Secret};

/// Resources by type and name.
#[derive(Clone, Default)]
pub(crate) struct World(pub BTreeMap<ResourceType, BTreeMap<String, Vec<u8>>>);

impl World {
    pub(crate) fn set(mut self, ty: ResourceType, name: &str, body: &str) -> Self {
        self.0
            .entry(ty)
            .or_default()
            .insert(name.into(), body.into());
        self
    }

    pub(crate) fn remove(mut self, ty: ResourceType, name: &str) -> Self {
        self.0.entry(ty).or_default().remove(name);
        self
    }
}

/// What was touched, by type.
#[derive(Clone, Debug, Default)]
pub(crate) struct Delta(pub BTreeMap<ResourceType, BTreeSet<String>>);

impl Delta {
    fn between(old: &World, new: &World) -> Self {
        let mut delta = Self::default();
        for ty in ResourceType::ALL {
            let (old, new) = (old.0.get(&ty), new.0.get(&ty));
            let names = old.into_iter().chain(new).flat_map(BTreeMap::keys);
            for name in names {
                if old.and_then(|m| m.get(name)) != new.and_then(|m| m.get(name)) {
                    delta.0.entry(ty).or_default().insert(name.clone());
                }
            }
        }
        delta
    }
}

impl Change for Delta {
    fn merge(&mut self, other: Self) {
        for (ty, names) in other.0 {
            self.0.entry(ty).or_default().extend(names);
        }
    }

    fn is_endpoints_only(&self) -> bool {
        self.0.keys().all(|ty| *ty == Endpoint)
    }
}

#[derive(Default)]
pub(crate) struct Source;

impl ResourceSource for Source {
    type World = World;
    type Change = Delta;
    type Proxy = String;

    fn attach(&self, _: &World, node: &Node) -> Result<String, NodeError> {
        match node.id.split('~').next() {
            Some("sidecar") => Ok(node.id.clone()),
            _ => Err(NodeError(format!("{} is no sidecar", node.id))),
        }
    }

    fn touched(&self, _: &String, ty: ResourceType, change: &Delta) -> Touched {
        match change.0.get(&ty) {
            None => Touched::Nothing,
            Some(names) => {
                let names = names.clone();
                Touched::Matching(vec![Arc::new(move |name: &str| names.contains(name))])
            }
        }
    }

    fn collection(&self, world: &World, _: &String, ty: ResourceType) -> Arc<Collection> {
        let all = world.0.get(&ty).into_iter().flatten();
        Arc::new(Collection::new(
            all.map(|(name, body)| Resource::new(name.as_str(), body.clone()))
                .collect(),
        ))
    }

    fn named(
        &self,
        world: &World,
        _: &String,
        ty: ResourceType,
        names: &[Arc<str>],
    ) -> Vec<Option<Resource>> {
        let all = world.0.get(&ty);
        names
            .iter()
            .map(|name| Some(Resource::new(name.clone(), all?.get(&**name)?.clone())))
            .collect()
    }
}

pub(crate) struct Server {
    pub address: SocketAddr,
    pub engine: Arc<Engine<Source>>,
    pub publisher: Publisher<Source>,
    pub drain: CancellationToken,
    pub registry: Arc<prometheus_client::registry::Registry>,
    world: parking_lot::Mutex<World>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(crate) async fn start(world: World) -> Self {
        let server = Self::start_with(Settings::default(), ServerSettings::default()).await;
        server.publish(world);
        server
    }

    /// Without a world so far.
    pub(crate) async fn start_with(settings: Settings, limits: ServerSettings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let publisher = Publisher::default();
        let mut registry = prometheus_client::registry::Registry::default();
        let metrics = Metrics::new(&mut registry);
        let refused = metrics.connections_refused.clone();
        let settings = Settings {
            identifier: "pilot-test".into(),
            ..settings
        };
        let engine = Engine::new(Arc::new(Source), publisher.subscribe(), settings, metrics);
        let routes = pilot_xds::routes(&engine);
        let drain = CancellationToken::new();
        let serve = server::serve(
            listener,
            routes.prepare(),
            None,
            limits,
            drain.clone(),
            refused,
        );
        let task = tokio::spawn(async move {
            let _ = serve.await;
        });
        Self {
            address,
            engine,
            publisher,
            drain,
            registry: Arc::new(registry),
            world: Default::default(),
            task,
        }
    }

    /// Publishes a world and returns its number.
    pub(crate) fn publish(&self, world: World) -> u64 {
        let mut current = self.world.lock();
        let change = Delta::between(&current, &world);
        *current = world.clone();
        self.publisher.publish(Arc::new(world), change)
    }

    /// Publishes the current world with a change made to it.
    pub(crate) fn change(&self, change: impl FnOnce(World) -> World) -> u64 {
        let world = self.world.lock().clone();
        self.publish(change(world))
    }

    /// Waits until the only client has answered everything of world `number`.
    pub(crate) async fn synced(&self, number: u64) {
        self.until(|| {
            self.engine
                .clients()
                .list()
                .iter()
                .all(|client| client.synced() == number)
        })
        .await;
    }

    pub(crate) async fn until(&self, condition: impl Fn() -> bool) {
        let wait = async {
            while !condition() {
                tokio::task::yield_now().await;
            }
        };
        within(wait).await;
    }

    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address))
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    /// Opens a stream of a method by its path.
    async fn open<Q, R>(&self, path: &str) -> (mpsc::Sender<Q>, Streaming<R>)
    where
        Q: prost::Message + Send + Sync + 'static,
        R: prost::Message + Default + Send + Sync + 'static,
    {
        let (requests, receiver) = mpsc::channel(64);
        let mut client =
            tonic::client::Grpc::new(self.channel().await).max_decoding_message_size(64 << 20);
        client.ready().await.unwrap();
        let responses = client
            .streaming(
                tonic::Request::new(ReceiverStream::new(receiver)),
                path.parse().unwrap(),
                tonic_prost::ProstCodec::default(),
            )
            .await
            .unwrap();
        (requests, responses.into_inner())
    }

    pub(crate) async fn sotw(&self) -> Sotw {
        self.sotw_at(
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
        )
        .await
    }

    pub(crate) async fn sotw_at(&self, path: &str) -> Sotw {
        let (requests, responses) = self.open(path).await;
        Sotw {
            requests,
            responses,
            node: Some(node("sidecar~10.0.0.1~a.b~c")),
        }
    }

    pub(crate) async fn delta(&self) -> DeltaClient {
        self.delta_at(
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        )
        .await
    }

    pub(crate) async fn delta_at(&self, path: &str) -> DeltaClient {
        let (requests, responses) = self.open(path).await;
        DeltaClient {
            requests,
            responses,
            node: Some(node("sidecar~10.0.0.1~a.b~c")),
        }
    }

    /// Calls a method that answers once.
    pub(crate) async fn fetch(
        &self,
        path: &str,
        request: DiscoveryRequest,
    ) -> Result<DiscoveryResponse, Status> {
        let mut client = tonic::client::Grpc::new(self.channel().await);
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<DiscoveryRequest, DiscoveryResponse>::default();
        let answer = client.unary(tonic::Request::new(request), path.parse().unwrap(), codec);
        within(answer).await.map(tonic::Response::into_inner)
    }
}

pub(crate) fn node(id: &str) -> Node {
    Node {
        id: id.into(),
        ..Node::default()
    }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("nothing happened for 20 s")
}

pub(crate) struct Sotw {
    pub requests: mpsc::Sender<DiscoveryRequest>,
    pub responses: Streaming<DiscoveryResponse>,
    pub node: Option<Node>,
}

impl Sotw {
    pub(crate) async fn send(&mut self, request: DiscoveryRequest) {
        let request = DiscoveryRequest {
            node: self.node.take(),
            ..request
        };
        self.requests.send(request).await.unwrap();
    }

    /// The first request of a type; no names means everything.
    pub(crate) async fn ask(&mut self, ty: ResourceType, names: &[&str]) {
        self.send(sotw_request(ty, names)).await;
    }

    pub(crate) async fn try_next(&mut self) -> Result<Option<DiscoveryResponse>, Status> {
        within(self.responses.message()).await
    }

    pub(crate) async fn next(&mut self) -> DiscoveryResponse {
        self.try_next().await.unwrap().expect("the stream ended")
    }

    /// The next response, which must be of this type; its bodies as text.
    pub(crate) async fn expect(&mut self, ty: ResourceType, bodies: &[&str]) -> DiscoveryResponse {
        let response = self.next().await;
        assert_eq!(
            (short(&response.type_url), texts(&response)),
            (ty.short(), bodies.iter().map(|s| s.to_string()).collect())
        );
        response
    }

    pub(crate) async fn ack(&mut self, response: &DiscoveryResponse, names: &[&str]) {
        let ty = ResourceType::from_type_url(&response.type_url).unwrap();
        self.send(DiscoveryRequest {
            version_info: response.version_info.clone(),
            response_nonce: response.nonce.clone(),
            ..sotw_request(ty, names)
        })
        .await;
    }

    pub(crate) async fn nack(&mut self, response: &DiscoveryResponse, names: &[&str], why: &str) {
        let ty = ResourceType::from_type_url(&response.type_url).unwrap();
        self.send(DiscoveryRequest {
            response_nonce: response.nonce.clone(),
            error_detail: Some(RpcStatus {
                code: 3,
                message: why.into(),
                ..RpcStatus::default()
            }),
            ..sotw_request(ty, names)
        })
        .await;
    }

    /// Asserts that nothing else was on its way: a secret asked for now is the next thing that comes.
    pub(crate) async fn expect_nothing(&mut self) {
        self.ask(Secret, &["sentinel"]).await;
        let response = self.next().await;
        assert_eq!(
            short(&response.type_url),
            "sds",
            "unexpected: {:?}",
            texts(&response)
        );
        self.ack(&response, &[]).await;
        // An empty list after an explicit one subscribes to nothing, so the next sentinel is new again.
    }
}

pub(crate) fn sotw_request(ty: ResourceType, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: ty.type_url().into(),
        resource_names: names.iter().map(|name| (*name).into()).collect(),
        ..DiscoveryRequest::default()
    }
}

pub(crate) fn short(type_url: &str) -> &'static str {
    ResourceType::from_type_url(type_url).unwrap().short()
}

pub(crate) fn texts(response: &DiscoveryResponse) -> Vec<String> {
    response
        .resources
        .iter()
        .map(|any| String::from_utf8_lossy(&any.value).into_owned())
        .collect()
}

pub(crate) struct DeltaClient {
    pub requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub responses: Streaming<DeltaDiscoveryResponse>,
    pub node: Option<Node>,
}

impl DeltaClient {
    pub(crate) async fn send(&mut self, request: DeltaDiscoveryRequest) {
        let request = DeltaDiscoveryRequest {
            node: self.node.take(),
            ..request
        };
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn subscribe(&mut self, ty: ResourceType, names: &[&str]) {
        self.send(delta_request(ty, names, &[])).await;
    }

    pub(crate) async fn unsubscribe(&mut self, ty: ResourceType, names: &[&str]) {
        self.send(delta_request(ty, &[], names)).await;
    }

    /// Subscribes as after a reconnect, with what it has.
    pub(crate) async fn resume(&mut self, ty: ResourceType, names: &[&str], have: &[(&str, &str)]) {
        let have = have.iter().map(|(name, body)| {
            (
                (*name).to_owned(),
                pilot_xds::Version::of(body.as_bytes()).to_string(),
            )
        });
        let request = delta_request(ty, names, &[]);
        self.send(DeltaDiscoveryRequest {
            initial_resource_versions: have.collect(),
            ..request
        })
        .await;
    }

    pub(crate) async fn next(&mut self) -> DeltaDiscoveryResponse {
        within(self.responses.message())
            .await
            .unwrap()
            .expect("the stream ended")
    }

    /// The next response: its type, its `name=body`, what it removes.
    pub(crate) async fn expect(
        &mut self,
        ty: ResourceType,
        resources: &[&str],
        removed: &[&str],
    ) -> DeltaDiscoveryResponse {
        let response = self.next().await;
        let got: Vec<String> = response
            .resources
            .iter()
            .map(|r| {
                let body = &r.resource.as_ref().unwrap().value;
                format!("{}={}", r.name, String::from_utf8_lossy(body))
            })
            .collect();
        assert_eq!(
            (
                short(&response.type_url),
                got,
                response.removed_resources.clone()
            ),
            (
                ty.short(),
                resources.iter().map(|s| s.to_string()).collect(),
                removed.iter().map(|s| s.to_string()).collect()
            )
        );
        response
    }

    pub(crate) async fn ack(&mut self, response: &DeltaDiscoveryResponse) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    pub(crate) async fn nack(&mut self, response: &DeltaDiscoveryResponse, why: &str) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: Some(RpcStatus {
                code: 3,
                message: why.into(),
                ..RpcStatus::default()
            }),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    pub(crate) async fn expect_nothing(&mut self) {
        self.subscribe(Secret, &["sentinel"]).await;
        let response = self.expect(Secret, &[], &["sentinel"]).await;
        self.ack(&response).await;
        self.unsubscribe(Secret, &["sentinel"]).await;
    }
}

pub(crate) fn delta_request(
    ty: ResourceType,
    subscribe: &[&str],
    unsubscribe: &[&str],
) -> DeltaDiscoveryRequest {
    let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    DeltaDiscoveryRequest {
        type_url: ty.type_url().into(),
        resource_names_subscribe: own(subscribe),
        resource_names_unsubscribe: own(unsubscribe),
        ..DeltaDiscoveryRequest::default()
    }
}
