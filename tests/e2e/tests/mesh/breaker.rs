//! Circuit breakers, counted to the request: `maxConnections: 1`, `http1MaxPendingRequests: 1`.
//!
//! What Envoy 1.40 counts against the two limits, and what follows for a number of client connections:
//!
//! - A request *waits* from its arrival until it has an upstream connection. That includes the time in which its own
//!   connection is being opened, not only that in which others hold the connection.
//! - A request that finds no idle connection is refused (503, `UO`, `x-envoy-overloaded`, never retried) exactly if as
//!   many requests wait already as may wait. Waiting requests are counted over all of Envoy's workers together.
//! - Each worker has a pool of its own and may always open one connection, `maxConnections` or not. So with `w` workers
//!   up to `w` requests are under way, one waits, and the next one is refused.
//!
//! **Two connections** have at most two requests in flight. The second one is refused only if the first one waits, and
//! with only one other request it can wait for nothing but the opening of its own connection. So:
//! refusals ≤ upstream connections opened. While connections are kept open there are none ([`held`], second request;
//! [`kept_open`]); with `maxRequestsPerConnection: 1` every request opens one, and two that arrive together collide
//! ([`in_step`]). **Three or four** suffice without any opening: one or two (two workers) under way, one waiting, the
//! next refused ([`held`]).
//!
//! There is one gateway while these checks run: the autoscaler must not take counters away. The limits hold at both
//! ends, as in Istio 1.4: for the gateway's cluster and for the inbound one of the service's own sidecar.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};
use lab_chaos::{ChaosError, cluster::eventually, load::Connection, load::Reply};
use tokio::task::JoinSet;

use crate::{
    lab::{Applied, Lab},
    proxy::Proxy,
};

const ECHO: &str = include_str!("../../../../deploy/bookinfo/echo/echo.yaml");
const ECHO_ROUTE: &str = include_str!("../../../../deploy/bookinfo/echo/virtual-service-echo.yaml");
const LIMITS: &str = include_str!(
    "../../../../deploy/bookinfo/networking/destination-rule-echo-circuit-breaker.yaml"
);
const HOST: &str = "echo.example.com";
const OUTBOUND: &str = "outbound|8000||echo.default.svc.cluster.local";
const INBOUND: &str = "inbound|8000|http|echo.default.svc.cluster.local";
const SOON: Duration = Duration::from_secs(30);
const OFTEN: Duration = Duration::from_millis(20);

/// The echo server behind a circuit breaker, and one gateway in front of it.
struct Scene<'a> {
    lab: &'a Lab,
    gateway: Proxy,
    echo: Proxy,
    _objects: Vec<Applied<'a>>,
}

/// What both ends of the way have counted.
#[derive(Debug, Clone, Copy)]
struct Counted {
    gateway: u64,
    echo: u64,
    opened: u64,
}

impl<'a> Scene<'a> {
    async fn set(lab: &'a Lab, limits: &str) -> Result<Self> {
        let mut objects = vec![lab.one_gateway().await?];
        for yaml in [ECHO, ECHO_ROUTE, limits] {
            objects.push(lab.apply(yaml).await?);
        }
        let rollout = ["rollout", "status", "deployment/echo", "--timeout=120s"];
        lab.kubectl(&rollout, "")?;
        lab.settled().await?;
        let scene = Self {
            lab,
            gateway: Proxy::only(lab, "istio-system", "istio=ingressgateway").await?,
            echo: Proxy::only(lab, "default", "app=echo").await?,
            _objects: objects,
        };
        let ends = [(&scene.gateway, OUTBOUND), (&scene.echo, INBOUND)];
        for (proxy, cluster) in ends {
            let limited = || async {
                let seen = proxy.upstream(lab, cluster).await.map_err(unasked)?;
                Ok(if seen.max_pending == 1 {
                    Ok(())
                } else {
                    Err(format!("{seen:?}"))
                })
            };
            eventually(
                format!("the limits of {cluster} in {}", proxy.pod),
                SOON,
                OFTEN,
                limited,
            )
            .await?;
        }
        Ok(scene)
    }

