//! Services as Kubernetes has them: ports whose name says nothing, headless services.

use super::harness::*;

fn ip(backend: &Backend) -> String {
    backend.address.ip().to_string()
}

/// A port without a protocol in its name carries HTTP and anything else at the same time.
#[test]
fn an_unnamed_port_takes_http_and_tcp() {
    isolated(async |net| {
        let kubernetes = Kubernetes::start().await;
        let (web, raw) = (net.http("web").await, net.tcp("raw").await);
        // What is no HTTP goes to the older of two services that share a listener, as these do on loopback.
        kubernetes
            .service("raw", "10.96.0.11", &[("data", 7000, 9000)], &[ip(&raw)])
            .await;
        kubernetes
            .service("web", "10.96.0.10", &[("data", 7000, 8080)], &[ip(&web)])
            .await;
        let options = kubernetes.registry_of(net.pilot());
        let pilot = options
            .start(|folder| {
                let rule = "  http:
  - match: [{uri: {prefix: /teapot}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: web}}]
  - route: [{destination: {host: web}}]";
                write(folder, "rule", &virtual_service("web.shop", "web", rule));
            })
            .await;
        let client = Proxy::sidecar("client-0.shop")
            .bound()
            .start(net, &pilot)
            .await;

        // As HTTP of either version it is routed by the rules of HTTP ...
        for request in ["GET /", "GET / h2"] {
            let request = Request::parse(request, "web.shop.svc.cluster.local:7000");
            let version = client.ask("10.96.0.10:7000", request).await.unwrap();
            assert_eq!((version.status, version.body.as_str()), (200, "web"));
        }
        // ... and goes on in the version in which it came.
        let versions: Vec<_> = web.take().iter().map(|seen| seen.version).collect();
        assert_eq!(versions, [http::Version::HTTP_11, http::Version::HTTP_2]);
        let teapot = Request::get("/teapot").host("web.shop.svc.cluster.local:7000");
        assert_eq!(
            client.ask("10.96.0.10:7000", teapot).await.unwrap().status,
            418
        );

        // What is no HTTP is carried as it is.
        let stream = client.connect("10.96.0.11:7000").await.unwrap();
        assert_eq!(
            line(stream, "hello there").await.unwrap(),
            "raw hello there"
        );
        client.assert_nothing_rejected().await;
    });
}

/// A server that speaks first is heard once sniffing has given up.
#[test]
fn a_server_may_speak_first() {
    isolated(async |net| {
        let kubernetes = Kubernetes::start().await;
        let listener = tokio::net::TcpListener::bind((net.address(), 9000))
            .await
            .unwrap();
        let mail = Backend::speaks_first("220 mail", listener);
        kubernetes
            .service("mail", "10.96.0.12", &[("data", 7000, 9000)], &[ip(&mail)])
            .await;
        let pilot = kubernetes.registry_of(net.pilot()).start(|_| ()).await;
        let client = Proxy::sidecar("client-0.shop")
            .bound()
            .start(net, &pilot)
            .await;
        // Nothing is sent before the greeting has come.
        let stream = client.connect("10.96.0.12:7000").await.unwrap();
        assert_eq!(greeting(stream).await.unwrap(), "220 mail");
        client.assert_nothing_rejected().await;
    });
}

/// The client chooses the pod of a headless service, and Envoy goes to that one.
#[test]
fn a_headless_service_leaves_the_choice_to_the_client() {
    isolated(async |net| {
        let kubernetes = Kubernetes::start().await;
        let (one, two) = (net.tcp("one").await, net.tcp("two").await);
        let (web_one, web_two) = (net.http("one").await, net.http("two").await);
        kubernetes
            .service("db", "None", &[("tcp", 9000, 9000)], &[ip(&one), ip(&two)])
            .await;
        let webs = [ip(&web_one), ip(&web_two)];
        kubernetes
            .service("web", "None", &[("http", 8080, 8080)], &webs)
            .await;
        let mesh = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}";
        let pilot = kubernetes
            .registry_of(net.pilot().mesh(mesh))
            .start(|_| ())
            .await;
        let client = Proxy::sidecar("client-0.shop").start(net, &pilot).await;
        for (backend, name) in [(&one, "one"), (&two, "two"), (&one, "one")] {
            let stream = client.connect(&backend.address.to_string()).await.unwrap();
            assert_eq!(
                line(stream, "hello").await.unwrap(),
                format!("{name} hello")
            );
        }
        for (backend, name) in [(&web_one, "one"), (&web_two, "two"), (&web_one, "one")] {
            // By the service's name, and by the name that a pod of it may have.
            for host in ["web", "pod-7.web.shop.svc.cluster.local"] {
                let request = Request::get("/").host(&format!("{host}:8080"));
                let answer = client
                    .ask(&backend.address.to_string(), request)
                    .await
                    .unwrap();
                assert_eq!((answer.status, answer.body.as_str()), (200, name), "{host}");
            }
        }
        client.assert_nothing_rejected().await;
    });
}
