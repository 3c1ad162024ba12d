//! Config from the Kubernetes API: one list and watch per kind.
//!
//! kube-rs' watcher lists in pages, watches with bookmarks, lists again after 410, and tries again after any error; we
//! give it a jittered back-off of 0.2 to 5 s, for ever. Events of all kinds come into one task that owns the store;
//! those that are ready together become one snapshot. A list replaces the objects of its kind when it is complete.
//!
//! A kind that older clusters know under other names (Ingress) is asked for by each, the newest first, before its watch.
//!
//! "Synced" means every kind was listed, or the API server said 404: a missing CRD is asked for again with the same
//! back-off and shown as not installed. A 404 later, as while an API server starts, changes nothing.
//!
//! Memory: objects are turned into typed ones as they arrive, managed fields and status are dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::ResetTimerBackoff;
use kube::runtime::watcher::{self, Event, ExponentialBackoff};
use mesh_config::{ConfigError, ConfigKind, Meta, ObjectKey, Scope, Store, TypedObject, parse};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::publish::{ConfigSource, Publisher, Status, Subscription};

/// Usual waits after failures.
pub(crate) const RETRY_MIN: Duration = Duration::from_millis(200);
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(5);
/// Events taken into one snapshot at most.
const BATCH: usize = 1024;

/// What to read.
#[derive(Debug, Clone)]
pub struct KubernetesOptions {
    /// Only this namespace (and cluster-scoped kinds), or all.
    pub namespace: Option<String>,
    /// The kinds to read; by default those of the mesh.
    pub kinds: Vec<ConfigKind>,
    /// Objects per page of a list.
    pub page_size: u32,
    /// First wait after a failure; it doubles with every further one.
    pub retry_min: Duration,
    /// Longest wait after a failure, before jitter of up to as much again as the first.
    pub retry_max: Duration,
}

impl Default for KubernetesOptions {
    fn default() -> Self {
        Self {
            namespace: None,
            kinds: ConfigKind::ALL
                .iter()
                .copied()
                .filter(|k| k.is_of_the_mesh())
                .collect(),
            page_size: 500,
            retry_min: RETRY_MIN,
            retry_max: RETRY_MAX,
        }
    }
}

/// Config from the Kubernetes API.
#[derive(Debug)]
pub struct KubernetesSource {
    publisher: Publisher,
    options: KubernetesOptions,
}

impl ConfigSource for KubernetesSource {
    fn subscribe(&self) -> Subscription {
        self.publisher.subscribe()
    }

    fn status(&self) -> Status {
        self.publisher.status()
    }
}

impl KubernetesSource {
    /// A source that does nothing until it runs.
    pub fn new(options: KubernetesOptions) -> Arc<Self> {
        let publisher = Publisher::new();
        publisher.update_status(|status| {
            status.kinds = options
                .kinds
                .iter()
                .map(|k| (*k, Default::default()))
                .collect();
        });
        Arc::new(Self { publisher, options })
    }

    /// Reads and publishes until `shutdown`. Run once.
    pub async fn run(self: Arc<Self>, client: kube::Client, shutdown: CancellationToken) {
        let streams = self
            .options
            .kinds
            .iter()
            .map(|kind| self.watch(&client, *kind));
        let mut events = stream::select_all(streams).ready_chunks(BATCH);
        let mut intake = Intake {
            publisher: &self.publisher,
            store: Store::new(),
            lists: BTreeMap::new(),
            failed_at: BTreeMap::new(),
        };
        let mut calm = tokio::time::interval(self.options.retry_max);
        loop {
            let chunk = tokio::select! {
                () = shutdown.cancelled() => return,
                _ = calm.tick() => {
                    // No attempt waits longer than twice the longest back-off.
                    intake.forgive(self.options.retry_max * 3);
                    continue;
                }
                chunk = events.next() => chunk,
            };
            // Watchers never end; with no kinds at all there is nothing to wait for but the end.
            let Some(chunk) = chunk else {
                self.publisher.publish(&mut intake.store);
                shutdown.cancelled().await;
                return;
            };
            for (kind, event) in chunk {
                intake.take(kind, event);
            }
            if self.publisher.is_synced() || intake.is_complete() {
                self.publisher.publish(&mut intake.store);
            }
        }
    }

