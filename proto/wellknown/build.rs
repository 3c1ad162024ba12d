//! Generates `google.rpc`.

fn main() -> anyhow::Result<()> {
    proto_codegen::Codegen::packages(&[".google.rpc"])
        .generate_itself(".google.rpc")
        .compile()
}
