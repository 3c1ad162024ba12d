//! Objects in the version and form a client asked for, as bytes.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Context;
use crate::negotiate::Shape;
use crate::registry::Resource;
use crate::store::Object;
use crate::{convert, table};

/// What `includeObject` puts beside the cells of a table row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Include {
    Nothing,
    Metadata,
    Object,
}

/// How to show objects; owned, so that a watch can keep it.
#[derive(Debug, Clone)]
pub(super) struct View {
    resource: Arc<Resource>,
    version: String,
    pub(super) shape: Shape,
    include: Include,
    convert: bool,
}

impl View {
    pub(super) fn new(context: &Context) -> Self {
        let include = match context.options.get("includeObject") {
            Some("None") => Include::Nothing,
            Some("Object") => Include::Object,
            _ => Include::Metadata,
        };
        Self {
            resource: context.resource.clone(),
            version: context.version.clone(),
            shape: context.accept.shape,
            include,
            convert: context.resource.needs_conversion(&context.version),
        }
    }

    fn value<'a>(&self, object: &'a Object) -> Cow<'a, Value> {
        if self.convert {
            Cow::Owned(convert::from_storage(
                &self.resource,
                &self.version,
                &object.value,
            ))
        } else {
            Cow::Borrowed(&object.value)
        }
    }

    /// One object as a whole answer or as the object of a watch event.
    pub(super) fn single(&self, object: &Object) -> Vec<u8> {
        self.event(object, true)
    }

    /// As [`View::single`], with the columns of a table only where they are wanted.
    pub(super) fn event(&self, object: &Object, columns: bool) -> Vec<u8> {
        match self.shape {
            Shape::Object if !self.convert => object.json.to_vec(),
            Shape::Object => self.value(object).to_string().into_bytes(),
            Shape::Partial => partial(&object.value).to_string().into_bytes(),
            Shape::Table => {
                let mut out = Vec::new();
                let rv = object.rv.to_string();
                self.table(
                    &mut out,
                    json!({"resourceVersion": rv}),
                    columns,
                    std::slice::from_ref(object).iter(),
                );
                out
            }
        }
    }

    /// A list of objects; `metadata` is the list's own.
    pub(super) fn list(&self, metadata: Value, objects: &[Arc<Object>]) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + objects.iter().map(|o| o.json.len()).sum::<usize>());
        match self.shape {
            Shape::Table => self.table(&mut out, metadata, true, objects.iter().map(Arc::as_ref)),
            Shape::Object => {
                let api_version = self.resource.api_version(&self.version);
                self.items(
                    &mut out,
                    &self.resource.list_kind,
                    &api_version,
                    metadata,
                    objects,
                );
            }
            Shape::Partial => self.items(
                &mut out,
                "PartialObjectMetadataList",
                "meta.k8s.io/v1",
                metadata,
                objects,
            ),
        }
        out
    }

    fn items(
        &self,
        out: &mut Vec<u8>,
        kind: &str,
        api_version: &str,
        metadata: Value,
        objects: &[Arc<Object>],
    ) {
        out.extend_from_slice(
            format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata},\"items\":[").as_bytes(),
        );
        for (i, object) in objects.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            match self.shape {
                Shape::Partial => {
                    out.extend_from_slice(partial(&object.value).to_string().as_bytes())
                }
                _ if self.resource.custom && !self.convert => out.extend_from_slice(&object.json),
                _ if !self.convert => object.write_item(out),
                _ => {
                    let mut value = self.value(object).into_owned();
                    if !self.resource.custom {
                        crate::json::remove(&mut value, &["kind"]);
                        crate::json::remove(&mut value, &["apiVersion"]);
                    }
                    out.extend_from_slice(value.to_string().as_bytes());
                }
            }
        }
        out.extend_from_slice(b"]}");
    }

    fn table<'a>(
        &self,
        out: &mut Vec<u8>,
        metadata: Value,
        columns: bool,
        objects: impl Iterator<Item = &'a Object>,
    ) {
        let definitions = if columns {
            table::columns(&self.resource, &self.version)
        } else {
            Value::Null
        };
        out.extend_from_slice(
            format!(
                "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{metadata},\"columnDefinitions\":{definitions},\"rows\":["
            )
            .as_bytes(),
        );
        for (i, object) in objects.enumerate() {
            if i > 0 {
                out.push(b',');
            }
            let value = self.value(object);
            let cells = Value::Array(table::cells(&self.resource, &self.version, &value));
            out.extend_from_slice(format!("{{\"cells\":{cells},\"object\":").as_bytes());
            match self.include {
                Include::Nothing => out.extend_from_slice(b"null"),
                Include::Metadata => out.extend_from_slice(partial(&value).to_string().as_bytes()),
                Include::Object => out.extend_from_slice(value.to_string().as_bytes()),
            }
            out.push(b'}');
        }
        out.extend_from_slice(b"]}");
    }

    /// The object of a bookmark: the kind with nothing but a version.
    pub(super) fn bookmark(&self, rv: u64, initial_end: bool) -> Value {
        let mut metadata = json!({"resourceVersion": rv.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let (kind, api_version) = match self.shape {
            Shape::Object => (
                self.resource.kind.clone(),
                self.resource.api_version(&self.version),
            ),
            Shape::Partial => (
                "PartialObjectMetadata".to_owned(),
                "meta.k8s.io/v1".to_owned(),
            ),
            Shape::Table => {
                return json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1",
                    "metadata": {"resourceVersion": rv.to_string()}, "columnDefinitions": null,
                    "rows": [{"cells": [], "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}}]});
            }
        };
        json!({"kind": kind, "apiVersion": api_version, "metadata": metadata})
    }
}

fn partial(value: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": value["metadata"]})
}
