//! lab-kubernetes
