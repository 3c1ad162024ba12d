//! Addresses, VIPs, DNS, node ports.

use std::{collections::BTreeSet, sync::Mutex};

use k8s_openapi::api::core::v1::Service;
use kube::api::PostParams;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Lab, eventually, service, shell_pod, web_pod};

async fn create_service(lab: &Lab, value: serde_json::Value) -> Service {
    let service: Service = serde_json::from_value(value).unwrap();
    lab.api::<Service>()
        .create(&PostParams::default(), &service)
        .await
        .unwrap()
}

pub(crate) async fn a_vip_balances_over_ready_endpoints_and_refuses_without(lab: &Lab) {
    create_service(lab, service("pair", "pair", &json!({}))).await;
    create_service(lab, service("nobody", "nobody", &json!({}))).await;
    for name in ["pair-1", "pair-2"] {
        lab.create(web_pod(name, "pair")).await;
    }
    lab.create(shell_pod("vip-client", "sleep 1000")).await;
    for name in ["pair-1", "pair-2", "vip-client"] {
        lab.until_ready(name).await;
    }
    let curl = |from: &'static str, host: &'static str| async move {
        lab.exec(
            from,
            &[
                "bash",
                "-c",
                &format!("curl -s -m 5 http://{host}/ || echo exit $?"),
            ],
        )
        .await
    };
    let seen = Mutex::new(BTreeSet::new());
    eventually("both endpoints", || async {
        let answer = curl("vip-client", "pair").await;
        let mut seen = seen.lock().unwrap();
        if answer.starts_with("pair-") {
            seen.insert(answer);
        }
        (seen.len() == 2).then_some(())
    })
    .await;
    // A pod reaches itself through the VIP, too (hairpin).
    eventually("itself through the VIP", || async {
        (curl("pair-1", "pair").await == "pair-1\n").then_some(())
    })
    .await;
    // 7: connection refused, at once.
    assert_eq!(curl("vip-client", "nobody").await, "exit 7\n");
}

pub(crate) async fn dns_answers_inside_a_pod(lab: &Lab) {
    create_service(
        lab,
        service("headless", "dns-web", &json!({"clusterIP": "None"})),
    )
    .await;
    create_service(lab, json!({"metadata": {"name": "outside"}, "spec": {"type": "ExternalName", "externalName": "headless.default.svc.cluster.local"}})).await;
    lab.create(web_pod("dns-web", "dns-web")).await;
    let pod = lab.until_ready("dns-web").await;
    let ip = pod.status.unwrap().pod_ip.unwrap();
    let resolve = |name: &'static str| async move {
        lab.exec(
            "dns-web",
            &[
                "bash",
                "-c",
                &format!("getent ahostsv4 {name} | cut -d' ' -f1 | sort -u || true"),
            ],
        )
        .await
    };
    eventually("the headless name", || async {
        (resolve("headless").await == format!("{ip}\n")).then_some(())
    })
    .await;
    assert_eq!(resolve("kubernetes.default.svc").await, "10.96.0.1\n");
    assert_eq!(
        resolve("kubernetes.default.svc.cluster.local").await,
        "10.96.0.1\n"
    );
    assert_eq!(resolve("outside").await, format!("{ip}\n"));
    assert_eq!(resolve("no-such-service.default").await, "");
    let began = std::time::Instant::now();
    assert_eq!(resolve("example.com").await, "");
    assert!(
        began.elapsed() < std::time::Duration::from_secs(5),
        "outside names are refused quickly"
    );
}

pub(crate) async fn a_node_port_reaches_the_pod_from_the_host(lab: &Lab) {
    create_service(
        lab,
        service("door", "door", &json!({"type": "LoadBalancer"})),
    )
    .await;
    lab.create(web_pod("door", "door")).await;
    lab.until_ready("door").await;
    let services = lab.api::<Service>();
    let answer = eventually("an answer through the node port", || async {
        let service = services.get("door").await.unwrap();
        let ingress = service.status.clone()?.load_balancer?.ingress?;
        assert_eq!(ingress[0].ip.as_deref(), Some("127.0.0.1"));
        let port = u16::try_from(service.spec?.ports?[0].node_port?).unwrap();
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        text.ends_with("door\n").then_some(text)
    })
    .await;
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    // Nothing of it is visible in the host's own namespace.
    let devices = std::fs::read_to_string("/proc/net/dev").unwrap();
    assert!(!devices.contains("mesh0:"), "{devices}");
}
