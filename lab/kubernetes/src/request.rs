//! What a request asks for: the resource path and the options in the query string.

use axum::extract::Query;
use http::Uri;

use crate::status::{ApiError, Result};

/// `/api/v1/namespaces/NS/pods/NAME/log` taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) namespace: Option<String>,
    pub(crate) plural: String,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
}

impl Path {
    /// From the segments after `/api` or `/apis`; `None` if there is no resource in it.
    pub(crate) fn parse(segments: &[&str]) -> Option<Self> {
        let (group, version, rest) = match segments {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let mut path = Self {
            group: group.to_owned(),
            version: version.to_owned(),
            ..Self::default()
        };
        let rest = match rest {
            // A namespace itself, or one of its own subresources.
            ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => rest,
            ["namespaces", namespace, rest @ ..] => {
                path.namespace = Some(decode(namespace));
                rest
            }
            rest => rest,
        };
        match rest {
            [plural] => path.plural = (*plural).to_owned(),
            [plural, name] => {
                path.plural = (*plural).to_owned();
                path.name = Some(decode(name));
            }
            [plural, name, sub] => {
                path.plural = (*plural).to_owned();
                path.name = Some(decode(name));
                path.subresource = Some((*sub).to_owned());
            }
            _ => return None,
        }
        Some(path)
    }
}

/// Percent decoding of one path segment (names such as `system%3Aadmin`).
fn decode(segment: &str) -> String {
    let bytes = segment.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%')
            .then(|| segment.get(i + 1..i + 3))
            .flatten();
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Query options of all verbs; each verb reads its own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pairs: Vec<(String, String)>,
}

impl Options {
    /// kube-rs writes `?&a=b` and a bare `?`; both parse.
    pub(crate) fn parse(uri: &Uri) -> Result<Self> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|e| ApiError::bad_request(format!("the query string cannot be read: {e}")))?;
        Ok(Self { pairs })
    }

    /// The first non-empty value of an option.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(k, v)| k == key && !v.is_empty())
            .map(|(_, v)| v.as_str())
    }

    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs
            .iter()
            .filter(move |(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }

    /// `?watch`, `?watch=1` and `?watch=true` all mean yes.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.pairs.iter().any(|(k, v)| {
            k == key && !matches!(v.as_str(), "false" | "0" | "f" | "F" | "FALSE" | "False")
        })
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>> {
        self.get(key)
            .map(|v| {
                v.parse().map_err(|_| {
                    ApiError::bad_request(format!(
                        "{key}: Invalid value: \"{v}\": must be a non-negative integer"
                    ))
                })
            })
            .transpose()
    }

    pub(crate) fn dry_run(&self) -> Result<bool> {
        match self.all("dryRun").find(|v| !v.is_empty()) {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(ApiError::invalid(
                "meta.k8s.io",
                "PatchOptions",
                "",
                &[crate::status::FieldError::unsupported(
                    "dryRun",
                    &other.into(),
                    &["All"],
                )],
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str) -> Option<Path> {
        let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
        Path::parse(&segments)
    }

    #[test]
    fn paths() {
        let p = parse("/api/v1/namespaces/a/pods/b/log").unwrap();
        assert_eq!(
            (
                p.namespace.as_deref(),
                p.plural.as_str(),
                p.name.as_deref(),
                p.subresource.as_deref()
            ),
            (Some("a"), "pods", Some("b"), Some("log"))
        );
        let p = parse("/api/v1/namespaces/a").unwrap();
        assert_eq!(
            (p.namespace, p.plural.as_str(), p.name.as_deref()),
            (None, "namespaces", Some("a"))
        );
        let p = parse("/api/v1/namespaces/a/finalize").unwrap();
        assert_eq!(
            (p.plural.as_str(), p.subresource.as_deref()),
            ("namespaces", Some("finalize"))
        );
        let p = parse("/apis/apps/v1/deployments").unwrap();
        assert_eq!(
            (p.group.as_str(), p.version.as_str(), p.plural.as_str()),
            ("apps", "v1", "deployments")
        );
        assert_eq!(parse("/apis/apps/v1"), None);
        let p = parse("/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Aadmin").unwrap();
        assert_eq!(p.name.as_deref(), Some("system:admin"));
    }

    #[test]
    fn queries_of_kube_rs() {
        let o = Options::parse(&"/x?&limit=5&watch=true".parse().unwrap()).unwrap();
        assert_eq!(o.number("limit").unwrap(), Some(5));
        assert!(o.flag("watch"));
        assert!(
            !Options::parse(&"/x?".parse().unwrap())
                .unwrap()
                .flag("watch")
        );
    }
}
