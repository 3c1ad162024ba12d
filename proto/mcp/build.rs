//! Generates the packages under `proto/`.

fn main() -> anyhow::Result<()> {
    proto_codegen::Codegen::packages(&[".istio"])
        .include("../wellknown/proto")
        .compile()
}
