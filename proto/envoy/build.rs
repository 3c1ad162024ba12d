//! Puts the descriptors of all Envoy messages beside this crate, without their comments.
//!
//! envoy-types ships the descriptor set that its Rust types were generated from, but does not export it; `cargo
//! metadata` tells where the crate is. Without comments it shrinks to a third.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use prost::Message;

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    let path = envoy_types()?.join("src/generated/types.bin");
    println!("cargo:rerun-if-changed={}", path.display());
    let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut set = prost_types::FileDescriptorSet::decode(&*bytes)?;
    for file in &mut set.file {
        file.source_code_info = None;
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    std::fs::write(out.join("envoy.bin"), set.encode_to_vec())?;
    Ok(())
}

/// The folder of the envoy-types package that this workspace builds with.
fn envoy_types() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").context("CARGO is not set")?;
    // Only what this target needs: other platforms' packages may not have been downloaded.
    let target = std::env::var("TARGET").context("TARGET is not set")?;
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--format-version=1",
            "--offline",
            "--filter-platform",
            &target,
        ])
        .output()
        .context("running cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "envoy-types")
        .and_then(|package| package["manifest_path"].as_str())
        .context("envoy-types is not among the packages")?;
    Ok(Path::new(manifest)
        .parent()
        .context("a manifest has a folder")?
        .to_path_buf())
}
