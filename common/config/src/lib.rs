//! mesh-config
