//! Puts the descriptors of all Envoy messages beside this crate, without their comments.
//!
//! envoy-types ships the descriptor set that its Rust types were generated from, but does not export it; `cargo
//! metadata` tells where the crate is. Without comments it shrinks to a third. The options of messages and fields stay,
//! with the validation rules in them: the set is cut on the wire, since decoding it would drop what extends options.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    let path = envoy_types()?.join("src/generated/types.bin");
    println!("cargo:rerun-if-changed={}", path.display());
    let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    std::fs::write(out.join("envoy.bin"), without_comments(&bytes)?)?;
    Ok(())
}

/// `FileDescriptorSet.file`.
const FILE: u32 = 1;
/// `FileDescriptorProto.source_code_info`.
const SOURCE_CODE_INFO: u32 = 9;

/// The same descriptor set without `source_code_info`.
fn without_comments(mut set: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    while !set.is_empty() {
        let (number, body) = field(&mut set)?;
        ensure!(number == FILE, "not a descriptor set: field {number}");
        let mut rest = content(body)?;
        let mut file = Vec::new();
        while !rest.is_empty() {
            let (number, whole) = field(&mut rest)?;
            if number != SOURCE_CODE_INFO {
                file.extend_from_slice(whole);
            }
        }
        encode_key(FILE, WireType::LengthDelimited, &mut out);
        encode_varint(file.len() as u64, &mut out);
        out.extend_from_slice(&file);
    }
    Ok(out)
}

/// Number and encoded form of the first field, which is taken off.
fn field<'a>(bytes: &mut &'a [u8]) -> Result<(u32, &'a [u8])> {
    let whole = *bytes;
    let (number, wire_type) = decode_key(bytes)?;
    skip_field(wire_type, number, bytes, DecodeContext::default())?;
    Ok((number, &whole[..whole.len() - bytes.len()]))
}

/// What a field holds that has a length.
fn content(mut field: &[u8]) -> Result<&[u8]> {
    decode_key(&mut field)?;
    decode_varint(&mut field)?;
    Ok(field)
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
