//! Service + Pods → EndpointSlices and Endpoints; hand-written Endpoints → EndpointSlices.
//!
//! The mesh's routing follows these objects, so latency counts: a pod's change wakes exactly the Services that select
//! it (before or after), and the slices are written before the older Endpoints object.

mod desired;
mod slices;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{DeleteParams, PostParams};

use crate::context::Context;
use crate::error::{During, Result, unless_gone};
use crate::owners::controller_reference;
use crate::pods::{Labels, carries};
use crate::runtime::driver::{Again, Controller};
use crate::runtime::queue::Queue;
use crate::runtime::store::Key;
use slices::{CHANGED_AT, Frame, MANAGED_BY, SERVICE_NAME};

const SLICE_CONTROLLER: &str = "endpointslice-controller.k8s.io";
const MIRROR_CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Marks Endpoints objects that follow a Service, as opposed to those people write.
const ENDPOINTS_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const ENDPOINTS_CONTROLLER: &str = "endpoint-controller";
const ZONE: &str = "topology.kubernetes.io/zone";

pub(crate) struct EndpointsController {
    context: Arc<Context>,
    queue: Arc<Queue<Key>>,
}

/// The labels a Service's pods carry; `None` for Services whose endpoints are somebody else's business.
fn selector(service: &Service) -> Option<&Labels> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector.as_ref().filter(|s| !s.is_empty())
}

impl EndpointsController {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        let queue = Arc::new(Queue::new());
        let stores = &context.stores;
        let wake = queue.clone();
        stores.services.on_change(move |old, new| {
            if let Some(service) = new.or(old) {
                wake.add(Key::of(service.as_ref()));
            }
        });
        let wake = queue.clone();
        let services = stores.services.clone();
        stores.pods.on_change(move |old, new| {
            let Some(pod) = new.or(old) else { return };
            for service in services.in_namespace(&pod.namespace().unwrap_or_default()) {
                let concerned = selector(&service).is_some_and(|wanted| {
                    [old, new]
                        .into_iter()
                        .flatten()
                        .any(|pod| carries(pod.metadata.labels.as_ref(), wanted))
                });
                if concerned {
                    wake.add(Key::of(service.as_ref()));
                }
            }
        });
        let wake = queue.clone();
        stores.endpoints.on_change(move |old, new| {
            if let Some(endpoints) = new.or(old) {
                wake.add(Key::of(endpoints.as_ref()));
            }
        });
        let wake = queue.clone();
        stores.slices.on_change(move |old, new| {
            for slice in [old, new].into_iter().flatten() {
                if let Some(name) = slice.labels().get(SERVICE_NAME) {
                    wake.add(Key::new(
                        slice.namespace().unwrap_or_default(),
                        name.clone(),
                    ));
                }
            }
        });
        Self { context, queue }
    }

    fn selected(&self, service: &Service, wanted: &Labels) -> Vec<Arc<Pod>> {
        let mut pods = self
            .context
            .stores
            .pods
            .in_namespace(&service.namespace().unwrap_or_default());
        pods.retain(|pod| carries(pod.metadata.labels.as_ref(), wanted));
        pods
    }

    fn zone(&self, node: &str) -> Option<String> {
        self.context
            .stores
            .nodes
            .get(&Key::new("", node))?
            .labels()
            .get(ZONE)
            .cloned()
    }

    fn slices_of(&self, key: &Key, manager: &str) -> Vec<Arc<EndpointSlice>> {
        let mut slices = self.context.stores.slices.in_namespace(&key.namespace);
        slices.retain(|slice| {
            let label = |name: &str| slice.labels().get(name).map(String::as_str);
            label(SERVICE_NAME) == Some(&key.name)
                && label(MANAGED_BY) == Some(manager)
                && slice.metadata.deletion_timestamp.is_none()
        });
        slices
    }

    async fn apply(&self, key: &Key, plan: slices::Plan) -> Result<()> {
        let api = self.context.api::<EndpointSlice>(&key.namespace);
        let store = &self.context.stores.slices;
        try_join_all(plan.create.iter().map(async |slice| {
            let made = api
                .create(&PostParams::default(), slice)
                .await
                .during(|| format!("create an EndpointSlice for Service {key}"));
            match made {
                Err(error) if error.namespace_is_terminating() => Ok(()),
                made => made.map(|slice| store.wrote(slice)),
            }
        }))
        .await?;
        try_join_all(plan.update.iter().map(async |slice| {
            let name = slice.name_any();
            let written = api
                .replace(&name, &PostParams::default(), slice)
                .await
                .during(|| format!("update EndpointSlice {}/{name}", key.namespace));
            unless_gone(written).map(|slice| slice.into_iter().for_each(|slice| store.wrote(slice)))
        }))
        .await?;
        try_join_all(plan.delete.iter().map(async |slice| {
            let name = slice.name_any();
            unless_gone(
                api.delete(&name, &DeleteParams::default())
                    .await
                    .during(|| format!("delete EndpointSlice {}/{name}", key.namespace)),
            )?;
            store.removed(&Key::of(slice.as_ref()), &slice.uid().unwrap_or_default());
            Ok(())
        }))
        .await?;
        Ok(())
    }

    async fn sync_selected(
        &self,
        key: &Key,
        service: &Arc<Service>,
        wanted: &Labels,
    ) -> Result<()> {
        let pods = self.selected(service, wanted);
        let frame = frame(
            key,
            service.labels(),
            SLICE_CONTROLLER,
            desired::is_headless(service),
            controller_reference(service.as_ref()),
        );
        let groups = desired::groups(service, &pods, |node| self.zone(node));
        self.apply(
            key,
            slices::plan(&frame, groups, self.slices_of(key, SLICE_CONTROLLER)),
        )
        .await?;
        self.apply(key, removal(self.slices_of(key, MIRROR_CONTROLLER)))
            .await?;
        self.sync_legacy(key, service, &pods).await
    }

    async fn sync_legacy(&self, key: &Key, service: &Service, pods: &[Arc<Pod>]) -> Result<()> {
        let subsets = desired::subsets(service, pods);
        let mut labels = service.labels().clone();
        labels.insert(
            ENDPOINTS_MANAGED_BY.to_owned(),
            ENDPOINTS_CONTROLLER.to_owned(),
        );
        if desired::is_headless(service) {
            labels.insert(HEADLESS.to_owned(), String::new());
        }
        let api = self.context.api::<Endpoints>(&key.namespace);
        let written = match self.context.stores.endpoints.get(key) {
            Some(current) if current.subsets == subsets && current.labels() == &labels => {
                return Ok(());
            }
            Some(current) => {
                let mut changed = Endpoints::clone(&current);
                changed.subsets = subsets;
                changed.metadata.labels = Some(labels);
                changed
                    .annotations_mut()
                    .insert(CHANGED_AT.to_owned(), timestamp());
                let written = api
                    .replace(&key.name, &PostParams::default(), &changed)
                    .await
                    .during(|| format!("update Endpoints {key}"));
                unless_gone(written)?
            }
            None => {
                let new = Endpoints {
                    metadata: ObjectMeta {
                        name: Some(key.name.clone()),
                        namespace: Some(key.namespace.clone()),
                        labels: Some(labels),
                        annotations: subsets
                            .is_some()
                            .then(|| [(CHANGED_AT.to_owned(), timestamp())].into()),
                        ..ObjectMeta::default()
                    },
                    subsets,
                };
                let made = api
                    .create(&PostParams::default(), &new)
                    .await
                    .during(|| format!("create Endpoints {key}"));
                match made {
                    Err(error) if error.namespace_is_terminating() => None,
                    made => Some(made?),
                }
            }
        };
        if let Some(written) = written {
            self.context.stores.endpoints.wrote(written);
        }
        Ok(())
    }

    /// A Service without selector: its Endpoints are written by people and mirrored into slices.
    async fn sync_mirrored(&self, key: &Key) -> Result<()> {
        let endpoints = self.context.stores.endpoints.get(key).filter(|e| {
            e.metadata.deletion_timestamp.is_none()
                && e.labels().get(SKIP_MIRROR).is_none_or(|v| v != "true")
        });
        let existing = self.slices_of(key, MIRROR_CONTROLLER);
        let groups = endpoints
            .as_ref()
            .map(|e| desired::mirrored(e))
            .unwrap_or_default();
        let plan = match endpoints {
            Some(endpoints) if !groups.is_empty() => {
                let owner = controller_reference(endpoints.as_ref());
                slices::plan(
                    &frame(key, endpoints.labels(), MIRROR_CONTROLLER, false, owner),
                    groups,
                    existing,
                )
            }
            _ => removal(existing),
        };
        self.apply(key, plan).await
    }

    /// The Service is gone: its slices go with it, and so do the Endpoints that followed it.
    async fn sync_gone(&self, key: &Key) -> Result<()> {
        self.apply(key, removal(self.slices_of(key, SLICE_CONTROLLER)))
            .await?;
        self.apply(key, removal(self.slices_of(key, MIRROR_CONTROLLER)))
            .await?;
        let follows = |e: &Arc<Endpoints>| {
            e.labels()
                .get(ENDPOINTS_MANAGED_BY)
                .is_some_and(|v| v == ENDPOINTS_CONTROLLER)
        };
        if let Some(endpoints) = self.context.stores.endpoints.get(key).filter(follows) {
            let api = self.context.api::<Endpoints>(&key.namespace);
            unless_gone(
                api.delete(&key.name, &DeleteParams::default())
                    .await
                    .during(|| format!("delete Endpoints {key}")),
            )?;
            self.context
                .stores
                .endpoints
                .removed(key, &endpoints.uid().unwrap_or_default());
        }
        Ok(())
    }
}

