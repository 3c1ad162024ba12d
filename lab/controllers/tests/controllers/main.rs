//! The controllers against the lab's API server, with a node that only pretends to run pods.

#![allow(clippy::unwrap_used)]

mod autoscaler;
mod deletion;
mod endpoints;
mod kubectl;
mod lab;
mod namespaces;
mod rollout;
mod scheduler;
mod stateful_set;
mod workloads;
