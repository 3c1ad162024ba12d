//! Streaming subresources of pods: log, exec, port-forward.

pub(crate) mod exec;
pub(crate) mod log;
pub(crate) mod portforward;
mod spdy;

use std::sync::Arc;

use crate::kubelet::{Kubelet, KubeletError};
use crate::rest::Context;
use crate::status::{ApiError, Result};

/// The node behind the pods.
fn kubelet(context: &Context) -> Result<Arc<dyn Kubelet>> {
    context.server.kubelet().ok_or_else(|| {
        ApiError::internal("no node has joined: logs, exec and port-forward need one")
    })
}

fn from_kubelet(error: KubeletError) -> ApiError {
    match error {
        KubeletError::NotFound(message) => ApiError::new(404, "NotFound", message),
        KubeletError::BadRequest(message) => ApiError::bad_request(message),
        KubeletError::Internal(message) => ApiError::internal(message),
    }
}
