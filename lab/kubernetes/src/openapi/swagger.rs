//! OpenAPI v2 in protobuf: per kind one PATCH operation that takes `dryRun`.
//!
//! Old kubectl looks for exactly that before `diff` and `--dry-run=server`, and accepts a document
//! without definitions. Messages and numbers are those of gnostic's openapiv2.

use crate::registry::Snapshot;

/// The encoded document.
pub(super) fn document(snapshot: &Snapshot) -> Vec<u8> {
    let mut paths = Vec::new();
    for resource in snapshot.all().filter(|r| r.collection.is_some()) {
        for version in &resource.versions {
            let namespaced = if resource.namespaced {
                "namespaces/{namespace}/"
            } else {
                ""
            };
            let path = format!(
                "/apis/{}/{namespaced}{}/{{name}}",
                resource.api_version(&version.name),
                resource.plural
            );
            let kind = format!(
                "group: \"{}\"\nkind: {}\nversion: {}\n",
                resource.group, resource.kind, version.name
            );
            bytes(&mut paths, 2, &named(&path, &path_item(&kind)));
        }
    }
    let mut out = Vec::new();
    bytes(&mut out, 1, b"2.0");
    let mut info = Vec::new();
    bytes(&mut info, 1, b"Kubernetes");
    bytes(&mut info, 2, b"v1.32.13");
    bytes(&mut out, 2, &info);
    bytes(&mut out, 8, &paths);
    out
}

/// PathItem with a patch operation: its dryRun parameter and the kind it is about.
fn path_item(kind: &str) -> Vec<u8> {
    let (mut query, mut non_body, mut parameter, mut item) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    bytes(&mut query, 2, b"query");
    bytes(&mut query, 4, b"dryRun");
    bytes(&mut query, 6, b"string");
    bytes(&mut non_body, 3, &query);
    bytes(&mut parameter, 2, &non_body);
    bytes(&mut item, 1, &parameter);
    let mut any = Vec::new();
    bytes(&mut any, 2, kind.as_bytes());
    let mut operation = Vec::new();
    bytes(&mut operation, 8, &item);
    bytes(
        &mut operation,
        13,
        &named("x-kubernetes-group-version-kind", &any),
    );
    let mut out = Vec::new();
    bytes(&mut out, 8, &operation);
    out
}

/// The pairs of name and value that the messages are full of.
fn named(name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(&mut out, 1, name.as_bytes());
    bytes(&mut out, 2, value);
    out
}

/// A length-delimited field.
fn bytes(out: &mut Vec<u8>, number: u8, content: &[u8]) {
    out.push(number << 3 | 2);
    let mut length = content.len();
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(content);
}
