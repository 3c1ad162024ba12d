//! Names, numbers and JSON as other implementations of these APIs have them.

#![allow(clippy::unwrap_used)]

use prost::Message as _;
use serde_json::json;

use crate::networking::http_fault_injection::{abort::ErrorType, delay::HttpDelayType};
use crate::networking::load_balancer_settings::{LbPolicy, SimpleLb};
use crate::networking::{
    Destination, DestinationRule, EnvoyFilter, HttpMatchRequest, HttpRoute, HttpRouteDestination,
    ServiceEntry, StringMatch, VirtualService, string_match,
};
use crate::{Duration, mesh, rbac, security};

/// A field with a length, as the wire has it: tag, length, bytes. Tags are given as (number << 3 | 2).
fn field(tag: &[u8], content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    assert!(length < 128, "one-byte lengths only");
    [tag, &[length], content].concat()
}

#[test]
fn virtual_service_on_the_wire() {
    let destination = field(
        &[0x0a],
        &[field(&[0x0a], b"reviews"), field(&[0x12], b"v1")].concat(),
    );
    let weighted = [destination, vec![0x10, 75]].concat();
    let header = [
        field(&[0x0a], b"end-user"),
        field(&[0x12], &field(&[0x0a], b"jason")),
    ]
    .concat();
    let request = [
        field(&[0x0a], &field(&[0x12], b"/a")),
        field(&[0x2a], &header),
        vec![0x50, 1],
    ]
    .concat();
    let http = [
        field(&[0x0a], &request),
        field(&[0x12], &weighted),
        field(&[0x32], &[0x08, 5]),
        // Fields 17 and 18 have two-byte tags.
        field(&[0x8a, 0x01], b"first"),
        field(&[0x92, 0x01], &[0x08, 50]),
    ]
    .concat();
    let bytes = [
        field(&[0x0a], b"reviews"),
        field(&[0x12], b"mesh"),
        field(&[0x1a], &http),
        field(&[0x32], b"."),
    ]
    .concat();

    let service = VirtualService {
        hosts: vec!["reviews".to_owned()],
        gateways: vec!["mesh".to_owned()],
        http: vec![HttpRoute {
            name: "first".to_owned(),
            r#match: vec![HttpMatchRequest {
                uri: Some(StringMatch {
                    match_type: Some(string_match::MatchType::Prefix("/a".to_owned())),
                }),
                headers: [(
                    "end-user".to_owned(),
                    StringMatch {
                        match_type: Some(string_match::MatchType::Exact("jason".to_owned())),
                    },
                )]
                .into(),
                ignore_uri_case: true,
                ..Default::default()
            }],
            route: vec![HttpRouteDestination {
                destination: Some(Destination {
                    host: "reviews".to_owned(),
                    subset: "v1".to_owned(),
                    port: None,
                }),
                weight: 75,
                ..Default::default()
            }],
            timeout: Some(Duration::from_secs(5)),
            mirror_percent: Some(crate::UInt32Value { value: 50 }),
            ..Default::default()
        }],
        export_to: vec![".".to_owned()],
        ..Default::default()
    };
    assert_eq!(service.encode_to_vec(), bytes);
    assert_eq!(VirtualService::decode(&*bytes).unwrap(), service);

    let json = serde_json::to_value(&service).unwrap();
    assert_eq!(
        json,
        json!({"hosts": ["reviews"], "gateways": ["mesh"], "exportTo": ["."], "http": [{
            "name": "first", "timeout": "5s", "mirrorPercent": 50,
            "match": [{"uri": {"prefix": "/a"}, "headers": {"end-user": {"exact": "jason"}}, "ignoreUriCase": true}],
            "route": [{"destination": {"host": "reviews", "subset": "v1"}, "weight": 75}]
        }]})
    );
    assert_eq!(
        serde_json::from_value::<VirtualService>(json).unwrap(),
        service
    );
}

#[test]
fn both_spellings_and_go_durations_are_read() {
    let read = |v: serde_json::Value| serde_json::from_value::<VirtualService>(v).unwrap();
    let camel = json!({"exportTo": ["*"], "http": [{"mirrorPercent": 5, "corsPolicy": {"maxAge": "24h"},
        "fault": {"delay": {"fixedDelay": "2s", "percentage": {"value": 0.1}}, "abort": {"httpStatus": 500, "percent": 10}}}]});
    let snake = json!({"export_to": ["*"], "http": [{"mirror_percent": "5", "cors_policy": {"max_age": "86400s"},
        "fault": {"delay": {"fixed_delay": "2000ms", "percentage": {"value": 0.1}}, "abort": {"http_status": 500, "percent": 10}}}]});
    assert_eq!(read(camel.clone()), read(snake));
    let fault = read(camel).http.remove(0).fault.unwrap();
    assert_eq!(
        fault.delay.unwrap().http_delay_type,
        Some(HttpDelayType::FixedDelay(Duration::from_secs(2)))
    );
    assert_eq!(
        fault.abort.unwrap().error_type,
        Some(ErrorType::HttpStatus(500))
    );
}

