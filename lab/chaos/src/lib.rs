//! lab-chaos
