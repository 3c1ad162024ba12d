//! Gateways without certificates of their own: HTTP, TCP, TLS passed through.

use super::harness::*;

const GATEWAY: &str = "  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: [shop.test, 'infra/*.infra.test', redirect.test]}
  - {port: {number: 8080, name: http-alt, protocol: HTTP}, hosts: [shop.test]}
  - {port: {number: 7000, name: tcp, protocol: TCP}, hosts: ['*']}
  - {port: {number: 8443, name: tls, protocol: TLS}, hosts: [a.tls.test, b.tls.test], tls: {mode: PASSTHROUGH}}";

#[test]
fn a_gateway_routes_what_is_bound_to_it() {
    isolated(async |net| {
        let authority = Authority::new("everybody");
        let identity = authority.issue(&["a.tls.test", "b.tls.test"]);
        let listener = tokio::net::TcpListener::bind((net.address(), 8443))
            .await
            .unwrap();
        let secure = Backend::https("secure", listener, server_tls(&identity, None));
        let (web, other, tcp) = (
            net.http("web").await,
            net.http("other").await,
            net.tcp("tcp").await,
        );
        let services = service("web.shop", "10.96.0.1", "80 http HTTP", &[web.endpoint("")])
            + &service(
                "other.shop",
                "10.96.0.2",
                "80 http HTTP",
                &[other.endpoint("")],
            )
            + &service("tcp.shop", "10.96.0.3", "7000 tcp TCP", &[tcp.endpoint("")])
            + &service(
                "secure.shop",
                "10.96.0.4",
                "8443 tls TLS",
                &[secure.endpoint("")],
            );
        let bound = "  gateways: [istio-system/edge]\n";
        let rules = config("Gateway", "edge.istio-system", GATEWAY)
            + &virtual_service("web.shop", "shop.test", "  gateways: [istio-system/edge, mesh]
  http:
  - match: [{uri: {prefix: /mesh}, gateways: [mesh]}]
    route: [{destination: {host: other}}]
  - match: [{uri: {prefix: /edge}, gateways: [istio-system/edge]}]
    route: [{destination: {host: other}}]
  - match: [{uri: {prefix: /labels}, sourceLabels: {app: nobody}}]
    route: [{destination: {host: other}}]
  - match: [{port: 8080}]
    rewrite: {authority: rewritten.test}
    route: [{destination: {host: other}}]
  - match: [{uri: {prefix: /moved}}]
    redirect: {uri: /there}
  - route: [{destination: {host: web}}]")
            + &virtual_service("unbound.shop", "unbound.test", "  http: [{route: [{destination: {host: web}}]}]")
            // The gateway takes this name from another namespace only.
            + &virtual_service("foreign.shop", "a.infra.test", &format!("{bound}  http: [{{route: [{{destination: {{host: web}}}}]}}]"))
            + &virtual_service("infra.infra", "b.infra.test", &format!("{bound}  http: [{{route: [{{destination: {{host: other.shop.svc.cluster.local}}}}]}}]"))
            + &virtual_service("tcp.shop", "*", &format!("{bound}  tcp: [{{match: [{{port: 7000}}], route: [{{destination: {{host: tcp}}}}]}}]"))
            + &virtual_service("tls.shop", "a.tls.test", &format!("{bound}  tls: [{{match: [{{sniHosts: [a.tls.test]}}], route: [{{destination: {{host: secure}}}}]}}]"));
        let pilot = net
            .pilot()
            .start(|folder| {
                write(folder, "services", &services);
                write(folder, "rules", &rules);
            })
            .await;
        let gateway = Proxy::router("edge-0.istio-system")
            .start(net, &pilot)
            .await;
        for (port, line, status, body) in [
            (80, "GET / host=shop.test", 200, "web"),
            (80, "GET / host=shop.test:80", 200, "web"),
            (80, "GET /mesh host=shop.test", 200, "web"),
            (80, "GET /edge host=shop.test", 200, "other"),
            (80, "GET /moved host=shop.test", 301, ""),
            (8080, "GET / host=shop.test", 200, "other"),
            (8080, "GET /edge host=shop.test", 200, "other"),
            (80, "GET / host=unbound.test", 404, ""),
            (80, "GET / host=nobody.test", 404, ""),
            (80, "GET / host=a.infra.test", 404, ""),
            (80, "GET / host=b.infra.test", 200, "other"),
        ] {
            let answer = ask((gateway.ip(), port), Request::parse(line, ""))
                .await
                .unwrap();
            assert_eq!(
                (answer.status, answer.body.as_str()),
                (status, body),
                "{port} {line}"
            );
        }
        let forwarded = web.take();
        // What a gateway adds for those behind it.
        assert!(!forwarded[0].header("x-forwarded-for").is_empty());
        assert!(!forwarded[0].header("x-request-id").is_empty());

        let stream = tokio::net::TcpStream::connect((gateway.ip(), 7000))
            .await
            .unwrap();
        assert_eq!(line(stream, "hello").await.unwrap(), "tcp hello");

        let tls_to = async |sni: &str| {
            let stream = tokio::net::TcpStream::connect((gateway.ip(), 8443))
                .await
                .unwrap();
            let stream = tls(stream, sni, &authority, None, &["h2"]).await;
            let stream = stream.map_err(|error| error.to_string())?;
            send(stream, Request::get("/").host(sni).http2()).await
        };
        assert_eq!(tls_to("a.tls.test").await.unwrap().body, "secure");
        // The gateway may serve that name, but no rule says where.
        assert!(tls_to("b.tls.test").await.is_err());
        gateway.assert_nothing_rejected().await;
    });
}

#[test]
fn servers_come_and_go() {
    isolated(async |net| {
        let web = net.http("web").await;
        let to_https = |redirect: bool| {
            config(
                "Gateway",
                "edge.istio-system",
                &format!(
                    "  selector: {{istio: ingressgateway}}
  servers:
  - port: {{number: 80, name: http, protocol: HTTP}}
    hosts: ['*']
    tls: {{httpsRedirect: {redirect}}}"
                ),
            )
        };
        let rule = "  gateways: [istio-system/edge]
  http: [{route: [{destination: {host: web}}]}]";
        let pilot = net
            .pilot()
            .start(|folder| {
                let web = service("web.shop", "10.96.0.1", "80 http HTTP", &[web.endpoint("")]);
                write(
                    folder,
                    "web",
                    &(web + &virtual_service("web.shop", "shop.test", rule)),
                );
            })
            .await;
        let gateway = Proxy::router("edge-0.istio-system")
            .start(net, &pilot)
            .await;
        let at = (gateway.ip(), 80);
        let request = || Request::get("/x?y=1").host("shop.test");
        assert!(ask(at, request()).await.is_err(), "no Gateway, no listener");

        pilot.write("edge", &to_https(false));
        pilot.settle(&gateway).await;
        assert_eq!(ask(at, request()).await.unwrap().body, "web");

        pilot.write("edge", &to_https(true));
        pilot.settle(&gateway).await;
        let answer = ask(at, request()).await.unwrap();
        assert_eq!(answer.status, 301);
        assert_eq!(answer.header("location"), "https://shop.test/x?y=1");

        pilot.remove("edge");
        pilot.settle(&gateway).await;
        until("nobody listens", async || {
            ask(at, request()).await.is_err().then_some(())
        })
        .await;
        gateway.assert_nothing_rejected().await;
    });
}
