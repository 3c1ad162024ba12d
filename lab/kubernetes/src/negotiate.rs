//! Which form of the answer a client accepts.

use http::HeaderMap;
use http::header::ACCEPT;

/// The form of objects in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Object,
    Table,
    /// Only metadata.
    Partial,
}

/// What was negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accept {
    pub(crate) shape: Shape,
    pub(crate) yaml: bool,
}

/// One entry of an Accept header: media type and its parameters.
pub(crate) struct Media<'a> {
    pub(crate) kind: &'a str,
    parameters: &'a str,
}

impl<'a> Media<'a> {
    pub(crate) fn parameter(&self, name: &str) -> Option<&'a str> {
        self.parameters
            .split(';')
            .filter_map(|p| p.trim().split_once('='))
            .find(|(k, _)| *k == name)
            .map(|(_, v)| v)
    }
}

/// The entries of all Accept headers in order.
pub(crate) fn accepted(headers: &HeaderMap) -> Vec<Media<'_>> {
    headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|entry| {
            let (kind, parameters) = entry.trim().split_once(';').unwrap_or((entry.trim(), ""));
            Media {
                kind: kind.trim(),
                parameters,
            }
        })
        .filter(|m| !m.kind.is_empty())
        .collect()
}

/// The first entry this server can answer; `None` if there is none (406).
pub(crate) fn negotiate(headers: &HeaderMap) -> Option<Accept> {
    let entries = accepted(headers);
    let plain = Accept {
        shape: Shape::Object,
        yaml: false,
    };
    if entries.is_empty() {
        return Some(plain);
    }
    for media in &entries {
        let shape = match media.parameter("as") {
            None => Shape::Object,
            Some("Table") => Shape::Table,
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Shape::Partial,
            Some(_) => continue,
        };
        match media.kind {
            "application/json" | "*/*" | "application/*" => {
                return Some(Accept { shape, yaml: false });
            }
            // Clients that ask for protobuf also read JSON.
            "application/vnd.kubernetes.protobuf" => return Some(Accept { shape, yaml: false }),
            "application/yaml" => return Some(Accept { shape, yaml: true }),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn of(accept: &'static str) -> Option<Accept> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        negotiate(&headers)
    }

    #[test]
    fn first_known_entry_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(of(table).unwrap().shape, Shape::Table);
        assert_eq!(of("application/json").unwrap().shape, Shape::Object);
        assert_eq!(
            of("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")
                .unwrap()
                .shape,
            Shape::Partial
        );
        assert_eq!(
            of("application/vnd.kubernetes.protobuf,application/json")
                .unwrap()
                .shape,
            Shape::Object
        );
        assert_eq!(of("text/html"), None);
    }
}
