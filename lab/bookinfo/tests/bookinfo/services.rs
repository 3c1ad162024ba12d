//! The roles, each behind its real server on a free port.

use std::time::Duration;

use bookinfo::{ReviewsVersion, Role, Service, server};
use mesh_service::Drain;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

struct Running {
    url: String,
    port: u16,
    drain: Drain,
    task: JoinHandle<anyhow::Result<()>>,
}

async fn serve(role: Role, replica: &str) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let drain = Drain::default();
    let service = Service::new(role, replica);
    let task = tokio::spawn(server::run(
        listener,
        service,
        drain.clone(),
        Duration::from_millis(300),
    ));
    Running {
        url: format!("http://127.0.0.1:{port}"),
        port,
        drain,
        task,
    }
}

async fn call(
    port: u16,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> (u16, String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_owned(), body.to_owned())
}

async fn get(port: u16, path: &str) -> (u16, String) {
    let (status, _, body) = call(port, "GET", path, "", "").await;
    (status, body)
}

fn json(body: &str) -> Value {
    serde_json::from_str(body).unwrap()
}

fn ratings_role() -> Role {
    Role::Ratings {
        fail_percent: 0,
        fail_status: 503,
    }
}

fn page_role(details: &str, reviews: &str, ratings: &str) -> Role {
    Role::Productpage {
        details: details.to_owned(),
        reviews: reviews.to_owned(),
        ratings: ratings.to_owned(),
    }
}

/// Nobody listens on the discard port of loopback.
const NOBODY: &str = "http://127.0.0.1:9";

#[tokio::test]
async fn the_page_shows_the_version_of_reviews() {
    let (details, ratings) = (
        serve(Role::Details, "d").await,
        serve(ratings_role(), "r").await,
    );
    for (version, name, mark) in [
        (ReviewsVersion::V1, "v1", None),
        (ReviewsVersion::V2, "v2", Some("stars black")),
        (ReviewsVersion::V3, "v3", Some("stars red")),
    ] {
        let reviews = Role::Reviews {
            version,
            ratings: ratings.url.clone(),
        };
        let reviews = serve(reviews, &format!("reviews-{name}-abc")).await;
        let page = serve(
            page_role(&details.url, &reviews.url, &ratings.url),
            "page-xyz",
        )
        .await;
        let (status, html) = get(page.port, "/productpage").await;
        assert_eq!(status, 200);
        assert!(
            html.contains("William Shakespeare") && html.contains("page-xyz"),
            "{html}"
        );
        assert!(html.contains(&format!("reviews-{name}-abc")), "{html}");
        match mark {
            Some(mark) => assert_eq!(html.matches(mark).count(), 2, "{html}"),
            None => assert!(!html.contains("class=\"stars"), "{html}"),
        }
        let (_, body) = get(page.port, "/api/v1/products/0/reviews").await;
        assert_eq!(json(&body)["version"], name);
    }
}

#[tokio::test]
async fn a_backend_that_fails_costs_its_part_only() {
    let details = serve(Role::Details, "d").await;
    let page = serve(page_role(&details.url, NOBODY, NOBODY), "p").await;
    let (status, html) = get(page.port, "/productpage").await;
    assert_eq!(status, 200);
    assert!(html.contains("William Shakespeare"));
    assert!(
        html.contains("Sorry, product reviews are currently unavailable for this book."),
        "{html}"
    );
    let (status, body) = get(page.port, "/api/v1/products/0/reviews").await;
    assert_eq!(status, 503);
    assert!(
        json(&body)["error"].as_str().unwrap().contains("reviews"),
        "{body}"
    );

    let reviews = Role::Reviews {
        version: ReviewsVersion::V2,
        ratings: NOBODY.to_owned(),
    };
    let reviews = serve(reviews, "r").await;
    let (status, body) = get(reviews.port, "/reviews/0").await;
    assert_eq!(status, 200);
    assert_eq!(
        json(&body)["reviews"][0]["rating"]["error"],
        "Ratings service is currently unavailable"
    );
}

