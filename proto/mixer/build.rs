//! Generates the packages under `proto/`.

/// Every package but `google.rpc`, which the imports bring along. Templates live in packages of one word.
const PACKAGES: [&str; 19] = [
    ".istio",
    ".adapter",
    ".google.api",
    ".apiKey",
    ".apikey",
    ".authorization",
    ".checkNothing",
    ".checknothing",
    ".edge",
    ".listEntry",
    ".listentry",
    ".logEntry",
    ".logentry",
    ".metric",
    ".quota",
    ".reportNothing",
    ".reportnothing",
    ".traceSpan",
    ".tracespan",
];

fn main() -> anyhow::Result<()> {
    proto_codegen::Codegen::packages(&PACKAGES)
        .include("../wellknown/proto")
        .compile()
}
