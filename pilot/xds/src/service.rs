//! The gRPC faces: `envoy.service.discovery.v3.AggregatedDiscoveryService`, and
//! `envoy.service.secret.v3.SecretDiscoveryService` for sources that have secrets only.
//!
//! A hand-written tonic service, because its answers are written from shared bytes ([`crate::body`]). Requests go through
//! tonic's own frame decoder, which refuses garbage, truncation and oversize with a gRPC status.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll},
};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use prost::Message;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status, Streaming,
    body::Body,
    codec::{DecodeBuf, Decoder},
    server::NamedService,
};

use crate::{
    Engine,
    body::{Item, Progress, ResponseBody},
    server::ConnectionInfo,
    session::Request,
    source::ResourceSource,
    stream::{self, Connection, Requests},
    wire::Variant,
};

/// A response of each type may be on its way, and the end.
const ITEMS: usize = 8;

/// Aggregated discovery over an [`Engine`]. Cheap to clone.
pub struct AggregatedDiscoveryService<S: ResourceSource> {
    engine: Arc<Engine<S>>,
}

impl<S: ResourceSource> AggregatedDiscoveryService<S> {
    /// The service of this engine.
    pub fn new(engine: Arc<Engine<S>>) -> Self {
        Self { engine }
    }

    fn stream<M: IntoRequest>(
        &self,
        variant: Variant,
        request: http::Request<Body>,
    ) -> http::Response<Body> {
        let (parts, body) = request.into_parts();
        let limit = self.engine.settings.max_request_bytes;
        let requests: Streaming<M> =
            Streaming::new_request(MessageDecoder(PhantomData), body, None, Some(limit));
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
            let served = stream::serve(
                engine,
                variant,
                requests,
                connection,
                items.clone(),
                progress,
            );
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

impl<S: ResourceSource> Clone for AggregatedDiscoveryService<S> {
    fn clone(&self) -> Self {
        Self {
            engine: self.engine.clone(),
        }
    }
}

impl<S: ResourceSource> NamedService for AggregatedDiscoveryService<S> {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<S: ResourceSource> tower::Service<http::Request<Body>> for AggregatedDiscoveryService<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let methods = ["StreamAggregatedResources", "DeltaAggregatedResources"];
        ready(Ok(self.answer(Self::NAME, methods, request)))
    }
}

impl<S: ResourceSource> AggregatedDiscoveryService<S> {
    /// Serves a method of the service `name`: state of the world is the first of `methods`, delta the second.
    fn answer(
        &self,
        name: &str,
        methods: [&str; 2],
        request: http::Request<Body>,
    ) -> http::Response<Body> {
        let is_grpc = request
            .headers()
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        if !is_grpc || request.method() != http::Method::POST {
            let mut response = http::Response::new(Body::empty());
            *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return response;
        }
        let [sotw, delta] = methods;
        let path = request.uri().path();
        let method = path.rsplit('/').next().unwrap_or_default().to_owned();
        if method == sotw {
            self.stream::<DiscoveryRequest>(Variant::Sotw, request)
        } else if method == delta {
            self.stream::<DeltaDiscoveryRequest>(Variant::Delta, request)
        } else {
            Status::unimplemented(format!(
                "{name} has no method {method}; it has {sotw} and {delta}"
            ))
            .into_http()
        }
    }
}

/// Secret discovery over an [`Engine`], for Envoys that have their secrets from somebody else than the rest. Cheap to clone.
pub struct SecretDiscoveryService<S: ResourceSource>(AggregatedDiscoveryService<S>);

impl<S: ResourceSource> SecretDiscoveryService<S> {
    /// The service of this engine.
    pub fn new(engine: Arc<Engine<S>>) -> Self {
        Self(AggregatedDiscoveryService::new(engine))
    }
}

impl<S: ResourceSource> Clone for SecretDiscoveryService<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: ResourceSource> NamedService for SecretDiscoveryService<S> {
    const NAME: &'static str = "envoy.service.secret.v3.SecretDiscoveryService";
}

impl<S: ResourceSource> tower::Service<http::Request<Body>> for SecretDiscoveryService<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let methods = ["StreamSecrets", "DeltaSecrets"];
        ready(Ok(self.0.answer(Self::NAME, methods, request)))
    }
}

trait IntoRequest: Message + Default + 'static {
    fn into_request(self) -> Request;
}

impl IntoRequest for DiscoveryRequest {
    fn into_request(self) -> Request {
        Request::Sotw(self)
    }
}

impl IntoRequest for DeltaDiscoveryRequest {
    fn into_request(self) -> Request {
        Request::Delta(self)
    }
}

struct MessageDecoder<M>(PhantomData<M>);

impl<M: Message + Default> Decoder for MessageDecoder<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        M::decode(buffer)
            .map(Some)
            .map_err(|error| Status::invalid_argument(format!("not a discovery request: {error}")))
    }
}

struct Decoded<M>(Streaming<M>);

impl<M: IntoRequest> Requests for Decoded<M> {
    async fn next(&mut self) -> Result<Option<Request>, Status> {
        Ok(self.0.message().await?.map(IntoRequest::into_request))
    }
}
