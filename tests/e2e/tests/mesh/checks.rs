//! What a user of the mesh may rely on, each with real requests through real Envoys.

use std::{
    collections::BTreeMap,
    pin::Pin,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams},
};
use lab_chaos::{
    cluster::eventually,
    load::{Connection, Load, Plan, Reply},
    mesh,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

use crate::{breaker, lab::Lab};

type Check = for<'a> fn(&'a Lab) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// All checks, in the order in which they run.
pub(crate) fn all() -> Vec<(&'static str, Check)> {
    vec![
        ("Bookinfo answers, and every pod has its sidecar", |lab| {
            Box::pin(bookinfo(lab))
        }),
        ("weights 80/20", |lab| Box::pin(weights(lab))),
        ("fault abort 50%", |lab| Box::pin(abort(lab))),
        ("timeout 2 s against a delay of 5 s", |lab| {
            Box::pin(timeout(lab))
        }),
        ("match, rewrite, redirect, header operations", |lab| {
            Box::pin(routing(lab))
        }),
        ("outlier detection ejects a failing replica", |lab| {
            Box::pin(outlier(lab))
        }),
        (
            "circuit breaker: one under way, one waits, the next is refused",
            |lab| Box::pin(breaker::held(lab)),
        ),
        ("circuit breaker: two connections in step overflow", |lab| {
            Box::pin(breaker::in_step(lab))
        }),
        (
            "circuit breaker: two connections kept open never do",
            |lab| Box::pin(breaker::kept_open(lab)),
        ),
        ("a route to nowhere is a 503 and harms nobody", |lab| {
            Box::pin(route_to_nowhere(lab))
        }),
        ("200 random changes under load lose no request", |lab| {
            Box::pin(random_changes(lab))
        }),
        ("no Envoy rejected anything", |lab| {
            Box::pin(nothing_rejected(lab))
        }),
        ("istioctl shows every proxy in sync", |lab| {
            Box::pin(proxy_status(lab))
        }),
    ]
}

const SUBSETS: &str =
    include_str!("../../../../deploy/bookinfo/networking/destination-rule-all.yaml");
const REVIEWS: &str = "/api/v1/products/0/reviews";

/// A VirtualService for a host of its own, bound to the ingress gateway.
fn ingress_route(name: &str, http: &Value) -> String {
    json!({
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "VirtualService",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"hosts": [format!("{name}.test")], "gateways": ["bookinfo-gateway"], "http": http},
    })
    .to_string()
}

/// `count` requests over a few kept-alive connections; what they got.
async fn requests(
    lab: &Lab,
    count: usize,
    connections: usize,
    host: &str,
    path: &str,
) -> Result<Vec<Reply>> {
    let one = |share: usize| async move {
        let mut connection = Connection::new(lab.ingress.clone());
        let mut replies = Vec::with_capacity(share);
        for _ in 0..share {
            replies.push(
                connection
                    .get(host, path)
                    .await
                    .map_err(anyhow::Error::msg)?,
            );
        }
        anyhow::Ok(replies)
    };
    let shares = (0..connections)
        .map(|index| one(count / connections + usize::from(index < count % connections)));
    Ok(try_join_all(shares).await?.into_iter().flatten().collect())
}

fn share(replies: &[Reply], wanted: impl Fn(&Reply) -> bool) -> f64 {
    let hits = replies.iter().filter(|reply| wanted(reply)).count();
    100.0 * hits as f64 / replies.len() as f64
}

fn statuses(replies: &[Reply]) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for reply in replies {
        *counts.entry(reply.status).or_default() += 1;
    }
    counts
}

async fn bookinfo(lab: &Lab) -> Result<()> {
    let page = lab.get("bookinfo.test", "/productpage").await?;
    ensure!(page.status == 200, "{}", page.describe());
    let pods = lab.kubectl(&["get", "pods", "--no-headers"], "")?;
    ensure!(pods.lines().count() >= 6, "{pods}");
    for line in pods.lines() {
        ensure!(
            line.split_whitespace().nth(1) == Some("2/2"),
            "not every container is ready:\n{pods}"
        );
    }
    Ok(())
}

