//! Traffic to what the registry does not know, and to what it knows outside of the mesh. The client's traffic is captured, as
//! only then Envoy knows where it wanted to go.

use std::net::SocketAddr;

use super::harness::*;

/// Backends that no config knows, and one client.
struct World {
    http: Backend,
    tcp: Backend,
    /// In the registry; at 10.96.0.1:80.
    _known: Backend,
    client: Envoy,
    pilot: Pilot,
}

impl World {
    async fn new(net: &Net, mesh: &str) -> Self {
        let listener = tokio::net::TcpListener::bind((net.address(), 80))
            .await
            .unwrap();
        let http = Backend::http("stranger", listener);
        let (tcp, known) = (net.tcp("stranger").await, net.http("known").await);
        let pilot = net
            .pilot()
            .mesh(mesh)
            .start(|folder| {
                // So that port 80 has a listener.
                let known = service(
                    "known.shop",
                    "10.96.0.1",
                    "80 http HTTP",
                    &[known.endpoint("")],
                );
                write(folder, "known", &known);
            })
            .await;
        let client = Proxy::sidecar("client-0.shop").start(net, &pilot).await;
        Self {
            http,
            tcp,
            _known: known,
            client,
            pilot,
        }
    }

    async fn http(&self, host: &str) -> Result<(u16, String), String> {
        let to = self.http.address.to_string();
        let answer = self.client.ask(&to, Request::get("/").host(host)).await?;
        Ok((answer.status, answer.body))
    }

    async fn tcp(&self) -> std::io::Result<String> {
        let stream = self.client.connect(&self.tcp.address.to_string()).await?;
        match line(stream, "hello").await {
            Ok(nothing) if nothing.is_empty() => Err(std::io::ErrorKind::UnexpectedEof.into()),
            other => other,
        }
    }
}

#[test]
fn allow_any_lets_everything_pass() {
    isolated(async |net| {
        let world = World::new(net, "outboundTrafficPolicy: {mode: ALLOW_ANY}").await;
        assert_eq!(
            world.http("anything.test").await,
            Ok((200, "stranger".to_owned()))
        );
        // It passed as HTTP, by the route of last resort.
        assert_eq!(world.http.take()[0].authority, "anything.test");
        let listener = "http.outbound_0.0.0.0_80.downstream_rq_total";
        assert_eq!(world.client.stat(listener).await, 1);
        assert_eq!(world.tcp().await.unwrap(), "stranger hello");
        assert!(
            world
                .client
                .stat("cluster.PassthroughCluster.upstream_cx_total")
                .await
                >= 2
        );
        world.client.assert_nothing_rejected().await;
    });
}

#[test]
fn registry_only_refuses_strangers() {
    isolated(async |net| {
        let world = World::new(net, "outboundTrafficPolicy: {mode: REGISTRY_ONLY}").await;
        assert_eq!(world.http("anything.test").await.unwrap().0, 502);
        assert!(world.tcp().await.is_err());
        assert_eq!((world.http.connections(), world.tcp.connections()), (0, 0));
        // What is in the registry is reached all the same.
        let known = Request::get("/").host("known");
        assert_eq!(
            world.client.ask("10.96.0.1:80", known).await.unwrap().body,
            "known"
        );

        // A ServiceEntry makes a stranger known. Without endpoints it goes where the client wanted to go.
        let entry = |name: &str, spec: &str| {
            config(
                "ServiceEntry",
                &format!("{name}.shop"),
                &format!("  location: MESH_EXTERNAL\n{spec}"),
            )
        };
        let tcp_port = world.tcp.address.port();
        let entries = entry(
            "web",
            "  hosts: [www.stranger.test, '*.wild.test']
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: NONE",
        ) + &entry(
            "tcp",
            &format!(
                "  hosts: [tcp.stranger.test]
  addresses: [{}/32]
  ports: [{{number: {tcp_port}, name: tcp, protocol: TCP}}]
  resolution: NONE",
                world.tcp.address.ip()
            ),
        );
        world.pilot.write("strangers", &entries);
        world.pilot.settle(&world.client).await;
        for (host, status) in [
            ("www.stranger.test", 200),
            ("a.wild.test", 200),
            ("anything.test", 502),
        ] {
            assert_eq!(world.http(host).await.unwrap().0, status, "{host}");
        }
        assert_eq!(world.tcp().await.unwrap(), "stranger hello");

        // And it can be told how to treat it.
        let late = "  http: [{fault: {abort: {httpStatus: 418, percentage: {value: 100}}}, route: [{destination: {host: www.stranger.test}}]}]";
        world.pilot.write(
            "rules",
            &virtual_service("web.shop", "www.stranger.test", late),
        );
        world.pilot.settle(&world.client).await;
        assert_eq!(world.http("www.stranger.test").await.unwrap().0, 418);
        world.client.assert_nothing_rejected().await;
    });
}

#[test]
fn hosts_outside_with_endpoints() {
    isolated(async |net| {
        let fixed = net.http("fixed").await;
        let client = net.pod();
        // By DNS: the resolver knows `localhost` without a server.
        let local = Backend::http("local", client.listen("127.0.0.1:8080"));
        let SocketAddr::V4(at) = fixed.address else {
            panic!()
        };
        let entries = config(
            "ServiceEntry",
            "fixed.shop",
            &format!(
                "  hosts: [fixed.test]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: {}, ports: {{http: {}}}}}]",
                at.ip(),
                at.port()
            ),
        ) + &config(
            "ServiceEntry",
            "named.shop",
            "  hosts: [named.test]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: localhost, ports: {http: 8080}}]",
        );
        let pilot = net
            .pilot()
            .start(|folder| write(folder, "entries", &entries))
            .await;
        let client = Proxy::sidecar("client-0.shop")
            .start_in(client, &pilot)
            .await;
        // The address is the application's guess and does not matter: the name does.
        for (host, body) in [("fixed.test", "fixed"), ("named.test", "local")] {
            let answer = client
                .ask("192.0.2.1:80", Request::get("/").host(host))
                .await
                .unwrap();
            assert_eq!((answer.status, answer.body.as_str()), (200, body), "{host}");
        }
        drop(local);
        client.assert_nothing_rejected().await;
    });
}

#[test]
fn the_policy_can_be_changed_under_way() {
    isolated(async |net| {
        let world = World::new(net, "outboundTrafficPolicy: {mode: ALLOW_ANY}").await;
        assert_eq!(world.http("anything.test").await.unwrap().0, 200);
        world
            .pilot
            .write_mesh("outboundTrafficPolicy: {mode: REGISTRY_ONLY}");
        until("strangers are refused", async || {
            (world.http("anything.test").await.ok()?.0 == 502).then_some(())
        })
        .await;
        until("over TCP too", async || {
            world.tcp().await.is_err().then_some(())
        })
        .await;
        world.client.assert_nothing_rejected().await;
    });
}
