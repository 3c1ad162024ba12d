//! The static clusters.

use serde_json::{Value, json};

use super::{
    AddressError, Certificates, Inputs, RemoteService, host_port, is_mutual_tls, remote,
    socket_address, typed,
};
use crate::duration::proto;

/// All of them.
pub fn all(inputs: &Inputs<'_>) -> Result<Vec<Value>, AddressError> {
    let args = inputs.args;
    let mut clusters = vec![
        json!({
            "name": "prometheus_stats",
            "type": "STATIC",
            "connect_timeout": "0.25s",
            "lb_policy": "ROUND_ROBIN",
            "load_assignment": assignment("prometheus_stats", inputs.identity.localhost(), args.proxy_admin_port),
        }),
        xds(inputs)?,
    ];
    if let Some(socket) = &inputs.secrets {
        clusters.push(json!({
            "name": "sds-grpc",
            "type": "STATIC",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": http2(false),
            "load_assignment": {"cluster_name": "sds-grpc", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": {"pipe": {"path": socket}}}},
            ]}]},
        }));
    }
    // One tracer, in Istio's order of preference. Its provider is configured by Pilot, in the connection manager.
    let tracers = [
        ("lightstep", "--lightstepAddress", &args.lightstep_address),
        ("zipkin", "--zipkinAddress", &args.zipkin_address),
        (
            "datadog_agent",
            "--datadogAgentAddress",
            &args.datadog_agent_address,
        ),
    ];
    if let Some((name, flag, address)) = tracers
        .into_iter()
        .find(|(_, _, address)| !address.is_empty())
    {
        let (host, port) = host_port(flag, address, "zipkin.istio-system:9411")?;
        let mut cluster = dns(inputs, name, &host, port);
        cluster["connect_timeout"] = "1s".into();
        if name == "lightstep" {
            cluster["typed_extension_protocol_options"] = http2(false);
            if args.lightstep_secure {
                cluster["transport_socket"] = upstream_tls(json!({
                    "common_tls_context": {"alpn_protocols": ["h2"], "validation_context": {
                        "trusted_ca": {"filename": args.lightstep_cacert_path},
                    }},
                    "sni": host,
                }));
            }
        }
        clusters.push(cluster);
    }
    let services = [
        ("envoy_metrics_service", &inputs.metrics_service),
        ("envoy_accesslog_service", &inputs.access_log_service),
    ];
    for (name, service) in services {
        if let Some(service) = service {
            clusters.push(remote_service(inputs, name, service)?);
        }
    }
    Ok(clusters)
}

fn assignment(cluster: &str, host: &str, port: u16) -> Value {
    json!({
        "cluster_name": cluster,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(host, port)}}]}],
    })
}

/// A cluster whose host is resolved by DNS, with quick retries when that fails.
fn dns(inputs: &Inputs<'_>, name: &str, host: &str, port: u16) -> Value {
    let family = match (
        inputs.identity.is_ipv6(),
        inputs
            .identity
            .addresses
            .iter()
            .any(std::net::IpAddr::is_ipv6),
    ) {
        (true, _) => "V6_ONLY",
        (false, true) => "AUTO",
        (false, false) => "V4_ONLY",
    };
    json!({
        "name": name,
        "type": "STRICT_DNS",
        "dns_lookup_family": family,
        "dns_failure_refresh_rate": {"base_interval": "1s", "max_interval": "10s"},
        "lb_policy": "ROUND_ROBIN",
        "load_assignment": assignment(name, host, port),
    })
}

fn http2(with_pings: bool) -> Value {
    let options = match with_pings {
        true => json!({"connection_keepalive": {"interval": "30s", "timeout": "5s"}}),
        false => json!({}),
    };
    json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        json!({"explicit_http_config": {"http2_protocol_options": options}}),
    )})
}

fn upstream_tls(context: Value) -> Value {
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": typed("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", context),
    })
}

