//! Validation of typed objects, as Istio 1.4's Galley does it, all problems of an object at once.
//!
//! Pure functions of object to problems; used by sources (an invalid object is refused), by `istioctl validate` and by
//! the admission webhook.

mod destination_rule;
mod envoy_filter;
mod gateway;
pub(crate) mod rules;
mod service_entry;
mod sidecar;
mod virtual_service;

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

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn into_vec(self) -> Vec<FieldError> {
        self.0
    }
}

/// Everything wrong with an object.
///
/// Authentication, RBAC and Mixer kinds have no rules yet beyond their schema.
pub fn object(object: &TypedObject) -> Vec<FieldError> {
    let mut p = Problems::default();
    match object {
        TypedObject::VirtualService(o) => virtual_service::check(&mut p, &o.meta, &o.spec),
        TypedObject::DestinationRule(o) => destination_rule::check(&mut p, &o.meta, &o.spec),
        TypedObject::ServiceEntry(o) => service_entry::check(&mut p, &o.meta, &o.spec),
        TypedObject::Gateway(o) => gateway::check(&mut p, &o.meta, &o.spec),
        TypedObject::Sidecar(o) => sidecar::check(&mut p, &o.meta, &o.spec),
        TypedObject::EnvoyFilter(o) => envoy_filter::check(&mut p, &o.meta, &o.spec),
        _ => {}
    }
    p.into_vec()
}

/// Everything wrong with an object that people and admission ask about: [`object`], and whether what an EnvoyFilter patches
/// in are messages of Envoy's API. Pilot takes the latter patch by patch, so sources do not refuse the whole object for it.
pub fn complete(object: &TypedObject) -> Vec<FieldError> {
    let mut p = Problems::default();
    p.extend(self::object(object));
    if let TypedObject::EnvoyFilter(o) = object
        && crate::envoy_patch::too_large(&o.spec).is_none()
    {
        envoy_filter::values(&mut p, &o.spec);
    }
    p.into_vec()
}

/// Reads and checks a text as `istioctl validate -f` does: every problem of every object of every document, in the
/// order of the text. `file` is used in messages. Manifests of other kinds are passed over.
pub fn validate_documents(text: &str, file: &str) -> Vec<ConfigError> {
    let options = crate::parse::Options {
        file: Some(file),
        ..Default::default()
    };
    crate::parse::review(text, options).errors
}

#[cfg(test)]
mod tests;
