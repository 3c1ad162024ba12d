//! The signing services `istio.v1.auth` of Citadel, generated from `proto/`.

pub use generated::istio::v1::auth;

#[allow(missing_docs, unreachable_pub, clippy::all, rustdoc::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}
