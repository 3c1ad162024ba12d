//! Host names: short-name resolution, wildcard matching, and the alternate names a client may call a service by.
//!
//! Names are compared in lower case; whoever builds a [`crate::model::Service`] or a config index lowers them once.

use std::sync::Arc;

/// Whether a host is a wildcard (`*` or `*.suffix`).
pub fn is_wildcard(host: &str) -> bool {
    host.starts_with('*')
}

/// `Name.Matches` of Istio: either side may be a wildcard; the text after the leading `*` is compared.
pub fn matches(a: &str, b: &str) -> bool {
    match (a.strip_prefix('*'), b.strip_prefix('*')) {
        (Some(x), Some(y)) => x.ends_with(y) || y.ends_with(x),
        (Some(x), None) => b.ends_with(x),
        (None, Some(y)) => a.ends_with(y),
        (None, None) => a == b,
    }
}

/// Whether every name that `inner` stands for is covered by `outer`.
pub fn subset_of(inner: &str, outer: &str) -> bool {
    match (inner.strip_prefix('*'), outer.strip_prefix('*')) {
        (Some(i), Some(o)) => i.ends_with(o),
        (None, Some(o)) => inner.ends_with(o),
        (Some(_), None) => false,
        (None, None) => inner == outer,
    }
}

/// A host as a config object of namespace `namespace` means it: a name without a dot is a Kubernetes service of that
/// namespace; a dotted name or a wildcard stands for itself.
pub fn resolve(host: &str, namespace: &str, domain: &str) -> Arc<str> {
    let host = host.trim().trim_end_matches('.').to_ascii_lowercase();
    if host.is_empty() || host.contains('.') || host.starts_with('*') {
        return host.into();
    }
    format!("{host}.{namespace}.svc.{domain}").into()
}

/// The shorter names under which a client in `client_domain` may call `host`, in Istio's order.
///
/// Both names are split at their dots and the common tail S is cut off; with U as the head that is left the result is
/// `U`, then `U.S'` for every S' got by cutting S from the right, down to one label. No common tail: no alternates.
pub fn alternates(host: &str, client_domain: &str) -> Vec<String> {
    let host_labels: Vec<&str> = host.split('.').collect();
    let client_labels: Vec<&str> = client_domain.split('.').collect();
    let shared = host_labels
        .iter()
        .rev()
        .zip(client_labels.iter().rev())
        .take_while(|(a, b)| a == b && !a.is_empty())
        .count();
    if shared == 0 || shared == host_labels.len() {
        return Vec::new();
    }
    let head = host_labels.len() - shared;
    let mut names = vec![host_labels[..head].join(".")];
    names.extend(
        (head + 1..host_labels.len())
            .rev()
            .map(|end| host_labels[..end].join(".")),
    );
    names
}

/// Orders hosts from the most to the least specific: exact names first, then the longer wildcard, then by text.
pub fn by_specificity(a: &str, b: &str) -> std::cmp::Ordering {
    is_wildcard(a)
        .cmp(&is_wildcard(b))
        .then(b.len().cmp(&a.len()))
        .then_with(|| a.cmp(b))
}

/// Whether the text can be a host in Envoy's route domains and in a cluster name: a DNS name, optionally with one
/// leading `*` (alone or before a dot), or an IP address. What this refuses would make Envoy refuse a whole resource.
pub fn is_valid(host: &str) -> bool {
    if host.is_empty() || host.len() > 253 {
        return false;
    }
    if host.parse::<std::net::IpAddr>().is_ok() {
        return true;
    }
    let rest = match host.strip_prefix('*') {
        Some("") => return true,
        Some(rest) => match rest.strip_prefix('.') {
            Some(rest) => rest,
            None => return false,
        },
        None => host,
    };
    rest.split('.').all(|label| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_belong_to_the_namespace_of_their_config() {
        assert_eq!(
            &*resolve("Reviews", "shop", "cluster.local"),
            "reviews.shop.svc.cluster.local"
        );
        assert_eq!(
            &*resolve("api.example.com.", "shop", "cluster.local"),
            "api.example.com"
        );
        assert_eq!(&*resolve("*", "shop", "cluster.local"), "*");
    }

    #[test]
    fn alternates_follow_the_shared_tail() {
        let same = alternates("foo.ns1.svc.cluster.local", "ns1.svc.cluster.local");
        assert_eq!(
            same,
            ["foo", "foo.ns1.svc.cluster", "foo.ns1.svc", "foo.ns1"]
        );
        let other = alternates("foo.ns2.svc.cluster.local", "ns1.svc.cluster.local");
        assert_eq!(other, ["foo.ns2", "foo.ns2.svc.cluster", "foo.ns2.svc"]);
        assert!(alternates("api.example.com", "ns1.svc.cluster.local").is_empty());
        assert!(alternates("svc.cluster.local", "ns1.svc.cluster.local").is_empty());
    }

    #[test]
    fn wildcards_match_from_either_side() {
        assert!(matches("*.example.com", "api.example.com"));
        assert!(matches("api.example.com", "*.example.com"));
        assert!(matches("*", "*.com"));
        assert!(!matches("*.example.com", "example.com"));
        assert!(subset_of("*.a.com", "*.com") && !subset_of("*.com", "a.com"));
    }

    #[test]
    fn hosts_that_envoy_would_refuse_are_refused_here() {
        for good in ["a", "*", "*.a.b", "a-1.b_c", "10.0.0.1", "::1"] {
            assert!(is_valid(good), "{good}");
        }
        for bad in ["", "*a.b", "a.*.b", "a..b", "a b", "a%b", "a\r\nb", "a:80"] {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
