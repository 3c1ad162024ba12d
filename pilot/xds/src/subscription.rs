//! One client's subscription to one type: the state machine that all types and both protocol variants share.
//!
//! Owned by the stream's task, so there is no lock. It knows three things and nothing of ordering between types (that is
//! [`crate::session`]):
//!
//! *What the client wants*: everything (`wildcard`) or `names`.
//!
//! *What the client was sent*: for a wildcard the collection itself (`known`, shared with every other client that was sent
//! the same), for names one version each. A delta client that reconnects says what it has in `initial_resource_versions`,
//! and that becomes the starting point.
//!
//! *What is under way*: at most one response. Its nonce must come back, as ACK or NACK, before the next one leaves. A
//! request with any other nonce is stale: a state-of-the-world client repeats it once it has read our response, so it is
//! dropped; a delta client does not repeat its (un)subscriptions, so these are taken from it all the same.
//!
//! A NACK changes nothing in what counts as sent. Envoy has applied the valid part of a refused cluster or listener list,
//! including removals, so neither version is "the" current one; what was refused is not sent again until it differs.
//!
//! Cost: a request is linear in the names it carries; an evaluation is linear in the names it is told were touched, or in
//! the collection when that changed, and constant when it did not.

use std::sync::Arc;

use ahash::{HashMap, HashSet};
use envoy_types::pb::{
    envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    google::rpc::Status as RpcStatus,
};
use tokio::time::Instant;

use crate::{
    resource::{Collection, Difference, Resource, ResourceType, Version},
    source::Touched,
    wire::Variant,
};

/// The name that asks for everything.
const WILDCARD: &str = "*";

/// A response that was sent and not answered yet.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) nonce: String,
    pub(crate) since: Instant,
}

/// What the client was last sent for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// Nothing, or it must be sent again whatever its version.
    Never,
    Version(Version),
    /// It was told that there is no such resource.
    Absent,
}

/// What a request amounted to.
#[derive(Debug, PartialEq)]
pub(crate) enum Received {
    /// The first request of the type on this stream, or a new start.
    Subscribed,
    /// The client accepted the response under way.
    Acked,
    /// The client refused it.
    Nacked(String),
    /// Neither: a change of subscription.
    Updated,
    /// It answers a response that has been superseded; ignored.
    Stale,
}

/// The content of a response to be.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    pub(crate) resources: Vec<Resource>,
    /// Delta: names the client shall forget.
    pub(crate) removed: Vec<Arc<str>>,
    /// The names among `resources` that are new or differ. In a full list that is fewer than all.
    pub(crate) changed: Vec<Arc<str>>,
}

/// Where resources come from while evaluating.
pub(crate) trait Lookup {
    fn collection(&self) -> Arc<Collection>;
    fn named(&self, names: &[Arc<str>]) -> Vec<Option<Resource>>;
    /// Whether an update of this name must wait although it differs (see [`crate::session`]).
    fn is_held(&self, name: &str) -> bool;
    /// Whether the name is that of a cluster which the client has and the world has no more.
    fn is_leaving(&self, name: &str) -> bool;
}

#[derive(Debug)]
pub(crate) struct Subscription {
    ty: ResourceType,
    variant: Variant,
    pub(crate) subscribed: bool,
    wildcard: bool,
    /// An explicit name was subscribed to at some time: from then on "no names" means nothing, not everything.
    was_explicit: bool,
    names: HashMap<Arc<str>, Sent>,
    /// Names to look at whatever the change says: new, or asked for again.
    due: HashSet<Arc<str>>,
    known: Arc<Collection>,
    /// The client holds resources that are gone from the world and are still to be removed from it.
    pub(crate) leftover: bool,
    /// What named resources looked like when they were sent, where lists are whole and removals wait.
    bodies: HashMap<Arc<str>, Resource>,
    /// What the client had from us before it came back, until that is compared with the world.
    former: Option<Arc<Collection>>,
    /// A response is owed even if it is empty: the client waits for it.
    owed: bool,
    /// The world this subscription was last brought to; 0 for none.
    pub(crate) evaluated: u64,
    pub(crate) in_flight: Option<InFlight>,
    last_nonce: String,
}

impl Subscription {
    pub(crate) fn new(ty: ResourceType, variant: Variant) -> Self {
        Self {
            ty,
            variant,
            subscribed: false,
            wildcard: false,
            was_explicit: false,
            names: HashMap::default(),
            due: HashSet::default(),
            known: Arc::default(),
            leftover: false,
            bodies: HashMap::default(),
            former: None,
            owed: false,
            evaluated: 0,
            in_flight: None,
            last_nonce: String::new(),
        }
    }

    /// Whether there is something to look at in world `number`.
    pub(crate) fn wants(&self, number: u64) -> bool {
        self.subscribed && (self.evaluated != number || !self.due.is_empty() || self.owed)
    }

