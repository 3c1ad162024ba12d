//! What can go wrong while an experiment runs, in words that say what was being done and what to look at.

use std::time::Duration;

/// Result of anything an experiment does.
pub type Result<T, E = ChaosError> = std::result::Result<T, E>;

/// An experiment could not do or observe what it wanted to. This is not a failed probe: it means that nothing can be
/// said about the mesh.
#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    /// The Kubernetes API refused or could not be reached.
    #[error("{what}: {}", kube_message(source))]
    Kube {
        /// What was being done, with kind and namespace/name.
        what: String,
        /// The client's error. Part of the message already, so not `#[source]`: it would be said twice.
        source: Box<kube::Error>,
    },
    /// Something did not happen in time.
    #[error("{what}: not within {}; last seen: {last}", crate::report::seconds(*.waited))]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        waited: Duration,
        /// The state when patience ended.
        last: String,
    },
    /// The mesh is not in a state in which the experiment means anything.
    #[error("{0}")]
    Precondition(String),
    /// An HTTP exchange with a pod failed.
    #[error("GET {path} on port {port} of pod {pod}: {message}")]
    PodHttp {
        /// namespace/name of the pod.
        pod: String,
        /// Port inside the pod.
        port: u16,
        /// Path asked for.
        path: String,
        /// What went wrong.
        message: String,
    },
}

impl ChaosError {
    /// Wraps an API error with what was being done.
    pub fn kube(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Kube {
            what,
            source: Box::new(source),
        }
    }
}

/// What the API server or the way to it says, in one sentence. (kube's own text repeats the whole status object.)
pub fn kube_message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        kube::Error::Api(status) => format!("status {} {}", status.code, status.reason),
        kube::Error::Service(inner) => deepest(inner.as_ref()),
        kube::Error::HyperError(inner) => deepest(inner),
        other => other.to_string(),
    }
}

/// The cause behind the causes: "connection refused" rather than "client error (Connect)".
fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    match error.source() {
        Some(inner) => deepest(inner),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_error_is_one_sentence() {
        let status = kube::core::Status::failure("pods \"a\" not found", "NotFound").with_code(404);
        let error = ChaosError::kube("reading pod x/a")(kube::Error::Api(Box::new(status)));
        assert_eq!(error.to_string(), "reading pod x/a: pods \"a\" not found");
    }
}
