//! Who asks, and whether they may.
//!
//! Identity comes from, in this order: the in-process client's request extension, a bearer token
//! (service accounts), a client certificate signed by the lab's CA, or nobody. Members of
//! system:masters may do everything; others are judged by the stored RBAC objects.

pub(crate) mod rbac;
pub(crate) mod review;
mod tokens;

use axum::body::Body;
use http::{Method, Request, header};
use rustls_pki_types::CertificateDer;
use serde_json::{Map, Value, json};

use crate::registry::{Lookup, qualify};
use crate::request::Path;
use crate::server::Server;
use crate::status::{ApiError, Result};

pub(crate) use tokens::Tokens;

pub(crate) const MASTERS: &str = "system:masters";
const AUTHENTICATED: &str = "system:authenticated";
const ANONYMOUS: &str = "system:anonymous";

/// A user as admission, reviews and messages see it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Identity {
    pub(crate) user: String,
    pub(crate) uid: String,
    pub(crate) groups: Vec<String>,
    pub(crate) extra: Vec<(String, Vec<String>)>,
}

impl Identity {
    pub(crate) fn internal() -> Self {
        Self {
            user: "system:apiserver".to_owned(),
            groups: vec![MASTERS.to_owned(), AUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    pub(crate) fn anonymous() -> Self {
        Self {
            user: ANONYMOUS.to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
            ..Self::default()
        }
    }

    /// The identity of an in-process client: trusted, whatever its name.
    pub(crate) fn trusted(user: &str) -> Self {
        let mut groups = match service_account(user) {
            Some((namespace, _)) => vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
            ],
            None => Vec::new(),
        };
        groups.push(MASTERS.to_owned());
        groups.push(AUTHENTICATED.to_owned());
        Self {
            user: user.to_owned(),
            groups,
            ..Self::default()
        }
    }

    pub(crate) fn is_master(&self) -> bool {
        self.groups.iter().any(|g| g == MASTERS)
    }

    pub(crate) fn is_anonymous(&self) -> bool {
        self.user == ANONYMOUS
    }

    /// As `userInfo` of reviews.
    pub(crate) fn info(&self) -> Value {
        let mut info = json!({"username": self.user});
        if !self.uid.is_empty() {
            info["uid"] = self.uid.clone().into();
        }
        info["groups"] = self.groups.iter().cloned().collect();
        if !self.extra.is_empty() {
            let extra: Map<String, Value> = self
                .extra
                .iter()
                .map(|(k, v)| (k.clone(), v.iter().cloned().collect::<Value>()))
                .collect();
            info["extra"] = Value::Object(extra);
        }
        info
    }
}

/// Namespace and name in `system:serviceaccount:NS:NAME`.
pub(crate) fn service_account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?.split_once(':')
}

/// Marks requests of an in-process client.
#[derive(Debug, Clone)]
pub(crate) struct InProcess(pub(crate) Identity);

/// The user named by a verified client certificate: CN and Os.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateUser {
    user: String,
    groups: Vec<String>,
}

impl CertificateUser {
    pub(crate) fn from_certificate(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der.as_ref()).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject
            .iter_organization()
            .filter_map(|o| o.as_str().ok().map(str::to_owned))
            .collect();
        Some(Self { user, groups })
    }
}

/// The identity of a request; a bad token is refused, no credentials make an anonymous user.
pub(crate) fn authenticate(server: &Server, request: &Request<Body>) -> Result<Identity> {
    if let Some(InProcess(identity)) = request.extensions().get() {
        return Ok(identity.clone());
    }
    if let Some(value) = request.headers().get(header::AUTHORIZATION) {
        let text = value.to_str().map_err(|_| ApiError::unauthorized())?;
        let token = text
            .strip_prefix("Bearer ")
            .or_else(|| text.strip_prefix("bearer "))
            .ok_or_else(ApiError::unauthorized)?;
        let verified = server
            .tokens
            .verify(server, token.trim(), &[])
            .map_err(|why| {
                tracing::debug!(why, "a bearer token was refused");
                ApiError::unauthorized()
            })?;
        return Ok(verified.identity);
    }
    Ok(match request.extensions().get::<CertificateUser>() {
        Some(CertificateUser { user, groups }) => {
            let mut groups = groups.clone();
            groups.push(AUTHENTICATED.to_owned());
            Identity {
                user: user.clone(),
                groups,
                ..Identity::default()
            }
        }
        None => Identity::anonymous(),
    })
}

/// Discovery and the like: any authenticated user.
pub(crate) fn require_authenticated(
    identity: &Identity,
    method: &Method,
    path: &str,
) -> Result<()> {
    if !identity.is_anonymous() {
        return Ok(());
    }
    let verb = method.as_str().to_lowercase();
    Err(ApiError::new(
        403,
        "Forbidden",
        format!("forbidden: User \"{ANONYMOUS}\" cannot {verb} path \"{path}\""),
    )
    .with_details(json!({})))
}

/// Whether the identity may do `verb` on what the path names.
pub(crate) fn authorize_path(
    server: &Server,
    identity: &Identity,
    path: &Path,
    verb: &str,
) -> Result<()> {
    if identity.is_master() {
        return Ok(());
    }
    let resource = match &path.subresource {
        Some(sub) => format!("{}/{sub}", path.plural),
        None => path.plural.clone(),
    };
    let namespace = match path.namespace.as_deref() {
        // A namespace is judged within itself.
        None if path.group.is_empty() && path.plural == "namespaces" => {
            path.name.as_deref().unwrap_or_default()
        }
        other => other.unwrap_or_default(),
    };
    let request = rbac::Request {
        verb,
        group: &path.group,
        resource: &resource,
        namespace,
        name: path.name.as_deref().unwrap_or_default(),
    };
    if !identity.is_anonymous() && rbac::allowed(server, identity, &request) {
        return Ok(());
    }
    let qualified = qualify(&path.plural, &path.group);
    let scope = if path.namespace.is_some() {
        format!("in the namespace \"{namespace}\"")
    } else {
        "at the cluster scope".to_owned()
    };
    let what = match request.name {
        "" => qualified,
        name => format!("{qualified} \"{name}\""),
    };
    let known = matches!(
        server
            .registry
            .snapshot()
            .find(&path.group, &path.version, &path.plural),
        Lookup::Found(_)
    );
    tracing::debug!(
        user = identity.user,
        verb,
        resource,
        namespace,
        known,
        "a request was forbidden"
    );
    let mut details = json!({});
    for (key, value) in [
        ("name", request.name),
        ("group", path.group.as_str()),
        ("kind", path.plural.as_str()),
    ] {
        if !value.is_empty() {
            details[key] = value.into();
        }
    }
    Err(ApiError::new(
        403,
        "Forbidden",
        format!(
            "{what} is forbidden: User \"{}\" cannot {verb} resource \"{resource}\" in API group \"{}\" {scope}",
            identity.user, path.group
        ),
    )
    .with_details(details))
}
