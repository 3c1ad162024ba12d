//! The real `pilot-discovery`, started as a process, with and without a real Envoy.
#![allow(clippy::unwrap_used, missing_docs)]

mod envoy;
mod harness;
mod process;
