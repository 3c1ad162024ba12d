//! One stream: the task that owns a client.
//!
//! It reads requests, watches for new worlds, and lets the [`Session`] say what to send. Nothing of it is shared, so a
//! client that is slow, silent or hostile costs its own task and no one else's time:
//!
//! - Memory per client: its subscription, at most one response per type on its way, and a world number as backlog.
//! - A response that the client does not make room for within [`Settings::write_timeout`] ends the stream.
//! - A stream without a request within [`Settings::first_request`] ends.
//! - Generation takes a turn at the [`Settings::push_throttle`]; waiting for the client does not.

use std::{collections::HashSet, sync::Arc};

use envoy_types::pb::envoy::config::core::v3::Node;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    Engine, Settings,
    body::{Item, Progress},
    metrics::TypeLabel,
    resource::{ApiVersion, ResourceType},
    session::{Outgoing, Request, Session},
    source::ResourceSource,
    status::Entry,
    subscription::{Payload, Received},
    wire::{Form, Head, Variant},
    world::Published,
};

/// What was called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// The full name of the service.
    pub(crate) service: &'static str,
    pub(crate) variant: Variant,
    /// The version of the API that requests without a type URL mean.
    pub(crate) version: ApiVersion,
    /// The type the service is bound to.
    pub(crate) only: Option<ResourceType>,
    /// One request, one answer.
    pub(crate) once: bool,
}

/// Where requests come from.
pub(crate) trait Requests: Send {
    fn next(&mut self) -> impl Future<Output = Result<Option<Request>, Status>> + Send;
}

/// What the connection tells its streams.
pub(crate) struct Connection {
    pub(crate) peer: String,
    /// The connection, or the process, is about to end.
    pub(crate) retire: CancellationToken,
    /// Cuts the connection.
    pub(crate) cut: CancellationToken,
}

/// Serves one stream to its end and says how it ended.
pub(crate) async fn serve<S: ResourceSource>(
    engine: Arc<Engine<S>>,
    call: Call,
    mut requests: impl Requests,
    connection: Connection,
    items: mpsc::Sender<Item>,
    progress: Arc<Progress>,
) -> Status {
    let opening = open(&engine, &mut requests, &connection, &items);
    let (first, published) = match opening.await {
        Ok(Some(opening)) => opening,
        Ok(None) => return Status::ok(""),
        Err(status) => return status,
    };
    let node = match &first {
        Request::Sotw(request) => request.node.as_ref(),
        Request::Delta(request) => request.node.as_ref(),
    };
    let Some(node) = node else {
        return Status::invalid_argument(
            "the first request of a stream carries no node; Envoy's node.id and node.metadata are needed",
        );
    };
    let mut stream =
        match Stream::enter(engine, call, node, &published, &connection, items, progress) {
            Ok(stream) => stream,
            Err(status) => return status,
        };
    tracing::info!(
        client = stream.entry.client.id,
        peer = connection.peer,
        service = call.service,
        variant = ?call.variant,
        "connected"
    );
    let status = stream
        .run(first, &mut requests, &connection, published)
        .await;
    let client = &stream.entry.client;
    tracing::info!(client = client.id, code = ?status.code(), reason = status.message(), "disconnected");
    stream.leave();
    status
}

/// Waits for the first request and for a world to answer it from. `None`: the client left.
async fn open<S: ResourceSource>(
    engine: &Engine<S>,
    requests: &mut impl Requests,
    connection: &Connection,
    items: &mpsc::Sender<Item>,
) -> Result<Option<(Request, Arc<Published<S>>)>, Status> {
    let first = tokio::select! {
        request = requests.next() => request?,
        () = tokio::time::sleep(engine.settings.first_request) => {
            return Err(Status::deadline_exceeded("no request on this stream"));
        }
        () = connection.retire.cancelled() => return Err(retired()),
        () = items.closed() => return Ok(None),
    };
    let Some(first) = first else { return Ok(None) };
    let mut worlds = engine.worlds.clone();
    let published = tokio::select! {
        world = worlds.wait_for(Option::is_some) => world.ok().and_then(|world| world.clone()),
        () = connection.retire.cancelled() => return Err(retired()),
        () = items.closed() => return Ok(None),
    };
    // The publisher lives as long as the process.
    let Some(published) = published else {
        return Err(retired());
    };
    Ok(Some((first, published)))
}

