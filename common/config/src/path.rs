//! Paths of fields inside an object, for messages and for finding the line of a field.

use std::fmt;

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// A field or a map key.
    Key(String),
    /// An element of a list, from 0.
    Index(usize),
}

/// A path from the root of an object, such as `spec.http[0].route[1].weight`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldPath(Vec<Segment>);

impl FieldPath {
    /// The path of the object itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// The path of `spec`.
    pub fn spec() -> Self {
        Self::root().key("spec")
    }

    /// One step down, into a field or map.
    pub fn key(&self, key: impl Into<String>) -> Self {
        let mut path = self.0.clone();
        path.push(Segment::Key(key.into()));
        Self(path)
    }

    /// One step down, into a list.
    pub fn index(&self, index: usize) -> Self {
        let mut path = self.0.clone();
        path.push(Segment::Index(index));
        Self(path)
    }

    /// The steps from the root.
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }

    /// This path followed by serde's.
    pub(crate) fn join(&self, path: &serde_path_to_error::Path) -> Self {
        let mut joined = self.0.clone();
        joined.extend(path.iter().filter_map(|segment| match segment {
            serde_path_to_error::Segment::Seq { index } => Some(Segment::Index(*index)),
            serde_path_to_error::Segment::Map { key } => Some(Segment::Key(key.clone())),
            serde_path_to_error::Segment::Enum { variant } => Some(Segment::Key(variant.clone())),
            serde_path_to_error::Segment::Unknown => None,
        }));
        Self(joined)
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Key(key) if is_plain(key) => {
                    let dot = if i > 0 { "." } else { "" };
                    write!(f, "{dot}{key}")?;
                }
                Segment::Key(key) => write!(f, "[{key:?}]")?,
            }
        }
        Ok(())
    }
}

fn is_plain(key: &str) -> bool {
    !key.is_empty()
        && key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '@')
}

/// `snake_case` of a proto3 JSON name: users may write either.
pub(crate) fn snake(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// `camelCase` of a protobuf field name.
pub(crate) fn camel(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut up = false;
    for c in name.chars() {
        if c == '_' {
            up = true;
        } else if std::mem::take(&mut up) {
            out.push(c.to_ascii_uppercase());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_like_the_yaml() {
        let path = FieldPath::spec().key("http").index(0).key("match").index(1);
        assert_eq!(
            path.key("headers").key("end-user").key("exact").to_string(),
            "spec.http[0].match[1].headers[\"end-user\"].exact"
        );
        assert_eq!(FieldPath::root().to_string(), "");
        assert_eq!(snake("exportTo"), "export_to");
        assert_eq!(camel("export_to"), "exportTo");
    }
}
