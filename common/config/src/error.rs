//! What is wrong with config, and where: one type for parsing and validation, made for operators.

use std::fmt;

use crate::kind::ConfigKind;

/// Which object of which file an error is about. Fields that are not known stay empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The file, or another name of the input.
    pub file: Option<String>,
    /// The line in it, from 1.
    pub line: Option<u64>,
    /// The kind as written.
    pub kind: Option<String>,
    /// The namespace of the object.
    pub namespace: Option<String>,
    /// The name of the object.
    pub name: Option<String>,
}

/// Why an object, or a piece of input that should have become one, is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Where.
    pub place: Place,
    /// The field, such as `spec.http[0].route[1].weight`; empty if the object as a whole is meant.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What would be right, if that can be said briefly.
    pub accepted: Option<String>,
}

impl ConfigError {
    pub(crate) fn new(place: Place, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            place,
            path: path.into(),
            message: message.into(),
            accepted: None,
        }
    }

    pub(crate) fn accepted(mut self, accepted: impl Into<String>) -> Self {
        self.accepted = Some(accepted.into());
        self
    }

    /// What the error is about, without the line: the same for all errors of one object of one file.
    pub fn place_without_line(&self) -> String {
        let named = self.place.name.is_some();
        Place {
            // Without a name, only the line tells documents apart.
            line: self.place.line.filter(|_| !named),
            ..self.place.clone()
        }
        .to_string()
    }

    /// The kind, if it is one of ours.
    pub fn config_kind(&self) -> Option<ConfigKind> {
        let kind = self.place.kind.as_deref()?;
        ConfigKind::ALL.iter().copied().find(|k| k.kind() == kind)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(file) = &self.file {
            f.write_str(file)?;
            separator = ": ";
        }
        if let Some(line) = self.line {
            let colon = if self.file.is_some() { ":" } else { "line " };
            write!(f, "{colon}{line}")?;
            separator = ": ";
        }
        if let Some(kind) = &self.kind {
            write!(f, "{separator}{kind}")?;
            separator = " ";
        }
        match (&self.namespace, &self.name) {
            (Some(namespace), Some(name)) if !namespace.is_empty() => {
                write!(f, "{separator}{namespace}/{name}")
            }
            (_, Some(name)) => write!(f, "{separator}{name}"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.place.to_string();
        if !place.is_empty() {
            write!(f, "{place}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match &self.accepted {
            Some(accepted) => write!(f, "; accepted: {accepted}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ConfigError {}
