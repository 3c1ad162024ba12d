//! `/debug/*`: what Pilot knows and how far each proxy has come. JSON in the shapes of Istio 1.4
//! (`pilot/pkg/proxy/envoy/v2/debug.go`), with more fields where 1.4 was silent.
//!
//! Reads only (but for `?push=1`): the published world, the engine's list of clients, the state of sources. No page shows
//! keys or tokens; there is no authentication, so bind accordingly.
//!
//! | Room | Pages |
//! |---|---|
//! | [`clients`] | adsz, cdsz, edsz, syncz, config_dump: what proxies were sent and answered |
//! | [`registry`] | registryz, endpointz, endpointShardz, instancesz: services and who serves them |
//! | [`config`] | configz, config_distribution, push_status: objects, where they have arrived, what is wrong with them |

mod clients;
mod config;
mod registry;

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    extract::Query,
    http::{HeaderMap, header},
    response::{Html, IntoResponse, Response},
    routing::{MethodRouter, get},
};
use mesh_sources::ConfigSource;
use pilot_xds::{Engine, Publisher, Resource, ResourceType};
use serde_json::{Value, json};

use crate::{inputs::Intake, source::PilotSource, world::World};

/// What the pages look at.
#[derive(Clone)]
pub(crate) struct Debug {
    pub(crate) engine: Arc<Engine<PilotSource>>,
    pub(crate) publisher: Arc<Publisher<PilotSource>>,
    pub(crate) intake: Intake,
    pub(crate) configs: Arc<dyn ConfigSource>,
}

type Params = Query<BTreeMap<String, String>>;

/// A page: where, what it is good for, and who makes it.
type Page = (&'static str, &'static str, MethodRouter<Debug>);

fn pages() -> Vec<Page> {
    vec![
        (
            "/debug/syncz",
            "which version each proxy was sent and has accepted, by type; what it refused and why",
            get(clients::syncz),
        ),
        (
            "/debug/adsz",
            "connected proxies and what they subscribe to; ?push=1 pushes to all",
            get(clients::adsz),
        ),
        (
            "/debug/cdsz",
            "the clusters of each connected proxy",
            get(clients::cdsz),
        ),
        (
            "/debug/edsz",
            "all load assignments that connected proxies asked for",
            get(clients::edsz),
        ),
        (
            "/debug/config_dump",
            "?proxyID=ID: everything one proxy is served, as Envoy's own dump",
            get(clients::config_dump),
        ),
        ("/debug/registryz", "all services", get(registry::registryz)),
        (
            "/debug/endpointz",
            "endpoints by service and port; ?brief as text",
            get(registry::endpointz),
        ),
        (
            "/debug/endpointShardz",
            "endpoints by service, namespace and registry",
            get(registry::endpoint_shardz),
        ),
        (
            "/debug/instancesz",
            "the service ports that each connected proxy serves",
            get(registry::instancesz),
        ),
        (
            "/debug/configz",
            "config objects in use, and those refused with the reasons",
            get(config::configz),
        ),
        (
            "/debug/config_distribution",
            "which proxies have which config object since when; ?resource=TYPE/NAMESPACE/NAME, ?proxy_namespace=NS",
            get(config::config_distribution),
        ),
        (
            "/debug/push_status",
            "findings of the last push: conflicts, empty clusters, config that is not used",
            get(config::push_status),
        ),
    ]
}

/// The pages.
pub(crate) fn router(debug: Debug) -> Router {
    let mut router = Router::new().route("/debug", get(index));
    for (path, _, page) in pages() {
        router = router.route(path, page);
    }
    router.with_state(debug)
}

/// What there is: a list of links in a browser, JSON for everyone else.
async fn index(headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    if !accept.is_some_and(|accept| accept.contains("text/html")) {
        let list = pages()
            .into_iter()
            .map(|(path, what, _)| (path.to_owned(), json!(what)));
        return Json(Value::Object(list.collect())).into_response();
    }
    let rows: String = pages()
        .iter()
        .map(|(path, what, _)| format!("<dt><a href=\"{path}\">{path}</a><dd>{what}\n"))
        .collect();
    Html(format!(
        "<!doctype html><meta charset=utf-8><title>Pilot</title>\
         <style>body{{font:16px/1.5 system-ui;margin:2rem auto;max-width:46rem}}dt{{margin-top:.7rem}}</style>\
         <h1>Pilot</h1><dl>{rows}</dl>"
    ))
    .into_response()
}

impl Debug {
    fn world(&self) -> Option<Arc<World>> {
        self.publisher
            .current()
            .map(|published| published.world.clone())
    }

    /// `?push=1`: everything is looked at anew. Returns what Istio answers.
    fn maybe_push(&self, params: &BTreeMap<String, String>) -> Option<Response> {
        params.get("push").filter(|value| !value.is_empty())?;
        self.intake.poke();
        let count = self.engine.clients().list().len();
        Some(format!("Pushed to {count} servers\n").into_response())
    }
}

fn decode(ty: ResourceType, resources: &[Resource]) -> Value {
    decode_each(ty, resources).collect()
}

fn decode_each(ty: ResourceType, resources: &[Resource]) -> impl Iterator<Item = Value> {
    let name = ty.type_url().trim_start_matches("type.googleapis.com/");
    resources.iter().map(move |resource| {
        proto_envoy::json::bytes_to_json(name, &resource.body)
            .unwrap_or_else(|error| json!({"name": &*resource.name, "error": error.to_string()}))
    })
}
