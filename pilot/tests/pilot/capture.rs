//! Traffic that iptables redirects: out of the pod through 15001, into it through 15006.

use super::harness::*;

const VIP: &str = "10.96.0.1:80";

#[test]
fn a_captured_call_goes_through_both_sidecars() {
    isolated(async |net| {
        let (server, client) = (net.pod(), net.pod());
        let app = Backend::http("app", server.listen("127.0.0.1:8080"));
        let endpoint = format!("{} 8080", server.ip);
        let pilot = net
            .pilot()
            .start(|folder| {
                write(
                    folder,
                    "web",
                    &service("web.shop", "10.96.0.1", "80 http HTTP", &[endpoint]),
                );
            })
            .await;
        let server = Proxy::sidecar("web-0.shop").start_in(server, &pilot).await;
        let client = Proxy::sidecar("client-0.shop")
            .start_in(client, &pilot)
            .await;

        let answer = client
            .ask(VIP, Request::get("/hello?x=1").host("web"))
            .await
            .unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "app"));
        let seen = app.take();
        assert_eq!(seen.len(), 1);
        assert_eq!(
            (seen[0].path.as_str(), seen[0].authority.as_str()),
            ("/hello?x=1", "web")
        );
        // It was the server's sidecar that called the application, over loopback.
        assert_eq!(seen[0].peer.ip().to_string(), "127.0.0.1");
        let inbound = "cluster.inbound|80|http|web.shop.svc.cluster.local.upstream_rq_total";
        assert_eq!(server.stat(inbound).await, 1);
        let outbound = "cluster.outbound|80||web.shop.svc.cluster.local.upstream_rq_total";
        assert_eq!(client.stat(outbound).await, 1);

        // From outside of the mesh: only the server's sidecar is in the way.
        let direct = (server.ip(), 8080);
        let answer = ask(direct, Request::get("/").host("anything"))
            .await
            .unwrap();
        assert_eq!(
            (answer.status, answer.header("server").as_str()),
            (200, "istio-envoy")
        );
        assert_eq!(server.stat(inbound).await, 2);
        server.assert_nothing_rejected().await;
        client.assert_nothing_rejected().await;
    });
}