/// 4,000 requests, so that three points are more than four standard deviations.
async fn weights(lab: &Lab) -> Result<()> {
    let _subsets = lab.apply(SUBSETS).await?;
    let route = json!({
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "VirtualService",
        "metadata": {"name": "reviews", "namespace": "default"},
        "spec": {"hosts": ["reviews"], "http": [{"route": [
            {"destination": {"host": "reviews", "subset": "v1"}, "weight": 80},
            {"destination": {"host": "reviews", "subset": "v3"}, "weight": 20},
        ]}]},
    });
    let _route = lab.apply(&route.to_string()).await?;
    let replies = requests(lab, 4000, 8, "bookinfo.test", REVIEWS).await?;
    ensure!(
        replies.iter().all(|reply| reply.status == 200),
        "{:?}",
        statuses(&replies)
    );
    let is_v1 = |reply: &Reply| {
        let document: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        document["version"] == "v1"
    };
    let v1 = share(&replies, is_v1);
    println!("     v1 got {v1:.1}%");
    ensure!(
        (77.0..=83.0).contains(&v1),
        "v1 got {v1:.1}%, 80±3 expected"
    );
    Ok(())
}

async fn abort(lab: &Lab) -> Result<()> {
    let http = json!([{
        "fault": {"abort": {"httpStatus": 418, "percentage": {"value": 50}}},
        "route": [{"destination": {"host": "details", "port": {"number": 9080}}}],
    }]);
    let _route = lab.apply(&ingress_route("abort", &http)).await?;
    let replies = requests(lab, 6000, 8, "abort.test", "/details/0").await?;
    let counts = statuses(&replies);
    let aborted = share(&replies, |reply| reply.status == 418);
    println!("     {aborted:.1}% aborted");
    ensure!(
        counts.keys().all(|status| [200, 418].contains(status)),
        "{counts:?}"
    );
    ensure!(
        (47.0..=53.0).contains(&aborted),
        "{aborted:.1}% were aborted, 50±3 expected"
    );
    Ok(())
}

/// The delay is injected between reviews and ratings; the limit is the gateway's.
async fn timeout(lab: &Lab) -> Result<()> {
    let _subsets = lab.apply(SUBSETS).await?;
    let delay = json!({
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "VirtualService",
        "metadata": {"name": "ratings", "namespace": "default"},
        "spec": {"hosts": ["ratings"], "http": [{
            "fault": {"delay": {"fixedDelay": "5s", "percentage": {"value": 100}}},
            "route": [{"destination": {"host": "ratings", "subset": "v1"}}],
        }]},
    });
    let _delay = lab.apply(&delay.to_string()).await?;
    let http = json!([{
        "timeout": "2s",
        "route": [{"destination": {"host": "reviews", "subset": "v2", "port": {"number": 9080}}}],
    }]);
    let _route = lab.apply(&ingress_route("timeout", &http)).await?;
    let began = Instant::now();
    let reply = lab.get("timeout.test", "/reviews/0").await?;
    let took = began.elapsed().as_secs_f64();
    ensure!(reply.status == 504, "{}", reply.describe());
    ensure!(
        String::from_utf8_lossy(&reply.body) == "upstream request timeout",
        "{}",
        reply.describe()
    );
    ensure!(
        (1.95..3.5).contains(&took),
        "504 came after {took:.2} s, 2 s expected"
    );
    Ok(())
}

async fn routing(lab: &Lab) -> Result<()> {
    let to_details = json!([{"destination": {"host": "details", "port": {"number": 9080}}}]);
    let to_reviews = json!([{"destination": {"host": "reviews", "port": {"number": 9080}}}]);
    let http = json!([
        {"match": [{"uri": {"exact": "/old"}}], "redirect": {"uri": "/new", "authority": "elsewhere.test"}},
        {"match": [{"headers": {"x-who": {"exact": "tester"}}, "uri": {"prefix": "/facts"}}],
         "rewrite": {"uri": "/details"},
         "headers": {"response": {"set": {"x-route": "facts 100%"}, "remove": ["content-length"]}},
         "route": to_details},
        {"match": [{"method": {"exact": "DELETE"}}], "fault": {"abort": {"httpStatus": 405, "percentage": {"value": 100}}}, "route": to_details},
        {"match": [{"uri": {"regex": "/reviews/[0-9]+"}}], "route": to_reviews},
    ]);
    let _route = lab.apply(&ingress_route("routing", &http)).await?;
    let moved = lab.get("routing.test", "/old").await?;
    ensure!(moved.status == 301, "{}", moved.describe());
    ensure!(
        moved.header("location") == Some("http://elsewhere.test/new"),
        "{:?}",
        moved.headers
    );
    let reviews = lab.get("routing.test", "/reviews/0").await?;
    ensure!(reviews.status == 200, "{}", reviews.describe());
    let nothing = lab.get("routing.test", "/reviews/x").await?;
    ensure!(
        nothing.status == 404,
        "no route matches: {}",
        nothing.describe()
    );
    let without_header = lab.get("routing.test", "/facts/0").await?;
    ensure!(
        without_header.status == 404,
        "{}",
        without_header.describe()
    );
    Ok(())
}

