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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use prost::Message as _;
    use serde_json::json;

    use super::{adapters, policy, templates, v1};

    #[test]
    fn check_on_the_wire() {
        let mut attributes = v1::CompressedAttributes {
            words: vec!["x".to_owned()],
            ..Default::default()
        };
        // Indices are zigzag: word 2 of the dictionary is 4, the first own word (-1) is 1.
        attributes.strings.insert(2, -1);
        let request = v1::CheckRequest {
            attributes: Some(attributes),
            global_word_count: 221,
            ..Default::default()
        };
        assert_eq!(
            request.encode_to_vec(),
            [
                0x0a, 9, 0x0a, 1, b'x', 0x12, 4, 0x08, 4, 0x10, 1, 0x10, 0xdd, 0x01
            ]
        );
        let response = v1::CheckResponse {
            precondition: Some(v1::check_response::PreconditionResult {
                status: Some(super::rpc::Status {
                    code: 7,
                    ..Default::default()
                }),
                valid_use_count: 10,
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(
            response.encode_to_vec(),
            [0x12, 6, 0x0a, 2, 0x08, 7, 0x18, 10]
        );
    }

    #[test]
    fn config_as_users_write_it() {
        let rule: policy::Rule = serde_json::from_value(json!({
            "match": "true", "actions": [{"handler": "h", "instances": ["i"]}],
            "requestHeaderOperations": [{"name": "x", "values": ["a"], "operation": "REPLACE"}]
        }))
        .unwrap();
        assert_eq!(rule.actions[0].handler, "h");
        let params: adapters::redisquota::config::Params = serde_json::from_value(json!({
            "redis_server_url": "localhost:6379", "quotas": [{"name": "q", "max_amount": "500", "valid_duration": "1m30s"}]
        }))
        .unwrap();
        assert_eq!(params.quotas[0].valid_duration.unwrap().seconds, 90);
        let error = serde_json::from_value::<policy::Rule>(json!({"matches": ""})).unwrap_err();
        assert!(
            error.to_string().contains("unknown field `matches`"),
            "{error}"
        );
    }

    #[test]
    fn template_instances_carry_their_name_at_its_number() {
        let instance = templates::quota::InstanceMsg {
            name: "n".to_owned(),
            ..Default::default()
        };
        // 72295727 << 3 | 2
        assert_eq!(
            instance.encode_to_vec(),
            [0xfa, 0xd2, 0xe4, 0x93, 0x02, 1, b'n']
        );
        // Packages that differ only in case are both there.
        assert!(
            templates::log_entry::Template::default()
                .variables
                .is_empty()
        );
        assert!(
            templates::logentry::InstanceMsg::default()
                .variables
                .is_empty()
        );
    }
}
