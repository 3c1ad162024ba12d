//! get, list and the start of a watch.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::view::View;
use super::{Context, watch as watching};
use crate::json;
use crate::selector::{Fields, Labels};
use crate::status::{ApiError, FieldError, Result, json_response};
use crate::store::{Collection, Object};

/// How long a read waits for a resource version that does not exist yet.
const FUTURE_WAIT: Duration = Duration::from_secs(3);

pub(super) fn get(context: &Context) -> Result<Response> {
    let object = find(context)?;
    Ok(context.object_response(200, &object))
}

impl Context {
    pub(crate) fn collection(&self) -> Result<&Arc<Collection>> {
        self.resource
            .collection
            .as_ref()
            .ok_or_else(ApiError::method_not_allowed)
    }
}

/// The named object.
pub(crate) fn find(context: &Context) -> Result<Arc<Object>> {
    let name = context.name()?;
    context
        .collection()?
        .get(&context.namespace, name)
        .ok_or_else(|| ApiError::not_found(&context.resource, name))
}

/// Which objects a list or a watch is about.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    pub(super) namespace: Option<String>,
    labels: Labels,
    fields: Fields,
    name: Option<String>,
}

impl Filter {
    pub(super) fn new(context: &Context) -> Result<Self> {
        let labels = Labels::parse(context.options.get("labelSelector").unwrap_or_default())?;
        let resource = &context.resource;
        let text = context.options.get("fieldSelector").unwrap_or_default();
        let fields = Fields::parse(text, &resource.kind, resource.field_labels, resource.custom)?;
        Ok(Self {
            namespace: Some(context.namespace.clone()).filter(|n| !n.is_empty()),
            labels,
            fields,
            name: context.name.clone(),
        })
    }

    pub(super) fn is_selective(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }

    pub(super) fn matches(&self, object: &Object) -> bool {
        self.namespace
            .as_ref()
            .is_none_or(|n| *n == object.namespace)
            && self.name.as_ref().is_none_or(|n| *n == object.name)
            && self.labels.matches_object(&object.value)
            && self.fields.matches(&object.value)
    }

    /// The only object that can match, when namespace and name are both known.
    fn single(&self) -> Option<(&str, &str)> {
        let name = self.name.as_deref().or_else(|| self.fields.name())?;
        Some((self.namespace.as_deref().unwrap_or_default(), name))
    }

    /// The matching ones of the current objects, with the version of the view.
    pub(super) fn current(&self, context: &Context) -> Result<(Vec<Arc<Object>>, u64)> {
        let collection = context.collection()?;
        let published = context.server.store.version();
        let exact = self
            .single()
            .filter(|(ns, _)| !ns.is_empty() || !context.resource.namespaced);
        if let Some((namespace, name)) = exact {
            let found = collection.get(namespace, name).filter(|o| self.matches(o));
            let rv = found.as_ref().map_or(published, |o| o.rv.max(published));
            return Ok((found.into_iter().collect(), rv));
        }
        let (objects, rv) = collection.list(self.namespace.as_deref(), published);
        Ok((
            objects.into_iter().filter(|o| self.matches(o)).collect(),
            rv,
        ))
    }
}

/// Position in a chunked list.
struct Continue {
    rv: u64,
    /// Last key handed out.
    after: (String, String),
}

impl Continue {
    fn encode(&self) -> String {
        let start = format!("{}/{}\u{0}", self.after.0, self.after.1);
        URL_SAFE_NO_PAD
            .encode(json!({"v": "meta.k8s.io/v1", "rv": self.rv, "start": start}).to_string())
    }

    fn decode(token: &str) -> Result<Self> {
        let bad = |why: &str| {
            ApiError::bad_request(format!(
                "continue key is not valid: invalid continue token: {why}"
            ))
        };
        let bytes = URL_SAFE_NO_PAD
            .decode(token.trim_end_matches('='))
            .map_err(|e| bad(&e.to_string()))?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| bad(&e.to_string()))?;
        let start = json::str_at(&value, &["start"])
            .trim_end_matches('\u{0}')
            .to_owned();
        let (namespace, name) = start.split_once('/').ok_or_else(|| bad("no start key"))?;
        let rv = json::int_at(&value, &["rv"]).ok_or_else(|| bad("no resourceVersion"))?;
        let rv = if rv < 0 { 0 } else { rv as u64 };
        Ok(Self {
            rv,
            after: (namespace.to_owned(), name.to_owned()),
        })
    }
}

