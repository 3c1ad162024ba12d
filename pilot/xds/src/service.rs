//! The gRPC face: Envoy's discovery services.
//!
//! Aggregated discovery and the services of single types, of both versions of the API, state of the world, incremental,
//! and (single types) one answer to one request. All of them are the same stream over the same engine: a service says
//! only which version's type URLs it speaks and whether it is bound to one type.
//!
//! Hand-written tonic services, because answers are written from shared bytes ([`crate::body`]). Requests go through
//! tonic's own frame decoder, which refuses garbage, truncation and oversize with a gRPC status.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
};
use prost::Message;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status, Streaming,
    body::Body,
    codec::{DecodeBuf, Decoder},
    server::NamedService,
    service::Routes,
};

use crate::{
    Engine,
    body::{Item, Progress, ResponseBody},
    resource::{ApiVersion, ResourceType},
    server::ConnectionInfo,
    session::Request,
    source::ResourceSource,
    stream::{self, Call, Connection, Requests},
    wire::Variant,
};

/// A response of each type may be on its way, and the end.
const ITEMS: usize = 8;

/// What distinguishes one discovery service from another.
pub trait Discovery: Send + Sync + 'static {
    /// The full name of the service.
    const NAME: &'static str;
    /// The version of the API whose type URLs a request means unless it says another.
    const VERSION: ApiVersion;
    /// The type it is bound to.
    const ONLY: Option<ResourceType>;
    /// Its methods are `Stream`, `Delta` and `Fetch` of this.
    const RESOURCES: &'static str;
}

macro_rules! services {
    ($($marker:ident $version:ident $only:expr, $name:literal, $resources:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "`.")]
            #[derive(Debug)]
            pub struct $marker;

            impl Discovery for $marker {
                const NAME: &'static str = $name;
                const VERSION: ApiVersion = ApiVersion::$version;
                const ONLY: Option<ResourceType> = $only;
                const RESOURCES: &'static str = $resources;
            }
        )*

        /// The names of all services, aggregated discovery first.
        pub const SERVICES: &[&str] = &[$($name),*];

        /// All discovery services over an engine.
        pub fn routes<S: ResourceSource>(engine: &Arc<Engine<S>>) -> Routes {
            let mut routes = Routes::builder();
            $(
                routes.add_service(DiscoveryService::<S, $marker>::new(engine.clone()));
            )*
            routes.routes()
        }
    };
}

services! {
    Ads V3 None, "envoy.service.discovery.v3.AggregatedDiscoveryService", "AggregatedResources";
    Cds V3 Some(ResourceType::Cluster), "envoy.service.cluster.v3.ClusterDiscoveryService", "Clusters";
    Eds V3 Some(ResourceType::Endpoint), "envoy.service.endpoint.v3.EndpointDiscoveryService", "Endpoints";
    Lds V3 Some(ResourceType::Listener), "envoy.service.listener.v3.ListenerDiscoveryService", "Listeners";
    Rds V3 Some(ResourceType::Route), "envoy.service.route.v3.RouteDiscoveryService", "Routes";
    Sds V3 Some(ResourceType::Secret), "envoy.service.secret.v3.SecretDiscoveryService", "Secrets";
    AdsV2 V2 None, "envoy.service.discovery.v2.AggregatedDiscoveryService", "AggregatedResources";
    CdsV2 V2 Some(ResourceType::Cluster), "envoy.api.v2.ClusterDiscoveryService", "Clusters";
    EdsV2 V2 Some(ResourceType::Endpoint), "envoy.api.v2.EndpointDiscoveryService", "Endpoints";
    LdsV2 V2 Some(ResourceType::Listener), "envoy.api.v2.ListenerDiscoveryService", "Listeners";
    RdsV2 V2 Some(ResourceType::Route), "envoy.api.v2.RouteDiscoveryService", "Routes";
    SdsV2 V2 Some(ResourceType::Secret), "envoy.service.discovery.v2.SecretDiscoveryService", "Secrets";
}

