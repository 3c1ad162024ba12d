//! Secrets of the gateway's own namespace, for Gateways that name their certificates (`credentialName`).
//!
//! One watch (list in pages, bookmarks, list again after 410, jittered back-off of 0.2 to 5 s for ever). Of every Secret
//! only the PEM entries are kept; those that Istio 1.4 leaves alone are not kept at all. A lost API server empties
//! nothing, and neither does the deletion of a Secret: the keeper goes on with the last good version.
//!
//! | Asked for | Found in, in this order |
//! |---|---|
//! | `NAME` | Secret NAME: `cert` and `key`, or `tls.crt` and `tls.key`; Secret `gateway-fallback` |
//! | `NAME-cacert` | Secret NAME-cacert: `cacert` or `ca.crt`; Secret NAME: the same; `gateway-fallback-cacert`, `gateway-fallback` |
//!
//! The fallback stands in only for a Secret that does not exist.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{WatchStreamExt as _, utils::ResetTimerBackoff, watcher},
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Keeper, Material, Problem, SecretSource};
use crate::Environment;

const CA_SUFFIX: &str = "-cacert";
const PAIR_KEYS: [(&str, &str); 2] = [("cert", "key"), ("tls.crt", "tls.key")];
const CA_KEYS: [&str; 2] = ["cacert", "ca.crt"];

/// The entries of a Secret that matter here.
type Entries = BTreeMap<String, Vec<u8>>;

/// See the [module](self).
#[derive(Debug)]
pub struct KubernetesSecrets {
    namespace: String,
    fallback: String,
    secrets: Mutex<BTreeMap<String, Entries>>,
    listed: watch::Sender<bool>,
}

/// The source and a client for it, if the environment tells of a Kubernetes API.
pub(super) async fn configured(
    environment: &Environment,
) -> Option<(Arc<KubernetesSecrets>, Client)> {
    let get = |key: &str| {
        environment
            .get(key)
            .filter(|value| !value.is_empty())
            .cloned()
    };
    let namespace = get("INGRESS_GATEWAY_NAMESPACE").or_else(|| get("POD_NAMESPACE"));
    let fallback = get("INGRESS_GATEWAY_FALLBACK_SECRET");
    let connected = async {
        let config = kube::Config::infer()
            .await
            .context("finding the Kubernetes API")?;
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        anyhow::Ok((namespace, Client::try_from(config)?))
    };
    match connected.await {
        Ok((namespace, client)) => {
            let secrets = KubernetesSecrets::new(namespace, fallback);
            Some((Arc::new(secrets), client))
        }
        Err(error) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "USER_SDS is set, but there is no Kubernetes API to read Secrets from; servers with credentialName refuse connections"
            );
            None
        }
    }
}

impl KubernetesSecrets {
    /// A source without secrets so far. `fallback` names the Secret that stands in for those that do not exist.
    pub fn new(namespace: String, fallback: Option<String>) -> Self {
        Self {
            namespace,
            fallback: fallback.unwrap_or_else(|| "gateway-fallback".to_owned()),
            secrets: Mutex::default(),
            listed: watch::Sender::new(false),
        }
    }

    /// Waits for the first complete list.
    pub async fn listed(&self) {
        // The sender is ours: it lives as long as this.
        let _ = self.listed.subscribe().wait_for(|listed| *listed).await;
    }

