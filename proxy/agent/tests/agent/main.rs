//! pilot-agent: its bootstrap by value and before the real Envoy's eyes, and its life with a real Envoy.
//!
//! Envoy is found by the variable ENVOY or in .tools/envoy-1.40.0/envoy, where `make setup` puts it; without it the
//! tests that need it are skipped and say so.
#![allow(clippy::unwrap_used, missing_docs)]

mod bootstrap;
mod life;
mod secrets;

use std::path::PathBuf;

fn envoy() -> Option<PathBuf> {
    let tools = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../.tools/envoy-1.40.0/envoy"
    );
    let path = std::env::var_os("ENVOY").map_or_else(|| PathBuf::from(tools), PathBuf::from);
    if path.is_file() {
        return Some(path);
    }
    eprintln!(
        "SKIPPED: no Envoy at {}; run `make setup` or set ENVOY",
        path.display()
    );
    None
}
