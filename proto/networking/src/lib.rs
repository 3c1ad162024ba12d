//! proto-networking
