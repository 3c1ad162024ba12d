//! Real Pilots, real Envoys, and what stands around them. Everything ends with the value that started it, and a test that
//! fails prints the ends of the logs.
//!
//! # In a network namespace
//!
//! Envoy wants fixed ports (15001, 15006, 80, 443) and real iptables; so a test runs in network namespaces of its own:
//!
//! ```ignore
//! #[test]
//! fn a_route() {
//!     isolated(async |net| {
//!         let v1 = net.http("v1").await;                              // a backend at an address of its own
//!         let pilot = net.pilot().mesh("accessLogFile: ''").start(|folder| {
//!             write(folder, "web", &service("web.shop", "10.96.0.1", "80 http HTTP", &[v1.endpoint("version: v1")]));
//!         }).await;
//!         let client = Proxy::sidecar("client-0.shop").bound().start(net, &pilot).await;
//!         let answer = client.ask("10.96.0.1:80", Request::get("/").host("web")).await.unwrap();
//!         assert_eq!(answer.body, "v1");
//!         pilot.write("route", "…");                                  // change config …
//!         pilot.settle(&client).await;                                // … and wait until this Envoy has taken it
//!     });
//! }
//! ```
//!
//! - The test's own code, Pilot and the backends are in one namespace, the *outside*: whatever the test's code binds,
//!   connects or starts is there. Backends have addresses in 10.2.0.0/16 ([`Net::address`]); all of that range is local.
//! - Each Envoy is in a [`Pod`]: another namespace, with an address 10.1.0.N that the outside and the other pods can
//!   reach. [`Envoy::connect`] and [`Envoy::ask`] dial from inside the pod, as an application of it would.
//! - [`Proxy::bound`] (interception mode NONE) lets Envoy bind its listeners, on loopback: whatever address is dialled,
//!   its port leads there, and services cannot be told apart by their addresses. Without it, iptables rules by the
//!   house's istio-iptables redirect all traffic of the pod, in and out, to an Envoy that runs as user 1337; then
//!   services may have any address.
//! - A server inside the pod, for the inbound side: [`Backend::http`] on [`Pod::listen`]`("127.0.0.1:8080")`.
//! - Gateways: [`Proxy::router`] and [`ask`] at [`Envoy::ip`].
//!
//! Needs root; where there is none, the test says `SKIPPED` and passes.
//!
//! # Without
//!
//! [`Pilot::start`] and [`Envoy::start`] work in any tokio test, on loopback and free ports.

mod backend;
mod config;
mod http;
mod kubernetes;
mod namespace;
mod pilot;
mod proxy;
mod table;
mod tls;

use std::{
    process::{Child, Command},
    time::{Duration, Instant},
};

pub(crate) use backend::*;
pub(crate) use config::*;
pub(crate) use http::*;
pub(crate) use kubernetes::*;
pub(crate) use namespace::*;
pub(crate) use pilot::*;
pub(crate) use proxy::*;
pub(crate) use tls::*;

/// Polls against real processes; what is waited for is a condition, never a time.
pub(crate) async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "waited 60 s for: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A child that is killed with its value.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        let child = command.spawn();
        Self(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    /// Waits for the end and gives the exit status.
    pub(crate) async fn exit(&mut self) -> std::process::ExitStatus {
        until("the end of a process", async || self.0.try_wait().unwrap()).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Prints the end of a log if the test is failing.
fn tail_on_failure(what: &str, log: &std::path::Path) {
    if std::thread::panicking() {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(40)..];
        eprintln!("--- the end of {what}'s log\n{}\n---", tail.join("\n"));
    }
}
