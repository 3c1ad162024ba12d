//! The xDS engine: Envoy's discovery services, aggregated and by type, v3 and (for old clients) v2, state of the world and
//! delta, for any [`ResourceSource`].
//!
//! ```text
//!  events ──► pipeline ──► Publisher ──watch──► stream task ──► Session ──► Subscription (one per type)
//!             debounce,     world + what         (one per        order       what the client wants, has,
//!             two lanes     changed              client)         of types    and has not answered
//!                                                   │
//!                                     Assembler: private head + shared run of bytes ──► HTTP/2
//! ```
//!
//! | Module | Written by | Read by |
//! |---|---|---|
//! | [`pipeline`] | anyone, through [`pipeline::Changes`] | the one task that rebuilds the world |
//! | [`world`] | that task, through [`world::Publisher`] | every stream |
//! | session, subscription | the stream's task, alone | nobody else |
//! | [`status`] | the stream's task, its own entry | debug handlers |
//!
//! *Only what changed travels.* A change says what it may have touched; the [`ResourceSource`] turns that into names per
//! type and proxy; what remains is compared by content hash with what the client was sent. State-of-the-world lists of
//! clusters and listeners have to be whole, and travel only when something in them differs.
//!
//! *Cost of a world.* For a client none of whose types is touched: one call per type. For a touched wildcard type: a
//! pointer comparison when the shared collection is the same, a walk over it when it is not. For touched names: one
//! cache lookup each. Bytes are encoded once per resource and copied once per distinct response.
//!
//! *Memory per client.* Its names with one version each, pointers to the shared collections it holds, and at most one
//! response per type on its way. There is no push queue: the backlog of a slow client is the number of the world it was
//! last brought to.

mod body;
mod departed;
pub mod metrics;
pub mod pipeline;
pub mod resource;
pub mod server;
pub mod service;
mod session;
pub mod source;
pub mod status;
mod stream;
mod subscription;
mod translate;
pub mod wire;
pub mod world;

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

pub use metrics::Metrics;
pub use pipeline::{Changes, Debounce};
pub use resource::{ApiVersion, Collection, Resource, ResourceType, Version};
pub use service::{SERVICES, SecretDiscoveryService, routes};
pub use source::{Change, NodeError, Predicate, ResourceSource, Touched};
pub use status::{Client, Clients, TypeStatus};
pub use world::{Published, Publisher, WorldReceiver};

/// How streams are treated.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `control_plane.identifier` in every response: which replica this is.
    pub identifier: String,
    /// Streams that generate at the same time (`PILOT_PUSH_THROTTLE`).
    pub push_throttle: usize,
    /// How long listeners and routes wait for the answer to clusters, and removals for the answer to those.
    pub answer_wait: Duration,
    /// A response nobody makes room for ends the stream after this.
    pub write_timeout: Duration,
    /// A stream without a request ends after this.
    pub first_request: Duration,
    /// The largest request; it names every endpoint resource a proxy wants, or all versions it has.
    pub max_request_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            identifier: String::new(),
            push_throttle: 100,
            answer_wait: Duration::from_secs(5),
            write_timeout: Duration::from_secs(5),
            first_request: Duration::from_secs(10),
            max_request_bytes: 8 * 1024 * 1024,
        }
    }
}

/// Everything that streams share.
pub struct Engine<S: ResourceSource> {
    source: Arc<S>,
    worlds: WorldReceiver<S>,
    settings: Settings,
    metrics: Metrics,
    clients: Arc<Clients<S::Proxy>>,
    assembler: wire::Assembler,
    translator: translate::Translator,
    departed: departed::Departed,
    throttle: Semaphore,
}

impl<S: ResourceSource> Engine<S> {
    /// An engine that serves what is published to `worlds`.
    pub fn new(
        source: Arc<S>,
        worlds: WorldReceiver<S>,
        settings: Settings,
        metrics: Metrics,
    ) -> Arc<Self> {
        let throttle = Semaphore::new(settings.push_throttle.max(1));
        Arc::new(Self {
            source,
            worlds,
            settings,
            metrics,
            clients: Arc::default(),
            assembler: wire::Assembler::default(),
            translator: translate::Translator::default(),
            departed: departed::Departed::default(),
            throttle,
        })
    }

    /// Who is connected.
    pub fn clients(&self) -> &Arc<Clients<S::Proxy>> {
        &self.clients
    }

    /// The source it serves from.
    pub fn source(&self) -> &Arc<S> {
        &self.source
    }
}