    /// Watches for ever.
    pub async fn follow(self: Arc<Self>, client: Client, keeper: Arc<Keeper>) {
        let growing = backon::ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(5))
            .with_jitter()
            .without_max_times();
        // The watcher says "Init" before each list, which would count as success; hence a reset by time.
        let backoff = ResetTimerBackoff::new(
            watcher::ExponentialBackoff::from(growing),
            Duration::from_secs(30),
        );
        let api: Api<Secret> = Api::namespaced(client, &self.namespace);
        let config = watcher::Config::default().page_size(100);
        let mut events = watcher::watcher(api, config).backoff(backoff).boxed();
        let mut list = BTreeMap::new();
        let mut failing = false;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    let relists = matches!(event, watcher::Event::Init);
                    self.take(event, &mut list, &keeper);
                    if !relists && std::mem::take(&mut failing) {
                        tracing::info!(
                            namespace = self.namespace,
                            "the Kubernetes API answers again"
                        );
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(
                            namespace = self.namespace,
                            %error,
                            "Secrets cannot be watched; the service account needs get, list and watch on secrets of its namespace. Trying on; what is served stays"
                        );
                    }
                }
            }
        }
    }

    fn take(
        &self,
        event: watcher::Event<Secret>,
        list: &mut BTreeMap<String, Entries>,
        keeper: &Keeper,
    ) {
        let changed = |name: &str| {
            // A fallback concerns everybody.
            let base = name.strip_suffix(CA_SUFFIX).unwrap_or(name).to_owned();
            let all = base == self.fallback;
            keeper.look_again(|asked| {
                self.owns(asked) && (all || asked.strip_suffix(CA_SUFFIX).unwrap_or(asked) == base)
            });
        };
        match event {
            watcher::Event::Init => list.clear(),
            watcher::Event::InitApply(secret) => list.extend(entries(secret)),
            watcher::Event::InitDone => {
                *self.secrets.lock() = std::mem::take(list);
                self.listed.send_replace(true);
                keeper.look_again(|asked| self.owns(asked));
            }
            watcher::Event::Apply(secret) => {
                let name = secret.name_any();
                {
                    let mut secrets = self.secrets.lock();
                    secrets.remove(&name);
                    secrets.extend(entries(secret));
                }
                changed(&name);
            }
            watcher::Event::Delete(secret) => {
                let name = secret.name_any();
                self.secrets.lock().remove(&name);
                changed(&name);
            }
        }
    }

    fn pair(&self, secrets: &BTreeMap<String, Entries>, name: &str) -> Result<Material, Problem> {
        let own = secrets.get_key_value(name);
        let Some((name, entries)) = own.or_else(|| secrets.get_key_value(&self.fallback)) else {
            return Err(self.missing(name));
        };
        let place = format!("Secret {}/{name}", self.namespace);
        for (cert, key) in PAIR_KEYS {
            if let (Some(chain), Some(private)) = (entries.get(cert), entries.get(key)) {
                let place = format!("{place}, entries {cert} and {key}");
                return Material::pair(&place, chain.clone(), private.clone());
            }
        }
        Err(Problem::Bad(format!(
            "{place}: no certificate and key; accepted: entries cert and key, or tls.crt and tls.key"
        )))
    }

    fn authorities(
        &self,
        secrets: &BTreeMap<String, Entries>,
        name: &str,
        base: &str,
    ) -> Result<Material, Problem> {
        let fallback = format!("{}{CA_SUFFIX}", self.fallback);
        let exists = [name, base].into_iter().any(|n| secrets.contains_key(n));
        let places: [&str; 2] = if exists {
            [name, base]
        } else {
            [&fallback, &self.fallback]
        };
        for place in places {
            let Some(entries) = secrets.get(place) else {
                continue;
            };
            for key in CA_KEYS {
                if let Some(pem) = entries.get(key) {
                    let place = format!("Secret {}/{place}, entry {key}", self.namespace);
                    return Material::authorities(&place, pem.clone());
                }
            }
        }
        if exists {
            let reason = "no CA certificates; accepted: entry cacert or ca.crt";
            return Err(Problem::Bad(format!(
                "Secret {}/{base}: {reason}",
                self.namespace
            )));
        }
        Err(self.missing(name))
    }

    fn missing(&self, name: &str) -> Problem {
        Problem::Missing(format!("there is no Secret {}/{name}", self.namespace))
    }
}

impl SecretSource for KubernetesSecrets {
    fn owns(&self, name: &str) -> bool {
        // No name of a Secret has a colon.
        !name.contains(':')
    }