/// A second ratings that always fails, beside the good one. Retries are off, so that only ejection can help.
async fn outlier(lab: &Lab) -> Result<()> {
    let good = lab.kubectl(&["get", "deployment", "ratings-v1", "-o", "json"], "")?;
    let mut bad: Value = serde_json::from_str(&good)?;
    let template = &mut bad["spec"]["template"];
    template["metadata"]["labels"]["version"] = json!("bad");
    let containers = template["spec"]["containers"]
        .as_array_mut()
        .context("no containers")?;
    let ratings = containers
        .iter_mut()
        .find(|container| container["name"] == "ratings")
        .context("no ratings container")?;
    let env = ratings["env"].as_array_mut().context("no env")?;
    env.push(json!({"name": "FAIL_PERCENT", "value": "100"}));
    let template = template.clone();
    let bad = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "ratings-bad", "namespace": "default"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "ratings", "version": "bad"}}, "template": template},
    });
    let policy = json!({
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "DestinationRule",
        "metadata": {"name": "ratings", "namespace": "default"},
        "spec": {"host": "ratings", "trafficPolicy": {"outlierDetection": {
            "consecutiveErrors": 3, "interval": "500ms", "baseEjectionTime": "60s", "maxEjectionPercent": 100,
        }}},
    });
    let _policy = lab.apply(&policy.to_string()).await?;
    let http = json!([{"retries": {"attempts": 0}, "route": [{"destination": {"host": "ratings", "port": {"number": 9080}}}]}]);
    let _route = lab.apply(&ingress_route("outlier", &http)).await?;
    let _bad = lab.apply(&bad.to_string()).await?;
    lab.kubectl(
        &[
            "rollout",
            "status",
            "deployment/ratings-bad",
            "--timeout=60s",
        ],
        "",
    )?;
    // Traffic finds the failing replica; once Envoy counts an ejection, nobody may see it any more.
    let ejected = || async {
        let refused = |error: anyhow::Error| lab_chaos::ChaosError::Precondition(error.to_string());
        requests(lab, 20, 1, "outlier.test", "/ratings/0")
            .await
            .map_err(refused)?;
        let stat = "outlier_detection.ejections_enforced_total";
        let ejections = lab.gateway_stat(stat).await.map_err(refused)?;
        Ok(if ejections >= 1 {
            Ok(())
        } else {
            Err("Envoy counts no ejection".to_owned())
        })
    };
    let (limit, pause) = (Duration::from_secs(30), Duration::from_millis(50));
    eventually("the failing replica to be ejected", limit, pause, ejected).await?;
    // Envoy merges health changes for up to a second before its workers see them.
    let quiet = || async {
        let replies = requests(lab, 20, 2, "outlier.test", "/ratings/0").await;
        let replies =
            replies.map_err(|error| lab_chaos::ChaosError::Precondition(error.to_string()))?;
        let failed = replies.iter().filter(|reply| reply.status != 200).count();
        Ok(if failed == 0 {
            Ok(())
        } else {
            Err(format!("{failed} of 20 failed"))
        })
    };
    eventually("requests to avoid the ejected replica", limit, pause, quiet).await?;
    let replies = requests(lab, 100, 2, "outlier.test", "/ratings/0").await?;
    ensure!(
        replies.iter().all(|reply| reply.status == 200),
        "{:?}",
        statuses(&replies)
    );
    Ok(())
}

async fn route_to_nowhere(lab: &Lab) -> Result<()> {
    let http = json!([{"route": [{"destination": {"host": "nowhere.default.svc.cluster.local", "port": {"number": 80}}}]}]);
    let _route = lab.apply(&ingress_route("nowhere", &http)).await?;
    let reply = lab.get("nowhere.test", "/").await?;
    ensure!(reply.status == 503, "{}", reply.describe());
    let page = lab.get("bookinfo.test", "/productpage").await?;
    ensure!(page.status == 200, "{}", page.describe());
    Ok(())
}

/// Two hundred changes of routes and policies that Bookinfo's traffic goes through, as fast as the API takes them.
async fn random_changes(lab: &Lab) -> Result<()> {
    let _subsets = lab.apply(SUBSETS).await?;
    let paths = vec!["/productpage".into(), REVIEWS.into()];
    let mut plan = Plan::new(lab.ingress.clone(), paths);
    plan.rate = 200.0;
    let load = Load::start(plan);
    // The seed is fixed: a failure can be run again.
    let mut random = StdRng::seed_from_u64(0x4d65_736f_7a6f_6963);
    for round in 0..200 {
        let (kind, name, spec) = random_change(&mut random, round);
        change(lab, kind, &name, spec).await?;
        tokio::task::yield_now().await;
    }
    lab.settled().await?;
    let summary = load.stop().await;
    println!("     {} requests, {} failed", summary.total, summary.failed);
    for kind in ["virtualservices", "destinationrules", "serviceentries"] {
        lab.kubectl(
            &["delete", kind, "-l", "changed-by=e2e", "--wait=false"],
            "",
        )?;
    }
    lab.settled().await?;
    ensure!(
        summary.total > 50,
        "there was no load to speak of: {} requests",
        summary.total
    );
    ensure!(
        summary.failed == 0,
        "{} of {} requests failed: {:?}",
        summary.failed,
        summary.total,
        summary.failures
    );
    nothing_rejected(lab).await
}