/// Pilot.
fn xds(inputs: &Inputs<'_>) -> Result<Value, AddressError> {
    let args = inputs.args;
    let (host, port) = host_port(
        "--discoveryAddress",
        &args.discovery_address,
        "istio-pilot.istio-system:15010",
    )?;
    let mut cluster = dns(inputs, "xds-grpc", &host, port);
    let threshold = |priority: &str| {
        json!({
            "priority": priority,
            "max_connections": 100_000,
            "max_pending_requests": 100_000,
            "max_requests": 100_000,
        })
    };
    cluster["dns_refresh_rate"] = proto(args.dns_refresh_rate).into();
    cluster["respect_dns_ttl"] = true.into();
    cluster["connect_timeout"] = proto(args.connect_timeout).into();
    cluster["circuit_breakers"] = json!({"thresholds": [threshold("DEFAULT"), threshold("HIGH")]});
    cluster["upstream_connection_options"] = json!({"tcp_keepalive": {"keepalive_time": 300}});
    cluster["typed_extension_protocol_options"] = http2(true);
    if is_mutual_tls(args) {
        let sans = json!([{"san_type": "URI", "matcher": {"exact": inputs.pilot_san}}]);
        cluster["transport_socket"] = upstream_tls(
            json!({"common_tls_context": match &inputs.certificates {
                Certificates::Files => json!({
                    "alpn_protocols": ["h2"],
                    "tls_certificates": [{
                        "certificate_chain": {"filename": "/etc/certs/cert-chain.pem"},
                        "private_key": {"filename": "/etc/certs/key.pem"},
                    }],
                    "validation_context": {
                        "trusted_ca": {"filename": "/etc/certs/root-cert.pem"},
                        "match_typed_subject_alt_names": sans,
                    },
                }),
                Certificates::Sds(socket) => json!({
                    "alpn_protocols": ["h2"],
                    "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": sds(socket)}],
                    "combined_validation_context": {
                        "default_validation_context": {"match_typed_subject_alt_names": sans},
                        "validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": sds(socket)},
                    },
                }),
            }}),
        );
    }
    Ok(cluster)
}

/// The node agent's secret discovery, to which the pod's token is shown on every call.
fn sds(socket: &str) -> Value {
    let token = typed(
        "envoy.config.grpc_credential.v3.FileBasedMetadataConfig",
        json!({
            "secret_data": {"filename": "/var/run/secrets/tokens/istio-token"},
            "header_key": "istio_sds_credentials_header-bin",
        }),
    );
    json!({
        "resource_api_version": "V3",
        "initial_fetch_timeout": "0s",
        "api_config_source": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{"google_grpc": {
                "target_uri": socket,
                "stat_prefix": "sdsstat",
                // The library would send the escaped path of the socket, which servers that check it refuse, and wait up
                // to two minutes before it connects again.
                "channel_args": {"args": {
                    "grpc.default_authority": {"string_value": "localhost"},
                    "grpc.max_reconnect_backoff_ms": {"int_value": "5000"},
                }},
                "credentials_factory_name": "envoy.grpc_credentials.file_based_metadata",
                "channel_credentials": {"local_credentials": {}},
                "call_credentials": [{"from_plugin": {
                    "name": "envoy.grpc_credentials.file_based_metadata",
                    "typed_config": token,
                }}],
            }}],
        },
    })
}

fn remote_service(
    inputs: &Inputs<'_>,
    name: &str,
    service: &RemoteService,
) -> Result<Value, AddressError> {
    let (host, port) = host_port(
        "address of --envoyMetricsService or --envoyAccessLogService",
        &service.address,
        "metrics:15000",
    )?;
    let mut cluster = dns(inputs, name, &host, port);
    cluster["connect_timeout"] = "1s".into();
    cluster["typed_extension_protocol_options"] = http2(false);
    if let Some(keepalive) = &service.tcp_keepalive {
        cluster["upstream_connection_options"] =
            json!({"tcp_keepalive": remote::keepalive(keepalive)});
    }
    if let Some(context) = service.tls_settings.as_ref().and_then(remote::tls_context) {
        cluster["transport_socket"] = upstream_tls(context);
    }
    Ok(cluster)
}
