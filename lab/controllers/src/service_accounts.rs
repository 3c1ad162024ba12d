//! What every namespace gets unasked: the service account `default` and the ConfigMap `kube-root-ca.crt`; and the
//! legacy secrets that carry a service account's token.
//!
//! Reads namespaces, service accounts, the root-CA ConfigMaps and the secrets of type
//! `kubernetes.io/service-account-token`. What is deleted or changed by hand comes back.

use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use crate::context::Context;
use crate::error::{During, Result, unless_gone};
use crate::runtime::driver::{Again, Controller};
use crate::runtime::queue::Queue;
use crate::runtime::store::Key;

pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";
pub(crate) const TOKEN_SECRET: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
const DEFAULT_ACCOUNT: &str = "default";
const ROOT_CA_DESCRIPTION: &str = "The certificate authority of this cluster's API server: pods verify the API server \
     with it. Kept by the controllers; changes are undone.";
/// Tokens in secrets are meant to last; the API server may grant less.
const TOKEN_SECONDS: i64 = 10 * 365 * 24 * 3600;

/// Keeps `default` and `kube-root-ca.crt` in every namespace.
pub(crate) struct NamespaceFurniture {
    context: Arc<Context>,
    queue: Arc<Queue<Key>>,
}

impl NamespaceFurniture {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        let queue = Arc::new(Queue::new());
        let stores = &context.stores;
        let wake = queue.clone();
        stores.namespaces.on_change(move |_, new| {
            if let Some(namespace) = new {
                wake.add(Key::of(namespace.as_ref()));
            }
        });
        let wake = queue.clone();
        stores.service_accounts.on_change(move |old, new| {
            if let (Some(gone), None) = (old, new)
                && gone.name_any() == DEFAULT_ACCOUNT
            {
                wake.add(Key::new("", gone.namespace().unwrap_or_default()));
            }
        });
        let wake = queue.clone();
        stores.root_cas.on_change(move |old, new| {
            if let Some(map) = new.or(old) {
                wake.add(Key::new("", map.namespace().unwrap_or_default()));
            }
        });
        Self { context, queue }
    }

    async fn account(&self, namespace: &str) -> Result<()> {
        let key = Key::new(namespace, DEFAULT_ACCOUNT);
        if self.context.stores.service_accounts.get(&key).is_some() {
            return Ok(());
        }
        let mut account = ServiceAccount::default();
        account.metadata.name = Some(DEFAULT_ACCOUNT.to_owned());
        account.metadata.namespace = Some(namespace.to_owned());
        let api = self.context.api::<ServiceAccount>(namespace);
        let made = api
            .create(&PostParams::default(), &account)
            .await
            .during(|| format!("create ServiceAccount {key}"));
        if let Some(made) = unless_exists(made)? {
            self.context.stores.service_accounts.wrote(made);
        }
        Ok(())
    }

    async fn root_ca(&self, namespace: &str) -> Result<()> {
        let key = Key::new(namespace, ROOT_CA);
        let pem = &self.context.config.cluster_ca_pem;
        let api = self.context.api::<ConfigMap>(namespace);
        let written = match self.context.stores.root_cas.get(&key) {
            Some(map)
                if map
                    .data
                    .as_ref()
                    .is_some_and(|d| d.len() == 1 && d.get("ca.crt") == Some(pem)) =>
            {
                return Ok(());
            }
            Some(map) => {
                let mut map = ConfigMap::clone(&map);
                map.data = Some([("ca.crt".to_owned(), pem.clone())].into());
                unless_gone(
                    api.replace(ROOT_CA, &PostParams::default(), &map)
                        .await
                        .during(|| format!("restore ConfigMap {key}")),
                )?
            }
            None => {
                let map = ConfigMap {
                    metadata: ObjectMeta {
                        name: Some(ROOT_CA.to_owned()),
                        namespace: Some(namespace.to_owned()),
                        annotations: Some(
                            [(
                                "kubernetes.io/description".to_owned(),
                                ROOT_CA_DESCRIPTION.to_owned(),
                            )]
                            .into(),
                        ),
                        ..ObjectMeta::default()
                    },
                    data: Some([("ca.crt".to_owned(), pem.clone())].into()),
                    ..ConfigMap::default()
                };
                let made = api
                    .create(&PostParams::default(), &map)
                    .await
                    .during(|| format!("create ConfigMap {key}"));
                unless_exists(made)?
            }
        };
        if let Some(written) = written {
            self.context.stores.root_cas.wrote(written);
        }
        Ok(())
    }
}

/// Somebody else made it first: fine, the watch will show it. A namespace on its way out needs nothing any more.
fn unless_exists<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if error.already_exists()
                || error.namespace_is_terminating()
                || error.is_not_found() =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

pub(crate) fn is_terminating(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_some()
        || namespace.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Terminating")
}

impl Controller for NamespaceFurniture {
    const NAME: &'static str = "serviceaccount";
    type Key = Key;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> Result<Again> {
        let Some(namespace) = self.context.stores.namespaces.get(key) else {
            return Ok(Again::Never);
        };
        if !is_terminating(&namespace) {
            self.account(&key.name).await?;
            self.root_ca(&key.name).await?;
        }
        Ok(Again::Never)
    }
}

/// Fills secrets of type `kubernetes.io/service-account-token` and removes those whose account is gone.
pub(crate) struct TokenSecrets {
    context: Arc<Context>,
    queue: Arc<Queue<Key>>,
}

