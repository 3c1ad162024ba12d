//! Bookinfo: a page about a book, put together by four services, to have something to run in a mesh.
//!
//! ```text
//! browser ─▶ productpage ─▶ details
//!                       └─▶ reviews v1 | v2 | v3 ─▶ ratings        (v1 shows no stars, v2 black ones, v3 red ones)
//! ```
//!
//! One binary, one role per process; [`echo`] is a fifth role that answers whatever a test asks it for. A role is an axum
//! router; [`server`] is the process around it. Headers that mark a request (user, trace) travel along every call, see
//! [`upstream`]. A backend that fails costs its part of the page, never the page.
//!
//! Cost: one thread and a few MB per process; connections are kept alive in both directions.

pub mod details;
pub mod echo;
pub mod productpage;
pub mod ratings;
pub mod reviews;
pub mod server;
pub mod upstream;

use std::{net::SocketAddr, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use mesh_service::Drain;
use tokio::net::TcpListener;

/// The sample application.
#[derive(Clone, Debug, Parser)]
#[command(name = "bookinfo", version, about)]
pub struct Args {
    /// The role of this process.
    #[command(subcommand)]
    pub role: Role,
    /// Where to listen.
    #[arg(
        long,
        env = "BOOKINFO_LISTEN",
        default_value = "[::]:9080",
        global = true
    )]
    pub listen: SocketAddr,
    /// Seconds after SIGTERM during which new connections are still accepted, because not every client knows yet that
    /// this pod goes. Longer than the sidecar's least drain (5 s): a late client shall find the sidecar closed, and try
    /// another pod, rather than a sidecar whose app refuses.
    #[arg(
        long,
        env = "DRAIN_DELAY_SECONDS",
        default_value_t = 6.0,
        global = true
    )]
    pub drain_delay: f64,
    /// Name of this replica, as shown on the page.
    #[arg(long, env = "HOSTNAME", default_value = "localhost", global = true)]
    pub replica: String,
    /// Logging.
    #[command(flatten)]
    pub log: mesh_service::logging::LogArgs,
}

/// Roles.
#[derive(Clone, Debug, Subcommand)]
pub enum Role {
    /// The page, and the public API behind it.
    Productpage {
        /// Where details are.
        #[arg(long, env = "DETAILS_URL", default_value = "http://details:9080")]
        details: String,
        /// Where reviews are.
        #[arg(long, env = "REVIEWS_URL", default_value = "http://reviews:9080")]
        reviews: String,
        /// Where ratings are.
        #[arg(long, env = "RATINGS_URL", default_value = "http://ratings:9080")]
        ratings: String,
    },
    /// Facts about a book.
    Details,
    /// What readers say about it.
    Reviews {
        /// v1: no stars, v2: black stars, v3: red stars.
        #[arg(
            long = "version",
            env = "SERVICE_VERSION",
            default_value = "v1",
            value_enum
        )]
        version: ReviewsVersion,
        /// Where ratings are.
        #[arg(long, env = "RATINGS_URL", default_value = "http://ratings:9080")]
        ratings: String,
    },
    /// Stars.
    Ratings {
        /// Percentage of requests that fail, to try outlier detection; `POST /ratings/fault` changes it later.
        #[arg(long, alias = "fail-rate", env = "FAIL_PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
        fail_percent: u8,
        /// Status of those.
        #[arg(long, env = "FAIL_STATUS", default_value_t = 503, value_parser = clap::value_parser!(u16).range(400..=599))]
        fail_status: u16,
    },
    /// Answers what it is asked for: /status/N, /delay/S, /headers, /anything.
    Echo,
}

/// Versions of reviews.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReviewsVersion {
    /// No stars.
    V1,
    /// Black stars.
    V2,
    /// Red stars.
    V3,
}

impl ReviewsVersion {
    /// The colour of its stars, if it has any.
    pub fn stars(self) -> Option<&'static str> {
        match self {
            Self::V1 => None,
            Self::V2 => Some("black"),
            Self::V3 => Some("red"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::V3 => "v3",
        }
    }
}

/// Runs the process until it is told to end.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args {
        role,
        listen,
        drain_delay,
        replica,
        log,
    } = args;
    mesh_service::logging::init(&log)?;
    let drain = Drain::on_signals()?;
    let drain_delay = Duration::try_from_secs_f64(drain_delay)
        .map_err(|error| anyhow::anyhow!("--drain-delay: {error}; give seconds, 0 or more"))?;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|error| anyhow::anyhow!("--listen {listen}: {error}"))?;
    let service = Service::new(role, &replica);
    tracing::info!(service = service.name, replica, address = %listener.local_addr()?, "serving");
    server::run(listener, service, drain, drain_delay).await
}

/// One role, ready to serve.
pub struct Service {
    /// e.g. `reviews-v2`
    pub name: String,
    /// Name of the replica.
    pub replica: String,
    /// Its routes.
    pub router: axum::Router,
}

impl Service {
    /// Builds a role.
    pub fn new(role: Role, replica: &str) -> Self {
        let (name, router) = match role {
            Role::Productpage {
                details,
                reviews,
                ratings,
            } => (
                "productpage".to_owned(),
                productpage::router(&details, &reviews, &ratings, replica),
            ),
            Role::Details => ("details".to_owned(), details::router()),
            Role::Reviews { version, ratings } => (
                format!("reviews-{}", version.name()),
                reviews::router(version, &ratings, replica),
            ),
            Role::Ratings {
                fail_percent,
                fail_status,
            } => (
                "ratings".to_owned(),
                ratings::router(fail_percent, fail_status),
            ),
            Role::Echo => ("echo".to_owned(), echo::router(replica)),
        };
        Self {
            name,
            replica: replica.to_owned(),
            router,
        }
    }
}
