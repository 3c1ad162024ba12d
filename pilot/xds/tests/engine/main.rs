//! The engine over loopback: real gRPC clients against a server whose resources come from a source in memory.
#![allow(clippy::unwrap_used, missing_docs)]

mod delta;
mod harness;
mod hostile;
mod lifecycle;
mod named;
mod services;
mod sotw;
