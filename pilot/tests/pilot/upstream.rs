//! Upstream protocols by the name of the port: HTTP/2, gRPC, gRPC-Web.

use base64::Engine as _;

use super::harness::*;

/// A gRPC message of these bytes: no compression, length, content.
fn frame(content: &str) -> String {
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    String::from_utf8([&[0], &length[..], content.as_bytes()].concat()).unwrap()
}

#[test]
fn the_name_of_the_port_chooses_the_protocol() {
    isolated(async |net| {
        let (one, two, grpc) = (
            net.http("one").await,
            net.http("two").await,
            net.http("grpc").await,
        );
        let services = service("one.shop", "10.96.0.1", "80 http HTTP", &[one.endpoint("")])
            + &service(
                "two.shop",
                "10.96.0.2",
                "80 http2 HTTP2",
                &[two.endpoint("")],
            )
            + &service(
                "grpc.shop",
                "10.96.0.3",
                "81 grpc GRPC, 82 grpc-web GRPC-Web",
                &[grpc.endpoint("")],
            );
        let pilot = net
            .pilot()
            .start(|folder| write(folder, "services", &services))
            .await;
        let client = Proxy::sidecar("client-0.shop")
            .bound()
            .start(net, &pilot)
            .await;

        // Whatever the client speaks.
        for words in ["GET /", "GET / h2"] {
            for (host, backend, version) in [
                ("one", &one, http::Version::HTTP_11),
                ("two", &two, http::Version::HTTP_2),
            ] {
                let answer = client
                    .ask("10.96.0.1:80", Request::parse(words, host))
                    .await
                    .unwrap();
                assert_eq!((answer.status, answer.body.as_str()), (200, host));
                assert_eq!(backend.take()[0].version, version, "{words} to {host}");
            }
        }

        // gRPC: its status travels in trailers; an UNAVAILABLE is retried, as it did no harm.
        let call = || {
            Request::new("POST", "/shop.Cart/Get")
                .host("grpc")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(&frame("ask"))
                .http2()
        };
        let answer = || {
            let answer = Answer::ok().header("content-type", "application/grpc");
            answer.body(&frame("told"))
        };
        grpc.script(move |_| answer().trailer("grpc-status", "5"));
        let got = client.ask("10.96.0.3:81", call()).await.unwrap();
        assert_eq!((got.status, got.body), (200, frame("told")));
        assert_eq!(got.trailers["grpc-status"], "5");
        assert_eq!(grpc.take().len(), 1);
        let unavailable = || {
            let answer = Answer::ok().header("content-type", "application/grpc");
            answer.header("grpc-status", "14").body("")
        };
        grpc.script(move |_| unavailable());
        let got = client.ask("10.96.0.3:81", call()).await.unwrap();
        assert_eq!(got.header("grpc-status"), "14");
        assert_eq!(grpc.take().len(), 3);

        // A browser's gRPC-Web becomes gRPC, and the trailers come back in the body.
        grpc.script(move |_| answer().trailer("grpc-status", "0"));
        let text = |bytes: &str| base64::engine::general_purpose::STANDARD.encode(bytes);
        let request = Request::new("POST", "/shop.Cart/Get")
            .host("grpc:82")
            .header("content-type", "application/grpc-web-text")
            .header("accept", "application/grpc-web-text")
            .body(&text(&frame("ask")));
        let got = client.ask("10.96.0.3:82", request).await.unwrap();
        assert_eq!(
            (got.status, got.header("content-type").as_str()),
            (200, "application/grpc-web-text+proto")
        );
        let seen = grpc.take().remove(0);
        assert_eq!(
            (seen.version, seen.body.clone()),
            (http::Version::HTTP_2, frame("ask"))
        );
        assert_eq!(seen.header("content-type"), "application/grpc");
        assert!(
            got.body.starts_with(&text(&frame("told"))[..8]),
            "{}",
            got.body
        );
        client.assert_nothing_rejected().await;
    });
}