    async fn counted(&self) -> Result<Counted> {
        let overflow = |cluster: &str| {
            let pattern = cluster.replace('|', ".");
            format!("cluster.{pattern}.upstream_rq_pending_overflow$")
        };
        Ok(Counted {
            gateway: self.gateway.stat(self.lab, &overflow(OUTBOUND)).await?,
            echo: self.echo.stat(self.lab, &overflow(INBOUND)).await?,
            opened: self.gateway.upstream(self.lab, OUTBOUND).await?.opened
                + self.echo.upstream(self.lab, INBOUND).await?.opened,
        })
    }

    /// Every refusal in `replies` is an overflow, was counted once, at the end that refused it, and has its line with
    /// `UO` in that end's access log. `mark` is in the paths of these requests and of no others.
    async fn accounted(&self, before: Counted, replies: &[Reply], mark: &str) -> Result<Refused> {
        let after = self.counted().await?;
        let mut refused = Refused {
            opened: after.opened - before.opened,
            ..Refused::default()
        };
        for reply in replies.iter().filter(|reply| reply.status != 200) {
            let overflow = reply.header("x-envoy-overloaded") == Some("true");
            ensure!(reply.status == 503 && overflow, "{}", reply.describe());
            // Only an answer that came from behind the gateway has this header.
            match reply.header("x-envoy-upstream-service-time") {
                None => refused.by_gateway += 1,
                Some(_) => refused.by_sidecar += 1,
            }
        }
        println!("     {} requests, {refused:?}", replies.len());
        let counted = (after.gateway - before.gateway, after.echo - before.echo);
        ensure!(
            counted == (refused.by_gateway, refused.by_sidecar),
            "upstream_rq_pending_overflow rose by {counted:?} at gateway and sidecar, seen were {refused:?}"
        );
        let ends = [
            (&self.gateway, refused.by_gateway),
            (&self.echo, refused.by_sidecar),
        ];
        for (proxy, expected) in ends {
            // Envoy writes its access log up to ten seconds late.
            let logged = || async {
                let lines = proxy.logged(self.lab, &[mark, " 503 UO "]);
                let lines = lines.map_err(unasked)? as u64;
                Ok(if lines == expected {
                    Ok(())
                } else {
                    Err(format!("{lines} lines"))
                })
            };
            let what = format!("{expected} lines with 503 UO in the log of {}", proxy.pod);
            eventually(what, SOON, OFTEN * 10, logged).await?;
        }
        Ok(refused)
    }
}

/// Who refused how many requests, and how many upstream connections were begun meanwhile, at both ends.
#[derive(Debug, Clone, Copy, Default)]
struct Refused {
    by_gateway: u64,
    by_sidecar: u64,
    opened: u64,
}

/// Requests that the upstream holds for a minute, one after another, each of them sent when the ones before it have
/// settled: then it is known, and not a race, who is under way and who waits.
pub(crate) async fn held(lab: &Lab) -> Result<()> {
    let scene = Scene::set(lab, LIMITS).await?;
    let before = scene.counted().await?;
    let path = "/delay/60?held";
    // Dropped at the end, which takes back what is still held.
    let mut requests = JoinSet::new();
    let (mut in_flight, mut replies) = (0, Vec::new());
    for number in 1..=5 {
        let active = scene.gateway.upstream(lab, OUTBOUND).await?.active;
        let waiting = in_flight - active;
        let mut connection = Connection::new(lab.ingress.clone());
        requests.spawn(async move { (connection.get(HOST, path).await, connection) });
        let refusal = settled(&scene, &mut requests, in_flight + 1).await?;
        println!(
            "     request {number}: {active} under way, {waiting} waiting: {}",
            if refusal.is_some() {
                "refused"
            } else {
                "accepted"
            }
        );
        ensure!(
            refusal.is_some() == (waiting == 1),
            "request {number} found {active} under way and {waiting} waiting; it must be refused exactly if one waits"
        );
        ensure!(
            number > 2 || refusal.is_none(),
            "two connections cannot overflow"
        );
        match refusal {
            Some(reply) => replies.push(reply),
            None => in_flight += 1,
        }
    }
    // Two workers, so at most two under way and one waiting.
    ensure!(
        (2..=3).contains(&in_flight),
        "{in_flight} requests were accepted"
    );
    let refused = scene.accounted(before, &replies, path).await?;
    ensure!(
        refused.by_gateway + in_flight == 5,
        "{refused:?}, {in_flight} accepted"
    );
    Ok(())
}