impl TokenSecrets {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        let queue = Arc::new(Queue::new());
        let wake = queue.clone();
        context.stores.token_secrets.on_change(move |_, new| {
            if let Some(secret) = new {
                wake.add(Key::of(secret.as_ref()));
            }
        });
        let wake = queue.clone();
        let secrets = context.stores.token_secrets.clone();
        context.stores.service_accounts.on_change(move |old, new| {
            // Only an account that comes or goes matters to its secrets.
            if old.is_some() && new.is_some() {
                return;
            }
            let Some(account) = old.or(new) else { return };
            for secret in secrets.in_namespace(&account.namespace().unwrap_or_default()) {
                if secret.annotations().get(ACCOUNT_NAME) == Some(&account.name_any()) {
                    wake.add(Key::of(secret.as_ref()));
                }
            }
        });
        Self { context, queue }
    }
}

/// What to do about a token secret.
#[derive(Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    Fill,
    /// Its account is gone or was replaced by a namesake.
    Delete,
}

fn need(secret: &Secret, account: Option<&ServiceAccount>, ca: &str) -> Need {
    let known_uid = secret
        .annotations()
        .get(ACCOUNT_UID)
        .filter(|uid| !uid.is_empty());
    let Some(account) = account else {
        return if known_uid.is_some() {
            Need::Delete
        } else {
            Need::Nothing
        };
    };
    if let Some(uid) = known_uid
        && account.uid().as_ref() != Some(uid)
    {
        return Need::Delete;
    }
    let data = secret.data.as_ref();
    let has = |key: &str, wanted: Option<&[u8]>| {
        data.and_then(|d| d.get(key))
            .is_some_and(|v| wanted.map_or(!v.0.is_empty(), |w| v.0 == w))
    };
    let namespace = secret.namespace().unwrap_or_default();
    let full = known_uid.is_some()
        && has("token", None)
        && has("ca.crt", Some(ca.as_bytes()))
        && has("namespace", Some(namespace.as_bytes()));
    if full { Need::Nothing } else { Need::Fill }
}

impl Controller for TokenSecrets {
    const NAME: &'static str = "serviceaccount-token";
    type Key = Key;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> Result<Again> {
        let Some(secret) = self.context.stores.token_secrets.get(key) else {
            return Ok(Again::Never);
        };
        let Some(name) = secret.annotations().get(ACCOUNT_NAME) else {
            return Ok(Again::Never);
        };
        let account = self
            .context
            .stores
            .service_accounts
            .get(&Key::new(&key.namespace, name));
        let ca = &self.context.config.cluster_ca_pem;
        let api = self.context.api::<Secret>(&key.namespace);
        match need(&secret, account.as_deref(), ca) {
            Need::Nothing => {}
            Need::Delete => {
                let params = DeleteParams {
                    preconditions: Some(Preconditions {
                        uid: secret.uid(),
                        resource_version: None,
                    }),
                    ..DeleteParams::default()
                };
                unless_gone(
                    api.delete(&key.name, &params)
                        .await
                        .during(|| format!("delete token Secret {key}")),
                )?;
            }
            Need::Fill => {
                let token = match secret
                    .data
                    .as_ref()
                    .and_then(|d| d.get("token"))
                    .filter(|t| !t.0.is_empty())
                {
                    Some(token) => token.clone(),
                    None => self.token(&secret, name).await?,
                };
                let data = json!({"token": token, "ca.crt": ByteString(ca.clone().into_bytes()),
                    "namespace": ByteString(key.namespace.clone().into_bytes())});
                let patch = json!({
                    "metadata": {"uid": secret.uid(), "annotations": {ACCOUNT_UID: account.and_then(|a| a.uid())}},
                    "data": data});
                let written = unless_gone(
                    api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
                        .await
                        .during(|| format!("fill token Secret {key}")),
                )?;
                if let Some(written) = written {
                    self.context.stores.token_secrets.wrote(written);
                }
            }
        }
        Ok(Again::Never)
    }
}

impl TokenSecrets {
    async fn token(&self, secret: &Secret, account: &str) -> Result<ByteString> {
        let namespace = secret.namespace().unwrap_or_default();
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: Vec::new(),
                expiration_seconds: Some(TOKEN_SECONDS),
                // Deleting the secret revokes the token.
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Secret".to_owned()),
                    name: secret.metadata.name.clone(),
                    uid: secret.uid(),
                }),
            },
            ..TokenRequest::default()
        };
        let answer = self
            .context
            .api::<ServiceAccount>(&namespace)
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .during(|| format!("request a token for ServiceAccount {namespace}/{account}"))?;
        Ok(ByteString(
            answer
                .status
                .map(|s| s.token)
                .unwrap_or_default()
                .into_bytes(),
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn token_secrets_follow_their_account() {
        let b64 = |s: &str| serde_json::to_value(ByteString(s.as_bytes().to_vec())).unwrap();
        let secret = |uid: Option<&str>, full: bool| -> Secret {
            let mut annotations = json!({ACCOUNT_NAME: "bob"});
            if let Some(uid) = uid {
                annotations[ACCOUNT_UID] = json!(uid);
            }
            let data = full
                .then(|| json!({"token": b64("t"), "ca.crt": b64("CA"), "namespace": b64("n")}));
            serde_json::from_value(
                json!({"metadata": {"name": "s", "namespace": "n", "annotations": annotations}, "data": data}),
            )
            .unwrap()
        };
        let account: ServiceAccount =
            serde_json::from_value(json!({"metadata": {"name": "bob", "uid": "u"}})).unwrap();
        for (secret, account, expected) in [
            (secret(None, false), None, Need::Nothing),
            (secret(None, false), Some(&account), Need::Fill),
            (secret(Some("u"), true), Some(&account), Need::Nothing),
            (secret(None, true), Some(&account), Need::Fill),
            (secret(Some("u"), true), None, Need::Delete),
            (secret(Some("older"), true), Some(&account), Need::Delete),
        ] {
            assert_eq!(need(&secret, account, "CA"), expected);
        }
    }
}
