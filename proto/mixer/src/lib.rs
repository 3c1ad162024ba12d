//! Types of Mixer's APIs, generated from `proto/`: wire format (prost), proto3 JSON (serde), gRPC stubs (tonic).
//!
//! - [`v1`]: what proxies call (`Check`, `Report`), and [`client`], the configuration of the client in the proxy;
//! - [`policy`]: rules, handlers, instances, attribute manifests and the values adapters receive;
//! - [`adapter_model`]: the out-of-process adapter protocol;
//! - [`adapters`]: parameters of each adapter; [`templates`]: each template's messages;
//! - [`api`]: the metric kinds of Google's monitoring API that Stackdriver's parameters name.
//!
//! JSON accepts camelCase and snake_case names, and Go durations; it refuses unknown fields.

pub use generated::adapter as adapters;
pub use generated::google::api;
pub use generated::istio::mixer::adapter::model::v1beta1 as adapter_model;
pub use generated::istio::mixer::v1;
pub use generated::istio::mixer::v1::config::client;
pub use generated::istio::policy::v1beta1 as policy;
pub use proto_wellknown::{Duration, rpc};

/// Templates. Where a template's upstream packages differ only in case (`apiKey` holds the configuration message,
/// `apikey` the runtime ones), there is a module for each.
pub mod templates {
    pub use super::generated::adapter::template::kubernetes;
    pub use super::generated::{
        api_key, apikey, authorization, check_nothing, checknothing, edge, list_entry, listentry,
        log_entry, logentry, metric, quota, report_nothing, reportnothing, trace_span, tracespan,
    };
}

#[allow(missing_docs, unreachable_pub, clippy::all, rustdoc::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}
