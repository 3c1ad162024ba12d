//! Well-known protobuf types that all our APIs share: [`Duration`] and [`rpc::Status`].
//!
//! All other `google.protobuf` types are `pbjson_types`'.

mod duration;

pub use duration::{Duration, DurationError};

#[allow(missing_docs, unreachable_pub, clippy::all, rustdoc::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

/// Package `google.rpc`: the status of a call inside a message.
pub mod rpc {
    pub use super::generated::google::rpc::Status;

    impl Status {
        /// gRPC code 0.
        pub const OK: i32 = 0;

        /// Whether the call succeeded.
        pub fn is_ok(&self) -> bool {
            self.code == Self::OK
        }
    }
}
