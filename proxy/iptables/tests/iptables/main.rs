//! istio-iptables by value (golden files) and in real network namespaces.
#![allow(clippy::unwrap_used, missing_docs)]

mod golden;
mod namespaces;
