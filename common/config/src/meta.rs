//! Metadata of a config object, and the object itself.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;

use crate::kind::ConfigKind;

/// What is known of an object beside its spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Its kind.
    pub kind: ConfigKind,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    /// Name within kind and namespace.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// When it was created; the epoch where a source does not say.
    pub creation_timestamp: Timestamp,
    /// The source's version of the object; empty where it has none.
    pub resource_version: String,
    /// Counts changes of the spec; 0 where unknown.
    pub generation: i64,
    /// Tells objects of the same name apart over time; empty where unknown.
    pub uid: String,
}

impl Meta {
    /// Metadata with only a name.
    pub fn new(kind: ConfigKind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            kind,
            namespace: namespace.into(),
            name: name.into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            creation_timestamp: Timestamp::UNIX_EPOCH,
            resource_version: String::new(),
            generation: 0,
            uid: String::new(),
        }
    }

    /// Kind, namespace and name.
    pub fn key(&self) -> ObjectKey {
        ObjectKey {
            kind: self.kind,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }

    /// The older first; of the same age by the text `NAME.NAMESPACE`.
    pub fn age_order(&self, other: &Self) -> Ordering {
        fn text(meta: &Meta) -> impl Iterator<Item = u8> {
            let (name, namespace) = (meta.name.bytes(), meta.namespace.bytes());
            name.chain([b'.']).chain(namespace)
        }
        let by_age = self.creation_timestamp.cmp(&other.creation_timestamp);
        by_age.then_with(|| text(self).cmp(text(other)))
    }

    /// Whether a change from `other` to this can matter to generated config: not the bookkeeping of the API server.
    pub(crate) fn same_for_config(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.namespace == other.namespace
            && self.name == other.name
            && self.labels == other.labels
            && self.annotations == other.annotations
            && self.creation_timestamp == other.creation_timestamp
    }
}

/// An object: metadata and spec, cheap to clone.
#[derive(Debug)]
pub struct Object<S> {
    /// Metadata.
    pub meta: Arc<Meta>,
    /// What the user wants.
    pub spec: Arc<S>,
}

impl<S> Object<S> {
    /// An object of these parts.
    pub fn new(meta: Meta, spec: S) -> Self {
        Self {
            meta: Arc::new(meta),
            spec: Arc::new(spec),
        }
    }
}

// Not derived: a derive would ask for `S: Clone`.
impl<S> Clone for Object<S> {
    fn clone(&self) -> Self {
        Self {
            meta: Arc::clone(&self.meta),
            spec: Arc::clone(&self.spec),
        }
    }
}

impl<S: PartialEq> PartialEq for Object<S> {
    fn eq(&self, other: &Self) -> bool {
        self.meta == other.meta && self.spec == other.spec
    }
}

/// Names an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: ConfigKind,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            namespace,
            name,
        } = self;
        if namespace.is_empty() {
            write!(f, "{kind} {name}")
        } else {
            write!(f, "{kind} {namespace}/{name}")
        }
    }
}
