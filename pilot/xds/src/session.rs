//! One client's subscriptions together: the order in which they are served.
//!
//! Make before break. For each world a client is brought to:
//!
//! 1. **Clusters**: new and changed ones. Those that are gone stay: a state-of-the-world client is sent the union of new
//!    and old, a delta client only what differs.
//! 2. **Endpoints**, which wait for nothing: Envoy holds back its ACK of a cluster list until the new clusters are warm,
//!    and they are warm when their endpoints have come. After a changed cluster its endpoints are sent again even if they
//!    are the same: the new form of the cluster waits for them, and Envoy's request for them looks like an ACK
//!    (state-of-the-world) or is never sent at all (delta). Endpoints of a cluster that is about to be removed are left
//!    as they are: traffic may still be on its way there.
//! 3. **Listeners**, once the cluster response is answered: Envoy's ACK says that the clusters can take traffic.
//! 4. **Routes**, after listeners.
//! 5. **Removal of clusters**, once listeners and routes of this world are answered. A client that names its clusters
//!    (gRPC) answers before it has followed, and gives up what it does not need any more by itself; what it still names
//!    after [`crate::Settings::answer_wait`] is gone for good, and it is told.
//!
//! A client that comes back within a minute begins with what it had (see [`crate::departed`]), so that a change which came
//! while it was away is made before it breaks as well.
//!
//! Waiting for an answer is bounded by [`crate::Settings::answer_wait`]: a client that holds back an ACK for longer, because
//! some cluster does not resolve, gets its listeners and routes all the same. (It never gets a second response of a type
//! before it answered the first.) If a newer world arrives meanwhile the steps start over towards that one.
//!
//! Pure: no IO, no clock of its own. The stream's task calls [`Session::request`] and [`Session::next`].

use std::{cell::OnceCell, sync::Arc, time::Duration};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use tokio::time::Instant;

use crate::{
    resource::{Collection, Resource, ResourceType},
    source::ResourceSource,
    subscription::{Lookup, Payload, Received, Subscription},
    wire::Variant,
    world::Published,
};

/// A request of either variant.
#[derive(Debug)]
pub(crate) enum Request {
    Sotw(DiscoveryRequest),
    Delta(DeltaDiscoveryRequest),
}

/// The order in which types are looked at. Secrets wait for nothing and clusters and listeners may wait for them.
const ORDER: [ResourceType; 5] = [
    ResourceType::Secret,
    ResourceType::Cluster,
    ResourceType::Endpoint,
    ResourceType::Listener,
    ResourceType::Route,
];

/// What is to be sent next.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) ty: ResourceType,
    pub(crate) payload: Payload,
}

pub(crate) struct Session<S: ResourceSource> {
    source: Arc<S>,
    proxy: Arc<S::Proxy>,
    /// The world `proxy` was last looked at in.
    attached: u64,
    subscriptions: [Subscription; 5],
    answer_wait: Duration,
    /// When clusters that the client names and the world has no more are removed from it.
    removal_due: Option<Instant>,
}

/// Whether clusters hold back endpoints: only where the client has its clusters from us too.
#[derive(Clone, Copy, PartialEq)]
enum Guard {
    None,
    /// The client has all clusters.
    All,
    /// The client has the clusters that it named.
    Named,
}

struct View<'a, S: ResourceSource> {
    source: &'a S,
    published: &'a Published<S>,
    proxy: &'a S::Proxy,
    ty: ResourceType,
    guard: Guard,
    clusters: OnceCell<Arc<Collection>>,
    /// The client's clusters while some of them are about to leave.
    leaving: Option<&'a Subscription>,
}