    fn find(&self, name: &str) -> Result<Material, Problem> {
        let secrets = self.secrets.lock();
        match name.strip_suffix(CA_SUFFIX) {
            Some(base) => self.authorities(&secrets, name, base),
            None => self.pair(&secrets, name),
        }
    }
}

/// What is kept of a Secret; nothing of those that hold something else.
fn entries(secret: Secret) -> Option<(String, Entries)> {
    let name = secret.name_any();
    let data = secret.data.unwrap_or_default();
    // Istio's own (`istio.default` and the like), Prometheus', and service-account tokens.
    if name.starts_with("istio") || name.starts_with("prometheus") || data.contains_key("token") {
        return None;
    }
    let wanted = PAIR_KEYS
        .iter()
        .flat_map(|(cert, key)| [*cert, *key])
        .chain(CA_KEYS);
    let kept: Entries = wanted
        .filter_map(|key| Some((key.to_owned(), data.get(key)?.0.clone())))
        .collect();
    (!kept.is_empty()).then_some((name, kept))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{ByteString, apimachinery::pkg::apis::meta::v1::ObjectMeta};

    use super::*;
    use crate::sds::material::tests::pem;

    fn secret(name: &str, data: &[(&str, &[u8])]) -> Secret {
        Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                ..Default::default()
            },
            data: Some(
                data.iter()
                    .map(|(k, v)| ((*k).to_owned(), ByteString(v.to_vec())))
                    .collect(),
            ),
            ..Default::default()
        }
    }

    fn source(secrets: Vec<Secret>) -> KubernetesSecrets {
        let source = KubernetesSecrets::new("mesh".to_owned(), None);
        source
            .secrets
            .lock()
            .extend(secrets.into_iter().filter_map(entries));
        source
    }

    #[test]
    fn both_spellings_and_separate_authorities_are_found() {
        let (chain, key) = pem("a");
        let all = source(vec![
            secret(
                "opaque",
                &[("cert", &chain), ("key", &key), ("cacert", &chain)],
            ),
            secret(
                "typed",
                &[("tls.crt", &chain), ("tls.key", &key), ("ca.crt", &chain)],
            ),
            secret("split", &[("tls.crt", &chain), ("tls.key", &key)]),
            secret("split-cacert", &[("cacert", &chain)]),
            secret("istio.default", &[("cert", &chain), ("key", &key)]),
            secret("account", &[("token", b"x"), ("ca.crt", &chain)]),
        ]);
        for name in ["opaque", "typed", "split"] {
            assert!(all.find(name).is_ok(), "{name}");
            assert!(all.find(&format!("{name}-cacert")).is_ok(), "{name}");
        }
        for name in ["istio.default", "account", "account-cacert", "nobody"] {
            let problem = all.find(name).unwrap_err();
            assert_eq!(
                problem,
                Problem::Missing(format!("there is no Secret mesh/{name}"))
            );
        }
    }

    #[test]
    fn a_bad_secret_says_where_and_a_fallback_stands_in_only_for_none() {
        let ((chain, key), (other, _)) = (pem("a"), pem("b"));
        let all = source(vec![
            secret("half", &[("cert", &chain)]),
            secret("mixed", &[("cert", &other), ("key", &key)]),
            secret(
                "gateway-fallback",
                &[("cert", &chain), ("key", &key), ("cacert", &chain)],
            ),
        ]);
        let problem = |name: &str| all.find(name).unwrap_err().to_string();
        assert!(
            problem("half").contains("accepted: entries cert and key"),
            "{}",
            problem("half")
        );
        assert!(
            problem("half-cacert").contains("accepted: entry cacert"),
            "{}",
            problem("half-cacert")
        );
        assert!(
            problem("mixed")
                .starts_with("Secret mesh/mixed, entries cert and key: the key does not belong"),
            "{}",
            problem("mixed")
        );
        assert!(all.find("unknown").is_ok() && all.find("unknown-cacert").is_ok());
        assert!(all.owns("default") && !all.owns("file-root:/x"));
    }
}
