//! `proxy-status` and `proxy-config`: Pilot's view of every proxy, and each Envoy's own.
//!
//! Both ask through the API server's port-forward: Pilot on 8080, Envoy's admin interface on 15000. Columns, order and
//! cell words are those of Istio 1.4 (istioctl/pkg/writer), because scripts read them.

mod config;
mod dump;
mod status;

pub(crate) use config::{ConfigCommand, config};
pub(crate) use status::{StatusArgs, status};

/// `name.namespace` splits at the last dot; without one the given namespace is meant.
pub(crate) fn pod_and_namespace(argument: &str, namespace: &str) -> (String, String) {
    match argument.rsplit_once('.') {
        Some((pod, namespace)) => (pod.to_owned(), namespace.to_owned()),
        None => (argument.to_owned(), namespace.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_last_dot_splits() {
        let split = |a| super::pod_and_namespace(a, "default");
        assert_eq!(split("a"), ("a".into(), "default".into()));
        assert_eq!(split("a.b"), ("a".into(), "b".into()));
        assert_eq!(split("a.b.c"), ("a.b".into(), "c".into()));
    }
}
