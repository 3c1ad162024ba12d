//! The manifests of deploy/ are part of the program; a new file there must rebuild it.

fn main() {
    println!("cargo::rerun-if-changed=../deploy");
    println!("cargo::rerun-if-changed=build.rs");
}
