//! An agent that serves a certificate file to its real Envoy.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use super::life::{Agent, free_port, get, until};

#[tokio::test]
async fn certificate_files_reach_envoy_and_no_log() {
    let Some(envoy) = super::envoy() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let secret = format!(
        "file-cert:{}~{}",
        path("a.pem").display(),
        path("a.key").display()
    );
    let (status, admin) = (free_port(), free_port());
    let socket = path("sds");
    let source = json!({
        "resource_api_version": "V3",
        "api_config_source": {
            "api_type": "DELTA_GRPC", "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
        },
    });
    let tcp = json!({
        "name": "tcp", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "tcp", "cluster": "sds-grpc",
        },
    });
    let tls = json!({
        "name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {"tls_certificate_sds_secret_configs": [{"name": secret, "sds_config": source}]},
        },
    });
    let address =
        |port: u16| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let bootstrap = json!({
        "node": {"id": "test", "cluster": "test"},
        "admin": {"address": address(admin)},
        "static_resources": {
            "clusters": [{
                "name": "sds-grpc", "type": "STATIC",
                "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": {}},
                }},
                "load_assignment": {"cluster_name": "sds-grpc", "endpoints": [{"lb_endpoints": [
                    {"endpoint": {"address": {"pipe": {"path": socket}}}},
                ]}]},
            }],
            "listeners": [{"name": "tls", "address": address(free_port()),
                "filter_chains": [{"filters": [tcp], "transport_socket": tls}]}],
        },
    });
    let file = path("bootstrap.json");
    std::fs::write(&file, bootstrap.to_string()).unwrap();
    let paths = (path("a.pem"), path("a.key"));
    let flags = [
        "--customConfigFile",
        file.to_str().unwrap(),
        "--sdsSocket",
        socket.to_str().unwrap(),
    ];
    let agent = Agent::start_in(directory, status, admin, &envoy, &flags, &[]);

    // The listener does not wait for a certificate that is not there.
    until("Envoy is live", &agent, async || {
        get(agent.admin, "/ready")
            .await
            .is_some_and(|(status, _)| status == 200)
    })
    .await;
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let pair = rcgen::generate_simple_self_signed(vec!["a.test".to_owned()]).unwrap();
    let key = pair.signing_key.serialize_pem();
    std::fs::write(&paths.0, pair.cert.pem()).unwrap();
    std::fs::write(&paths.1, &key).unwrap();
    until("Envoy has the certificate", &agent, async || {
        get(agent.admin, "/certs")
            .await
            .is_some_and(|(_, body)| body.contains("a.test"))
    })
    .await;
    // A key of somebody else does not replace it, and is named.
    let other = rcgen::generate_simple_self_signed(vec!["b.test".to_owned()]).unwrap();
    std::fs::write(&paths.1, other.signing_key.serialize_pem()).unwrap();
    until("the agent names the bad key", &agent, async || {
        agent
            .log()
            .contains("the key does not belong to the certificate")
    })
    .await;
    let certificates = get(agent.admin, "/certs").await.unwrap().1;
    assert!(certificates.contains("a.test"), "{certificates}");
    let log = agent.log();
    assert!(log.contains("no such file"), "{log}");
    for line in key.lines().filter(|line| !line.starts_with('-')) {
        assert!(!log.contains(line), "key material in the log");
    }
}
