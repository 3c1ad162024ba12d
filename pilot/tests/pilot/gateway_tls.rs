//! TLS at gateways: ended with certificates from files, and passed on by SNI.

use serde_json::json;

use super::harness::*;

const EDGE: &str = "  selector: {istio: ingressgateway}\n  servers:\n";

/// A server on port 443 that ends TLS with the files NAME.*; `more` goes into its tls settings.
fn server(files: &Files, name: &str, mode: &str, more: &str) -> String {
    let ca = files.path(&format!("{name}-ca.pem"));
    let ca = match mode {
        "MUTUAL" => format!(", caCertificates: {ca}"),
        _ => String::new(),
    };
    format!(
        "  - port: {{number: 443, name: {name}, protocol: HTTPS}}
    hosts: [{name}.test]
    tls: {{mode: {mode}, serverCertificate: {}, privateKey: {}{ca}{more}}}\n",
        files.path(&format!("{name}.pem")),
        files.path(&format!("{name}.key")),
    )
}

fn bound(host: &str, service: &str) -> String {
    virtual_service(
        &format!("{service}-{}.shop", host.replace('.', "-")),
        host,
        &format!(
            "  gateways: [istio-system/edge]\n  http: [{{route: [{{destination: {{host: {service}}}}}]}}]"
        ),
    )
}

/// Listeners and clusters, of which nothing was refused. (A secret whose file is missing is.)
async fn assert_no_listener_rejected(envoy: &Envoy) {
    for kind in ["cluster_manager.cds", "listener_manager.lds"] {
        let refused = envoy.stat(&format!("{kind}.update_rejected")).await;
        assert_eq!(refused, 0, "{kind}\n{}", envoy.log());
    }
}

async fn ends_tls(proxy: Proxy) {
    isolated(async |net| {
        let (files, authority, stranger) = (
            Files::new(),
            Authority::new("shop"),
            Authority::new("stranger"),
        );
        authority.files(&files, "simple", &["simple.test"]);
        authority.files(&files, "mutual", &["mutual.test"]);
        let (web, tcp) = (net.http("web").await, net.tcp("tcp").await);
        let services = service("web.shop", "10.96.0.1", "80 http HTTP", &[web.endpoint("")])
            + &service("tcp.shop", "10.96.0.3", "7000 tcp TCP", &[tcp.endpoint("")]);
        let bytes = server(&files, "simple", "SIMPLE", "").replace(
            "443, name: simple, protocol: HTTPS",
            "7443, name: bytes, protocol: TLS",
        );
        let rules = config(
            "Gateway",
            "edge.istio-system",
            &(EDGE.to_owned()
                + &server(&files, "simple", "SIMPLE", ", cipherSuites: [RC4-SHA]")
                + &server(
                    &files,
                    "mutual",
                    "MUTUAL",
                    ", subjectAltNames: [client.test]",
                )
                + &server(&files, "late", "SIMPLE", "")
                + &bytes),
        ) + &["simple.test", "mutual.test", "late.test"]
            .map(|host| bound(host, "web"))
            .concat()
            + &virtual_service(
                "tcp.shop",
                "simple.test",
                "  gateways: [istio-system/edge]
  tcp: [{match: [{port: 7443}], route: [{destination: {host: tcp}}]}]",
            );
        let pilot = net
            .pilot()
            .start(|folder| {
                write(folder, "services", &services);
                write(folder, "rules", &rules);
            })
            .await;
        let gateway = proxy.start(net, &pilot).await;
        let at = (gateway.ip(), 443);
        let get = |host: &str| Request::get("/").host(host);
        let ask = async |sni: &str, identity: Option<&Identity>, host: &str| {
            ask_tls(at, sni, &authority, identity, get(host)).await
        };

        // The third server's files are missing; the others do not mind.
        let answer = ask("simple.test", None, "simple.test").await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "web"));
        assert_eq!(web.take()[0].header("x-forwarded-proto"), "https");
        assert!(ask("late.test", None, "late.test").await.is_err());
        assert!(ask("nobody.test", None, "nobody.test").await.is_err());

        // Clients of the mutual server need a certificate of its CA with a name that it knows.
        let client = authority.issue(&["client.test"]);
        let answer = ask("mutual.test", Some(&client), "mutual.test")
            .await
            .unwrap();
        assert_eq!(answer.status, 200);
        let forwarded = web.take()[0].header("x-forwarded-client-cert");
        assert!(forwarded.contains("DNS=client.test"), "{forwarded}");
        for bad in [
            None,
            Some(stranger.issue(&["client.test"])),
            Some(authority.issue(&["other.test"])),
        ] {
            assert!(
                ask("mutual.test", bad.as_ref(), "mutual.test")
                    .await
                    .is_err()
            );
        }
        // Nobody gets there past its door.
        let answer = ask("simple.test", None, "mutual.test").await.unwrap();
        assert_eq!(answer.status, 404, "another server's host");
        assert!(web.take().is_empty());

        let stream = tokio::net::TcpStream::connect((gateway.ip(), 7443))
            .await
            .unwrap();
        let stream = tls(stream, "simple.test", &authority, None, &[])
            .await
            .unwrap();
        assert_eq!(line(stream, "hello").await.unwrap(), "tcp hello");

        // Files that come late, and files that are replaced, are taken up.
        authority.files(&files, "late", &["late.test"]);
        until("the late server", async || {
            ask("late.test", None, "late.test").await.ok()
        })
        .await;
        stranger.files(&files, "simple", &["simple.test"]);
        until("the new certificate", async || {
            ask_tls(at, "simple.test", &stranger, None, get("simple.test"))
                .await
                .ok()
        })
        .await;
        assert_no_listener_rejected(&gateway).await;
    });
}