#[tokio::test]
async fn the_user_and_the_trace_travel_along() {
    // The echo server stands in for reviews, so that what arrives there can be read.
    let echo = serve(Role::Echo, "e").await;
    let page = serve(page_role(NOBODY, &echo.url, NOBODY), "p").await;
    let (status, head, _) = call(
        page.port,
        "POST",
        "/login",
        "content-type: application/x-www-form-urlencoded\r\n",
        "username=jason",
    )
    .await;
    assert_eq!(status, 303);
    let cookie = head
        .lines()
        .find_map(|line| line.strip_prefix("set-cookie: "))
        .and_then(|cookie| cookie.split(';').next())
        .unwrap();
    let headers = format!(
        "cookie: other=1; {cookie}\r\nx-request-id: r-1\r\nx-b3-traceid: t-1\r\nx-private: no\r\n"
    );
    let (_, _, body) = call(page.port, "GET", "/api/v1/products/0/reviews", &headers, "").await;
    let seen = &json(&body)["headers"];
    assert_eq!(seen["end-user"], "jason");
    assert_eq!(
        (&seen["x-request-id"], &seen["x-b3-traceid"]),
        (&"r-1".into(), &"t-1".into())
    );
    assert!(
        seen["x-private"].is_null() && seen["cookie"].is_null(),
        "{body}"
    );
    let (status, _, _) = call(
        page.port,
        "POST",
        "/login",
        "content-type: application/x-www-form-urlencoded\r\n",
        "username=%3Cscript%3E",
    )
    .await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn ratings_fail_when_told_to() {
    let ratings = serve(ratings_role(), "r").await;
    assert_eq!(get(ratings.port, "/ratings/0").await.0, 200);
    let set = |body: &'static str| {
        call(
            ratings.port,
            "POST",
            "/ratings/fault",
            "content-type: application/json\r\n",
            body,
        )
    };
    assert_eq!(set(r#"{"percent": 100, "status": 500}"#).await.0, 200);
    assert_eq!(get(ratings.port, "/ratings/0").await.0, 500);
    assert_eq!(set(r#"{"percent": 101}"#).await.0, 400);
    assert_eq!(set(r#"{"percent": 0}"#).await.0, 200);
    assert_eq!(get(ratings.port, "/ratings/0").await.0, 200);
    for path in ["/ratings/one", "/ratings/-1"] {
        let (status, body) = get(ratings.port, path).await;
        assert_eq!(status, 400);
        assert!(body.contains("give a number"), "{body}");
    }
}

#[tokio::test]
async fn echo_does_what_it_is_asked_for() {
    let echo = serve(Role::Echo, "e").await;
    assert_eq!(get(echo.port, "/status/418").await.0, 418);
    assert_eq!(get(echo.port, "/bytes/1000").await.1.len(), 1000);
    let (_, _, body) = call(echo.port, "POST", "/a/b?c=d", "", "hello").await;
    let seen = json(&body);
    assert_eq!(
        (
            &seen["method"],
            &seen["path"],
            &seen["query"],
            &seen["body"]
        ),
        (
            &"POST".into(),
            &"/a/b".into(),
            &"c=d".into(),
            &"hello".into()
        )
    );
    for path in [
        "/status/99",
        "/status/x",
        "/delay/61",
        "/delay/-1",
        "/delay/NaN",
        "/bytes/99999999999",
    ] {
        let (status, body) = get(echo.port, path).await;
        assert_eq!(status, 400, "{path}");
        assert!(body.contains("give "), "{path}: {body}");
    }
}

#[tokio::test]
async fn a_drain_accepts_for_a_while_and_finishes_what_is_under_way() {
    let echo = serve(Role::Echo, "e").await;
    let port = echo.port;
    let mut slow = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    slow.write_all(b"GET /delay/1 HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    // The same connection loop has read it once a later request on another connection is answered.
    assert_eq!(get(port, "/health").await.0, 200);
    echo.drain.begin();
    let (status, head, _) = call(port, "GET", "/anything", "", "").await;
    assert_eq!(status, 200, "a client that does not know yet is served");
    assert!(head.contains("connection: close"), "{head}");
    assert_eq!(get(port, "/health").await.0, 503);
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("delay"),
        "{answer}"
    );
    echo.task.await.unwrap().unwrap();
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
}
