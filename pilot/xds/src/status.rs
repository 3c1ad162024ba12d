//! Who is connected and how far each client has come: what `/debug/adsz` and `/debug/syncz` show.
//!
//! Each stream's task writes its own entry; debug handlers read. An entry is locked for the moment of a copy.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use serde::Serialize;

use crate::{resource::ResourceType, stream::Call, wire::Variant};

/// How one type stands on one stream.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeStatus {
    /// Whether the client asked for this type.
    pub subscribed: bool,
    /// Whether it wants everything.
    pub wildcard: bool,
    /// What it names.
    pub names: Vec<Arc<str>>,
    /// How many resources it holds from us.
    pub resources: usize,
    /// The last nonce sent.
    pub nonce_sent: String,
    /// The last nonce accepted.
    pub nonce_acked: String,
    /// The version that went with `nonce_sent`.
    pub version_sent: String,
    /// The version that went with `nonce_acked`.
    pub version_acked: String,
    /// When `nonce_sent` left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<jiff::Timestamp>,
    /// When `nonce_acked` was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acked_at: Option<jiff::Timestamp>,
    /// Why the last answered response was refused, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The nonce that was refused.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub nonce_refused: String,
    /// Since when responses of this type have been refused, without one that was accepted in between.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_since: Option<jiff::Timestamp>,
}

/// One connected client.
pub struct Client<P> {
    /// Node ID, `-`, counter.
    pub id: String,
    /// The node ID.
    pub node_id: String,
    /// Its address.
    pub peer: String,
    /// Since when.
    pub connected: jiff::Timestamp,
    /// State of the world or delta.
    pub variant: Variant,
    /// The discovery service it called.
    pub service: &'static str,
    state: Mutex<State<P>>,
}

struct State<P> {
    proxy: Arc<P>,
    types: [TypeStatus; 5],
    /// Worlds of which everything was answered, with the time of it; the newest last, the older ones forgotten.
    synced: VecDeque<(u64, jiff::Timestamp)>,
}

/// How many synced worlds are remembered per client.
const SYNCED: usize = 32;

impl TypeStatus {
    /// A response left.
    pub(crate) fn sent(&mut self, nonce: &str, version: &str) {
        nonce.clone_into(&mut self.nonce_sent);
        version.clone_into(&mut self.version_sent);
        self.sent_at = Some(jiff::Timestamp::now());
    }

    /// The last response was accepted. Returns the reason of an earlier refusal.
    pub(crate) fn acked(&mut self, nonce: String) -> Option<String> {
        self.nonce_acked = nonce;
        self.version_acked.clone_from(&self.version_sent);
        self.acked_at = Some(jiff::Timestamp::now());
        self.nonce_refused.clear();
        self.error_since = None;
        self.error.take()
    }

    /// The last response was refused. Returns the reason of an earlier refusal.
    pub(crate) fn refused(&mut self, nonce: String, reason: &str) -> Option<String> {
        self.nonce_refused = nonce;
        self.error_since.get_or_insert_with(jiff::Timestamp::now);
        self.error.replace(reason.to_owned())
    }
}

impl<P> Client<P> {
    /// What is known of the proxy.
    pub fn proxy(&self) -> Arc<P> {
        self.state.lock().proxy.clone()
    }

    /// How a type stands.
    pub fn status(&self, ty: ResourceType) -> TypeStatus {
        self.state.lock().types[ty.index()].clone()
    }

    /// The newest world of which the client has answered everything; 0 for none.
    pub fn synced(&self) -> u64 {
        self.state.lock().synced.back().map_or(0, |last| last.0)
    }

    /// Since when the client has everything of world `number`, or of one after it; `None`: it has not. A time long past
    /// may be given too late: only the last few worlds are remembered.
    pub fn synced_since(&self, number: u64) -> Option<jiff::Timestamp> {
        let state = self.state.lock();
        let first = state.synced.iter().find(|(world, _)| *world >= number);
        first.map(|(_, at)| *at)
    }

    pub(crate) fn set_proxy(&self, proxy: &Arc<P>) {
        self.state.lock().proxy = proxy.clone();
    }

    pub(crate) fn set_synced(&self, number: u64) {
        let mut state = self.state.lock();
        if state.synced.len() == SYNCED {
            // The first one stays: what is older than all others is since then.
            state.synced.remove(1);
        }
        state.synced.push_back((number, jiff::Timestamp::now()));
    }

    pub(crate) fn update<R>(&self, ty: ResourceType, f: impl FnOnce(&mut TypeStatus) -> R) -> R {
        f(&mut self.state.lock().types[ty.index()])
    }
}

/// All connected clients, by connection order.
pub struct Clients<P> {
    clients: RwLock<BTreeMap<u64, Arc<Client<P>>>>,
    counter: AtomicU64,
}

impl<P> Default for Clients<P> {
    fn default() -> Self {
        Self {
            clients: RwLock::default(),
            counter: AtomicU64::new(1),
        }
    }
}

impl<P> Clients<P> {
    /// Everyone who is connected now.
    pub fn list(&self) -> Vec<Arc<Client<P>>> {
        self.clients.read().values().cloned().collect()
    }

    /// The newest connection of a node; also found by its full connection ID, or by `name.namespace`, the third part of
    /// a node ID.
    pub fn find(&self, id: &str) -> Option<Arc<Client<P>>> {
        let clients = self.clients.read();
        clients
            .values()
            .rev()
            .find(|client| {
                client.node_id == id
                    || client.id == id
                    || client.node_id.split('~').nth(2) == Some(id)
            })
            .cloned()
    }

    pub(crate) fn enter(
        self: &Arc<Self>,
        node_id: &str,
        peer: String,
        call: Call,
        proxy: Arc<P>,
    ) -> Entry<P> {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let client = Arc::new(Client {
            id: format!("{node_id}-{number}"),
            node_id: node_id.to_owned(),
            peer,
            connected: jiff::Timestamp::now(),
            variant: call.variant,
            service: call.service,
            state: Mutex::new(State {
                proxy,
                types: Default::default(),
                synced: VecDeque::new(),
            }),
        });
        self.clients.write().insert(number, client.clone());
        Entry {
            number,
            client,
            clients: self.clone(),
        }
    }
}

/// A client's presence; ends with the stream.
pub(crate) struct Entry<P> {
    number: u64,
    pub(crate) client: Arc<Client<P>>,
    clients: Arc<Clients<P>>,
}

impl<P> Drop for Entry<P> {
    fn drop(&mut self) {
        self.clients.clients.write().remove(&self.number);
    }
}