fn retired() -> Status {
    Status::unavailable("this connection is being retired; reconnect")
}

struct Stream<S: ResourceSource> {
    engine: Arc<Engine<S>>,
    call: Call,
    /// The version in which each type was last asked for.
    versions: [ApiVersion; 5],
    session: Session<S>,
    entry: Entry<S::Proxy>,
    items: mpsc::Sender<Item>,
    progress: Arc<Progress>,
    /// Distinguishes this stream's nonces from those of all others.
    nonce_prefix: String,
    sent_messages: u64,
    stall: Option<(u64, Instant)>,
    synced: u64,
    unknown_types: HashSet<String>,
}

impl<S: ResourceSource> Stream<S> {
    fn enter(
        engine: Arc<Engine<S>>,
        call: Call,
        node: &Node,
        published: &Published<S>,
        connection: &Connection,
        items: mpsc::Sender<Item>,
        progress: Arc<Progress>,
    ) -> Result<Self, Status> {
        let proxy = engine
            .source
            .attach(&published.world, node)
            .map_err(|error| {
                tracing::warn!(node = node.id, peer = connection.peer, %error, "refused a node");
                Status::invalid_argument(error.to_string())
            })?;
        let proxy = Arc::new(proxy);
        let entry = engine
            .clients
            .enter(&node.id, connection.peer.clone(), call, proxy.clone());
        engine.metrics.clients.inc();
        let wait = engine.settings.answer_wait;
        let session = Session::new(engine.source.clone(), proxy, published, call.variant, wait);
        Ok(Self {
            engine,
            call,
            versions: [call.version; 5],
            session,
            entry,
            items,
            progress,
            nonce_prefix: uuid::Uuid::new_v4().simple().to_string()[..8].to_owned(),
            sent_messages: 0,
            stall: None,
            synced: 0,
            unknown_types: HashSet::new(),
        })
    }

    async fn run(
        &mut self,
        first: Request,
        requests: &mut impl Requests,
        connection: &Connection,
        mut published: Arc<Published<S>>,
    ) -> Status {
        let mut worlds = self.engine.worlds.clone();
        // The receiver is a clone of one that never looked: mark what we hold as seen only if it is the newest.
        if let Some(current) = worlds.borrow_and_update().clone() {
            published = current;
        }
        if let Err(status) = self.receive(first) {
            return status;
        }
        loop {
            if let Err(status) = self.push(&published).await {
                return status;
            }
            if self.call.once {
                return self
                    .answer_once(&published)
                    .err()
                    .unwrap_or_else(|| Status::ok(""));
            }
            let retiring = connection.retire.is_cancelled();
            if retiring && self.session.is_quiet() {
                return retired();
            }
            let wake = self.wake();
            tokio::select! {
                request = requests.next() => match request {
                    Ok(Some(request)) => {
                        if let Err(status) = self.receive(request) {
                            return status;
                        }
                    }
                    Ok(None) => return Status::ok(""),
                    Err(status) => return status,
                },
                changed = worlds.changed() => {
                    if changed.is_err() {
                        return retired();
                    }
                    if let Some(current) = worlds.borrow_and_update().clone() {
                        published = current;
                        let waited = published.at.elapsed().as_secs_f64();
                        self.engine.metrics.queue_time.observe(waited);
                    }
                }
                () = connection.retire.cancelled(), if !retiring => {}
                () = sleep_until(wake), if wake.is_some() => {
                    if let Err(status) = self.check_progress() {
                        connection.cut.cancel();
                        return status;
                    }
                }
                () = self.items.closed() => return Status::ok(""),
            }
        }
    }