/// Waits until the newest request was answered, or is held: then every connection that was opened has its request. The
/// first request must have come through to the server, else the next one might collide with it at the sidecar.
async fn settled(
    scene: &Scene<'_>,
    requests: &mut JoinSet<(Result<Reply, String>, Connection)>,
    in_flight: u64,
) -> Result<Option<Reply>> {
    let lab = scene.lab;
    let held = || async {
        let stat = "http.outbound.*downstream_rq_active$";
        let there = scene.gateway.stat(lab, stat).await.map_err(unasked)?;
        let gateway = scene.gateway.upstream(lab, OUTBOUND).await;
        let gateway = gateway.map_err(unasked)?;
        let echo = scene.echo.upstream(lab, INBOUND).await.map_err(unasked)?;
        let calm = gateway.connections == gateway.active && echo.connections == echo.active;
        Ok(if there == in_flight && echo.active >= 1 && calm {
            Ok(())
        } else {
            Err(format!(
                "{there} requests in the gateway, {in_flight} expected; {gateway:?}, {echo:?}"
            ))
        })
    };
    tokio::select! {
        Some(answered) = requests.join_next() => {
            let (reply, _) = answered?;
            Ok(Some(reply.map_err(anyhow::Error::msg)?))
        }
        held = eventually("the request to be held or refused", SOON, OFTEN, held) => {
            held?;
            Ok(None)
        }
    }
}

/// Two connections, request after request, over upstream connections that stay open: nobody is refused.
pub(crate) async fn kept_open(lab: &Lab) -> Result<()> {
    let scene = Scene::set(lab, LIMITS).await?;
    let path = "/status/200?kept-open";
    let mut connections = [(); 2].map(|()| Connection::new(lab.ingress.clone()));
    // One after the other, so that each one's worker has its upstream connection before they go together.
    for connection in &mut connections {
        let reply = connection.get(HOST, path).await;
        let reply = reply.map_err(anyhow::Error::msg)?;
        ensure!(reply.status == 200, "{}", reply.describe());
    }
    let before = scene.counted().await?;
    let [first, second] = connections.map(|mut connection| async move {
        let mut replies = Vec::new();
        for _ in 0..200 {
            replies.push(connection.get(HOST, path).await?);
        }
        Ok::<_, String>(replies)
    });
    let (first, second) = tokio::try_join!(first, second).map_err(anyhow::Error::msg)?;
    let refused = scene
        .accounted(before, &[first, second].concat(), path)
        .await?;
    ensure!(
        refused.by_gateway + refused.by_sidecar <= refused.opened,
        "{refused:?}"
    );
    ensure!(
        refused.opened > 0 || refused.by_gateway + refused.by_sidecar == 0,
        "two connections cannot overflow while no connection is opened: {refused:?}"
    );
    Ok(())
}

/// Two connections that send at the same moment, again and again, where every request needs a new upstream connection:
/// one of the two arrives while the other one's connection is being opened.
pub(crate) async fn in_step(lab: &Lab) -> Result<()> {
    let limits = LIMITS.replace(
        "http1MaxPendingRequests: 1",
        "http1MaxPendingRequests: 1\n        maxRequestsPerConnection: 1",
    );
    ensure!(
        limits != LIMITS,
        "the shipped DestinationRule has changed; see what this check replaces in it"
    );
    let scene = Scene::set(lab, &limits).await?;
    let before = scene.counted().await?;
    let path = "/status/200?in-step";
    let [mut first, mut second] = [(); 2].map(|()| Connection::new(lab.ingress.clone()));
    let mut replies = Vec::new();
    for _ in 0..200 {
        let (one, other) = tokio::try_join!(first.get(HOST, path), second.get(HOST, path))
            .map_err(anyhow::Error::msg)?;
        replies.extend([one, other]);
    }
    let statuses = replies.iter().fold(BTreeMap::new(), |mut counts, reply| {
        *counts.entry(reply.status).or_insert(0) += 1;
        counts
    });
    let refused = scene.accounted(before, &replies, path).await?;
    ensure!(refused.by_gateway > 0, "nobody was refused: {statuses:?}");
    ensure!(
        statuses.get(&200).is_some_and(|served| *served >= 200),
        "of two at least one is served: {statuses:?}"
    );
    ensure!(
        refused.by_gateway + refused.by_sidecar <= refused.opened,
        "{refused:?}"
    );
    Ok(())
}

fn unasked(error: anyhow::Error) -> ChaosError {
    ChaosError::Precondition(format!("{error:#}"))
}
