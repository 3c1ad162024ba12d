//! One way to write a service.
//!
//! Every Mesozoic process is put together from the same few values, built in `main` and passed down:
//!
//! | Value | Written by | Read by |
//! |---|---|---|
//! | [`logging::LogArgs`] | the command line | [`logging::init`], once |
//! | [`Health`] | whoever owns a dependency (a source, a listener) | `/ready`, `/healthz` |
//! | [`Drain`] | the signal handler, or a dead task | every accept loop and stream |
//! | [`Metrics`] | each component registers its own | `/metrics` |
//! | [`tls::ReloadingTls`] | a file watcher | accept loops, per connection |
//! | [`lease::Lease`] | this process, by renewing | the task that may only run once |
//!
//! Nothing here is global: two services can live in one test process.

pub mod admin;
pub mod drain;
pub mod health;
pub mod lease;
pub mod logging;
pub mod metrics;
pub mod serve;
pub mod tls;

pub use admin::BuildInfo;
pub use drain::Drain;
pub use health::{Condition, Health};
pub use metrics::Metrics;

/// Installs aws-lc-rs as the process's TLS provider. Call it first in `main`; a second call is harmless.
pub fn install_tls_provider() {
    // An error means that a provider is already installed, which in this workspace can only be the same one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
