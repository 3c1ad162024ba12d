//! The request path: who asks, for what, and the hand-over to the verb.

pub(crate) mod body;
pub(crate) mod delete;
mod eviction;
pub(crate) mod read;
mod scale;
mod view;
mod watch;
pub(crate) mod write;

pub(crate) use read::find;

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, header};
use parking_lot::Mutex;
use serde_json::Value;

use crate::auth::Identity;
use crate::negotiate::{Accept, negotiate};
use crate::registry::{Lookup, Resource};
use crate::request::{Options, Path};
use crate::server::Server;
use crate::status::{ApiError, Result, json_response, text_response};
use crate::{auth, discovery, metrics, openapi, stream};

/// Bodies up to this size are read (etcd's and the original's limit is about the same).
const MAX_BODY: usize = 3 * 1024 * 1024;

/// One request about one resource.
pub(crate) struct Context {
    pub(crate) server: Arc<Server>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) resource: Arc<Resource>,
    /// The version in the URL.
    pub(crate) version: String,
    /// Empty: cluster scope, or all namespaces.
    pub(crate) namespace: String,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
    pub(crate) options: Options,
    pub(crate) accept: Accept,
    /// First word of the User-Agent: the default field manager.
    pub(crate) agent: String,
    pub(crate) content_type: String,
    pub(crate) warnings: Mutex<Vec<String>>,
}

impl Context {
    pub(crate) fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        let mut warnings = self.warnings.lock();
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    pub(crate) fn name(&self) -> Result<&str> {
        self.name
            .as_deref()
            .ok_or_else(ApiError::method_not_allowed)
    }

    /// The manager that writes are attributed to.
    pub(crate) fn manager(&self) -> String {
        self.options
            .get("fieldManager")
            .map_or_else(|| self.agent.clone(), str::to_owned)
    }

    /// A context for work that the server does on its own behalf.
    pub(crate) fn internal(server: &Arc<Server>, resource: Arc<Resource>, namespace: &str) -> Self {
        let version = resource.storage.clone();
        Self {
            server: server.clone(),
            identity: Arc::new(Identity::internal()),
            resource,
            version,
            namespace: namespace.to_owned(),
            name: None,
            subresource: None,
            options: Options::default(),
            accept: Accept {
                shape: crate::negotiate::Shape::Object,
                yaml: false,
            },
            agent: "kube-apiserver".to_owned(),
            content_type: String::new(),
            warnings: Mutex::default(),
        }
    }

    /// The answer carrying one object in the form asked for.
    pub(crate) fn object_response(&self, code: u16, object: &crate::store::Object) -> Response {
        json_response(code, view::View::new(self).single(object))
    }

    pub(crate) fn value_response(&self, code: u16, value: &Value) -> Response {
        json_response(code, value.to_string())
    }
}

