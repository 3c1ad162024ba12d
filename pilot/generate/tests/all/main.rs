//! Golden directories, the real Envoy's opinion on everything in them, and properties over random config.
//!
//! `UPDATE_GOLDEN=1 cargo test -p pilot-generate` rewrites `testdata/out`; read the diff before you commit it.
//! The Envoy binary is `$ENVOY`, else `.tools/envoy-1.40.0/envoy` of the workspace (put there by `make setup`).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod change;
mod envoy;
mod fixture;
mod golden;
mod patches;
mod property;
mod registries;
mod scale;
mod scoping;
mod sidecars;
mod world;