impl<S: ResourceSource> Lookup for View<'_, S> {
    fn collection(&self) -> Arc<Collection> {
        self.source
            .collection(&self.published.world, self.proxy, self.ty)
    }

    fn named(&self, names: &[Arc<str>]) -> Vec<Option<Resource>> {
        self.source
            .named(&self.published.world, self.proxy, self.ty, names)
    }

    fn is_held(&self, name: &str) -> bool {
        let (world, ty) = (&self.published.world, ResourceType::Cluster);
        match self.guard {
            Guard::None => false,
            Guard::All => {
                let clusters = || self.source.collection(world, self.proxy, ty);
                self.clusters.get_or_init(clusters).get(name).is_none()
            }
            Guard::Named => !self.in_world(name),
        }
    }

    fn is_leaving(&self, name: &str) -> bool {
        let leaving = self.leaving.is_some_and(|clusters| clusters.has(name));
        leaving && !self.in_world(name)
    }
}

impl<S: ResourceSource> View<'_, S> {
    fn in_world(&self, name: &str) -> bool {
        let named = [name.into()];
        let (world, ty) = (&self.published.world, ResourceType::Cluster);
        let found = self.source.named(world, self.proxy, ty, &named);
        found.iter().any(Option::is_some)
    }
}

impl<S: ResourceSource> Session<S> {
    pub(crate) fn new(
        source: Arc<S>,
        proxy: Arc<S::Proxy>,
        published: &Published<S>,
        variant: Variant,
        answer_wait: Duration,
    ) -> Self {
        Self {
            source,
            proxy,
            attached: published.number,
            subscriptions: ResourceType::ALL.map(|ty| Subscription::new(ty, variant)),
            answer_wait,
            removal_due: None,
        }
    }

    pub(crate) fn proxy(&self) -> &Arc<S::Proxy> {
        &self.proxy
    }

    pub(crate) fn subscription(&self, ty: ResourceType) -> &Subscription {
        &self.subscriptions[ty.index()]
    }

    pub(crate) fn request(&mut self, ty: ResourceType, request: &Request) -> Received {
        let subscription = &mut self.subscriptions[ty.index()];
        match request {
            Request::Sotw(request) => subscription.on_sotw(request),
            Request::Delta(request) => subscription.on_delta(request),
        }
    }

    /// The client had these clusters from us a moment ago.
    pub(crate) fn resume(&mut self, clusters: Arc<Collection>) {
        self.subscriptions[ResourceType::Cluster.index()].resume(clusters);
    }

    pub(crate) fn sent(&mut self, ty: ResourceType, nonce: String, now: Instant) {
        self.subscriptions[ty.index()].sent(nonce, now);
    }

    /// Whether every response was answered.
    pub(crate) fn is_quiet(&self) -> bool {
        self.subscriptions
            .iter()
            .all(|subscription| subscription.in_flight.is_none())
    }

    /// Whether the client has, and has answered, everything of world `number`.
    pub(crate) fn is_synced(&self, number: u64) -> bool {
        self.is_quiet()
            && self
                .subscriptions
                .iter()
                .all(|sub| !sub.wants(number) && !sub.leftover)
    }