#[test]
fn enums_by_name_and_number_oneofs_and_64_bit_numbers() {
    let read = |policy: serde_json::Value| {
        serde_json::from_value::<DestinationRule>(
            json!({"host": "a", "trafficPolicy": {"loadBalancer": policy}}),
        )
    };
    let simple = |v| {
        read(json!({"simple": v}))
            .unwrap()
            .traffic_policy
            .unwrap()
            .load_balancer
            .unwrap()
            .lb_policy
    };
    assert_eq!(
        simple(json!("LEAST_CONN")),
        Some(LbPolicy::Simple(SimpleLb::LeastConn.into()))
    );
    assert_eq!(
        simple(json!(2)),
        Some(LbPolicy::Simple(SimpleLb::Random.into()))
    );
    for size in [json!(1024), json!("1024")] {
        let rule = read(json!({"consistentHash": {"useSourceIp": true, "minimumRingSize": size}}))
            .unwrap();
        let Some(LbPolicy::ConsistentHash(hash)) = rule
            .traffic_policy
            .unwrap()
            .load_balancer
            .unwrap()
            .lb_policy
        else {
            panic!("another policy");
        };
        assert_eq!(hash.minimum_ring_size, 1024);
    }
    let both = read(json!({"simple": "RANDOM", "consistentHash": {"useSourceIp": true}}));
    assert!(both.is_err(), "one of a oneof");
}

#[test]
fn unknown_fields_are_refused() {
    for (text, field) in [
        (json!({"hots": []}), "hots"),
        (
            json!({"http": [{"route": [{"destination": {"hosts": "a"}}]}]}),
            "hosts",
        ),
    ] {
        let error = serde_json::from_value::<VirtualService>(text)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("unknown field `{field}`")),
            "{error}"
        );
    }
}

#[test]
fn free_form_values_are_kept() {
    let text = json!({"configPatches": [{"applyTo": "CLUSTER", "match": {"context": "SIDECAR_OUTBOUND", "cluster": {"portNumber": 80}},
        "patch": {"operation": "MERGE", "value": {"a": {"b": [1.0, null, "x", true]}}}}]});
    let filter: EnvoyFilter = serde_json::from_value(text.clone()).unwrap();
    assert_eq!(serde_json::to_value(&filter).unwrap(), text);
    assert_eq!(
        EnvoyFilter::decode(&*filter.encode_to_vec()).unwrap(),
        filter
    );
}

#[test]
fn numbers_of_other_messages() {
    // location = MESH_INTERNAL (4), resolution = DNS (5), endpoints (6) with weight 6.
    let entry = ServiceEntry::decode(&[0x20, 1, 0x28, 2, 0x32, 2, 0x30, 9][..]).unwrap();
    assert_eq!(
        (entry.location, entry.resolution, entry.endpoints[0].weight),
        (1, 2, 9)
    );
    // A nested field beyond 127: MeshConfig.disable_mixer_http_reports is 48.
    let config = mesh::MeshConfig {
        disable_mixer_http_reports: true,
        proxy_listen_port: 15001,
        ..Default::default()
    };
    assert_eq!(config.encode_to_vec(), [0x20, 0x99, 0x75, 0x80, 0x03, 0x01]);
    assert_eq!(mesh::AuthenticationPolicy::Inherit as i32, 1000);
    // A field whose protobuf name is in camelCase.
    let binding: rbac::ServiceRoleBinding =
        serde_json::from_value(json!({"roleRef": {"name": "r"}})).unwrap();
    assert_eq!(binding.encode_to_vec(), [0x12, 3, 0x12, 1, b'r']);
    let policy: security::AuthorizationPolicy =
        serde_json::from_value(json!({"selector": {"matchLabels": {"a": "b"}}, "rules": [{}]}))
            .unwrap();
    assert_eq!(
        policy.encode_to_vec(),
        [0x0a, 8, 0x0a, 6, 0x0a, 1, b'a', 0x12, 1, b'b', 0x12, 0]
    );
}