    fn watch(
        &self,
        client: &kube::Client,
        kind: ConfigKind,
    ) -> stream::BoxStream<'static, (ConfigKind, KindEvent)> {
        let options = self.options.clone();
        let client = client.clone();
        if kind.older_versions().is_empty() {
            return watch_version(&client, kind, (kind.group(), kind.version()), &options);
        }
        // Which version this server has is to be found out first.
        let attempts = stream::unfold(Some(Duration::ZERO), {
            let (client, options) = (client.clone(), options.clone());
            move |wait| {
                let (client, options) = (client.clone(), options.clone());
                async move {
                    let wait = wait?;
                    tokio::time::sleep(wait.mul_f64(rand::random_range(0.8..1.2))).await;
                    let found = served_version(&client, kind, &options).await;
                    let next = (wait * 2).clamp(options.retry_min, options.retry_max);
                    let next = found.is_err().then_some(next);
                    Some((found, next))
                }
            }
        });
        attempts
            .flat_map(move |found| match found {
                Ok(version) => watch_version(&client, kind, version, &options),
                Err(error) => {
                    let event = (kind, Err(watcher::Error::InitialListFailed(error)));
                    stream::once(std::future::ready(event)).boxed()
                }
            })
            .boxed()
    }
}

fn api(
    client: &kube::Client,
    kind: ConfigKind,
    (group, version): (&str, &str),
    options: &KubernetesOptions,
) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk(group, version, kind.kind());
    let resource = ApiResource::from_gvk_with_plural(&gvk, kind.plural());
    match (&options.namespace, kind.scope()) {
        (Some(namespace), Scope::Namespaced) => {
            Api::namespaced_with(client.clone(), namespace, &resource)
        }
        _ => Api::all_with(client.clone(), &resource),
    }
}

/// The newest version of a kind that the server knows; the newest of all if it knows none (yet).
async fn served_version(
    client: &kube::Client,
    kind: ConfigKind,
    options: &KubernetesOptions,
) -> kube::Result<(&'static str, &'static str)> {
    let newest = (kind.group(), kind.version());
    for version in std::iter::once(newest).chain(kind.older_versions().iter().copied()) {
        let one = ListParams::default().limit(1);
        match api(client, kind, version, options).list(&one).await {
            Ok(_) => return Ok(version),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(newest)
}

fn watch_version(
    client: &kube::Client,
    kind: ConfigKind,
    version: (&str, &str),
    options: &KubernetesOptions,
) -> stream::BoxStream<'static, (ConfigKind, KindEvent)> {
    let config = watcher::Config::default().page_size(options.page_size);
    watcher::watcher(api(client, kind, version, options), config)
        .backoff(backoff(options.retry_min, options.retry_max))
        .map(move |event| (kind, event))
        .boxed()
}

/// How long to wait after failures: doubling, with jitter. The watcher says "Init" before each list, which would count
/// as success; hence a reset by time.
pub(crate) fn backoff(min: Duration, max: Duration) -> ResetTimerBackoff<ExponentialBackoff> {
    let growing = backon::ExponentialBuilder::default()
        .with_min_delay(min)
        .with_max_delay(max)
        .with_jitter()
        .without_max_times();
    ResetTimerBackoff::new(growing.into(), max * 6)
}

type KindEvent = Result<Event<DynamicObject>, watcher::Error>;

/// A list of one kind in progress.
#[derive(Default)]
struct List {
    objects: Vec<TypedObject>,
    /// Everything the list named, valid or not.
    names: BTreeSet<ObjectKey>,
}

/// Takes events in; owns the store.
struct Intake<'a> {
    publisher: &'a Publisher,
    store: Store,
    lists: BTreeMap<ConfigKind, List>,
    /// When a kind that shows an error failed last.
    failed_at: BTreeMap<ConfigKind, Instant>,
}

