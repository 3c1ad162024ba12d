//! What can go wrong in a controller: always a request to the API server, named by what it was for.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// A controller's failure; the key it concerned is logged by the driver, which also retries.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused a request or could not be reached.
    #[error("{action}: {}", text(source))]
    Request {
        /// What the request was to achieve, with the names involved.
        action: String,
        /// What the API server or the transport said.
        #[source]
        source: kube::Error,
    },
    /// An object that cannot be acted on as it is written.
    #[error("{object}: {field}: {problem}")]
    Object {
        /// Kind and namespace/name.
        object: String,
        /// Path of the offending field.
        field: &'static str,
        /// What is wrong and what would be accepted.
        problem: String,
    },
}

/// The result of a controller's step.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The message users know from events and conditions: the API server's own words, without kube's decoration.
pub(crate) fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}

impl Error {
    pub(crate) fn api(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Request {
                source: kube::Error::Api(status),
                ..
            } => Some(status),
            _ => None,
        }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.api().is_some_and(|status| status.code == 404)
    }

    /// The object changed under our hands; the newer version is on its way and the key will be looked at again.
    pub(crate) fn is_conflict(&self) -> bool {
        self.api()
            .is_some_and(|status| status.code == 409 && status.reason != "AlreadyExists")
    }

    pub(crate) fn already_exists(&self) -> bool {
        self.api()
            .is_some_and(|status| status.reason == "AlreadyExists")
    }

    /// The namespace is being emptied: creating in it is refused for good and needs no retry.
    pub(crate) fn namespace_is_terminating(&self) -> bool {
        self.api().is_some_and(|status| {
            status.details.as_ref().is_some_and(|d| {
                d.causes
                    .iter()
                    .any(|cause| cause.reason == "NamespaceTerminating")
            })
        })
    }

    /// What the API server said, for events and conditions.
    pub(crate) fn cause(&self) -> String {
        match self {
            Self::Request { source, .. } => text(source),
            Self::Object { .. } => self.to_string(),
        }
    }
}

/// Names what a request was for.
pub(crate) trait During<T> {
    fn during(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T> During<T> for Result<T, kube::Error> {
    fn during(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Request {
            action: action(),
            source,
        })
    }
}

/// Not finding what was to be removed is as good as removing it.
pub(crate) fn unless_gone<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The current time as the API writes it: whole seconds.
pub(crate) fn now() -> Time {
    let now = jiff::Timestamp::now();
    Time(jiff::Timestamp::from_second(now.as_second()).unwrap_or(now))
}