    pub(crate) fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.keys()
    }

    /// Whether removals wait until nothing refers to the resources any more: clusters leave last.
    fn defers(&self) -> bool {
        self.ty == ResourceType::Cluster
    }

    /// How many resources the client holds from us.
    pub(crate) fn held(&self) -> usize {
        self.known.resources().len()
            + self
                .names
                .values()
                .filter(|sent| matches!(sent, Sent::Version(_)))
                .count()
    }

    /// Looks at everything anew, because the proxy is another one than it was.
    pub(crate) fn invalidate(&mut self) {
        self.evaluated = 0;
    }

    /// The client had these from us a moment ago, and has them still.
    pub(crate) fn resume(&mut self, former: Arc<Collection>) {
        if self.variant == Variant::Sotw && self.defers() {
            if self.wildcard {
                self.known = former;
            } else {
                self.former = Some(former);
            }
        }
    }

    /// What a client is to find again if it comes back; nothing for one that says so itself.
    pub(crate) fn holdings(&self) -> Arc<Collection> {
        match self.variant {
            Variant::Delta => Arc::default(),
            Variant::Sotw if self.wildcard => self.known.clone(),
            Variant::Sotw => Arc::new(Collection::new(self.whole_list())),
        }
    }

    /// Whether the client has a resource of this name from us.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.known.get(name).is_some() || matches!(self.names.get(name), Some(Sent::Version(_)))
    }

    /// Sends `name` again, even unchanged, if the client has it from us: see [`crate::session`].
    pub(crate) fn send_again(&mut self, name: &Arc<str>) {
        if let Some(sent) = self.names.get_mut(name)
            && *sent != Sent::Never
        {
            *sent = Sent::Never;
            self.due.insert(name.clone());
        }
    }

    /// Takes in a state-of-the-world request.
    pub(crate) fn on_sotw(&mut self, request: &DiscoveryRequest) -> Received {
        let nonce = &request.response_nonce;
        let first = !self.subscribed;
        // An empty nonce before our first response has been answered is the client adding names while it waits.
        let waiting = self.in_flight.is_some() || self.owed;
        let restart = first || (nonce.is_empty() && !waiting);
        let received = if restart {
            *self = Self::new(self.ty, self.variant);
            self.subscribed = true;
            self.owed = true;
            Received::Subscribed
        } else if nonce.is_empty() {
            Received::Updated
        } else if *nonce != self.last_nonce {
            return Received::Stale;
        } else {
            self.answered(request.error_detail.as_ref())
        };
        self.set_names(&request.resource_names);
        received
    }

    fn answered(&mut self, error: Option<&RpcStatus>) -> Received {
        match (self.in_flight.take(), error) {
            (_, Some(error)) => Received::Nacked(error.message.clone()),
            (Some(_), None) => Received::Acked,
            (None, None) => Received::Updated,
        }
    }

    fn set_names(&mut self, wanted: &[String]) {
        let everything =
            wanted.iter().any(|name| name == WILDCARD) || (wanted.is_empty() && !self.was_explicit);
        self.set_wildcard(everything && self.ty.is_whole());
        let explicit = wanted.iter().filter(|name| *name != WILDCARD);
        if explicit.clone().count() == self.names.len()
            && explicit
                .clone()
                .all(|name| self.names.contains_key(name.as_str()))
        {
            return;
        }
        self.was_explicit = true;
        let set: HashSet<&str> = explicit.map(String::as_str).collect();
        self.names.retain(|name, _| set.contains(&**name));
        self.bodies.retain(|name, _| set.contains(&**name));
        self.due.retain(|name| set.contains(&**name));
        for name in set {
            if !self.names.contains_key(name) {
                self.add_name(name.into(), Sent::Never);
            }
        }
    }

    fn set_wildcard(&mut self, wildcard: bool) {
        if self.wildcard != wildcard {
            self.wildcard = wildcard;
            self.known = Arc::default();
            self.leftover = false;
            self.owed = wildcard;
            self.evaluated = 0;
            // What was covered by the wildcard has not been sent by name, nor the other way round.
            self.bodies.clear();
            self.due.extend(self.names.keys().cloned());
            self.names.values_mut().for_each(|sent| *sent = Sent::Never);
        }
    }

    fn add_name(&mut self, name: Arc<str>, sent: Sent) {
        self.due.insert(name.clone());
        self.names.insert(name, sent);
    }

    /// Takes in a delta request.
    pub(crate) fn on_delta(&mut self, request: &DeltaDiscoveryRequest) -> Received {
        let first = !self.subscribed;
        let received = if first {
            self.subscribed = true;
            Received::Subscribed
        } else if request.response_nonce.is_empty() {
            Received::Updated
        } else if self
            .in_flight
            .as_ref()
            .is_some_and(|f| f.nonce == request.response_nonce)
        {
            self.answered(request.error_detail.as_ref())
        } else {
            Received::Stale
        };
        let subscribe = &request.resource_names_subscribe;
        if (first && subscribe.is_empty() && self.ty.is_whole())
            || subscribe.iter().any(|name| name == WILDCARD)
        {
            self.set_wildcard(self.ty.is_whole());
        }
        for name in subscribe.iter().filter(|name| *name != WILDCARD) {
            // Subscribing again to what one has is the way to ask for it again.
            self.add_name(name.as_str().into(), Sent::Never);
        }
        if first {
            self.take_initial_versions(request);
        }
        for name in &request.resource_names_unsubscribe {
            if name == WILDCARD {
                self.set_wildcard(false);
            } else {
                self.names.remove(name.as_str());
                self.bodies.remove(name.as_str());
                self.due.remove(name.as_str());
            }
        }
        received
    }

    /// What the client has from an earlier stream. Bodies stay empty: a delta client is only ever sent what differs.
    fn take_initial_versions(&mut self, request: &DeltaDiscoveryRequest) {
        let mut known = Vec::new();
        for (name, version) in &request.initial_resource_versions {
            // A version that is not ours equals none, so the resource is sent.
            let version = Version::parse(version).unwrap_or(Version(0));
            if let Some(sent) = self.names.get_mut(name.as_str()) {
                *sent = Sent::Version(version);
            } else if self.wildcard {
                known.push(Resource {
                    name: name.as_str().into(),
                    version,
                    body: bytes::Bytes::new(),
                });
            }
        }
        self.known = Arc::new(Collection::new(known));
    }

    /// The response was handed to the client.
    pub(crate) fn sent(&mut self, nonce: String, now: Instant) {
        self.last_nonce.clone_from(&nonce);
        self.in_flight = Some(InFlight { nonce, since: now });
    }

    /// Brings the client to world `number`. `None`: it is there already.
    pub(crate) fn evaluate(
        &mut self,
        number: u64,
        touched: Touched,
        lookup: &impl Lookup,
    ) -> Option<Payload> {
        debug_assert!(self.in_flight.is_none(), "one response of a type at a time");
        let mut payload = Payload::default();
        let mut must_send = std::mem::take(&mut self.owed) && self.wildcard;
        if self.wildcard
            && (!matches!(touched, Touched::Nothing) || must_send || !self.due.is_empty())
        {
            must_send |= self.evaluate_wildcard(must_send, lookup, &mut payload);
        }
        must_send |= self.evaluate_names(&touched, lookup, &mut payload);
        self.evaluated = number;
        (must_send || !payload.resources.is_empty() || !payload.removed.is_empty())
            .then_some(payload)
    }

    /// Returns whether there is something to say.
    fn evaluate_wildcard(
        &mut self,
        owed: bool,
        lookup: &impl Lookup,
        payload: &mut Payload,
    ) -> bool {
        let target = lookup.collection();
        let Difference {
            mut changed,
            removed,
        } = Difference::between(&self.known, &target);
        // Explicit names inside the wildcard are covered by it; being asked for them again means sending them again.
        for name in std::mem::take(&mut self.due) {
            match target.get(&name) {
                Some(resource) => {
                    self.names.insert(name, Sent::Version(resource.version));
                    if !changed.iter().any(|other| other.name == resource.name) {
                        changed.push(resource.clone());
                    }
                }
                None => {
                    self.due.insert(name);
                }
            }
        }
        // Clusters leave last, when nothing refers to them any more: until `prune` the client keeps them.
        let deferred = self.defers();
        self.leftover = deferred && !removed.is_empty();
        let something = owed || !changed.is_empty() || (!deferred && !removed.is_empty());
        if !something {
            return false;
        }
        payload.changed = changed
            .iter()
            .map(|resource| resource.name.clone())
            .collect();
        let next = if self.leftover {
            let all = target.resources().iter().cloned().chain(removed);
            Arc::new(Collection::new(all.collect()))
        } else {
            if self.variant == Variant::Delta {
                payload.removed = removed.into_iter().map(|resource| resource.name).collect();
            }
            target
        };
        payload.resources = match self.variant {
            Variant::Sotw => next.resources().to_vec(),
            Variant::Delta => changed,
        };
        self.known = next;
        true
    }

    /// Removes from the client what is gone from the world. Only sensible when nothing refers to it any more.
    pub(crate) fn prune(&mut self, lookup: &impl Lookup) -> Option<Payload> {
        debug_assert!(self.in_flight.is_none(), "one response of a type at a time");
        self.leftover = false;
        if !self.wildcard {
            return self.prune_names(lookup);
        }
        let target = lookup.collection();
        let Difference { changed, removed } = Difference::between(&self.known, &target);
        if !changed.is_empty() {
            // Not at the newest world yet: `evaluate` comes first.
            self.leftover = true;
            return None;
        }
        if removed.is_empty() {
            return None;
        }
        self.known = target.clone();
        let mut payload = Payload::default();
        match self.variant {
            Variant::Sotw => payload.resources = target.resources().to_vec(),
            Variant::Delta => {
                payload.removed = removed.into_iter().map(|resource| resource.name).collect();
            }
        }
        Some(payload)
    }

    fn prune_names(&mut self, lookup: &impl Lookup) -> Option<Payload> {
        let mut held: Vec<Arc<str>> = self
            .names
            .iter()
            .filter(|(_, sent)| matches!(sent, Sent::Version(_)))
            .map(|(name, _)| name.clone())
            .collect();
        held.sort_unstable();
        let found = lookup.named(&held);
        let gone: Vec<Arc<str>> = held
            .into_iter()
            .zip(found)
            .filter_map(|(name, resource)| resource.is_none().then_some(name))
            .collect();
        if gone.is_empty() {
            return None;
        }
        for name in &gone {
            self.names.insert(name.clone(), Sent::Absent);
            self.bodies.remove(name);
        }
        let mut payload = Payload::default();
        match self.variant {
            Variant::Sotw => payload.resources = self.whole_list(),
            Variant::Delta => payload.removed = gone,
        }
        Some(payload)
    }

    /// Everything that a state-of-the-world client which names its clusters or listeners has from us.
    fn whole_list(&self) -> Vec<Resource> {
        let mut all: Vec<Resource> = self.bodies.values().cloned().collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Returns whether there is something to say even if there is nothing to send: that a list has become empty.
    fn evaluate_names(
        &mut self,
        touched: &Touched,
        lookup: &impl Lookup,
        payload: &mut Payload,
    ) -> bool {
        let mut look: Vec<Arc<str>> = match touched {
            Touched::Nothing => Vec::new(),
            Touched::Everything => self.names.keys().cloned().collect(),
            Touched::Matching(predicates) => self
                .names
                .keys()
                .filter(|name| predicates.iter().any(|touches| touches(name)))
                .cloned()
                .collect(),
        };
        if look.is_empty() {
            look.extend(self.due.iter().cloned());
        } else if !self.due.is_empty() {
            let seen: HashSet<Arc<str>> = look.iter().cloned().collect();
            look.extend(
                self.due
                    .iter()
                    .filter(|name| !seen.contains(*name))
                    .cloned(),
            );
        }
        self.due.clear();
        if look.is_empty() {
            return false;
        }
        if self.wildcard {
            look.retain(|name| self.known.get(name).is_none());
        }
        // Sorted, so that clients that are sent the same share one run of bytes.
        look.sort_unstable();
        let resources = lookup.named(&look);
        let listed = self.variant == Variant::Sotw && self.ty.is_whole() && !self.wildcard;
        let defers = self.defers() && !self.wildcard;
        let former = self.former.take();
        let mut differs = false;
        // A client that refuses one secret (its file is missing) takes none of the response: each travels alone.
        let alone = self.ty == ResourceType::Secret;
        for (name, resource) in look.iter().zip(resources) {
            let Some(sent) = self.names.get_mut(name) else {
                continue;
            };
            if alone && !payload.resources.is_empty() {
                self.due.insert(name.clone());
                continue;
            }
            match resource {
                Some(resource) if *sent == Sent::Version(resource.version) => {}
                // What the client has stays as it is until its cluster is removed.
                _ if *sent != Sent::Never && lookup.is_held(name) => {}
                _ if lookup.is_leaving(name) => {}
                Some(resource) => {
                    *sent = Sent::Version(resource.version);
                    payload.changed.push(resource.name.clone());
                    if listed {
                        self.bodies.insert(name.clone(), resource.clone());
                    }
                    payload.resources.push(resource);
                }
                None if defers && matches!(sent, Sent::Version(_)) => self.leftover = true,
                None if defers && former.as_ref().is_some_and(|f| f.get(name).is_some()) => {
                    if let Some(resource) = former.as_ref().and_then(|f| f.get(name)) {
                        *sent = Sent::Version(resource.version);
                        self.bodies.insert(name.clone(), resource.clone());
                        self.leftover = true;
                    }
                }
                None if *sent != Sent::Absent => {
                    *sent = Sent::Absent;
                    self.bodies.remove(name);
                    differs = true;
                    if self.variant == Variant::Delta {
                        payload.removed.push(name.clone());
                    }
                }
                _ => {}
            }
        }
        // A state-of-the-world list of clusters or listeners is always whole, also for clients that name theirs.
        differs |= !payload.resources.is_empty();
        if differs && listed {
            payload.resources = self.whole_list();
        }
        differs && listed
    }
}
