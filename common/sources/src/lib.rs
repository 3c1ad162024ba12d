//! mesh-sources
