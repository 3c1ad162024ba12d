//! TLS towards services, begun by a sidecar.

use serde_json::json;

use super::harness::*;

/// A server that speaks TLS on port 8443, and asks for a certificate of `clients` if that is given.
async fn secure(
    net: &Net,
    name: &str,
    identity: &Identity,
    clients: Option<&Authority>,
    alpn: &[&str],
) -> Backend {
    let listener = tokio::net::TcpListener::bind((net.address(), 8443))
        .await
        .unwrap();
    let mut config = server_tls(identity, clients);
    if !alpn.is_empty() {
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    }
    Backend::https(name, listener, config)
}

/// Plain HTTP on port 80 of a virtual address, to a server that speaks TLS.
fn outside(name: &str, vip: &str, backend: &Backend) -> String {
    service(
        &format!("{name}.shop"),
        vip,
        "80 http HTTP",
        &[backend.endpoint("")],
    )
}

fn rule(name: &str, tls: &str) -> String {
    destination_rule(
        &format!("{name}.shop"),
        name,
        &format!("  trafficPolicy: {{tls: {{{tls}}}}}"),
    )
}

#[test]
fn a_sidecar_begins_tls_and_verifies_the_server() {
    isolated(async |net| {
        let (files, authority, stranger) = (
            Files::new(),
            Authority::new("world"),
            Authority::new("stranger"),
        );
        files.write("ca.pem", &authority.pem());
        files.write("stranger.pem", &stranger.pem());
        authority.files(&files, "client", &["client.test"]);
        let identity = authority.issue(&["api.test"]);
        let api = secure(net, "api", &identity, None, &[]).await;
        let strict = secure(net, "strict", &identity, Some(&authority), &[]).await;
        let ca = |name: &str| format!("caCertificates: {}", files.path(name));
        let simple = |name: &str, san: &str| {
            format!(
                "mode: SIMPLE, sni: api.test, {}, subjectAltNames: [{san}]",
                ca(name)
            )
        };
        let pair = format!(
            "clientCertificate: {}, privateKey: {}",
            files.path("client.pem"),
            files.path("client.key")
        );
        let cases = [
            ("right", "10.96.0.1", &api, simple("ca.pem", "api.test")),
            (
                "wrong-name",
                "10.96.0.2",
                &api,
                simple("ca.pem", "other.test"),
            ),
            (
                "wrong-ca",
                "10.96.0.3",
                &api,
                simple("stranger.pem", "api.test"),
            ),
            ("no-ca", "10.96.0.4", &api, simple("late.pem", "api.test")),
            ("unverified", "10.96.0.5", &api, "mode: SIMPLE".to_owned()),
            (
                "shown",
                "10.96.0.6",
                &strict,
                format!("mode: MUTUAL, {pair}, {}", ca("ca.pem")),
            ),
            (
                "not-shown",
                "10.96.0.7",
                &strict,
                format!("mode: SIMPLE, {}", ca("ca.pem")),
            ),
            ("none", "10.96.0.8", &api, "mode: DISABLE".to_owned()),
        ];
        let config: String = cases
            .iter()
            .map(|(name, vip, backend, tls)| outside(name, vip, backend) + &rule(name, tls))
            .collect();
        let pilot = net
            .pilot()
            .start(|folder| write(folder, "all", &config))
            .await;
        let client = Proxy::sidecar("client-0.shop")
            .bound()
            .start(net, &pilot)
            .await;
        let ask = async |name: &str| {
            let vip = cases.iter().find(|c| c.0 == name).unwrap().1;
            client
                .ask(&format!("{vip}:80"), Request::get("/").host(name))
                .await
                .unwrap()
        };

        let answer = ask("right").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "api"));
        assert_eq!(api.take()[0].sni.as_deref(), Some("api.test"));
        assert_eq!(ask("unverified").await.status, 200);
        assert_eq!(
            api.take()[0].sni,
            None,
            "SNI is sent as given, and none by default"
        );
        assert_eq!(ask("shown").await.status, 200);
        assert!(strict.take()[0].certificate.is_some());
        for refused in ["wrong-name", "wrong-ca", "no-ca", "not-shown", "none"] {
            let answer = ask(refused).await;
            assert!(matches!(answer.status, 502 | 503), "{refused}: {answer:?}");
        }
        assert!(api.take().is_empty() && strict.take().is_empty());

        for kind in ["cluster_manager.cds", "listener_manager.lds"] {
            assert_eq!(
                client.stat(&format!("{kind}.update_rejected")).await,
                0,
                "{}",
                client.log()
            );
        }
    });
}

