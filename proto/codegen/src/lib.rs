//! Turns a crate's `.proto` files into Rust, for the build scripts of the other `proto-*` crates.
//!
//! Every `proto-*` crate keeps its files under `proto/` in the folder structure that imports expect. Its build script
//! calls [`Codegen::compile`]; its `lib.rs` includes [`MODULES`] from `OUT_DIR`, which nests one Rust module per package.
//!
//! Three generators run over one descriptor set: prost (types and wire format), pbjson (proto3 JSON, unknown fields
//! refused) and tonic (clients and servers of the services found). protox parses, so nobody needs protoc.
//! Maps become `BTreeMap`, so that equal messages encode to equal bytes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use prost::Message as _;

/// Name of the file in `OUT_DIR` that holds the module tree.
pub const MODULES: &str = "modules.rs";

/// Name of the file in `OUT_DIR` that holds the encoded `FileDescriptorSet`, for gRPC reflection and dynamic messages.
pub const DESCRIPTORS: &str = "descriptors.bin";

/// Types that the generated code refers to instead of generating them: the proto path, then the Rust path.
/// A longer proto path wins over a shorter one.
const EXTERN: [(&str, &str); 3] = [
    (".google.protobuf", "::pbjson_types"),
    // Istio's users write Go durations such as 1m30s, which pbjson's type does not read.
    (".google.protobuf.Duration", "::proto_wellknown::Duration"),
    (".google.rpc", "::proto_wellknown::rpc"),
];

/// What one crate generates.
#[derive(Debug)]
pub struct Codegen {
    includes: Vec<PathBuf>,
    own_packages: Vec<String>,
    externs: Vec<(String, String)>,
}

impl Codegen {
    /// Generates the packages under these proto prefixes, such as `.istio.mcp`.
    pub fn packages<S: AsRef<str>>(prefixes: &[S]) -> Self {
        Self {
            includes: vec![PathBuf::from("proto")],
            own_packages: prefixes.iter().map(|p| p.as_ref().to_owned()).collect(),
            externs: EXTERN
                .iter()
                .map(|(p, r)| ((*p).to_owned(), (*r).to_owned()))
                .collect(),
        }
    }

    /// Adds a folder in which imports are looked up.
    pub fn include(mut self, folder: impl Into<PathBuf>) -> Self {
        self.includes.push(folder.into());
        self
    }

    /// Leaves out one of the default mappings to existing types, because the crate defines these types itself.
    pub fn generate_itself(mut self, proto_path: &str) -> Self {
        self.externs.retain(|(p, _)| p != proto_path);
        self
    }

    /// Writes everything into `OUT_DIR`.
    pub fn compile(self) -> Result<()> {
        let Self {
            includes,
            own_packages,
            externs,
        } = self;
        let out = PathBuf::from(std::env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
        clear(&out)?;
        let mut files = Vec::new();
        collect_protos(Path::new("proto"), &mut files)?;
        files.sort();
        for include in &includes {
            println!("cargo:rerun-if-changed={}", include.display());
        }

        let set = protox::compile(&files, &includes).map_err(|e| anyhow::anyhow!("{e:?}"))?;
        let encoded = set.encode_to_vec();
        std::fs::write(out.join(DESCRIPTORS), &encoded)?;

        let mut config = prost_build::Config::new();
        config.compile_well_known_types().btree_map(["."]);
        for (proto, rust) in &externs {
            config.extern_path(proto, rust);
        }
        tonic_prost_build::configure()
            .out_dir(&out)
            .emit_rerun_if_changed(false)
            .compile_fds_with_config(set, config)?;

        let mut json = pbjson_build::Builder::new();
        json.out_dir(&out)
            .btree_map(["."])
            .register_descriptors(&encoded)?;
        for (proto, rust) in &externs {
            json.extern_path(proto, rust);
        }
        json.build(&own_packages)?;

        std::fs::write(out.join(MODULES), module_tree(&out)?)?;
        Ok(())
    }
}

/// Removes the files of an earlier run, which would stay in the module tree after a package went away.
fn clear(out: &Path) -> Result<()> {
    for entry in std::fs::read_dir(out)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "rs") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn collect_protos(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect_protos(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            files.push(path);
        }
    }
    Ok(())
}

#[derive(Default)]
struct Module {
    files: Vec<String>,
    children: BTreeMap<String, Module>,
}

/// Nests the generated files as `super::` paths in them expect: `a.b.rs` and `a.b.serde.rs` go into `mod a { mod b`.
fn module_tree(out: &Path) -> Result<String> {
    let mut names: Vec<String> = std::fs::read_dir(out)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    let mut root = Module::default();
    for name in names {
        let Some(stem) = name.strip_suffix(".rs").filter(|_| name != MODULES) else {
            continue;
        };
        let package = stem.strip_suffix(".serde").unwrap_or(stem);
        let module = package.split('.').fold(&mut root, |m, part| {
            m.children.entry(part.to_owned()).or_default()
        });
        module.files.push(name);
    }
    let mut text = String::new();
    render(&root, "", 0, &mut text)?;
    Ok(text)
}

fn render(module: &Module, package: &str, depth: usize, text: &mut String) -> Result<()> {
    let pad = "    ".repeat(depth);
    for file in &module.files {
        writeln!(
            text,
            "{pad}include!(concat!(env!(\"OUT_DIR\"), \"/{file}\"));"
        )?;
    }
    for (name, child) in &module.children {
        let plain = name.trim_start_matches("r#");
        let package = if package.is_empty() {
            plain.to_owned()
        } else {
            format!("{package}.{plain}")
        };
        writeln!(text, "{pad}/// Package `{package}`.")?;
        writeln!(text, "{pad}pub mod {name} {{")?;
        render(child, &package, depth + 1, text)?;
        writeln!(text, "{pad}}}")?;
    }
    Ok(())
}