fn random_change(random: &mut StdRng, round: usize) -> (&'static str, String, Value) {
    let version = |number: u32| json!({"host": "reviews", "subset": format!("v{number}")});
    match random.random_range(0..6) {
        0 | 1 => {
            let first = random.random_range(0..=100);
            let route = json!([
                {"destination": version(random.random_range(1..=3)), "weight": first},
                {"destination": version(random.random_range(1..=3)), "weight": 100 - first},
            ]);
            (
                "VirtualService",
                "reviews".into(),
                json!({"hosts": ["reviews"], "http": [{"route": route}]}),
            )
        }
        2 => {
            let header = format!("round {round}");
            let http = json!([
                {"match": [{"headers": {"end-user": {"exact": format!("user-{round}")}}}], "route": [{"destination": {"host": "ratings"}}]},
                {"timeout": format!("{}s", random.random_range(5..20)), "retries": {"attempts": random.random_range(1..4)},
                 "headers": {"response": {"set": {"x-round": header}}}, "route": [{"destination": {"host": "ratings"}}]},
            ]);
            (
                "VirtualService",
                "ratings".into(),
                json!({"hosts": ["ratings"], "http": http}),
            )
        }
        3 => {
            let balancers = ["ROUND_ROBIN", "LEAST_CONN", "RANDOM"];
            let policy = json!({"loadBalancer": {"simple": balancers[random.random_range(0..3)]}, "connectionPool": {"tcp": {"maxConnections": random.random_range(100..1000)}}});
            (
                "DestinationRule",
                "details".into(),
                json!({"host": "details", "trafficPolicy": policy, "subsets": [{"name": "v1", "labels": {"version": "v1"}}]}),
            )
        }
        4 => {
            let host = format!("outside-{}.test", random.random_range(0..20));
            let port = random.random_range(8000..8010);
            let spec = json!({"hosts": [host], "location": "MESH_EXTERNAL", "resolution": "STATIC",
                "ports": [{"number": port, "name": "http", "protocol": "HTTP"}],
                "endpoints": [{"address": format!("192.0.2.{}", random.random_range(1..250))}]});
            ("ServiceEntry", host.replace('.', "-"), spec)
        }
        _ => {
            let host = format!("side-{}.test", random.random_range(0..20));
            let http = json!([{"fault": {"delay": {"fixedDelay": "1s", "percentage": {"value": random.random_range(1..100)}}}, "route": [{"destination": {"host": "details", "port": {"number": 9080}}}]}]);
            (
                "VirtualService",
                host.replace('.', "-"),
                json!({"hosts": [host], "gateways": ["bookinfo-gateway", "mesh"], "http": http}),
            )
        }
    }
}

async fn change(lab: &Lab, kind: &str, name: &str, spec: Value) -> Result<()> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(
        "networking.istio.io",
        "v1alpha3",
        kind,
    ));
    let api: Api<DynamicObject> =
        Api::namespaced_with(lab.cluster.client.clone(), "default", &resource);
    let object = json!({
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": kind,
        "metadata": {"name": name, "labels": {"changed-by": "e2e"}},
        "spec": spec,
    });
    api.patch(
        name,
        &PatchParams::apply("e2e").force(),
        &Patch::Apply(&object),
    )
    .await
    .with_context(|| format!("{kind} {name}"))?;
    Ok(())
}

async fn nothing_rejected(lab: &Lab) -> Result<()> {
    let rejected = mesh::rejected(&lab.cluster).await?;
    ensure!(rejected.is_empty(), "{}", rejected.join("\n"));
    Ok(())
}

async fn proxy_status(lab: &Lab) -> Result<()> {
    lab.settled().await?;
    let table = lab.istioctl(&["proxy-status"])?;
    for name in [
        "productpage-v1",
        "reviews-v1",
        "reviews-v2",
        "reviews-v3",
        "ratings-v1",
        "details-v1",
        "istio-ingressgateway",
    ] {
        ensure!(table.contains(name), "{name} is not shown:\n{table}");
    }
    ensure!(!table.contains("STALE"), "{table}");
    Ok(())
}