    /// When the next wait for an answer runs out.
    pub(crate) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        self.subscriptions
            .iter()
            .filter_map(|sub| Some(sub.in_flight.as_ref()?.since + self.answer_wait))
            .chain(self.removal_due)
            .filter(|deadline| *deadline > now)
            .min()
    }

    /// The next response that order allows, towards this world. Call [`Session::sent`] for it, then call again.
    pub(crate) fn next(&mut self, published: &Published<S>, now: Instant) -> Option<Outgoing> {
        self.look_at_proxy(published);
        let number = published.number;
        let mut hold = false;
        for ty in ORDER {
            if hold && matches!(ty, ResourceType::Listener | ResourceType::Route) {
                continue;
            }
            let subscription = &self.subscriptions[ty.index()];
            if subscription.in_flight.is_some() {
                // The cluster response itself is what listeners wait for; of the others, the one that is due after it.
                hold |= self.awaits_answer(ty, now)
                    && (ty == ResourceType::Cluster || subscription.wants(number));
                continue;
            }
            if let Some(payload) = self.evaluate(published, ty, now) {
                return Some(Outgoing { ty, payload });
            }
        }
        self.prune(published, now)
    }

    fn look_at_proxy(&mut self, published: &Published<S>) {
        if self.attached == published.number {
            return;
        }
        let mut another = None;
        if let Some(changes) = published.since(self.attached) {
            for change in changes {
                let proxy = another.as_ref().unwrap_or(&*self.proxy);
                if let Some(new) = self.source.reattach(&published.world, proxy, change) {
                    another = Some(new);
                }
            }
        }
        if let Some(proxy) = another {
            self.proxy = Arc::new(proxy);
            self.subscriptions
                .iter_mut()
                .for_each(Subscription::invalidate);
        }
        self.attached = published.number;
    }

    fn awaits_answer(&self, ty: ResourceType, now: Instant) -> bool {
        self.subscriptions[ty.index()]
            .in_flight
            .as_ref()
            .is_some_and(|in_flight| now < in_flight.since + self.answer_wait)
    }

    fn view<'a>(
        source: &'a S,
        proxy: &'a S::Proxy,
        published: &'a Published<S>,
        ty: ResourceType,
        guard: Guard,
    ) -> View<'a, S> {
        View {
            source,
            published,
            proxy,
            ty,
            guard,
            clusters: OnceCell::new(),
            leaving: None,
        }
    }

    fn evaluate(
        &mut self,
        published: &Published<S>,
        ty: ResourceType,
        now: Instant,
    ) -> Option<Payload> {
        let clusters = self.subscription(ResourceType::Cluster);
        let guard = match ty {
            ResourceType::Endpoint if clusters.is_wildcard() => Guard::All,
            ResourceType::Endpoint if clusters.subscribed => Guard::Named,
            _ => Guard::None,
        };
        // Clusters come before endpoints, so that one subscription can be changed while the other is looked at.
        let (clusters, others) = self.subscriptions.split_at_mut(1);
        let (leaving, subscription) = match ty {
            ResourceType::Cluster => (None, &mut clusters[0]),
            ResourceType::Endpoint => {
                let leaving = Some(&clusters[0]).filter(|clusters| clusters.leftover);
                (leaving, &mut others[ty.index() - 1])
            }
            _ => (None, &mut others[ty.index() - 1]),
        };
        if !subscription.wants(published.number) {
            return None;
        }
        let since = subscription.evaluated;
        let touched = published.touched(&self.source, &self.proxy, ty, since);
        let mut view = Self::view(&self.source, &self.proxy, published, ty, guard);
        view.leaving = leaving;
        let payload = subscription.evaluate(published.number, touched, &view);
        if ty == ResourceType::Cluster {
            let waits = subscription.leftover && !subscription.is_wildcard();
            self.removal_due = waits.then(|| self.removal_due.unwrap_or(now + self.answer_wait));
            for name in payload.iter().flat_map(|payload| &payload.changed) {
                self.subscriptions[ResourceType::Endpoint.index()].send_again(name);
            }
        }
        payload
    }

    fn prune(&mut self, published: &Published<S>, now: Instant) -> Option<Outgoing> {
        let ty = ResourceType::Cluster;
        let clusters = self.subscription(ty);
        if !clusters.leftover || clusters.in_flight.is_some() {
            return None;
        }
        if !clusters.is_wildcard() && self.removal_due.is_some_and(|due| now < due) {
            return None;
        }
        for user in [ResourceType::Listener, ResourceType::Route] {
            if self.subscription(user).wants(published.number) || self.awaits_answer(user, now) {
                return None;
            }
        }
        self.removal_due = None;
        let view = Self::view(&self.source, &self.proxy, published, ty, Guard::None);
        let payload = self.subscriptions[ty.index()].prune(&view)?;
        Some(Outgoing { ty, payload })
    }
}
