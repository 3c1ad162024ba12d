//! A connection as proof that the rules redirect.
//!
//! Envoy's two ports are opened on loopback, then 127.0.0.6 is dialled on a port where nobody listens. Only a redirected
//! connection can arrive at one of the two, and it carries the port that was dialled as its original destination.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{getsockopt, sockopt::OriginalDst},
};

use crate::config::Config;

/// Tries once a second until a redirected connection arrives or the time is over.
pub fn run(config: &Config, limit: Duration) -> anyhow::Result<()> {
    let mut ports = vec![config.envoy_port, config.inbound_capture_port];
    ports.dedup();
    let listeners: Vec<TcpListener> = ports
        .iter()
        .map(|port| listen(*port))
        .collect::<Result<_, _>>()?;
    let target = SocketAddr::from(([127, 0, 0, 6], config.probe_port));
    let deadline = Instant::now() + limit;
    loop {
        let outcome = TcpStream::connect_timeout(&target, Duration::from_secs(1));
        if let Some(port) = arrival(&listeners)? {
            if port == config.probe_port {
                println!(
                    "validation passed: a connection to {target} was redirected to Envoy's port"
                );
                return Ok(());
            }
            bail!(
                "validation: a connection arrived with original port {port} instead of {}",
                config.probe_port
            );
        }
        if Instant::now() >= deadline {
            bail!(
                "validation failed within {} s: a connection to {target} was not redirected to port {} ({}); are the rules \
                 installed in this network namespace?",
                limit.as_secs(),
                config.inbound_port(),
                match outcome {
                    Ok(_) => "it was answered by somebody else".to_owned(),
                    Err(error) => error.to_string(),
                }
            );
        }
    }
}

fn listen(port: u16) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(("127.0.0.1", port))
        .with_context(|| format!("validation needs 127.0.0.1:{port}, before Envoy starts"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The original port of a connection that arrives within a second.
fn arrival(listeners: &[TcpListener]) -> anyhow::Result<Option<u16>> {
    let mut wanted: Vec<PollFd<'_>> = listeners
        .iter()
        .map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN))
        .collect();
    if poll(&mut wanted, PollTimeout::from(1000u16))? == 0 {
        return Ok(None);
    }
    for listener in listeners {
        if let Ok((stream, _)) = listener.accept() {
            let original = getsockopt(&stream, OriginalDst).context("reading SO_ORIGINAL_DST")?;
            return Ok(Some(u16::from_be(original.sin_port)));
        }
    }
    Ok(None)
}