/// Entry point of every request.
pub(crate) async fn handle(server: Arc<Server>, request: Request<Body>) -> Response {
    let path = request.uri().path().to_owned();
    let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
    match route(server, request, &segments).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn route(server: Arc<Server>, request: Request<Body>, segments: &[&str]) -> Result<Response> {
    match segments {
        ["version"] => return Ok(json_response(200, discovery::version().to_string())),
        ["healthz" | "readyz" | "livez", ..] => return Ok(text_response(200, "ok")),
        _ => {}
    }
    let identity = Arc::new(auth::authenticate(&server, &request)?);
    let Some(path) = Path::parse(segments) else {
        auth::require_authenticated(&identity, request.method(), request.uri().path())?;
        return non_resource(&server, &request, segments);
    };
    let accept = negotiate(request.headers());
    let options = Options::parse(request.uri())?;
    if path.group == "metrics.k8s.io" {
        auth::authorize_path(
            &server,
            &identity,
            &path,
            verb(request.method(), &path, &options),
        )?;
        return metrics::serve(&server, &path, &options, accept).await;
    }
    let resource = match server
        .registry
        .snapshot()
        .find(&path.group, &path.version, &path.plural)
    {
        Lookup::Found(resource) => resource,
        Lookup::UnknownGroup => {
            auth::require_authenticated(&identity, request.method(), request.uri().path())?;
            return Ok(text_response(404, "404 page not found\n"));
        }
        Lookup::UnknownResource => {
            auth::require_authenticated(&identity, request.method(), request.uri().path())?;
            return Err(ApiError::unknown_resource());
        }
    };
    auth::authorize_path(
        &server,
        &identity,
        &path,
        verb(request.method(), &path, &options),
    )?;
    let Some(accept) = accept else {
        return Ok(text_response(
            406,
            "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, \
             application/vnd.kubernetes.protobuf",
        ));
    };
    let headers = request.headers();
    let agent = header_text(headers, "user-agent")
        .split(['/', ' '])
        .next()
        .filter(|a| !a.is_empty())
        .unwrap_or("unknown")
        .to_owned();
    let context = Context {
        server,
        identity,
        version: path.version,
        namespace: path.namespace.unwrap_or_default(),
        name: path.name,
        subresource: path.subresource,
        options,
        accept,
        agent,
        content_type: header_text(headers, "content-type")
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned(),
        warnings: Mutex::default(),
        resource,
    };
    if let Some(warning) = context
        .resource
        .version(&context.version)
        .and_then(|v| v.deprecated.clone())
    {
        context.warn(warning);
    }
    let yaml = context.accept.yaml;
    let mut response = match dispatch(&context, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    };
    for warning in context.warnings.lock().iter() {
        let quoted = warning
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace(['\n', '\r'], " ");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    if yaml {
        as_yaml(response).await
    } else {
        Ok(response)
    }
}

/// The API verb of a request, as authorisation names it.
fn verb(method: &Method, path: &Path, options: &Options) -> &'static str {
    match (method.as_str(), path.name.is_some()) {
        ("GET" | "HEAD", _) if options.flag("watch") => "watch",
        ("GET" | "HEAD", true) => "get",
        ("GET" | "HEAD", false) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", true) => "delete",
        ("DELETE", false) => "deletecollection",
        _ => "",
    }
}

fn non_resource(server: &Server, request: &Request<Body>, segments: &[&str]) -> Result<Response> {
    let headers = request.headers();
    match segments {
        ["api" | "apis", ..] => discovery::serve(server, segments, headers),
        ["openapi", ..] | ["swagger-2.0.0.pb-v1"] => openapi::serve(server, segments, headers),
        ["metrics"] => Ok(text_response(200, metrics::prometheus(server))),
        [] => Ok(json_response(200, discovery::paths(server).to_string())),
        _ => Ok(text_response(404, "404 page not found\n")),
    }
}

async fn dispatch(context: &Context, request: Request<Body>) -> Result<Response> {
    check_scope(context)?;
    let method = request.method().clone();
    let sub = context.subresource.clone();
    match sub.as_deref() {
        None if context.name.is_some() => one(context, method, request).await,
        None => collection(context, method, request).await,
        Some(sub) => subresource(context, sub, method, request).await,
    }
}

fn check_scope(context: &Context) -> Result<()> {
    let named_or_written = context.name.is_some();
    match (context.resource.namespaced, context.namespace.is_empty()) {
        (true, true) if named_or_written => Err(ApiError::unknown_resource()),
        (false, false) => Err(ApiError::unknown_resource()),
        _ => Ok(()),
    }
}

async fn one(context: &Context, method: Method, request: Request<Body>) -> Result<Response> {
    if context.resource.collection.is_none() {
        return Err(ApiError::method_not_allowed());
    }
    match method.as_str() {
        "GET" | "HEAD" if context.options.flag("watch") => read::watch(context),
        "GET" | "HEAD" => read::get(context),
        "PUT" => write::replace(context, &read_body(request).await?).await,
        "PATCH" => write::patch(context, &read_body(request).await?).await,
        "DELETE" => delete::one(context, &read_body(request).await?).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

async fn collection(context: &Context, method: Method, request: Request<Body>) -> Result<Response> {
    if context.resource.collection.is_none() {
        return match method.as_str() {
            "POST" => auth::review::create(context, &read_body(request).await?).await,
            _ => Err(ApiError::method_not_allowed()),
        };
    }
    match method.as_str() {
        "GET" | "HEAD" if context.options.flag("watch") => read::watch(context),
        "GET" | "HEAD" => read::list(context).await,
        "POST" if context.resource.namespaced && context.namespace.is_empty() => {
            Err(ApiError::method_not_allowed())
        }
        "POST" => write::create(context, &read_body(request).await?).await,
        "DELETE" => delete::many(context, &read_body(request).await?).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

async fn subresource(
    context: &Context,
    sub: &str,
    method: Method,
    request: Request<Body>,
) -> Result<Response> {
    let version = context.resource.version(&context.version);
    let resource = &context.resource;
    match (sub, method.as_str()) {
        ("status", verb) if version.is_some_and(|v| v.status) => match verb {
            "GET" => read::get(context),
            "PUT" => write::replace(context, &read_body(request).await?).await,
            "PATCH" => write::patch(context, &read_body(request).await?).await,
            _ => Err(ApiError::method_not_allowed()),
        },
        ("finalize", "PUT") if resource.is("", "namespaces") => {
            write::replace(context, &read_body(request).await?).await
        }
        ("scale", verb) if version.is_some_and(|v| v.scale.is_some()) => match verb {
            "GET" => scale::get(context),
            "PUT" | "PATCH" => {
                scale::write(context, verb == "PATCH", &read_body(request).await?).await
            }
            _ => Err(ApiError::method_not_allowed()),
        },
        ("token", "POST") if resource.is("", "serviceaccounts") => {
            auth::review::token_request(context, &read_body(request).await?).await
        }
        ("eviction", "POST") if resource.is("", "pods") => {
            eviction::evict(context, &read_body(request).await?).await
        }
        ("binding", "POST") if resource.is("", "pods") => {
            write::bind(context, &read_body(request).await?).await
        }
        ("log", "GET") if resource.is("", "pods") => stream::log::serve(context).await,
        ("exec" | "attach", "GET" | "POST") if resource.is("", "pods") => {
            stream::exec::serve(context, request).await
        }
        ("portforward", "GET" | "POST") if resource.is("", "pods") => {
            stream::portforward::serve(context, request).await
        }
        (name, _) if resource.subresources.iter().any(|s| s.name == name) => {
            Err(ApiError::method_not_allowed())
        }
        _ => Err(ApiError::unknown_resource()),
    }
}

/// Reads a bounded body.
async fn read_body(request: Request<Body>) -> Result<Bytes> {
    axum::body::to_bytes(request.into_body(), MAX_BODY).await.map_err(|e| {
        ApiError::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: the body could not be read up to the limit of {MAX_BODY} bytes: {e}"),
        )
    })
}

/// Re-encodes a finished JSON answer as YAML. Streams are never asked for in YAML.
async fn as_yaml(response: Response) -> Result<Response> {
    let (mut parts, body) = response.into_parts();
    if parts
        .headers
        .get(header::CONTENT_TYPE)
        .is_none_or(|t| t != "application/json")
    {
        return Ok(Response::from_parts(parts, body));
    }
    let bytes = axum::body::to_bytes(body, usize::MAX)
        .await
        .map_err(ApiError::internal)?;
    let value: Value = serde_json::from_slice(&bytes).map_err(ApiError::internal)?;
    let text = serde_saphyr::to_string(&value).map_err(ApiError::internal)?;
    parts.headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/yaml"),
    );
    parts.headers.remove(header::CONTENT_LENGTH);
    Ok(Response::from_parts(parts, Body::from(text)))
}

/// Headers that only matter to one answer.
pub(crate) fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers
        .get(name)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default()
}
