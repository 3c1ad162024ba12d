//! The API server from outside: kube-rs in process and over TLS, real kubectl, real webhooks.
#![allow(clippy::unwrap_used, missing_docs)]

mod admission;
mod apply;
mod auth;
mod custom;
mod harness;
mod kubectl;
mod lifecycle;
mod persistence;
mod streams;
mod watch;
