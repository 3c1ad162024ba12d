//! Bookinfo over loopback, and its manifests.
#![allow(clippy::unwrap_used, missing_docs)]

mod manifests;
mod services;