#[test]
fn policies_of_ports_and_subsets_have_tls_of_their_own() {
    isolated(async |net| {
        let authority = Authority::new("world");
        let tls = secure(net, "tls", &authority.issue(&["api.test"]), None, &[]).await;
        let plain = net.http("plain").await;
        let endpoints = |backend: &Backend, port: u32| {
            let (ip, number) = (backend.address.ip(), backend.address.port());
            format!(
                "  - {{address: {ip}, ports: {{p{port}: {number}}}, labels: {{version: v{port}}}}}\n"
            )
        };
        let entry = format!(
            "  hosts: [api.test]\n  addresses: [10.96.0.1]\n  location: MESH_EXTERNAL\n  resolution: STATIC
  ports: [{{number: 80, name: p80, protocol: HTTP}}, {{number: 81, name: p81, protocol: HTTP}}]
  endpoints:\n{}{}",
            endpoints(&tls, 80),
            endpoints(&plain, 81)
        );
        let rules = config("ServiceEntry", "api.shop", &entry)
            + &destination_rule(
                "api.shop",
                "api.test",
                "  trafficPolicy:
    tls: {mode: SIMPLE, sni: rule.test}
    portLevelSettings: [{port: {number: 81}, tls: {mode: DISABLE}}]
  subsets:
  - {name: named, labels: {version: v80}, trafficPolicy: {tls: {mode: SIMPLE, sni: subset.test}}}",
            )
            + &virtual_service(
                "api.shop",
                "api.test",
                "  http:
  - match: [{uri: {prefix: /subset}}]
    route: [{destination: {host: api.test, subset: named, port: {number: 80}}}]
  - match: [{port: 81}]
    route: [{destination: {host: api.test, port: {number: 81}}}]
  - route: [{destination: {host: api.test, port: {number: 80}}}]",
            );
        let pilot = net
            .pilot()
            .start(|folder| write(folder, "all", &rules))
            .await;
        let client = Proxy::sidecar("client-0.shop")
            .bound()
            .start(net, &pilot)
            .await;
        let ask = async |port: u32, path: &str| {
            client
                .ask(
                    &format!("10.96.0.1:{port}"),
                    Request::get(path).host("api.test"),
                )
                .await
                .unwrap()
        };
        assert_eq!(ask(80, "/").await.body, "tls");
        assert_eq!(tls.take()[0].sni.as_deref(), Some("rule.test"));
        assert_eq!(ask(80, "/subset").await.body, "tls");
        assert_eq!(tls.take()[0].sni.as_deref(), Some("subset.test"));
        assert_eq!(ask(81, "/").await.body, "plain");
        client.assert_nothing_rejected().await;
    });
}

#[test]
fn mesh_tls_shows_the_workloads_own_certificate() {
    isolated(async |net| {
        let (files, mesh) = (Files::new(), Authority::new("mesh"));
        let account = "spiffe://cluster.local/ns/shop/sa/web";
        mesh.files(&files, "own", &["spiffe://cluster.local/ns/shop/sa/client"]);
        let web = secure(net, "web", &mesh.issue(&[account]), Some(&mesh), &["istio"]).await;
        let tls = |san: &str| format!("mode: ISTIO_MUTUAL, subjectAltNames: ['{san}']");
        let config = outside("web", "10.96.0.1", &web)
            + &rule("web", &tls(account))
            + &outside("other", "10.96.0.2", &web)
            + &rule("other", &tls("spiffe://cluster.local/ns/shop/sa/other"));
        let pilot = net
            .pilot()
            .start(|folder| write(folder, "all", &config))
            .await;
        let client = Proxy::sidecar("client-0.shop")
            .bound()
            .metadata("TLS_CLIENT_CERT_CHAIN", json!(files.path("own.pem")))
            .metadata("TLS_CLIENT_KEY", json!(files.path("own.key")))
            .metadata("TLS_CLIENT_ROOT_CERT", json!(files.path("own-ca.pem")))
            .start(net, &pilot)
            .await;
        let ask = async |vip: &str, host: &str| {
            client
                .ask(&format!("{vip}:80"), Request::get("/").host(host))
                .await
                .unwrap()
        };
        assert_eq!(ask("10.96.0.1", "web").await.body, "web");
        let seen = web.take();
        assert_eq!(
            seen[0].sni.as_deref(),
            Some("outbound_.80_._.web.shop.svc.cluster.local")
        );
        assert!(seen[0].certificate.is_some());
        assert_eq!(
            ask("10.96.0.2", "other").await.status,
            503,
            "another account"
        );
        client.assert_nothing_rejected().await;
    });
}
