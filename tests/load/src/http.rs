//! Closed-loop HTTP load: each connection sends its next request when it has the answer to the last.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;

use crate::{
    Output, process,
    table::{Row, render},
};

#[derive(Clone, clap::Args)]
pub(crate) struct Args {
    /// What to ask for, e.g. http://127.0.0.1:8080/productpage.
    url: http::Uri,
    /// Connections, each with one request at a time.
    #[arg(short, long, default_value_t = 8)]
    connections: usize,
    /// How long.
    #[arg(short, long, default_value_t = 10.0, value_name = "SECONDS")]
    duration: f64,
    /// At most this many requests in all; 0 for as many as fit in the time.
    #[arg(short = 'n', long, default_value_t = 0)]
    requests: u64,
    /// The Host header, if it differs from the URL's.
    #[arg(long)]
    host: Option<String>,
    /// Further headers, NAME:VALUE.
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE")]
    headers: Vec<String>,
    /// A request without an answer for this long counts as a timeout.
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    timeout: f64,
    /// Read the server's CPU time and memory from this process.
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// How to print.
    #[arg(short, long, default_value = "table")]
    output: Output,
}

#[derive(Default)]
struct Outcome {
    latencies: Vec<Duration>,
    by_status: BTreeMap<String, u64>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let authority = args
        .url
        .authority()
        .context("the URL names no host; expected http://HOST:PORT/PATH")?;
    anyhow::ensure!(
        args.url.scheme_str() == Some("http"),
        "only http:// URLs are supported"
    );
    let address = format!(
        "{}:{}",
        authority.host(),
        authority.port_u16().unwrap_or(80)
    );
    let before = args.server_pid.map(process::usage).transpose()?;
    let begun = Instant::now();
    let until = begun + Duration::from_secs_f64(args.duration);
    let share = match args.requests {
        0 => u64::MAX,
        all => all.div_ceil(args.connections.max(1) as u64),
    };
    let workers: Vec<_> = (0..args.connections.max(1))
        .map(|_| tokio::spawn(worker(args.clone(), address.clone(), until, share)))
        .collect();
    let mut all = Outcome::default();
    for worker in workers {
        let outcome = worker.await??;
        all.latencies.extend(outcome.latencies);
        for (status, count) in outcome.by_status {
            *all.by_status.entry(status).or_default() += count;
        }
    }
    let took = begun.elapsed().as_secs_f64();
    let after = args.server_pid.map(process::usage).transpose()?;
    let cpu = before
        .zip(after)
        .map(|(before, after)| after.cpu_seconds - before.cpu_seconds);
    print(&args, all, took, cpu, after);
    Ok(())
}

fn print(
    args: &Args,
    mut all: Outcome,
    took: f64,
    cpu: Option<f64>,
    after: Option<process::Usage>,
) {
    all.latencies.sort_unstable();
    let total: u64 = all.by_status.values().sum();
    let rate = total as f64 / took;
    let quantile = |q: f64| {
        let at = (all.latencies.len() as f64 * q) as usize;
        let latency = all
            .latencies
            .get(at.min(all.latencies.len().saturating_sub(1)));
        latency.map_or(0.0, |latency| latency.as_secs_f64() * 1000.0)
    };
    let (p50, p99) = (quantile(0.5), quantile(0.99));
    let per_thousand = cpu.map(|cpu| cpu * 1000.0 / (total.max(1) as f64));
    if args.output == Output::Json {
        let document = json!({
            "url": args.url.to_string(),
            "connections": args.connections,
            "seconds": took,
            "requests": total,
            "rate": rate,
            "p50Milliseconds": p50,
            "p99Milliseconds": p99,
            "outcomes": all.by_status,
            "serverCpuSecondsPer1000": per_thousand,
            "serverRssBytes": after.map(|usage| usage.rss_bytes),
        });
        println!("{document:#}");
        return;
    }
    let mut rows = vec![
        Row::new("requests per second", rate, ""),
        Row::new("p50", p50, "ms"),
        Row::new("p99", p99, "ms"),
    ];
    rows.extend(
        all.by_status
            .iter()
            .map(|(status, count)| Row::new(status.clone(), *count as f64, "")),
    );
    rows.extend(per_thousand.map(|cpu| Row::new("server CPU per 1000", cpu, "s")));
    println!(
        "{}",
        render(&format!("{} × {}", args.connections, args.url), &rows)
    );
}

async fn worker(
    args: Args,
    address: String,
    until: Instant,
    share: u64,
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut sender = None;
    let timeout = Duration::from_secs_f64(args.timeout);
    for _ in 0..share {
        if Instant::now() >= until {
            break;
        }
        let begun = Instant::now();
        let result = tokio::time::timeout(timeout, request(&args, &address, &mut sender)).await;
        let status = match result {
            Ok(Ok(status)) => {
                outcome.latencies.push(begun.elapsed());
                status
            }
            Ok(Err(error)) => {
                sender = None;
                error
            }
            Err(_) => {
                sender = None;
                "timeout".to_owned()
            }
        };
        let failed = sender.is_none();
        *outcome.by_status.entry(status).or_default() += 1;
        if failed {
            // A server that refuses connections must not turn a closed loop into a busy one.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(outcome)
}

type Sender = hyper::client::conn::http1::SendRequest<Empty<Bytes>>;

/// The status as text, or the kind of failure.
async fn request(args: &Args, address: &str, kept: &mut Option<Sender>) -> Result<String, String> {
    let mut sender = match kept.take().filter(|sender| !sender.is_closed()) {
        Some(sender) => sender,
        None => connect(address).await?,
    };
    let path = args
        .url
        .path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str);
    let host = args
        .host
        .as_deref()
        .or(args.url.authority().map(|a| a.as_str()))
        .unwrap_or_default();
    let mut request = http::Request::get(path).header("host", host);
    for header in &args.headers {
        let (name, value) = header
            .split_once(':')
            .ok_or_else(|| format!("bad header {header:?}"))?;
        request = request.header(name.trim(), value.trim());
    }
    let request = request
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    sender
        .ready()
        .await
        .map_err(|_| "connection closed".to_owned())?;
    let mut response = sender
        .send_request(request)
        .await
        .map_err(|_| "connection closed".to_owned())?;
    let status = response.status().as_u16().to_string();
    while let Some(frame) = response.frame().await {
        frame.map_err(|_| "body cut off".to_owned())?;
    }
    *kept = Some(sender);
    Ok(status)
}

async fn connect(address: &str) -> Result<Sender, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|_| "connect refused".to_owned())?;
    let _ = stream.set_nodelay(true);
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|_| "connection closed".to_owned())?;
    tokio::spawn(connection);
    Ok(sender)
}