fn removal(slices: Vec<Arc<EndpointSlice>>) -> slices::Plan {
    slices::Plan {
        delete: slices,
        ..slices::Plan::default()
    }
}

fn timestamp() -> String {
    jiff::Timestamp::now().to_string()
}

fn frame(
    key: &Key,
    labels: &Labels,
    manager: &str,
    headless: bool,
    owner: k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference,
) -> Frame {
    let mut labels: BTreeMap<String, String> = labels.clone();
    labels.remove(ENDPOINTS_MANAGED_BY);
    labels.insert(SERVICE_NAME.to_owned(), key.name.clone());
    labels.insert(MANAGED_BY.to_owned(), manager.to_owned());
    if headless {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    Frame {
        namespace: key.namespace.clone(),
        service: key.name.clone(),
        labels,
        owner,
        changed_at: timestamp(),
    }
}

impl Controller for EndpointsController {
    const NAME: &'static str = "endpoints";
    const WORKERS: usize = 8;
    type Key = Key;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> Result<Again> {
        let service = self.context.stores.services.get(key);
        match service.as_ref().map(|s| (s, selector(s))) {
            None => self.sync_gone(key).await?,
            Some((service, _)) if service.metadata.deletion_timestamp.is_some() => {}
            Some((service, Some(wanted))) => self.sync_selected(key, service, wanted).await?,
            Some((_, None)) => self.sync_mirrored(key).await?,
        }
        Ok(Again::Never)
    }
}