#[test]
fn servers_end_tls_with_files_that_envoy_reads() {
    futures_now(ends_tls(Proxy::router("edge-0.istio-system")));
}

#[test]
fn servers_end_tls_by_state_of_the_world() {
    futures_now(ends_tls(Proxy::router("edge-0.istio-system").sotw()));
}

/// `isolated` runs the test to its end by itself.
fn futures_now(test: impl Future<Output = ()>) {
    let waker = std::task::Waker::noop();
    let mut test = std::pin::pin!(test);
    assert!(
        test.as_mut()
            .poll(&mut std::task::Context::from_waker(waker))
            .is_ready()
    );
}

#[test]
fn a_host_behind_client_verification_is_not_reached_by_another_name() {
    isolated(async |net| {
        let (files, authority) = (Files::new(), Authority::new("shop"));
        for name in ["every", "closed"] {
            authority.files(&files, name, &["open.test", "closed.test"]);
        }
        let web = net.http("web").await;
        let every = server(&files, "every", "SIMPLE", "").replace("[every.test]", "['*']");
        let rules = config(
            "Gateway",
            "edge.istio-system",
            &(EDGE.to_owned() + &every + &server(&files, "closed", "MUTUAL", "")),
        ) + &bound("open.test", "web")
            + &bound("closed.test", "web");
        let pilot = net
            .pilot()
            .start(|folder| {
                let web = service("web.shop", "10.96.0.1", "80 http HTTP", &[web.endpoint("")]);
                write(folder, "all", &(web + &rules));
            })
            .await;
        let gateway = Proxy::router("edge-0.istio-system")
            .start(net, &pilot)
            .await;
        let at = (gateway.ip(), 443);
        let ask = async |sni: &str, host: &str| {
            ask_tls(at, sni, &authority, None, Request::get("/").host(host)).await
        };
        assert_eq!(ask("open.test", "open.test").await.unwrap().status, 200);
        assert_eq!(ask("open.test", "closed.test").await.unwrap().status, 421);
        assert!(ask("closed.test", "closed.test").await.is_err());
        gateway.assert_nothing_rejected().await;
    });
}