    fn receive(&mut self, request: Request) -> Result<(), Status> {
        let (type_url, nonce) = match &request {
            Request::Sotw(request) => (&request.type_url, &request.response_nonce),
            Request::Delta(request) => (&request.type_url, &request.response_nonce),
        };
        let Some(ty) = self.asked_type(type_url)? else {
            return self.receive_unknown(type_url);
        };
        let nonce = nonce.clone();
        let received = self.session.request(ty, &request);
        if received == Received::Subscribed
            && ty == ResourceType::Cluster
            && let Request::Sotw(request) = &request
            && !request.version_info.is_empty()
            && let Some(clusters) = self.engine.departed.take(&self.entry.client.node_id)
        {
            self.session.resume(clusters);
        }
        tracing::trace!(
            client = self.entry.client.id,
            ty = ty.short(),
            ?received,
            "request"
        );
        let metrics = &self.engine.metrics;
        let subscription = self.session.subscription(ty);
        let node = &self.entry.client.node_id;
        self.entry.client.update(ty, |status| {
            status.subscribed = true;
            status.wildcard = subscription.is_wildcard();
            status.resources = subscription.held();
            match &received {
                Received::Stale => {
                    metrics.expired_nonce.inc();
                }
                Received::Acked => {
                    metrics.reject(ty, node, status.acked(nonce).as_deref(), None);
                }
                Received::Nacked(reason) => {
                    tracing::warn!(
                        client = self.entry.client.id,
                        ty = ty.short(),
                        version = status.version_sent,
                        reason,
                        "the client refused a response; it keeps what it accepted, nothing is resent until it differs"
                    );
                    let former = status.refused(nonce, reason);
                    metrics.reject(ty, node, former.as_deref(), Some(reason));
                }
                Received::Subscribed | Received::Updated => {}
            }
            if subscription.names().count() != status.names.len()
                || matches!(received, Received::Subscribed | Received::Updated)
            {
                status.names = subscription.names().cloned().collect();
                status.names.sort_unstable();
            }
        });
        Ok(())
    }

    /// The type of a request. The service of one type may be called without naming it.
    fn asked_type(&mut self, type_url: &str) -> Result<Option<ResourceType>, Status> {
        match (ResourceType::from_type_url(type_url), self.call.only) {
            (None, Some(only)) if type_url.is_empty() => Ok(Some(only)),
            (Some(ty), only) if only.is_none_or(|only| only == ty) => {
                self.versions[ty.index()] = if type_url == ty.v2_url() {
                    ApiVersion::V2
                } else {
                    ApiVersion::V3
                };
                Ok(Some(ty))
            }
            (_, Some(only)) => Err(Status::invalid_argument(format!(
                "{} serves {}; {type_url:?} is another type",
                self.call.service,
                only.url(self.call.version)
            ))),
            (_, None) => Ok(None),
        }
    }

    /// The end of a call with a single answer: it is owed even if there is no such resource.
    fn answer_once(&mut self, published: &Published<S>) -> Result<(), Status> {
        match self.call.only {
            Some(ty) if self.sent_messages == 0 => {
                let payload = Payload::default();
                self.send(published, Outgoing { ty, payload }, Instant::now())
            }
            _ => Ok(()),
        }
    }

    /// A type that is not served: answering nothing leaves the rest of the stream working. Bounded memory.
    fn receive_unknown(&mut self, type_url: &str) -> Result<(), Status> {
        if type_url.is_empty() {
            return Err(Status::invalid_argument("a request without type_url"));
        }
        self.engine.metrics.unknown_types.inc();
        if self.unknown_types.len() < 16 && self.unknown_types.insert(type_url.to_owned()) {
            tracing::warn!(
                client = self.entry.client.id,
                type_url,
                "a type that is not served was asked for; it gets no answer"
            );
        }
        Ok(())
    }

