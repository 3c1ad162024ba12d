//! What one fake Envoy has been sent, and what it must ask for next. Pure.
//!
//! Cost: linear in the resources of a response; a whole list (state of the world) is compared with the last one by name.
//! Names are shared with the response's own bytes.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};

use bytes::Bytes;
use prost::Message as _;

use super::lite;

/// The four types a sidecar subscribes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Type {
    Cluster,
    Endpoint,
    Listener,
    Route,
}

impl Type {
    const ALL: [Self; 4] = [Self::Cluster, Self::Endpoint, Self::Listener, Self::Route];

    pub(super) const fn url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    pub(super) fn of(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.url() == url)
    }
}

/// A resource held: its body's hash.
type Held = ahash::HashMap<Bytes, u64>;

/// Subscriptions that a response made necessary or idle.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Wants {
    pub(super) added: Vec<Bytes>,
    pub(super) removed: Vec<Bytes>,
}

impl Wants {
    pub(super) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

/// Everything held, by type.
#[derive(Clone, Debug, Default)]
pub(super) struct Holdings {
    clusters: Held,
    endpoints: Held,
    listeners: Held,
    routes: Held,
    wanted_endpoints: ahash::HashSet<Bytes>,
    wanted_routes: ahash::HashSet<Bytes>,
    /// Wanted and not here yet.
    missing: usize,
    /// Routes that a listener asks for, by listener: a delta response names only the listeners that changed.
    routes_of: ahash::HashMap<Bytes, Vec<Bytes>>,
}

impl Holdings {
    /// Takes in a response. `whole`: what is not in a list of clusters or listeners is gone.
    pub(super) fn take(
        &mut self,
        ty: Type,
        resources: &[lite::Any],
        removed: &[Bytes],
        whole: bool,
    ) -> anyhow::Result<Wants> {
        let bodies = resources.iter().map(|any| &any.value);
        let mut wants = Wants::default();
        match ty {
            Type::Cluster => {
                if whole {
                    self.clusters.clear();
                }
                let mut eds = ahash::HashSet::default();
                for body in bodies {
                    let cluster = lite::Cluster::decode(body.clone())?;
                    if cluster.discovery_type == lite::EDS {
                        eds.insert(cluster.name.clone());
                    } else if self.wanted_endpoints.remove(&cluster.name) {
                        wants.removed.push(cluster.name.clone());
                    }
                    self.clusters.insert(cluster.name, hash(body));
                }
                if whole {
                    let gone = self.wanted_endpoints.difference(&eds);
                    wants.removed.extend(gone.cloned());
                }
                for name in removed {
                    self.clusters.remove(name);
                    if self.wanted_endpoints.contains(name) {
                        wants.removed.push(name.clone());
                    }
                }
                wants.added = eds.difference(&self.wanted_endpoints).cloned().collect();
                for name in &wants.removed {
                    self.wanted_endpoints.remove(name);
                    self.endpoints.remove(name);
                }
                self.wanted_endpoints.extend(wants.added.iter().cloned());
            }
            Type::Endpoint => {
                for body in bodies {
                    let name = lite::ClusterLoadAssignment::decode(body.clone())?.cluster_name;
                    self.endpoints.insert(name, hash(body));
                }
            }
            Type::Listener => {
                if whole {
                    self.listeners.clear();
                    self.routes_of.clear();
                }
                for body in bodies {
                    let listener = lite::Listener::decode(body.clone())?;
                    let routes = listener.routes().collect();
                    self.routes_of.insert(listener.name.clone(), routes);
                    self.listeners.insert(listener.name, hash(body));
                }
                for name in removed {
                    self.listeners.remove(name);
                    self.routes_of.remove(name);
                }
                let now: ahash::HashSet<Bytes> =
                    self.routes_of.values().flatten().cloned().collect();
                wants.added = now.difference(&self.wanted_routes).cloned().collect();
                wants.removed = self.wanted_routes.difference(&now).cloned().collect();
                for name in &wants.removed {
                    self.routes.remove(name);
                }
                self.wanted_routes = now;
            }
            Type::Route => {
                for body in bodies {
                    let name = lite::RouteConfiguration::decode(body.clone())?.name;
                    self.routes.insert(name, hash(body));
                }
            }
        }
        self.missing = absent(&self.wanted_endpoints, &self.endpoints)
            + absent(&self.wanted_routes, &self.routes);
        Ok(wants)
    }