impl Intake<'_> {
    fn take(&mut self, kind: ConfigKind, event: KindEvent) {
        match event {
            Ok(Event::Init) => {
                self.lists.insert(kind, List::default());
            }
            Ok(Event::InitApply(object)) => {
                self.count(kind);
                let (key, read) = read(kind, object);
                let list = self.lists.entry(kind).or_default();
                list.names.insert(key.clone());
                match read {
                    Ok(object) => {
                        list.objects.push(object);
                        self.publisher
                            .retain_rejected(|what| what != key.to_string());
                    }
                    Err(errors) => {
                        let previous = self.store.get(&key).cloned();
                        self.publisher
                            .reject(key.to_string(), errors, previous.is_some());
                        list.objects.extend(previous);
                    }
                }
            }
            Ok(Event::InitDone) => self.finish_list(kind),
            Ok(Event::Apply(object)) => {
                self.count(kind);
                let (key, read) = read(kind, object);
                self.publisher.accept(&mut self.store, &key, read);
            }
            Ok(Event::Delete(object)) => {
                self.count(kind);
                let key = meta(kind, &object).key();
                self.publisher
                    .retain_rejected(|what| what != key.to_string());
                self.store.delete(&key);
            }
            Err(error) => self.fail(kind, &error),
        }
    }

    fn finish_list(&mut self, kind: ConfigKind) {
        let List { objects, names } = self.lists.remove(&kind).unwrap_or_default();
        self.store.replace_kind(kind, objects);
        let named: BTreeSet<String> = names.iter().map(ToString::to_string).collect();
        let prefix = format!("{kind} ");
        self.publisher
            .retain_rejected(|what| !what.starts_with(&prefix) || named.contains(what));
        self.failed_at.remove(&kind);
        self.publisher.update_status(|status| {
            recover(status, kind);
            let status = status.kinds.entry(kind).or_default();
            status.listed = true;
            status.not_installed = false;
        });
    }

    fn fail(&mut self, kind: ConfigKind, error: &watcher::Error) {
        let not_installed = matches!(
            error,
            watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404
        );
        let text = chain(error);
        if !not_installed {
            self.failed_at.insert(kind, Instant::now());
        }
        self.publisher.update_status(|status| {
            let status = status.kinds.entry(kind).or_default();
            status.errors += 1;
            // Said once; the status repeats it for those who ask.
            if not_installed {
                if !status.not_installed {
                    tracing::info!(%kind, "the API server does not know this kind; it will be asked for again");
                }
            } else if status.error.is_none() {
                tracing::warn!(%kind, error = %text, "reading config failed; what is known stays in use, trying again");
            }
            status.not_installed = not_installed;
            status.error = (!not_installed).then_some(text);
        });
    }

    /// Takes back the errors of kinds that have not failed again for `quiet`. A watch that starts again after failures
    /// says nothing of it until something changes, so silence is the sign of success.
    fn forgive(&mut self, quiet: Duration) {
        let publisher = self.publisher;
        self.failed_at.retain(|kind, failed| {
            let recovered = failed.elapsed() > quiet;
            if recovered {
                publisher.update_status(|status| recover(status, *kind));
            }
            !recovered
        });
    }

    fn count(&self, kind: ConfigKind) {
        self.publisher
            .update_status(|status| status.kinds.entry(kind).or_default().events += 1);
    }

    fn is_complete(&self) -> bool {
        let status = self.publisher.status();
        status.kinds.values().all(|k| k.listed || k.not_installed)
    }
}

fn recover(status: &mut Status, kind: ConfigKind) {
    let status = status.kinds.entry(kind).or_default();
    if status.error.take().is_some() || status.not_installed {
        tracing::info!(%kind, "config kind is read again");
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn meta(kind: ConfigKind, object: &DynamicObject) -> Meta {
    let source = &object.metadata;
    let namespace = match kind.scope() {
        Scope::Namespaced => source.namespace.clone().unwrap_or_default(),
        Scope::Cluster => String::new(),
    };
    let mut meta = Meta::new(kind, namespace, source.name.clone().unwrap_or_default());
    meta.labels = source.labels.clone().unwrap_or_default();
    meta.annotations = source.annotations.clone().unwrap_or_default();
    // kubectl's copy of the whole object; no config depends on it.
    meta.annotations
        .remove("kubectl.kubernetes.io/last-applied-configuration");
    meta.creation_timestamp = source
        .creation_timestamp
        .as_ref()
        .map_or(meta.creation_timestamp, |t| t.0);
    meta.resource_version = source.resource_version.clone().unwrap_or_default();
    meta.generation = source.generation.unwrap_or_default();
    meta.uid = source.uid.clone().unwrap_or_default();
    meta
}

fn read(
    kind: ConfigKind,
    mut object: DynamicObject,
) -> (ObjectKey, Result<TypedObject, Vec<ConfigError>>) {
    let meta = meta(kind, &object);
    let spec = object.data.get_mut("spec").map(serde_json::Value::take);
    (
        meta.key(),
        parse::from_parts(meta, spec.unwrap_or_default()),
    )
}

#[cfg(test)]
mod tests;
