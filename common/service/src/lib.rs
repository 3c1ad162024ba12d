//! mesh-service
