//! The real `pilot-discovery`, started as a process, with and without real Envoys. [`harness`] says how a test is written.
#![allow(clippy::unwrap_used, missing_docs)]

mod actions;
mod balancing;
mod capture;
mod envoy;
mod envoy_filter;
mod gateway;
mod gateway_tls;
mod grpc_client;
#[allow(dead_code, unused_imports)] // a box of tools: not each is in use at every moment
mod harness;
mod hostile;
mod matches;
mod moves;
mod outside;
mod process;
mod resilience;
mod secrets;
mod secure;
mod sniffing;
mod tcp;
mod upstream;
mod upstream_tls;
