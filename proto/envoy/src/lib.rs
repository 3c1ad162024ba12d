//! proto-envoy