/// An HTTPS backend whose certificate is for these names.
fn secure(net: &Net, name: &str, authority: &Authority, names: &[&str]) -> Backend {
    let listener = std::net::TcpListener::bind((net.address(), 8443)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    Backend::https(name, listener, server_tls(&authority.issue(names), None))
}

#[test]
fn tls_is_passed_on_to_the_backend_of_its_name() {
    isolated(async |net| {
        let authority = Authority::new("backends");
        let (a, b) = (
            secure(net, "a", &authority, &["a.tls.test"]),
            secure(net, "b", &authority, &["b.tls.test", "x.b.tls.test"]),
        );
        let services = service("a.shop", "10.96.0.1", "8443 tls TLS", &[a.endpoint("")])
            + &service("b.shop", "10.96.0.2", "8443 tls TLS", &[b.endpoint("")]);
        let passthrough = "  - port: {number: 443, name: tls, protocol: TLS}
    hosts: ['*.tls.test']
    tls: {mode: PASSTHROUGH}";
        let rule = |host: &str, to: &str| {
            format!(
                "  - match: [{{sniHosts: ['{host}']}}]\n    route: [{{destination: {{host: {to}}}}}]\n"
            )
        };
        let rules = config(
            "Gateway",
            "edge.istio-system",
            &(EDGE.to_owned() + passthrough),
        ) + &virtual_service(
            "tls.shop",
            "*.tls.test",
            &format!(
                "  gateways: [istio-system/edge]\n  tls:\n{}{}",
                rule("a.tls.test", "a"),
                rule("*.b.tls.test", "b"),
            ),
        );
        let pilot = net
            .pilot()
            .start(|folder| write(folder, "all", &(services + &rules)))
            .await;
        let gateway = Proxy::router("edge-0.istio-system")
            .start(net, &pilot)
            .await;
        let ask = async |sni: &str| {
            let request = Request::get("/").host(sni);
            ask_tls((gateway.ip(), 443), sni, &authority, None, request).await
        };
        assert_eq!(ask("a.tls.test").await.unwrap().body, "a");
        assert_eq!(ask("x.b.tls.test").await.unwrap().body, "b");
        assert!(ask("b.tls.test").await.is_err(), "no rule has that name");
        gateway.assert_nothing_rejected().await;
    });
}

#[test]
fn mesh_tls_is_passed_on_by_the_cluster_in_its_sni() {
    isolated(async |net| {
        let name = |port: u32, subset: &str| {
            format!("outbound_.{port}_.{subset}_.web.shop.svc.cluster.local")
        };
        let (first, v2) = (name(8443, ""), name(8443, "v2"));
        let authority = Authority::new("mesh");
        let names = [first.as_str(), v2.as_str()];
        let (a, b) = (
            secure(net, "a", &authority, &names),
            secure(net, "b", &authority, &names),
        );
        let endpoints = [a.endpoint("version: v1"), b.endpoint("version: v2")];
        let config = service("web.shop", "10.96.0.1", "8443 tls TLS", &endpoints)
            // Its TLS settings are for those who begin TLS; what is passed on has begun.
            + &destination_rule("web.shop", "web", "  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}
  subsets: [{name: v2, labels: {version: v2}}]")
            + &config("Gateway", "between.istio-system", "  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 15443, name: tls, protocol: TLS}, hosts: ['*.local'], tls: {mode: AUTO_PASSTHROUGH}}");
        let pilot = net
            .pilot()
            .start(|folder| write(folder, "all", &config))
            .await;
        let gateway = Proxy::router("between-0.istio-system")
            .metadata("ROUTER_MODE", json!("sni-dnat"))
            .start(net, &pilot)
            .await;
        let ask = async |sni: &str| {
            let request = Request::get("/").host("web");
            ask_tls((gateway.ip(), 15443), sni, &authority, None, request).await
        };
        for _ in 0..4 {
            assert_eq!(ask(&v2).await.unwrap().body, "b");
        }
        let mut seen = std::collections::BTreeSet::new();
        until("both endpoints", async || {
            seen.insert(ask(&first).await.unwrap().body);
            (seen.len() == 2).then_some(())
        })
        .await;
        for unknown in [
            "outbound_.1_._.web.shop.svc.cluster.local",
            "web.shop.svc.cluster.local",
            "elsewhere.test",
        ] {
            assert!(ask(unknown).await.is_err(), "{unknown}");
        }
        assert_no_listener_rejected(&gateway).await;
    });
}
