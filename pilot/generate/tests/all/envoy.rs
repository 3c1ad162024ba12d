//! The real Envoy as a judge: one static bootstrap from everything generated, `--mode validate`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{fixture::Output, golden};

pub(crate) struct Envoy(PathBuf);

impl Envoy {
    /// `None`, with the reason printed, if there is no Envoy on this machine.
    pub(crate) fn find() -> Option<Envoy> {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/envoy-1.40.0/envoy");
        let path = std::env::var_os("ENVOY").map_or(tools, PathBuf::from);
        if path.is_file() {
            return Some(Envoy(path));
        }
        eprintln!(
            "SKIPPED: no Envoy at {}; set ENVOY or run `make setup`",
            path.display()
        );
        None
    }

    /// What a running Envoy says about itself.
    pub(crate) fn server_info(&self) -> Value {
        use std::io::{Read as _, Write as _};
        let directory = tempfile::tempdir().unwrap();
        let (config, admin) = (
            directory.path().join("c.json"),
            directory.path().join("admin"),
        );
        let bootstrap = json!({
            "node": {"id": "a", "cluster": "a"},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}
        });
        std::fs::write(&config, bootstrap.to_string()).unwrap();
        let mut child = Command::new(&self.0)
            .args([
                "--disable-hot-restart",
                "--concurrency",
                "1",
                "-l",
                "error",
                "-c",
            ])
            .arg(&config)
            .arg("--admin-address-path")
            .arg(&admin)
            .spawn()
            .unwrap();
        let mut text = String::new();
        // Until it has started; a process that ends instead has said why.
        while child.try_wait().unwrap().is_none() {
            let address = std::fs::read_to_string(&admin).unwrap_or_default();
            let Ok(mut stream) = std::net::TcpStream::connect(address.trim()) else {
                std::thread::yield_now();
                continue;
            };
            stream
                .write_all(b"GET /server_info HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                .unwrap();
            stream.read_to_string(&mut text).unwrap();
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let (_, mut rest) = text.split_once("\r\n\r\n").unwrap();
        let mut body = String::new();
        while let Some((size, more)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size, 16).unwrap();
            body += &more[..size];
            rest = more[size..].trim_start();
        }
        serde_json::from_str(&body).unwrap()
    }

    pub(crate) fn validate(&self, output: &Output) -> Result<(), String> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bootstrap.json");
        std::fs::write(&file, bootstrap(output).to_string()).unwrap();
        let run = Command::new(&self.0)
            .args(["--mode", "validate", "-l", "error", "-c"])
            .arg(&file)
            .output()
            .unwrap();
        if run.status.success() {
            return Ok(());
        }
        Err(format!(
            "{}{}",
            String::from_utf8_lossy(&run.stdout),
            String::from_utf8_lossy(&run.stderr)
        ))
    }
}

/// Secrets from where a static bootstrap may have them. Envoy crashes on static clusters with secrets over ADS, and in
/// validation on the credentials that a token file makes. How it takes both at run time, Pilot's own tests show.
fn static_secrets(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(source) = fields.get_mut("sds_config") {
                *source = json!({"resource_api_version": "V3", "api_config_source": {"api_type": "DELTA_GRPC",
                    "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}]}});
            }
            fields.iter_mut().for_each(|(_, v)| static_secrets(v));
        }
        Value::Array(list) => list.iter_mut().for_each(static_secrets),
        _ => {}
    }
}

/// Clusters and listeners otherwise as they are; each route configuration inline in a listener of its own; each load assignment in a
/// static cluster of its own.
fn bootstrap(output: &Output) -> Value {
    let mut clusters = golden::json(&output.clusters);
    let mut listeners = golden::json(&output.listeners);
    clusters
        .iter_mut()
        .chain(&mut listeners)
        .for_each(static_secrets);
    clusters.push(json!({
        "name": "xds-grpc", "type": "STATIC",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}}}},
    }));
    for (i, assignment) in golden::json(&output.endpoints).into_iter().enumerate() {
        clusters.push(json!({"name": format!("assignment-{i}"), "type": "STATIC", "load_assignment": assignment}));
    }
    for (i, routes) in golden::json(&output.routes).into_iter().enumerate() {
        let manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "routes", "route_config": routes,
            "http_filters": [
                {"name": "envoy.filters.http.cors", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}},
                {"name": "envoy.filters.http.fault", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"}},
                {"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}},
            ],
        });
        listeners.push(json!({
            "name": format!("routes-{i}"),
            "address": {"socket_address": {"address": format!("127.77.{}.{}", i / 250, i % 250 + 1), "port_value": 1}},
            "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
        }));
    }
    json!({
        "node": {"id": "sidecar~10.0.0.1~test.test~test.svc.cluster.local", "cluster": "test"},
        "dynamic_resources": {"ads_config": {"api_type": "GRPC", "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}]}},
        "static_resources": {"clusters": clusters, "listeners": listeners},
    })
}
