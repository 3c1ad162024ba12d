//! What the kubelet endpoints (logs, exec, port-forward, metrics) may know of the pods. Written by workers.

use std::{collections::HashMap, sync::Arc};

use parking_lot::RwLock;

use super::sandbox::Sandbox;
use crate::container::runtime::Running;

/// One pod as its worker last described it.
#[derive(Clone, Debug)]
pub(crate) struct PodView {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) sandbox: Option<Sandbox>,
    pub(crate) containers: Vec<ContainerView>,
}

/// One container.
#[derive(Clone, Debug)]
pub(crate) struct ContainerView {
    pub(crate) name: String,
    /// Number of the current (or last) run; `None` before the first.
    pub(crate) attempt: Option<u32>,
    pub(crate) running: Option<Running>,
    /// Why it waits, if it does.
    pub(crate) waiting: Option<String>,
}

/// All pods of the node by namespace and name.
#[derive(Debug, Default)]
pub(crate) struct PodTable(RwLock<HashMap<(String, String), Arc<PodView>>>);

impl PodTable {
    pub(crate) fn put(&self, view: PodView) {
        let key = (view.namespace.clone(), view.name.clone());
        self.0.write().insert(key, Arc::new(view));
    }

    /// Forgets a pod, unless the name belongs to another one by now.
    pub(crate) fn remove(&self, namespace: &str, name: &str, uid: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut pods = self.0.write();
        if pods.get(&key).is_some_and(|view| view.uid == uid) {
            pods.remove(&key);
        }
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<PodView>> {
        self.0
            .read()
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<PodView>> {
        self.0.read().values().cloned().collect()
    }
}