/// One service over an [`Engine`]. Cheap to clone.
pub struct DiscoveryService<S: ResourceSource, D> {
    engine: Arc<Engine<S>>,
    service: PhantomData<D>,
}

/// Secret discovery alone, for Envoys that have their secrets from somebody else than the rest.
pub type SecretDiscoveryService<S> = DiscoveryService<S, Sds>;

impl<S: ResourceSource, D: Discovery> DiscoveryService<S, D> {
    /// The service of this engine.
    pub fn new(engine: Arc<Engine<S>>) -> Self {
        Self {
            engine,
            service: PhantomData,
        }
    }

    fn stream<M: IntoRequest>(
        &self,
        variant: Variant,
        once: bool,
        request: http::Request<Body>,
    ) -> http::Response<Body> {
        let call = Call {
            service: D::NAME,
            variant,
            version: D::VERSION,
            only: D::ONLY,
            once,
        };
        let (parts, body) = request.into_parts();
        let limit = self.engine.settings.max_request_bytes;
        let decoder = MessageDecoder {
            version: D::VERSION,
            message: PhantomData,
        };
        let requests: Streaming<M> = Streaming::new_request(decoder, body, None, Some(limit));
        let info = parts.extensions.get::<ConnectionInfo>();
        let connection = Connection {
            peer: info.map_or_else(|| "unknown".to_owned(), |info| info.peer.to_string()),
            retire: info.map_or_else(CancellationToken::new, |info| info.retire.clone()),
            cut: info.map_or_else(CancellationToken::new, |info| info.cut.clone()),
        };
        let (items, receiver) = mpsc::channel(ITEMS);
        let progress = Arc::new(Progress::default());
        let body = ResponseBody::new(receiver, progress.clone());
        let engine = self.engine.clone();
        tokio::spawn(async move {
            let requests = Decoded(requests);
            let served = stream::serve(engine, call, requests, connection, items.clone(), progress);
            let status = served.await;
            // The client may be gone, or so stalled that there is no room; then the stream is reset instead.
            let _ = items.try_send(Item::End(status));
        });
        let mut response = http::Response::new(Body::new(body));
        response.headers_mut().insert(
            http::header::CONTENT_TYPE,
            http::HeaderValue::from_static("application/grpc"),
        );
        response
    }
}

impl<S: ResourceSource, D> Clone for DiscoveryService<S, D> {
    fn clone(&self) -> Self {
        Self {
            engine: self.engine.clone(),
            service: PhantomData,
        }
    }
}

impl<S: ResourceSource, D: Discovery> NamedService for DiscoveryService<S, D> {
    const NAME: &'static str = D::NAME;
}

impl<S: ResourceSource, D: Discovery> tower::Service<http::Request<Body>>
    for DiscoveryService<S, D>
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let is_grpc = request
            .headers()
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        if !is_grpc || request.method() != http::Method::POST {
            let mut response = http::Response::new(Body::empty());
            *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return ready(Ok(response));
        }
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        let kind = method.strip_suffix(D::RESOURCES);
        ready(Ok(match kind {
            Some("Stream") => self.stream::<DiscoveryRequest>(Variant::Sotw, false, request),
            Some("Delta") => self.stream::<DeltaDiscoveryRequest>(Variant::Delta, false, request),
            Some("Fetch") if D::ONLY.is_some() => {
                self.stream::<DiscoveryRequest>(Variant::Sotw, true, request)
            }
            _ => Status::unimplemented(format!(
                "{} has no method {method}; it has Stream{resources} and Delta{resources}",
                D::NAME,
                resources = D::RESOURCES
            ))
            .into_http(),
        }))
    }
}

/// A request of either variant, as it comes.
pub(crate) trait IntoRequest: Message + Default + 'static {
    fn into_request(self) -> Request;
    fn node(&mut self) -> Option<&mut Node>;
    /// `node.build_version`, which v3 has no field for.
    fn build_version(bytes: Bytes) -> Option<String>;
}

