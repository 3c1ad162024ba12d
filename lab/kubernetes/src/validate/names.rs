//! Names, labels and annotations.

use serde_json::Value;

use crate::json;
use crate::registry::Resource;
use crate::selector::is_label_value;
use crate::status::FieldError;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and \
     end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an \
     alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, \
     and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const MAX_ANNOTATIONS: usize = 256 * 1024;

pub(super) fn is_label(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    name.len() <= 63
        && edge(name.chars().next())
        && edge(name.chars().last())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

pub(super) fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

/// A segment of a URL path: what RBAC objects may be called.
fn is_segment(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '%'])
}

pub(super) fn metadata(resource: &Resource, value: &Value, errors: &mut Vec<FieldError>) {
    let name = json::str_at(value, &["metadata", "name"]);
    let sent = Value::from(name);
    let (ok, why) = match (resource.group.as_str(), resource.plural.as_str()) {
        ("rbac.authorization.k8s.io", _) => (
            is_segment(name),
            "may not be '.' or '..' and may not contain '/' or '%'",
        ),
        ("", "namespaces") => (is_label(name), LABEL),
        ("", "services") => (
            is_label(name) && name.starts_with(|c: char| c.is_ascii_lowercase()),
            LABEL_1035,
        ),
        _ => (is_subdomain(name), SUBDOMAIN),
    };
    if !ok {
        errors.push(FieldError::invalid("metadata.name", &sent, why));
    }
    for (key, value) in json::map_at(value, &["metadata", "labels"])
        .into_iter()
        .flatten()
    {
        let short = key.rsplit('/').next().unwrap_or_default();
        if short.is_empty() || !is_label_value(short) {
            errors.push(FieldError::invalid(
                "metadata.labels",
                &Value::from(key.as_str()),
                "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            ));
        }
        if !value.as_str().is_some_and(is_label_value) {
            errors.push(FieldError::invalid(
                "metadata.labels",
                value,
                "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end \
                 with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
                 '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ));
        }
    }
    let size: usize = json::map_at(value, &["metadata", "annotations"])
        .into_iter()
        .flatten()
        .map(|(k, v)| k.len() + v.as_str().map_or(0, str::len))
        .sum();
    if size > MAX_ANNOTATIONS {
        errors.push(FieldError {
            field: "metadata.annotations".to_owned(),
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {MAX_ANNOTATIONS} bytes"),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_rules() {
        assert!(
            is_label("a-1")
                && !is_label("-a")
                && !is_label("A")
                && !is_label("a.b")
                && !is_label("")
        );
        assert!(is_subdomain("a.b-c.d") && !is_subdomain("a..b") && !is_subdomain("a_b"));
        assert!(is_segment("system:node") && !is_segment("a/b"));
    }
}
