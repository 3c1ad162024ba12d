//! The process: flags, pages, bad input, its end.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::harness::*;

const SERVICE: &str = "apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata: {name: web, namespace: shop}
spec:
  hosts: [web.shop.svc.cluster.local]
  addresses: [10.96.1.1]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 10.1.1.1, ports: {http: 8080}}]
";

#[tokio::test]
async fn pages_tell_what_pilot_knows() {
    let pilot = Pilot::start(|folder| write(folder, "web", SERVICE)).await;
    let services = pilot.json("/debug/registryz").await;
    assert_eq!(services[0]["hostname"], "web.shop.svc.cluster.local");
    assert_eq!(
        services.as_array().unwrap().last().unwrap(),
        &serde_json::json!({})
    );
    let endpoints = pilot.page("/debug/endpointz?brief").await.1;
    assert!(
        endpoints.starts_with("web.shop.svc.cluster.local:http 0 10.1.1.1:8080"),
        "{endpoints}"
    );
    let configs = pilot.json("/debug/configz").await;
    assert_eq!(configs[0]["type"], "service-entry");
    assert_eq!(configs[0]["Spec"]["hosts"][0], "web.shop.svc.cluster.local");
    assert!(pilot.json("/debug").await["/debug/syncz"].is_string());
    for path in ["/debug/adsz", "/debug/cdsz", "/debug/syncz"] {
        assert_eq!(pilot.json(path).await, serde_json::json!([]), "{path}");
    }
    assert_eq!(pilot.page("/debug/edsz").await.0, 404);
    assert_eq!(pilot.page("/debug/config_dump").await.0, 400);
    assert_eq!(pilot.page("/debug/config_dump?proxyID=nobody").await.0, 404);
    let version = pilot.json("/debug/push_status").await["Version"].clone();
    assert!(version.as_str().unwrap().contains('/'), "{version}");
    let metrics = pilot.page("/metrics").await.1;
    for line in [
        "pilot_services 1",
        "pilot_virt_services 0",
        "pilot_xds 0",
        "pilot_eds_no_instances 0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} in {metrics}");
    }
    assert!(metrics.contains("pilot_info{version="), "{metrics}");
    assert!(
        metrics.contains("pilot_k8s_cfg_events{type=\"ServiceEntry\",event=\"add\"} 1"),
        "{metrics}"
    );
    assert_eq!(pilot.json("/version").await["component"], "pilot-discovery");
}

#[tokio::test]
async fn a_bad_file_is_named_and_hurts_nobody() {
    let pilot = Pilot::start(|folder| {
        write(folder, "web", SERVICE);
        write(
            folder,
            "bad",
            &SERVICE
                .replace("10.1.1.1", "not-an-address")
                .replace("name: web", "name: bad"),
        );
        write(folder, "broken", "kind: [\n");
    })
    .await;
    let services = pilot.json("/debug/registryz").await;
    assert_eq!(services.as_array().unwrap().len(), 2, "{services}");
    let configs = pilot.json("/debug/configz").await.to_string();
    assert!(
        configs.contains("ServiceEntry shop/bad") && configs.contains("endpoints[0].address"),
        "{configs}"
    );
    assert!(configs.contains("broken.yaml"), "{configs}");
    // The last good version stays when a good file turns bad.
    pilot.write("web", &SERVICE.replace("STATIC", "SOMEHOW"));
    until("the rejection", || async {
        pilot
            .json("/debug/configz")
            .await
            .to_string()
            .contains("\"previousInUse\":true")
            .then_some(())
    })
    .await;
    assert_eq!(
        pilot
            .json("/debug/registryz")
            .await
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn sigterm_ends_it_with_status_0() {
    let mut pilot = Pilot::start(|_| ()).await;
    kill(Pid::from_raw(pilot.pid()), Signal::SIGTERM).unwrap();
    let status = pilot.exit().await;
    assert_eq!(status.code(), Some(0), "{}", pilot.log());
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let pilot = Pilot::start(|_| ()).await;
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_pilot-discovery"))
        .args([
            "discovery",
            "--grpcAddr",
            &pilot.grpc.to_string(),
            "--configDir",
        ])
        .arg(pilot.folder.path())
        .env_remove("KUBECONFIG")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains(&format!("cannot listen on --grpcAddr {}", pilot.grpc)),
        "{text}"
    );
}
