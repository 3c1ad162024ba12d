//! What gRPC clients ask for by name: listeners of targets and single clusters, generated and encoded once per scope.
//!
//! Part of a [`crate::scope_cache::ScopeCache`]; carried over to the next world like the rest of it. Load assignments and routes
//! of gRPC clients are kept there too, since these go by name for everybody.

use std::sync::Arc;

use ahash::AHashMap;
use parking_lot::Mutex;
use pilot_generate::{ChangeSet, Report, Scope, View, generate};
use pilot_xds::Resource;
use prost::Message as _;

/// Names remembered per scope and kind: those that clients make up must not grow without bound.
const REMEMBERED: usize = 16 * 1024;

/// What was made for a name, if there is such a thing, and what was found in making it.
#[derive(Clone)]
struct Made {
    resource: Option<Resource>,
    report: Option<Arc<Report>>,
}

type Known = Mutex<AHashMap<Arc<str>, Made>>;

/// See the [module](self).
#[derive(Default)]
pub(crate) struct ApiCache {
    listeners: Known,
    clusters: Known,
}

impl ApiCache {
    /// What a change leaves as it is.
    pub(crate) fn carry(self: &Arc<Self>, change: &ChangeSet, view: &View) -> Arc<Self> {
        let affected = change.affected(view);
        // A host that only a VirtualService knows has a listener as long as that is there.
        let listeners = affected.listeners || affected.routes;
        let clusters = affected.clusters || affected.endpoints;
        if !listeners && !clusters {
            return self.clone();
        }
        if change.touches_all(view) {
            return Arc::default();
        }
        let kept = |known: &Known, touched: &dyn Fn(&str) -> bool| {
            let mut known = known.lock().clone();
            known.retain(|name, _| !touched(name));
            Mutex::new(known)
        };
        Arc::new(Self {
            listeners: kept(&self.listeners, &|_| listeners),
            clusters: kept(&self.clusters, &|name| {
                clusters && change.touches_cluster(name)
            }),
        })
    }

    /// Listeners by target.
    pub(crate) fn listeners(&self, scope: &Scope, names: &[Arc<str>]) -> Vec<Option<Resource>> {
        get(&self.listeners, names, |name, _| {
            Some(generate::api_listener(scope, name)?.encode_to_vec())
        })
    }

    /// Clusters by name.
    pub(crate) fn clusters(&self, scope: &Scope, names: &[Arc<str>]) -> Vec<Option<Resource>> {
        get(&self.clusters, names, |name, report| {
            Some(generate::api_cluster(scope, name, report)?.encode_to_vec())
        })
    }

    /// Adds everything found out.
    pub(crate) fn report(&self, out: &mut Report) {
        for report in self
            .clusters
            .lock()
            .values()
            .filter_map(|made| made.report.as_ref())
        {
            out.merge(report);
        }
    }
}

fn get(
    known: &Known,
    names: &[Arc<str>],
    mut make: impl FnMut(&str, &mut Report) -> Option<Vec<u8>>,
) -> Vec<Option<Resource>> {
    let mut known = known.lock();
    names
        .iter()
        .map(|name| {
            if let Some(made) = known.get(name) {
                return made.resource.clone();
            }
            let mut report = Report::default();
            let body = make(name, &mut report);
            let resource = body.map(|body| Resource::new(name.clone(), body));
            if known.len() < REMEMBERED {
                let made = Made {
                    resource: resource.clone(),
                    report: (report != Report::default()).then(|| Arc::new(report)),
                };
                known.insert(name.clone(), made);
            }
            resource
        })
        .collect()
}