    /// Whether everything is here that was asked for.
    pub(super) fn complete(&self) -> bool {
        !self.listeners.is_empty() && self.missing == 0
    }

    /// The names it subscribes to.
    pub(super) fn wanted(&self, ty: Type) -> impl Iterator<Item = &Bytes> {
        match ty {
            Type::Endpoint => Some(&self.wanted_endpoints),
            Type::Route => Some(&self.wanted_routes),
            Type::Cluster | Type::Listener => None,
        }
        .into_iter()
        .flatten()
    }

    pub(super) fn wants_endpoints(&self) -> bool {
        !self.wanted_endpoints.is_empty()
    }

    /// How many of each type.
    pub(super) fn counts(&self) -> [u64; 4] {
        [
            &self.clusters,
            &self.endpoints,
            &self.listeners,
            &self.routes,
        ]
        .map(|held| held.len() as u64)
    }

    /// The names of what differs from another proxy's holdings, at most ten.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let pairs = [
            ("cluster", &self.clusters, &other.clusters),
            ("endpoints", &self.endpoints, &other.endpoints),
            ("listener", &self.listeners, &other.listeners),
            ("route", &self.routes, &other.routes),
        ];
        let mut out = Vec::new();
        for (what, ours, theirs) in pairs {
            let describe =
                |name: &Bytes, how: &str| format!("{what} {} {how}", String::from_utf8_lossy(name));
            for (name, body) in ours {
                match theirs.get(name) {
                    None => out.push(describe(name, "should be gone")),
                    Some(other) if other != body => out.push(describe(name, "is not the newest")),
                    Some(_) => {}
                }
            }
            let lacking = theirs.keys().filter(|name| !ours.contains_key(*name));
            out.extend(lacking.map(|name| describe(name, "is missing")));
        }
        out.sort();
        out.truncate(10);
        out
    }
}

fn absent(wanted: &ahash::HashSet<Bytes>, held: &Held) -> usize {
    wanted
        .iter()
        .filter(|name| !held.contains_key(*name))
        .count()
}

/// Equal in every proxy of this process.
fn hash(body: &Bytes) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(body)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn cluster(name: &'static str, discovery_type: i32) -> lite::Any {
        let cluster = lite::Cluster {
            name: Bytes::from_static(name.as_bytes()),
            discovery_type,
        };
        any(Type::Cluster, cluster.encode_to_vec())
    }

    fn any(ty: Type, body: Vec<u8>) -> lite::Any {
        lite::Any {
            type_url: ty.url().to_owned(),
            value: body.into(),
        }
    }

    fn assignment(name: &'static str) -> lite::Any {
        let assignment = lite::ClusterLoadAssignment {
            cluster_name: Bytes::from_static(name.as_bytes()),
        };
        any(Type::Endpoint, assignment.encode_to_vec())
    }

    #[test]
    fn a_cluster_that_goes_takes_its_endpoints_along() {
        let mut holdings = Holdings::default();
        let list = [cluster("a", lite::EDS), cluster("b", 0)];
        let wants = holdings.take(Type::Cluster, &list, &[], true).unwrap();
        assert_eq!(wants.added, ["a"]);
        holdings
            .take(Type::Endpoint, &[assignment("a")], &[], false)
            .unwrap();
        assert_eq!(holdings.counts(), [2, 1, 0, 0]);
        let wants = holdings
            .take(Type::Cluster, &[cluster("b", 0)], &[], true)
            .unwrap();
        assert_eq!(
            (wants.added.len(), wants.removed),
            (0, vec![Bytes::from_static(b"a")])
        );
        assert_eq!(holdings.counts(), [1, 0, 0, 0]);
    }

    #[test]
    fn what_differs_is_named() {
        let (mut old, mut new) = (Holdings::default(), Holdings::default());
        old.take(
            Type::Cluster,
            &[cluster("a", 0), cluster("b", 0)],
            &[],
            true,
        )
        .unwrap();
        new.take(
            Type::Cluster,
            &[cluster("b", 1), cluster("c", 0)],
            &[],
            true,
        )
        .unwrap();
        assert_eq!(
            old.differences(&new),
            [
                "cluster a should be gone",
                "cluster b is not the newest",
                "cluster c is missing"
            ]
        );
        assert!(old.differences(&old).is_empty());
    }
}
