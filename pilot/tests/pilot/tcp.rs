//! Raw TCP and TLS that Envoy does not open: routing by port, weight, destination and server name.

use super::harness::*;

/// A line's way through the mesh: the answer begins with the backend's name.
async fn reaches(client: &Envoy, to: &str) -> String {
    let stream = client.connect(to).await.unwrap();
    match line(stream, "hello").await {
        Ok(answer) => answer.trim_end_matches(" hello").to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn connections_are_routed_by_port_weight_and_destination() {
    isolated(async |net| {
        let (a, b) = (net.tcp("a").await, net.tcp("b").await);
        let two_ports = "7000 tcp TCP, 7001 tcp-alt TCP";
        let services = service("a.shop", "10.96.0.1", two_ports, &[a.endpoint("")])
            + &service("b.shop", "10.96.0.2", two_ports, &[b.endpoint("")])
            + &service("both.shop", "10.96.0.3", "7000 tcp TCP", &[a.endpoint("v: a"), b.endpoint("v: b")])
            // A network of addresses behind one name.
            + &service("net.shop", "10.97.0.0/24", "7100 tcp TCP", &[b.endpoint("")])
            + &destination_rule("both.shop", "both", "  subsets: [{name: a, labels: {v: a}}, {name: b, labels: {v: b}}]");
        let rules = virtual_service(
            "a.shop",
            "a",
            "  tcp:
  - match: [{port: 7001}]
    route: [{destination: {host: b}}]",
        ) + &virtual_service(
            "both.shop",
            "both",
            "  tcp:
  - route:
    - {destination: {host: both, subset: a}, weight: 75}
    - {destination: {host: both, subset: b}, weight: 25}",
        ) + &virtual_service(
            "net.shop",
            "net",
            "  tcp:
  - match: [{destinationSubnets: [10.97.0.0/25]}]
    route: [{destination: {host: a, port: {number: 7000}}}]
  - match: [{sourceLabels: {app: other}, destinationSubnets: [10.97.0.128/25]}]
    route: [{destination: {host: a, port: {number: 7000}}}]",
        );
        let pilot = net
            .pilot()
            .start(|folder| {
                write(folder, "services", &services);
                write(folder, "rules", &rules);
            })
            .await;
        let client = Proxy::sidecar("client-0.shop").start(net, &pilot).await;
        for (to, expected) in [
            ("10.96.0.1:7000", "a"),
            ("10.96.0.1:7001", "b"),
            ("10.96.0.2:7000", "b"),
            ("10.96.0.2:7001", "b"),
            ("10.97.0.5:7100", "a"),
            ("10.97.0.200:7100", "b"),
        ] {
            assert_eq!(reaches(&client, to).await, expected, "{to}");
        }
        let mut to_b = 0;
        for _ in 0..120 {
            to_b += usize::from(reaches(&client, "10.96.0.3:7000").await == "b");
        }
        assert!((3..=57).contains(&to_b), "25 % of 120 connections: {to_b}");

        // One connection stays where it is; new ones follow the change.
        pilot.write(
            "rules",
            &virtual_service(
                "a.shop",
                "a",
                "  tcp: [{route: [{destination: {host: b}}]}]",
            ),
        );
        pilot.settle(&client).await;
        assert_eq!(reaches(&client, "10.96.0.1:7000").await, "b");
        assert_eq!(reaches(&client, "10.97.0.5:7100").await, "b");
        client.assert_nothing_rejected().await;
    });
}

/// A ServiceEntry outside of the mesh, of one TLS port without an address.
fn tls_host(name: &str, host: &str, backend: &Backend) -> String {
    let (address, port) = (backend.address.ip(), backend.address.port());
    config(
        "ServiceEntry",
        &format!("{name}.shop"),
        &format!(
            "  hosts: ['{host}']
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 8443, name: tls, protocol: TLS}}]
  endpoints: [{{address: {address}, ports: {{tls: {port}}}}}]"
        ),
    )
}

#[test]
fn tls_is_routed_by_server_name() {
    isolated(async |net| {
        let authority = Authority::new("everybody");
        let names = ["a.tls.test", "b.tls.test", "moved.tls.test", "x.wild.test"];
        let identity = authority.issue(&names);
        let server = async |name: &str| {
            let listener = tokio::net::TcpListener::bind((net.address(), 8443))
                .await
                .unwrap();
            Backend::https(name, listener, server_tls(&identity, None))
        };
        let (a, b) = (server("a").await, server("b").await);
        let services = tls_host("a", "a.tls.test", &a)
            + &tls_host("b", "b.tls.test", &b)
            + &tls_host("moved", "moved.tls.test", &b)
            + &tls_host("wild", "*.wild.test", &b);
        let rules = virtual_service(
            "moved.shop",
            "moved.tls.test",
            "  tls:
  - match: [{port: 8443, sniHosts: [moved.tls.test]}]
    route: [{destination: {host: a.tls.test}}]",
        );
        let pilot = net
            .pilot()
            .mesh("outboundTrafficPolicy: {mode: REGISTRY_ONLY}")
            .start(|folder| write(folder, "all", &(services + &rules)))
            .await;
        let client = Proxy::sidecar("client-0.shop").start(net, &pilot).await;
        let ask = async |sni: &str| {
            let stream = client.connect("10.96.0.9:8443").await.unwrap();
            let stream = tls(stream, sni, &authority, None, &["http/1.1"]).await;
            let stream = stream.map_err(|error| error.to_string())?;
            Ok::<_, String>(send(stream, Request::get("/").host(sni)).await?.body)
        };
        for (sni, body) in [
            ("a.tls.test", "a"),
            ("b.tls.test", "b"),
            ("moved.tls.test", "a"),
            ("x.wild.test", "b"),
        ] {
            assert_eq!(ask(sni).await.as_deref(), Ok(body), "{sni}");
        }
        assert_eq!(
            a.take().last().unwrap().sni.as_deref(),
            Some("moved.tls.test")
        );
        // A name that nobody has goes nowhere.
        let refused = ask("unknown.tls.test").await;
        assert!(refused.is_err(), "{refused:?}");
        client.assert_nothing_rejected().await;
    });
}