    /// Sends whatever order allows.
    async fn push(&mut self, published: &Arc<Published<S>>) -> Result<(), Status> {
        let engine = self.engine.clone();
        let _turn = engine.throttle.acquire().await.map_err(|_| retired())?;
        let before = self.session.proxy().clone();
        loop {
            let begun = Instant::now();
            let Some(outgoing) = self.session.next(published, begun) else {
                break;
            };
            self.send(published, outgoing, begun)?;
        }
        if !Arc::ptr_eq(&before, self.session.proxy()) {
            self.entry.client.set_proxy(self.session.proxy());
        }
        if self.synced != published.number && self.session.is_synced(published.number) {
            self.synced = published.number;
            self.entry.client.set_synced(self.synced);
            let took = published.at.elapsed().as_secs_f64();
            self.engine.metrics.convergence_time.observe(took);
        }
        Ok(())
    }

    fn send(
        &mut self,
        published: &Published<S>,
        Outgoing { ty, payload }: Outgoing,
        begun: Instant,
    ) -> Result<(), Status> {
        self.sent_messages += 1;
        let nonce = format!("{}-{}", self.nonce_prefix, self.sent_messages);
        let head = Head {
            version: &published.version,
            nonce: &nonce,
            identifier: &self.engine.settings.identifier,
            removed: &payload.removed,
        };
        let form = Form {
            variant: self.call.variant,
            version: self.versions[ty.index()],
            ty,
        };
        let Payload {
            resources, changed, ..
        } = &payload;
        let count = resources.len();
        let resources = self
            .engine
            .translator
            .translate(form.version, ty, resources);
        let message = self.engine.assembler.message(form, &head, &resources);
        let bytes = message.len() as u64;
        tracing::debug!(
            client = self.entry.client.id,
            ty = ty.short(),
            version = %published.version,
            nonce,
            resources = count,
            changed = changed.len(),
            removed = payload.removed.len(),
            bytes,
            "push"
        );
        // At most one response per type is on its way and the channel has room for one of each.
        self.items
            .try_send(Item::Message(message))
            .map_err(|_| Status::cancelled("the client is gone"))?;
        let metrics = &self.engine.metrics;
        let label = TypeLabel { r#type: ty.short() };
        metrics.pushes.get_or_create(&label).inc();
        metrics
            .push_time
            .get_or_create(&label)
            .observe(begun.elapsed().as_secs_f64());
        metrics.resources.get_or_create(&label).inc_by(count as u64);
        metrics.bytes.get_or_create(&label).inc_by(bytes);
        self.entry
            .client
            .update(ty, |status| status.sent(&nonce, &published.version));
        self.session.sent(ty, nonce, Instant::now());
        Ok(())
    }

    /// When to look up from waiting: an answer is overdue, or the client might have stalled.
    fn wake(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let answer = self.session.next_deadline(now);
        if self.progress.messages() >= self.sent_messages {
            self.stall = None;
            return answer;
        }
        let taken = self.progress.taken();
        if self.stall.is_none_or(|(before, _)| before != taken) {
            self.stall = Some((taken, now));
        }
        let stalled = self
            .stall
            .map(|(_, since)| since + self.engine.settings.write_timeout);
        answer.into_iter().chain(stalled).min()
    }

    fn check_progress(&mut self) -> Result<(), Status> {
        let Some((taken, since)) = self.stall else {
            return Ok(());
        };
        let Settings { write_timeout, .. } = self.engine.settings;
        if taken == self.progress.taken() && since.elapsed() >= write_timeout {
            self.engine.metrics.write_timeout.inc();
            return Err(Status::unavailable(format!(
                "the client made no room for a response for {write_timeout:?}"
            )));
        }
        Ok(())
    }

    fn leave(&self) {
        self.engine.metrics.clients.dec();
        let client = &self.entry.client;
        let clusters = self.session.subscription(ResourceType::Cluster);
        self.engine
            .departed
            .leave(&client.node_id, clusters.holdings());
        for ty in ResourceType::ALL {
            let former = client.status(ty).error;
            self.engine
                .metrics
                .reject(ty, &client.node_id, former.as_deref(), None);
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        tokio::time::sleep_until(deadline).await;
    }
}
