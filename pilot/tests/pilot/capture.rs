//! Traffic that iptables redirects: out of the pod through 15001, into it through 15006.

use super::harness::*;

const WEB: &str = "web.shop.svc.cluster.local";
const VIP: &str = "10.96.0.1:80";

async fn inbound(server: &Envoy, port: &str) -> u64 {
    server
        .stat(&format!("cluster.inbound|{port}|{WEB}.upstream_cx_total"))
        .await
}

#[test]
fn calls_go_through_both_sidecars() {
    isolated(async |net| {
        let (server, client) = (net.pod(), net.pod());
        let app = Backend::http("app", server.listen("127.0.0.1:8080"));
        let _tcp = Backend::tcp("tcp", server.listen("127.0.0.1:9000"));
        let _unknown = Backend::tcp("unknown", server.listen("0.0.0.0:9999"));
        let endpoint = format!(
            "apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata: {{name: web, namespace: shop}}
spec:
  hosts: [{WEB}]
  addresses: [10.96.0.1]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}, {{number: 7000, name: tcp, protocol: TCP}}]
  endpoints: [{{address: {}, ports: {{http: 8080, tcp: 9000}}}}]
",
            server.ip
        );
        let pilot = net
            .pilot()
            .start(|folder| write(folder, "web", &endpoint))
            .await;
        let server = Proxy::sidecar("web-0.shop").start_in(server, &pilot).await;
        let client = Proxy::sidecar("client-0.shop")
            .start_in(client, &pilot)
            .await;

        let request = Request::get("/hello?x=1").host("web");
        let answer = client.ask(VIP, request.clone()).await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "app"));
        let seen = app.take();
        assert_eq!(seen.len(), 1);
        assert_eq!(
            (seen[0].path.as_str(), seen[0].authority.as_str()),
            ("/hello?x=1", "web")
        );
        // It was the server's sidecar that called the application, over loopback.
        assert_eq!(seen[0].peer.ip().to_string(), "127.0.0.1");
        assert_eq!(inbound(&server, "80|http").await, 1);
        let outbound = format!("cluster.outbound|80||{WEB}.upstream_rq_total");
        assert_eq!(client.stat(&outbound).await, 1);

        // HTTP/2 on the way in is HTTP/1.1 to an application whose port is named http.
        let answer = client.ask(VIP, request.clone().http2()).await.unwrap();
        assert_eq!(
            (answer.status, answer.version),
            (200, http::Version::HTTP_2)
        );
        assert_eq!(app.take()[0].version, http::Version::HTTP_11);

        // TCP.
        let stream = client.connect("10.96.0.1:7000").await.unwrap();
        assert_eq!(line(stream, "hello").await.unwrap(), "tcp hello");
        assert_eq!(inbound(&server, "7000|tcp").await, 1);

        // From outside of the mesh: only the server's sidecar is in the way.
        let answer = ask((server.ip(), 8080), Request::get("/").host("anything"))
            .await
            .unwrap();
        assert_eq!(
            (answer.status, answer.header("server").as_str()),
            (200, "istio-envoy")
        );
        assert_eq!(app.take().len(), 1);

        // A port that no service has is passed through, from an address that iptables leaves alone.
        let stream = tokio::net::TcpStream::connect((server.ip(), 9999))
            .await
            .unwrap();
        assert_eq!(line(stream, "hello").await.unwrap(), "unknown hello");
        let passed = "cluster.InboundPassthroughClusterIpv4.upstream_cx_total";
        assert_eq!(server.stat(passed).await, 1);

        // The application calls its own service: out, and in again.
        let answer = server.ask(VIP, request).await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "app"));
        assert_eq!(server.stat(&outbound).await, 1);

        server.assert_nothing_rejected().await;
        client.assert_nothing_rejected().await;
    });
}

/// A connection to the pod's own address on a port of the mesh would go round in circles: it is refused.
#[test]
fn no_loops() {
    isolated(async |net| {
        let web = net.http("web").await;
        let pilot = net
            .pilot()
            .start(|folder| {
                let web = service("web.shop", "10.96.0.1", "80 http HTTP", &[web.endpoint("")]);
                write(folder, "web", &web);
            })
            .await;
        let client = Proxy::sidecar("client-0.shop").start(net, &pilot).await;
        for port in [15001, 15006] {
            let to = format!("{}:{port}", client.ip());
            let outcome = line(client.connect(&to).await.unwrap(), "hello").await;
            assert!(
                outcome.as_deref().unwrap_or_default().is_empty(),
                "{to}: {outcome:?}"
            );
            let from_outside = tokio::net::TcpStream::connect((client.ip(), port))
                .await
                .unwrap();
            let outcome = line(from_outside, "hello").await;
            assert!(
                outcome.as_deref().unwrap_or_default().is_empty(),
                "{to}: {outcome:?}"
            );
        }
        let answer = client
            .ask(VIP, Request::get("/").host("web"))
            .await
            .unwrap();
        assert_eq!(answer.body, "web");
    });
}
