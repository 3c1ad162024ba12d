//! What travels: resource types, encoded resources, and whole collections of them.

use std::{
    hash::{DefaultHasher, Hasher as _},
    sync::Arc,
};

use bytes::Bytes;

pub use proto_envoy::{ApiVersion, ResourceType};

/// The content hash of a resource.
///
/// Replicas of one build agree on it, so a client that reconnects elsewhere with its delta versions is not sent again
/// what it has. A different build may disagree; that costs one resend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(pub u64);

impl Version {
    /// The version of an encoded resource.
    pub fn of(body: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(body);
        Self(hasher.finish())
    }

    /// Reads what a client sends back in `initial_resource_versions`. Anything that is not ours differs from
    /// every version, so the resource is simply sent again.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        (text.len() == 16)
            .then(|| u64::from_str_radix(text, 16).ok())
            .flatten()
            .map(Self)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One resource, encoded once and shared by every client that is sent it.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Its name within its type.
    pub name: Arc<str>,
    /// The hash of `body`.
    pub version: Version,
    /// The encoded message (the `value` of the `Any`).
    pub body: Bytes,
}

impl Resource {
    /// A resource of these bytes.
    pub fn new(name: impl Into<Arc<str>>, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self {
            name: name.into(),
            version: Version::of(&body),
            body,
        }
    }
}

/// All resources of one type that a proxy sees, sorted by name. Shared by the proxies that see the same.
#[derive(Debug, Default)]
pub struct Collection {
    resources: Vec<Resource>,
}

impl Collection {
    /// Sorts by name. Of two resources with one name the first is kept: Envoy refuses a list that names one twice.
    pub fn new(mut resources: Vec<Resource>) -> Self {
        resources.sort_by(|a, b| a.name.cmp(&b.name));
        resources.dedup_by(|later, first| later.name == first.name);
        Self { resources }
    }

    /// The resources, sorted by name.
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// The resource of that name.
    pub fn get(&self, name: &str) -> Option<&Resource> {
        self.resources
            .binary_search_by(|resource| (*resource.name).cmp(name))
            .ok()
            .map(|index| &self.resources[index])
    }
}

/// What separates two collections. Cost: one walk over both, or nothing when they are the same object.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    /// In `new` and not, or differently, in `old`.
    pub(crate) changed: Vec<Resource>,
    /// In `old` only.
    pub(crate) removed: Vec<Resource>,
}

impl Difference {
    pub(crate) fn between(old: &Arc<Collection>, new: &Arc<Collection>) -> Self {
        let mut difference = Self::default();
        if Arc::ptr_eq(old, new) {
            return difference;
        }
        let (mut old, mut new) = (
            old.resources.iter().peekable(),
            new.resources.iter().peekable(),
        );
        loop {
            match (old.peek(), new.peek()) {
                (Some(a), Some(b)) => match a.name.cmp(&b.name) {
                    std::cmp::Ordering::Equal => {
                        if a.version != b.version {
                            difference.changed.push((*b).clone());
                        }
                        old.next();
                        new.next();
                    }
                    std::cmp::Ordering::Less => difference.removed.extend(old.next().cloned()),
                    std::cmp::Ordering::Greater => difference.changed.extend(new.next().cloned()),
                },
                (Some(_), None) => difference.removed.extend(old.next().cloned()),
                (None, Some(_)) => difference.changed.extend(new.next().cloned()),
                (None, None) => return difference,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn collection(entries: &[(&str, &str)]) -> Arc<Collection> {
        Arc::new(Collection::new(
            entries
                .iter()
                .map(|(name, body)| Resource::new(*name, body.as_bytes().to_vec()))
                .collect(),
        ))
    }

    #[test]
    fn difference_names_exactly_what_changed() {
        let old = collection(&[("a", "1"), ("b", "1"), ("d", "1")]);
        let new = collection(&[("a", "1"), ("b", "2"), ("c", "1")]);
        let difference = Difference::between(&old, &new);
        let names = |list: &[Resource]| list.iter().map(|r| r.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&difference.changed), ["b", "c"]);
        assert_eq!(names(&difference.removed), ["d"]);
    }

    #[test]
    fn a_repeated_name_keeps_the_first() {
        let list = collection(&[("a", "first"), ("a", "second")]);
        assert_eq!(list.resources().len(), 1);
        assert_eq!(list.get("a").unwrap().body, "first");
    }

    #[test]
    fn versions_survive_the_wire() {
        let version = Version::of(b"x");
        assert_eq!(Version::parse(&version.to_string()), Some(version));
        assert_eq!(Version::parse("2026-01-01T00:00:00Z/3"), None);
    }
}