pub(super) async fn list(context: &Context) -> Result<Response> {
    let filter = Filter::new(context)?;
    let limit = context.options.number("limit")?.unwrap_or(0) as usize;
    let token = context
        .options
        .get("continue")
        .map(Continue::decode)
        .transpose()?;
    let wanted = wait_for_version(context).await?;
    let exact = context.options.get("resourceVersionMatch") == Some("Exact");
    let (mut objects, rv) = match (&token, wanted) {
        (Some(t), _) if t.rv > 0 => (at_version(context, &filter, t.rv, Some(t))?, t.rv),
        (None, Some(rv)) if exact && rv > 0 => (at_version(context, &filter, rv, None)?, rv),
        _ => filter.current(context)?,
    };
    if let Some(t) = &token {
        objects.retain(|o| (&o.namespace, &o.name) > (&t.after.0, &t.after.1));
    }
    let mut metadata = json!({"resourceVersion": rv.to_string()});
    if limit > 0 && objects.len() > limit {
        let rest = objects.len() - limit;
        objects.truncate(limit);
        if let Some(last) = objects.last() {
            let after = (last.namespace.clone(), last.name.clone());
            metadata["continue"] = Continue { rv, after }.encode().into();
        }
        if !filter.is_selective() {
            metadata["remainingItemCount"] = rest.into();
        }
    }
    Ok(json_response(
        200,
        View::new(context).list(metadata, &objects),
    ))
}

/// The matching objects as of a version in the history window.
fn at_version(
    context: &Context,
    filter: &Filter,
    rv: u64,
    token: Option<&Continue>,
) -> Result<Vec<Arc<Object>>> {
    let objects = context.collection()?.list_at(filter.namespace.as_deref(), rv).map_err(|_| match token {
        None => ApiError::expired("The resourceVersion for the provided list is too old."),
        Some(t) => {
            let fresh = Continue { rv: 0, after: t.after.clone() }.encode();
            ApiError::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new list \
                 without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
                 results. Continuing with the provided token results in an inconsistent list - objects that were created, \
                 modified, or deleted between the time the first chunk was returned and now may show up in the list.",
            )
            .with_list_continue(fresh)
        }
    })?;
    Ok(objects.into_iter().filter(|o| filter.matches(o)).collect())
}

/// Checks resourceVersion and resourceVersionMatch, and waits for a version in the near future.
async fn wait_for_version(context: &Context) -> Result<Option<u64>> {
    let Some(text) = context.options.get("resourceVersion") else {
        if context.options.get("resourceVersionMatch").is_some() {
            let error = FieldError::forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            );
            return Err(ApiError::invalid(
                "meta.k8s.io",
                "ListOptions",
                "",
                &[error],
            ));
        }
        return Ok(None);
    };
    let rv = parse_version(text)?;
    let collection = context.collection()?;
    if rv > context.server.store.version() {
        let mut changes = collection.subscribe();
        let reached = async {
            while context.server.store.version() < rv && changes.changed().await.is_ok() {}
        };
        if tokio::time::timeout(FUTURE_WAIT, reached).await.is_err() {
            let message = format!(
                "Timeout: Too large resource version: {rv}, current: {}",
                context.server.store.version()
            );
            return Err(ApiError::new(504, "Timeout", message).with_details(
                json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}], "retryAfterSeconds": 1}),
            ));
        }
    }
    Ok(Some(rv))
}

fn parse_version(text: &str) -> Result<u64> {
    text.parse().map_err(|_| {
        ApiError::new(
            500,
            "InternalError",
            format!("resourceVersion: Invalid value: \"{text}\": must be an unsigned integer"),
        )
    })
}

pub(super) fn watch(context: &Context) -> Result<Response> {
    let filter = Filter::new(context)?;
    let options = &context.options;
    let initial = options.flag("sendInitialEvents");
    if initial && options.get("resourceVersionMatch") != Some("NotOlderThan") {
        let error = FieldError::forbidden(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        );
        return Err(ApiError::invalid(
            "meta.k8s.io",
            "ListOptions",
            "",
            &[error],
        ));
    }
    let from = options
        .get("resourceVersion")
        .map(parse_version)
        .transpose()?
        .filter(|rv| *rv > 0);
    let seconds = options.number("timeoutSeconds")?.filter(|s| *s > 0);
    let request = watching::Request {
        filter,
        view: View::new(context),
        from: if initial { None } else { from },
        bookmarks: options.flag("allowWatchBookmarks"),
        initial_end: initial,
        timeout: seconds.map(Duration::from_secs),
    };
    watching::start(context, request)
}