impl IntoRequest for DiscoveryRequest {
    fn into_request(self) -> Request {
        Request::Sotw(self)
    }

    fn node(&mut self) -> Option<&mut Node> {
        self.node.as_mut()
    }

    fn build_version(bytes: Bytes) -> Option<String> {
        Some(OldSotwRequest::decode(bytes).ok()?.node?.build_version)
    }
}

impl IntoRequest for DeltaDiscoveryRequest {
    fn into_request(self) -> Request {
        Request::Delta(self)
    }

    fn node(&mut self) -> Option<&mut Node> {
        self.node.as_mut()
    }

    fn build_version(bytes: Bytes) -> Option<String> {
        Some(OldDeltaRequest::decode(bytes).ok()?.node?.build_version)
    }
}

#[derive(Clone, PartialEq, Message)]
struct OldNode {
    #[prost(string, tag = "5")]
    build_version: String,
}

#[derive(Clone, PartialEq, Message)]
struct OldSotwRequest {
    #[prost(message, optional, tag = "2")]
    node: Option<OldNode>,
}

#[derive(Clone, PartialEq, Message)]
struct OldDeltaRequest {
    #[prost(message, optional, tag = "1")]
    node: Option<OldNode>,
}

/// Reads a request of either version: both have the same fields under the same numbers, but for one of the node's. A v2
/// client says there what it is, if it does not say so in `user_agent_name`, where we look.
pub(crate) fn decode<M: IntoRequest>(version: ApiVersion, bytes: Bytes) -> Result<M, Status> {
    let mut message = M::decode(bytes.clone())
        .map_err(|error| Status::invalid_argument(format!("not a discovery request: {error}")))?;
    if version == ApiVersion::V2
        && let Some(node) = message.node()
        && node.user_agent_name.is_empty()
    {
        node.user_agent_name = M::build_version(bytes).unwrap_or_default();
    }
    Ok(message)
}

struct MessageDecoder<M> {
    version: ApiVersion,
    message: PhantomData<M>,
}

impl<M: IntoRequest> Decoder for MessageDecoder<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        decode(self.version, bytes).map(Some)
    }
}

struct Decoded<M>(Streaming<M>);

impl<M: IntoRequest> Requests for Decoded<M> {
    async fn next(&mut self) -> Result<Option<Request>, Status> {
        Ok(self.0.message().await?.map(IntoRequest::into_request))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_v2_node_says_what_it_is_in_build_version() {
        let request = OldSotwRequest {
            node: Some(OldNode {
                build_version: "gRPC C-core linux 1.30".to_owned(),
            }),
        };
        let bytes = Bytes::from(request.encode_to_vec());
        let old: DiscoveryRequest = decode(ApiVersion::V2, bytes.clone()).unwrap();
        assert_eq!(old.node.unwrap().user_agent_name, "gRPC C-core linux 1.30");
        let new: DiscoveryRequest = decode(ApiVersion::V3, bytes).unwrap();
        assert_eq!(new.node.unwrap().user_agent_name, "");
    }

    #[test]
    fn service_names_are_envoy_s() {
        use envoy_types::pb::envoy::service::{
            cluster::v3::cluster_discovery_service_server as cds,
            discovery::v3::aggregated_discovery_service_server as ads,
            endpoint::v3::endpoint_discovery_service_server as eds,
            listener::v3::listener_discovery_service_server as lds,
            route::v3::route_discovery_service_server as rds,
            secret::v3::secret_discovery_service_server as sds,
        };
        assert_eq!(
            SERVICES[..6],
            [
                ads::SERVICE_NAME,
                cds::SERVICE_NAME,
                eds::SERVICE_NAME,
                lds::SERVICE_NAME,
                rds::SERVICE_NAME,
                sds::SERVICE_NAME,
            ]
        );
    }
}
