//! Service-account tokens: JWTs signed RS256 with the lab's key.
//!
//! A token is good as long as its signature, its time and its audience are, and as long as the
//! account (and pod) it was made for exists with the same uid.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::{
    KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Identity;
use crate::pki::Pki;
use crate::server::Server;
use crate::{Error, json};

/// Issuer of bound tokens, and the audience of the API server itself.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// The default pod token asks for this many seconds and gets a year, so that old clients survive.
const POD_TOKEN_SECONDS: i64 = 3607;
const YEAR_SECONDS: i64 = 365 * 24 * 3600;

/// What a token is made for.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenFor<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) account: &'a str,
    pub(crate) account_uid: &'a str,
    /// Name and uid.
    pub(crate) pod: Option<(&'a str, &'a str)>,
    pub(crate) node: Option<(&'a str, &'a str)>,
    pub(crate) audiences: Vec<String>,
    pub(crate) seconds: i64,
}

/// A token that passed all checks.
#[derive(Debug, Clone)]
pub(crate) struct Verified {
    pub(crate) identity: Identity,
    /// Those asked for that the token has.
    pub(crate) audiences: Vec<String>,
}

/// Signs and verifies.
pub(crate) struct Tokens {
    public: Vec<u8>,
    key_id: String,
}

impl Tokens {
    pub(crate) fn new(pki: &Pki) -> Result<Self, Error> {
        let public = pki.token_key.public_key().as_ref().to_vec();
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(&public));
        Ok(Self { public, key_id })
    }

    /// A signed token and its expiry (seconds since the epoch).
    pub(crate) fn issue(
        &self,
        key: &KeyPair,
        wanted: &TokenFor<'_>,
    ) -> Result<(String, i64), String> {
        let now = jiff::Timestamp::now().as_second();
        let own_audience = wanted.audiences.is_empty() || wanted.audiences == [ISSUER];
        let audiences = if wanted.audiences.is_empty() {
            vec![ISSUER.to_owned()]
        } else {
            wanted.audiences.clone()
        };
        let extended = wanted.pod.is_some() && own_audience && wanted.seconds == POD_TOKEN_SECONDS;
        let expiry = now
            + if extended {
                YEAR_SECONDS
            } else {
                wanted.seconds
            };
        let mut bound = json!({"namespace": wanted.namespace});
        for (kind, object) in [("node", wanted.node), ("pod", wanted.pod)] {
            if let Some((name, uid)) = object {
                bound[kind] = json!({"name": name, "uid": uid});
            }
        }
        bound["serviceaccount"] = json!({"name": wanted.account, "uid": wanted.account_uid});
        if extended {
            bound["warnafter"] = (now + POD_TOKEN_SECONDS).into();
        }
        let claims = json!({
            "aud": audiences, "exp": expiry, "iat": now, "iss": ISSUER, "jti": uuid::Uuid::new_v4().to_string(),
            "kubernetes.io": bound, "nbf": now,
            "sub": format!("system:serviceaccount:{}:{}", wanted.namespace, wanted.account),
        });
        Ok((self.sign(key, &claims)?, expiry))
    }

    /// A token without expiry for a secret of type kubernetes.io/service-account-token.
    pub(crate) fn issue_legacy(
        &self,
        key: &KeyPair,
        namespace: &str,
        account: &str,
        uid: &str,
        secret: &str,
    ) -> Result<String, String> {
        let claims = json!({
            "iss": LEGACY_ISSUER,
            "kubernetes.io/serviceaccount/namespace": namespace,
            "kubernetes.io/serviceaccount/secret.name": secret,
            "kubernetes.io/serviceaccount/service-account.name": account,
            "kubernetes.io/serviceaccount/service-account.uid": uid,
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
        });
        self.sign(key, &claims)
    }

    fn sign(&self, key: &KeyPair, claims: &Value) -> Result<String, String> {
        let header = json!({"alg": "RS256", "kid": self.key_id});
        let message = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(
            &RSA_PKCS1_SHA256,
            &SystemRandom::new(),
            message.as_bytes(),
            &mut signature,
        )
        .map_err(|e| e.to_string())?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Checks a token for one of `audiences` (none: the API server's own).
    pub(crate) fn verify(
        &self,
        server: &Server,
        token: &str,
        audiences: &[String],
    ) -> Result<Verified, String> {
        let invalid = || "invalid bearer token".to_owned();
        let claims = self.claims(token).ok_or_else(invalid)?;
        let now = jiff::Timestamp::now().as_second();
        let text = |path: &[&str]| json::str_at(&claims, path);
        let own = [ISSUER.to_owned()];
        let targets: &[String] = if audiences.is_empty() {
            &own
        } else {
            audiences
        };
        let legacy = text(&["iss"]) == LEGACY_ISSUER;
        let (namespace, name, uid) = if legacy {
            let claim = |key| json::str_at(&claims, &[key]);
            (
                claim("kubernetes.io/serviceaccount/namespace"),
                claim("kubernetes.io/serviceaccount/service-account.name"),
                claim("kubernetes.io/serviceaccount/service-account.uid"),
            )
        } else {
            if text(&["iss"]) != ISSUER {
                return Err(invalid());
            }
            let time = |key| json::int_at(&claims, &[key]);
            if time("exp").is_none_or(|t| t <= now) || time("nbf").is_some_and(|t| t > now + 10) {
                return Err("[invalid bearer token, service account token has expired]".to_owned());
            }
            let account = &["kubernetes.io", "serviceaccount"];
            (
                text(&["kubernetes.io", "namespace"]),
                text(&[account[0], account[1], "name"]),
                text(&[account[0], account[1], "uid"]),
            )
        };
        let token_audiences: Vec<String> = if legacy {
            own.to_vec()
        } else {
            json::list_at(&claims, &["aud"])
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect()
        };
        let common: Vec<String> = targets
            .iter()
            .filter(|t| token_audiences.contains(t))
            .cloned()
            .collect();
        if common.is_empty() {
            return Err(format!(
                "[invalid bearer token, token audiences {token_audiences:?} is invalid for the target audiences {targets:?}]"
            ));
        }
        let live = |collection: &str, name: &str, uid: &str| {
            server
                .store
                .collection(collection)
                .get(namespace, name)
                .is_some_and(|o| o.uid() == uid)
        };
        if !live("serviceaccounts", name, uid) {
            return Err(
                "[invalid bearer token, service account has been deleted or recreated]".to_owned(),
            );
        }
        let (pod, pod_uid) = (
            text(&["kubernetes.io", "pod", "name"]),
            text(&["kubernetes.io", "pod", "uid"]),
        );
        if !pod.is_empty() && !live("pods", pod, pod_uid) {
            return Err(
                "[invalid bearer token, the pod of the token has been deleted or recreated]"
                    .to_owned(),
            );
        }
        let secret = json::str_at(&claims, &["kubernetes.io/serviceaccount/secret.name"]);
        if legacy
            && server
                .store
                .collection("secrets")
                .get(namespace, secret)
                .is_none()
        {
            return Err(
                "[invalid bearer token, the secret of the token has been deleted]".to_owned(),
            );
        }
        Ok(Verified {
            identity: identity(&claims, namespace, name, uid),
            audiences: common,
        })
    }

    /// The claims, if the signature is ours.
    fn claims(&self, token: &str) -> Option<Value> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        if json::str_at(&header, &["alg"]) != "RS256" {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.public)
            .verify(message.as_bytes(), &signature)
            .ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
    }
}

fn identity(claims: &Value, namespace: &str, name: &str, uid: &str) -> Identity {
    let text = |path: &[&str]| json::str_at(claims, path);
    let mut extra = Vec::new();
    if !text(&["jti"]).is_empty() {
        extra.push((
            "authentication.kubernetes.io/credential-id".to_owned(),
            vec![format!("JTI={}", text(&["jti"]))],
        ));
    }
    for kind in ["node", "pod"] {
        for part in ["name", "uid"] {
            let value = text(&["kubernetes.io", kind, part]);
            if !value.is_empty() {
                extra.push((
                    format!("authentication.kubernetes.io/{kind}-{part}"),
                    vec![value.to_owned()],
                ));
            }
        }
    }
    Identity {
        user: format!("system:serviceaccount:{namespace}:{name}"),
        uid: uid.to_owned(),
        groups: vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".to_owned(),
        ],
        extra,
    }
}
